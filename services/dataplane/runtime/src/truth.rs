//! Headers that say who calls whom: whatever an app or another node wrote there is replaced by
//! what is known.

use crate::context::CallerHeaders;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use weft_flows::Party;

pub(crate) const API_TOKEN: HeaderName = HeaderName::from_static("dapr-api-token");
pub(crate) const APP_ID: HeaderName = HeaderName::from_static("dapr-app-id");
const CALLER_APP_ID: HeaderName = HeaderName::from_static("dapr-caller-app-id");
const CALLER_NAMESPACE: HeaderName = HeaderName::from_static("dapr-caller-namespace");
const CALLEE_APP_ID: HeaderName = HeaderName::from_static("dapr-callee-app-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// Said by proxies, never true from an app, and not said by us.
const NOT_SAID: [HeaderName; 8] = [
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-server"),
    HeaderName::from_static("x-forwarded-prefix"),
    HeaderName::from_static("x-forwarded-client-cert"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("x-envoy-external-address"),
    HeaderName::from_static("true-client-ip"),
];

/// Writes who calls whom.
pub(crate) fn set_parties(headers: &mut HeaderMap, caller: &CallerHeaders, callee: &Party) {
    for name in NOT_SAID {
        headers.remove(name);
    }
    headers.insert(CALLER_APP_ID, caller.app_id.clone());
    headers.insert(CALLER_NAMESPACE, caller.namespace.clone());
    let callee = HeaderValue::from_str(&callee.app_id).unwrap_or(HeaderValue::from_static(""));
    headers.insert(CALLEE_APP_ID, callee);
    headers.insert(header::FORWARDED, caller.forwarded.clone());
    headers.insert(FORWARDED_HOST, caller.forwarded_host.clone());
    match &caller.forwarded_for {
        Some(address) => headers.insert(FORWARDED_FOR, address.clone()),
        None => headers.remove(FORWARDED_FOR),
    };
}
