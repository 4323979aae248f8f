//! Headers that say who calls whom: whatever an app or another node wrote there is replaced by
//! what is known.

use crate::context::CallerHeaders;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use weft_flows::Party;
use weft_model::NumericIdentity;

pub(crate) const API_TOKEN: HeaderName = HeaderName::from_static("dapr-api-token");
pub(crate) const APP_ID: HeaderName = HeaderName::from_static("dapr-app-id");
const CALLER_APP_ID: HeaderName = HeaderName::from_static("dapr-caller-app-id");
const CALLER_NAMESPACE: HeaderName = HeaderName::from_static("dapr-caller-namespace");
const CALLEE_APP_ID: HeaderName = HeaderName::from_static("dapr-callee-app-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HTTP: HeaderValue = HeaderValue::from_static("http");
/// Said by proxies, never true from an app, and not said by us.
const NOT_SAID: [&str; 7] = [
    "x-forwarded-port",
    "x-forwarded-server",
    "x-forwarded-prefix",
    "x-forwarded-client-cert",
    "x-real-ip",
    "x-envoy-external-address",
    "true-client-ip",
];
const SAID: [(HeaderName, &str); 4] = [
    (header::FORWARDED, "forwarded"),
    (FORWARDED_FOR, "x-forwarded-for"),
    (FORWARDED_HOST, "x-forwarded-host"),
    (FORWARDED_PROTO, "x-forwarded-proto"),
];

/// Whose word the headers are that say by which hands a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forwarding {
    /// An app's: nobody's.
    Claimed,
    /// This agent's, and its caller is one hand more.
    Ours,
    /// The agent's of the caller.
    Complete,
}

/// What arrives at a shared endpoint, as the hop before it saw it: on the request, for the call that comes
/// of it.
#[derive(Debug, Clone)]
pub(crate) struct Arrived {
    /// Headers that claimed what was not so.
    pub forged: Vec<&'static str>,
}

/// A request arrives at a shared endpoint: what it says of its way is made true. A gateway of the mesh has
/// done so before.
pub(crate) fn arrive(headers: &mut HeaderMap, from: &Party) -> Arrived {
    let mut forged = Vec::new();
    if from.identity != NumericIdentity::INGRESS {
        for (name, text) in SAID {
            if headers.remove(name).is_some() {
                forged.push(text);
            }
        }
        if let Some(address) = from.address
            && let Ok(address) = HeaderValue::from_str(&address.to_canonical().to_string())
        {
            headers.insert(FORWARDED_FOR, address);
        }
        if let Some(host) = headers.get(header::HOST).cloned() {
            headers.insert(FORWARDED_HOST, host);
        }
        headers.insert(FORWARDED_PROTO, HTTP);
    }
    Arrived { forged }
}

/// Writes who calls whom. Answers which headers claimed what is not so.
pub(crate) fn set_parties(
    headers: &mut HeaderMap,
    caller: &CallerHeaders,
    callee: &str,
    forwarding: Forwarding,
) -> Vec<&'static str> {
    let mut forged = Vec::new();
    for name in NOT_SAID {
        if headers.remove(name).is_some() {
            forged.push(name);
        }
    }
    let callee = HeaderValue::from_str(callee).unwrap_or(HeaderValue::from_static(""));
    for (name, text, truth) in [
        (CALLER_APP_ID, "dapr-caller-app-id", caller.app_id.clone()),
        (
            CALLER_NAMESPACE,
            "dapr-caller-namespace",
            caller.namespace.clone(),
        ),
        (CALLEE_APP_ID, "dapr-callee-app-id", callee),
    ] {
        let mut said = headers.get_all(&name).iter();
        if said.any(|said| *said != truth) {
            forged.push(text);
        }
        headers.insert(name, truth);
    }
    match forwarding {
        Forwarding::Complete => {}
        Forwarding::Ours => add_hand(headers, caller),
        Forwarding::Claimed => {
            let claimed = SAID.into_iter().filter(|(name, _)| headers.contains_key(name));
            forged.extend(claimed.map(|(_, text)| text));
            headers.insert(header::FORWARDED, caller.forwarded.clone());
            headers.insert(FORWARDED_HOST, caller.forwarded_host.clone());
            headers.insert(FORWARDED_PROTO, HTTP);
            match &caller.forwarded_for {
                Some(address) => headers.insert(FORWARDED_FOR, address.clone()),
                None => headers.remove(FORWARDED_FOR),
            };
        }
    }
    forged
}

/// One more hand behind those that are named already.
fn add_hand(headers: &mut HeaderMap, caller: &CallerHeaders) {
    let client = headers.get(FORWARDED_FOR).and_then(|value| value.to_str().ok());
    let client = client.map(str::to_owned);
    if let (Some(client), Some(own)) = (&client, &caller.forwarded_for) {
        let own = own.to_str().unwrap_or_default();
        if let Ok(both) = HeaderValue::from_str(&format!("{client}, {own}")) {
            headers.insert(FORWARDED_FOR, both);
        }
    }
    let own = caller.forwarded.to_str().unwrap_or_default();
    let forwarded = match &client {
        Some(client) if client.contains(':') => format!("for=\"[{client}]\", {own}"),
        Some(client) => format!("for={client}, {own}"),
        None => own.to_owned(),
    };
    if let Ok(forwarded) = HeaderValue::from_str(&forwarded) {
        headers.insert(header::FORWARDED, forwarded);
    }
    if !headers.contains_key(FORWARDED_HOST) {
        headers.insert(FORWARDED_HOST, caller.forwarded_host.clone());
    }
    headers.insert(FORWARDED_PROTO, HTTP);
}
