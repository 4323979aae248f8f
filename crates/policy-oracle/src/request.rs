//! Rules about requests.

use crate::{Request, list};
use regex::Regex;
use serde_json::Value;
use std::{cell::RefCell, collections::HashMap};

thread_local! {
    /// Compiling takes longer than all the rest of a question.
    static COMPILED: RefCell<HashMap<String, Regex>> = RefCell::default();
}

/// Whether a rule means the request: each part that it names is as it says.
pub(crate) fn is_meant(rule: &Value, request: &Request) -> bool {
    is_all_of(&rule["method"], request.method)
        && is_all_of(&rule["path"], request.path)
        && is_all_of(&rule["host"], request.host)
        && list(&rule["headers"]).iter().all(|wanted| {
            // A name, or a name with a colon, and a value after a space.
            let text = wanted.as_str().unwrap_or_default();
            let (name, value) = match text.split_once(' ') {
                Some((name, value)) => (name, Some(value)),
                None => (text, None),
            };
            has(request, name.trim_end_matches(':'), value)
        })
        && list(&rule["headerMatches"]).iter().all(|wanted| {
            let name = wanted["name"].as_str().unwrap_or_default();
            has(request, name, wanted["value"].as_str())
        })
}

/// Headers of one name are one, with commas. Names have no case.
fn has(request: &Request, name: &str, value: Option<&str>) -> bool {
    let same = |(found, _): &&(&str, &str)| found.eq_ignore_ascii_case(name);
    let values: Vec<&str> = request.headers.iter().filter(same).map(|(_, v)| *v).collect();
    !values.is_empty() && value.is_none_or(|value| values.join(",") == value)
}

/// Whether an expression, where there is one, is about this text from its first character to its last.
fn is_all_of(expression: &Value, text: &str) -> bool {
    let Some(expression) = expression.as_str() else {
        return true;
    };
    COMPILED.with_borrow_mut(|known| {
        let regex = known.entry(expression.to_owned()).or_insert_with(|| {
            Regex::new(&format!("^({expression})$")).unwrap_or_else(|e| panic!("{expression}: {e}"))
        });
        regex.is_match(text)
    })
}
