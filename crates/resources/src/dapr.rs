//! `dapr.io` Component, Configuration, Subscription, Resiliency and HTTPEndpoint. Their content goes to agents as JSON; what is checked
//! here is its shape, so that a slip of the pen is told at its line and not at run time on some node.

mod shape;

use crate::{
    fields::{Field, Object, Problems},
    tree::{Node, Value},
};
use shape::{
    COMPONENT, CONFIGURATION, HTTP_ENDPOINT, RESILIENCY, SUBSCRIPTION_V1, SUBSCRIPTION_V2, Shape, check,
};
use weft_model::check_app_id;

/// A Component, Configuration or Subscription.
#[derive(Debug, Clone, PartialEq)]
pub struct DaprObject {
    /// App-ids it is for; empty for all of its namespace.
    pub scopes: Vec<String>,
    /// The object as written, without `status`.
    pub json: serde_json::Value,
}

fn content(document: &Node) -> serde_json::Value {
    let mut json = document.to_json();
    if let Some(object) = json.as_object_mut() {
        object.remove("status");
    }
    json
}

pub(crate) fn component(
    object: &mut Object<'_>,
    document: &Node,
    problems: &mut Problems,
) -> Option<DaprObject> {
    if let Some(auth) = object.take("auth") {
        check(
            auth.node,
            &auth.path,
            &Shape::Object(&[("secretStore", Shape::Text)]),
            problems,
        );
    }
    let scopes = scopes(object, problems);
    let spec = object.need("spec", problems)?;
    check(spec.node, &spec.path, &COMPONENT, problems);
    let mut fields = spec.object(problems)?;
    for name in ["type", "version"] {
        fields.need(name, problems);
    }
    for item in fields
        .take("metadata")
        .and_then(|f| f.list(problems))
        .unwrap_or_default()
    {
        metadata_item(&item, problems);
    }
    Some(DaprObject {
        scopes,
        json: content(document),
    })
}

fn metadata_item(item: &Field<'_>, problems: &mut Problems) {
    let Value::Map(_) = item.node.value else { return };
    let Some(mut object) = item.object(problems) else {
        return;
    };
    object.need("name", problems);
    let sources = ["value", "secretKeyRef", "envRef"]
        .into_iter()
        .filter(|n| object.take(n).is_some())
        .count();
    if sources > 1 {
        item.fail(problems, "has more than one of value, secretKeyRef and envRef");
    }
}

fn scopes(object: &mut Object<'_>, problems: &mut Problems) -> Vec<String> {
    let fields = object.take("scopes").and_then(|f| f.list(problems));
    let fields = fields.unwrap_or_default().into_iter();
    fields
        .filter_map(|field| field.checked(problems, check_app_id))
        .collect()
}

/// `route` is v1alpha1's, `routes` v2alpha1's.
pub(crate) fn subscription(
    object: &mut Object<'_>,
    api_version: &str,
    document: &Node,
    problems: &mut Problems,
) -> Option<DaprObject> {
    let scopes = scopes(object, problems);
    let spec = object.need("spec", problems)?;
    let (shape, route) = match api_version {
        "dapr.io/v1alpha1" => (&SUBSCRIPTION_V1, "route"),
        _ => (&SUBSCRIPTION_V2, "routes"),
    };
    check(spec.node, &spec.path, shape, problems);
    let mut fields = spec.object(problems)?;
    for name in ["pubsubname", "topic", route] {
        fields.need(name, problems);
    }
    Some(DaprObject {
        scopes,
        json: content(document),
    })
}

pub(crate) fn resiliency(
    object: &mut Object<'_>,
    document: &Node,
    problems: &mut Problems,
) -> Option<DaprObject> {
    let scopes = scopes(object, problems);
    let spec = object.need("spec", problems)?;
    check(spec.node, &spec.path, &RESILIENCY, problems);
    let mut fields = spec.object(problems)?;
    fields.need("targets", problems);
    Some(DaprObject {
        scopes,
        json: content(document),
    })
}

pub(crate) fn http_endpoint(
    object: &mut Object<'_>,
    document: &Node,
    problems: &mut Problems,
) -> Option<DaprObject> {
    if let Some(auth) = object.take("auth") {
        check(
            auth.node,
            &auth.path,
            &Shape::Object(&[("secretStore", Shape::Text)]),
            problems,
        );
    }
    let scopes = scopes(object, problems);
    let spec = object.need("spec", problems)?;
    check(spec.node, &spec.path, &HTTP_ENDPOINT, problems);
    let mut fields = spec.object(problems)?;
    if let Some(url) = fields.need("baseUrl", problems) {
        // Another kind of value was told above.
        if let Value::Text(text) = &url.node.value
            && !is_address(text)
        {
            url.fail(
                problems,
                format_args!("{text:?} is no address such as https://api.example.com:8443"),
            );
        }
    }
    for item in fields
        .take("headers")
        .and_then(|f| f.list(problems))
        .unwrap_or_default()
    {
        metadata_item(&item, problems);
    }
    Some(DaprObject {
        scopes,
        json: content(document),
    })
}

pub(crate) fn configuration(
    object: &mut Object<'_>,
    document: &Node,
    problems: &mut Problems,
) -> Option<DaprObject> {
    if let Some(spec) = object.take("spec") {
        check(spec.node, &spec.path, &CONFIGURATION, problems);
    }
    Some(DaprObject {
        scopes: Vec::new(),
        json: content(document),
    })
}

fn is_address(text: &str) -> bool {
    let rest = ["http://", "https://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['/', ':', '?', '#']))
}
