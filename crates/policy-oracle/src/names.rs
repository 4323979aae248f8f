//! Names in DNS: `matchName` and `matchPattern`, by the expression that Cilium makes of a pattern.

use regex::Regex;
use serde_json::Value;
use std::{cell::RefCell, collections::HashMap, net::IpAddr};

thread_local! {
    /// Compiling takes longer than all the rest of a question.
    static COMPILED: RefCell<HashMap<String, Regex>> = RefCell::default();
}

const ANY: &str = "[-a-zA-Z0-9_]";

/// Whether a rule means a name, both with or without the dot at the end.
pub(crate) fn is_meant(rule: &Value, name: &str) -> bool {
    let full = |name: &str| format!("{}.", name.trim_end_matches('.').to_ascii_lowercase());
    if let Some(own) = rule["matchName"].as_str() {
        return full(own) == full(name);
    }
    let pattern = rule["matchPattern"].as_str().unwrap_or_default();
    let expression = if pattern == "*" {
        format!("^({ANY}+[.])+$|^[.]$")
    } else {
        let pattern = full(pattern);
        let (first, rest) = match pattern.strip_prefix("**.") {
            Some(rest) => (format!("{ANY}+([.]{ANY}+)*[.]"), rest),
            None => (String::new(), &*pattern),
        };
        let rest = rest.replace('.', "[.]").replace('*', &format!("{ANY}*"));
        format!("^{first}{rest}$")
    };
    COMPILED.with_borrow_mut(|known| {
        let regex = known
            .entry(expression)
            .or_insert_with_key(|text| Regex::new(text).unwrap_or_else(|e| panic!("{text}: {e}")));
        regex.is_match(&full(name))
    })
}

/// Whether an address is one of those that a name has that is meant.
pub(crate) fn is_at(rule: &Value, all: &[Value], address: IpAddr) -> bool {
    let known = all.iter().filter(|object| object["kind"] == "Resolved");
    let mut names = known.flat_map(|object| object["names"].as_object().into_iter().flatten());
    names.any(|(name, addresses)| {
        let is = |a: &Value| a.as_str().is_some_and(|text| text.parse() == Ok(address));
        is_meant(rule, name) && super::list(addresses).iter().any(is)
    })
}
