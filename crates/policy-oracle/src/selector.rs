//! Label selectors.

use serde_json::Value;
use weft_model::Labels;

/// Whether a label `<source>:<name>` is the one a key means. Without a source, and with `any`, every source
/// counts.
fn is_meant(key: &str, label: &str) -> bool {
    let (source, name) = label.split_once(':').unwrap_or(("", label));
    match key.split_once(':') {
        None => key == name,
        Some(("any" | "", wanted)) => wanted == name,
        Some((wanted_source, wanted)) => wanted_source == source && wanted == name,
    }
}

/// Whether labels have a key, with one of some values if any are given.
pub(crate) fn has(labels: &Labels, key: &str, values: Option<&[&str]>) -> bool {
    labels
        .iter()
        .any(|(label, value)| is_meant(key, label) && values.is_none_or(|values| values.contains(&value)))
}

/// All conditions of a selector: key, operator, values. A label to match is one of `In`.
pub(crate) fn conditions(selector: &Value) -> Vec<(&str, &str, Vec<&str>)> {
    let mut all = Vec::new();
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        all.push((key.as_str(), "In", vec![value.as_str().unwrap_or_default()]));
    }
    for expression in super::list(&selector["matchExpressions"]) {
        let text = |field: &str| expression[field].as_str().unwrap_or_default();
        let values = super::list(&expression["values"])
            .iter()
            .filter_map(Value::as_str);
        all.push((text("key"), text("operator"), values.collect()));
    }
    all
}

/// Whether one condition holds.
pub(crate) fn holds((key, operator, values): &(&str, &str, Vec<&str>), labels: &Labels) -> bool {
    match *operator {
        "In" => has(labels, key, Some(values)),
        "NotIn" => !has(labels, key, Some(values)),
        "Exists" => has(labels, key, None),
        _ => !has(labels, key, None),
    }
}
