//! Headers that say who asks: at a gateway all of them are written anew, whatever the client wrote.
//! Between workloads only the claims are, which apps take for the mesh's own word; a workload may be
//! a proxy itself, so what it says of its clients is passed on.

use http::{HeaderMap, HeaderName, HeaderValue};
use std::{io::Write, net::IpAddr};
use weft_flows::Party;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CALLER_APP_ID: HeaderName = HeaderName::from_static("dapr-caller-app-id");
const CALLER_NAMESPACE: HeaderName = HeaderName::from_static("dapr-caller-namespace");
const CALLEE_APP_ID: HeaderName = HeaderName::from_static("dapr-callee-app-id");
/// Said by proxies, and not by this one.
const NOT_SAID: [&str; 9] = [
    "forwarded",
    "x-forwarded-port",
    "x-forwarded-server",
    "x-forwarded-prefix",
    "x-forwarded-client-cert",
    "x-real-ip",
    "x-envoy-external-address",
    "x-envoy-original-path",
    "true-client-ip",
];

/// A request enters the mesh. Answers which headers claimed something and were overwritten.
pub(crate) fn enter(headers: &mut HeaderMap, client: IpAddr, host: &HeaderValue) -> Vec<&'static str> {
    let mut forged = claims(headers, None);
    for name in NOT_SAID {
        if headers.remove(name).is_some() {
            forged.push(name);
        }
    }
    for (name, text) in [
        (FORWARDED_FOR, "x-forwarded-for"),
        (FORWARDED_HOST, "x-forwarded-host"),
        (FORWARDED_PROTO, "x-forwarded-proto"),
    ] {
        if headers.contains_key(name) {
            forged.push(text);
        }
    }
    // An address has at most 45 characters.
    let mut text = [0; 48];
    let mut rest = &mut text[..];
    let written = write!(rest, "{}", client.to_canonical()).is_ok();
    let left = rest.len();
    match HeaderValue::from_bytes(&text[..48 - left]) {
        Ok(address) if written => drop(headers.insert(FORWARDED_FOR, address)),
        _ => drop(headers.remove(FORWARDED_FOR)),
    }
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    headers.insert(FORWARDED_HOST, host.clone());
    let mut text = uuid::Uuid::encode_buffer();
    let id = uuid::Uuid::new_v4().hyphenated().encode_lower(&mut text);
    match HeaderValue::from_str(id) {
        Ok(id) => drop(headers.insert(REQUEST_ID, id)),
        Err(_) => drop(headers.remove(REQUEST_ID)),
    }
    forged
}

/// Claims of who calls whom, where there are any: of `caller` what is true, otherwise none. Answers
/// which were not true.
pub(crate) fn claims(headers: &mut HeaderMap, caller: Option<&Party>) -> Vec<&'static str> {
    let mut forged = Vec::new();
    if headers.remove(CALLEE_APP_ID).is_some() {
        forged.push("dapr-callee-app-id");
    }
    for (name, text, truth) in [
        (
            CALLER_APP_ID,
            "dapr-caller-app-id",
            caller.map(|party| &party.app_id),
        ),
        (
            CALLER_NAMESPACE,
            "dapr-caller-namespace",
            caller.map(|party| &party.namespace),
        ),
    ] {
        let Some(said) = headers.get(&name) else { continue };
        if truth.is_none_or(|truth| said.as_bytes() != truth.as_bytes()) {
            forged.push(text);
        }
        match truth.and_then(|text| HeaderValue::from_str(text).ok()) {
            Some(text) => drop(headers.insert(name, text)),
            None => drop(headers.remove(name)),
        }
    }
    forged
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use weft_model::NumericIdentity;

    fn forged() -> HeaderMap {
        let mut headers = HeaderMap::new();
        let not_said = NOT_SAID.into_iter().map(HeaderName::from_static);
        for name in not_said.chain([
            FORWARDED_FOR,
            FORWARDED_HOST,
            FORWARDED_PROTO,
            REQUEST_ID,
            CALLER_APP_ID,
            CALLER_NAMESPACE,
            CALLEE_APP_ID,
        ]) {
            headers.append(name.clone(), HeaderValue::from_static("forged"));
            headers.append(name, HeaderValue::from_static("twice"));
        }
        headers.insert("x-own", HeaderValue::from_static("kept"));
        headers
    }

    #[test]
    fn nothing_that_a_client_claims_enters() {
        let mut headers = forged();
        let client = "::ffff:192.0.2.7".parse().unwrap();
        let told = enter(&mut headers, client, &HeaderValue::from_static("shop.example:80"));
        assert_eq!(told.len(), NOT_SAID.len() + 6, "{told:?}");
        assert!(told.iter().all(|name| forged().contains_key(*name)), "{told:?}");
        let said: Vec<_> = headers
            .iter()
            .map(|(n, v)| (n.as_str(), v.to_str().unwrap()))
            .collect();
        assert!(
            said.iter().all(|(_, value)| !["forged", "twice"].contains(value)),
            "{said:?}"
        );
        for pair in [
            ("x-forwarded-for", "192.0.2.7"),
            ("x-forwarded-host", "shop.example:80"),
            ("x-forwarded-proto", "http"),
            ("x-own", "kept"),
        ] {
            assert!(said.contains(&pair), "{pair:?} in {said:?}");
        }
        assert_eq!(headers[REQUEST_ID].len(), 36);
        assert_eq!(headers.len(), 5);
    }

    #[test]
    fn between_workloads_only_claims_of_identity_are_corrected() {
        let party = Party {
            namespace: "default".into(),
            workload: "shop-1".into(),
            app_id: "shop".into(),
            identity: NumericIdentity(300),
            spiffe_id: "".into(),
            address: None,
            node: "n1".into(),
        };
        let mut headers = forged();
        let told = claims(&mut headers, Some(&party));
        assert_eq!(
            told,
            [
                "dapr-callee-app-id",
                "dapr-caller-app-id",
                "dapr-caller-namespace"
            ]
        );
        assert_eq!(headers[CALLER_APP_ID], "shop");
        assert!(claims(&mut headers, Some(&party)).is_empty(), "now it is true");
        assert_eq!(headers[CALLER_NAMESPACE], "default");
        assert!(!headers.contains_key(CALLEE_APP_ID));
        assert_eq!(headers[FORWARDED_FOR], "forged");
        // Where nothing was claimed, nothing is said.
        let mut headers = HeaderMap::new();
        claims(&mut headers, Some(&party));
        assert!(headers.is_empty());
    }
}
