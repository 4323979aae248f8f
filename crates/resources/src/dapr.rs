//! `dapr.io` Component, Configuration and Subscription. Their content goes to agents as JSON; what is checked
//! here is its shape, so that a slip of the pen is told at its line and not at run time on some node.

use crate::{
    fields::{Field, Object, Problems},
    tree::{Node, Value},
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

/// The shape of a part of an object.
enum Shape {
    /// Whatever JSON can say.
    Free,
    Text,
    Bool,
    Number,
    List(&'static Shape),
    /// These fields and no others.
    Object(&'static [(&'static str, Shape)]),
    /// Known to Dapr, without effect in this version.
    Unsupported,
}

use Shape::{Bool, Free, List, Number, Text, Unsupported};

const fn object(fields: &'static [(&'static str, Shape)]) -> Shape {
    Shape::Object(fields)
}

const COMPONENT: Shape = object(&[
    ("type", Text),
    ("version", Text),
    ("ignoreErrors", Bool),
    ("initTimeout", Text),
    ("metadata", List(&METADATA)),
]);

const METADATA: Shape = object(&[
    ("name", Text),
    ("value", Free),
    ("secretKeyRef", object(&[("name", Text), ("key", Text)])),
    ("envRef", Text),
]);

const BULK: Shape = object(&[
    ("enabled", Bool),
    ("maxMessagesCount", Number),
    ("maxAwaitDurationMs", Number),
]);

const SUBSCRIPTION_V1: Shape = object(&[
    ("pubsubname", Text),
    ("topic", Text),
    ("route", Text),
    ("metadata", Free),
    ("deadLetterTopic", Text),
    ("bulkSubscribe", BULK),
]);

const SUBSCRIPTION_V2: Shape = object(&[
    ("pubsubname", Text),
    ("topic", Text),
    (
        "routes",
        object(&[
            ("rules", List(&object(&[("match", Text), ("path", Text)]))),
            ("default", Text),
        ]),
    ),
    ("metadata", Free),
    ("deadLetterTopic", Text),
    ("bulkSubscribe", BULK),
]);

const PIPELINE: Shape = object(&[(
    "handlers",
    List(&object(&[
        ("name", Text),
        ("type", Text),
        ("version", Text),
        ("selector", Free),
    ])),
)]);

const METRIC: Shape = object(&[
    ("enabled", Bool),
    ("recordErrorCodes", Bool),
    ("latencyDistributionBuckets", List(&Number)),
    ("rules", Free),
    ("workflow", Free),
    (
        "secrets",
        object(&[(
            "scopes",
            List(&object(&[
                ("storeName", Text),
                ("defaultAccess", Text),
                ("allowedSecrets", List(&Text)),
                ("deniedSecrets", List(&Text)),
            ])),
        )]),
    ),
    (
        "http",
        object(&[
            ("increasedCardinality", Bool),
            ("pathMatching", List(&Text)),
            ("excludeVerbs", Bool),
        ]),
    ),
]);

const CONFIGURATION: Shape = object(&[
    (
        "tracing",
        object(&[
            ("samplingRate", Free),
            ("stdout", Bool),
            ("zipkin", object(&[("endpointAddress", Text)])),
            (
                "otel",
                object(&[
                    ("protocol", Text),
                    ("endpointAddress", Text),
                    ("isSecure", Bool),
                    ("headers", Free),
                    ("timeout", Free),
                ]),
            ),
        ]),
    ),
    ("metric", METRIC),
    ("metrics", METRIC),
    ("httpPipeline", PIPELINE),
    ("appHttpPipeline", PIPELINE),
    (
        "mtls",
        object(&[
            ("enabled", Bool),
            ("workloadCertTTL", Text),
            ("allowedClockSkew", Text),
            ("sentryAddress", Text),
            ("controlPlaneTrustDomain", Text),
            ("tokenValidators", Free),
        ]),
    ),
    (
        "nameResolution",
        object(&[("component", Text), ("version", Text), ("configuration", Free)]),
    ),
    ("features", List(&object(&[("name", Text), ("enabled", Bool)]))),
    (
        "logging",
        object(&[(
            "apiLogging",
            object(&[
                ("enabled", Bool),
                ("obfuscateURLs", Bool),
                ("omitHealthChecks", Bool),
            ]),
        )]),
    ),
    ("wasm", object(&[("strictSandbox", Bool)])),
    ("workflow", Free),
    // Restrictions: taking them without acting on them would leave open what their author closed.
    ("accessControl", Unsupported),
    ("api", Unsupported),
    ("components", Unsupported),
]);

fn check(node: &Node, path: &str, shape: &Shape, problems: &mut Problems) {
    let mut wrong = |what: &str| {
        let quote = matches!(shape, Text)
            && matches!(node.value, Value::Bool(_) | Value::Integer(_) | Value::Float(_));
        let hint = if quote { "; put it in quotes" } else { "" };
        problems.add(
            node.line,
            path,
            format_args!("must be {what}, found {}{hint}", node.value.kind()),
        );
    };
    match (shape, &node.value) {
        (_, Value::Null) | (Free, _) | (Text, Value::Text(_)) | (Bool, Value::Bool(_)) => {}
        (Number, Value::Integer(_) | Value::Float(_)) => {}
        (Text, _) => wrong("a text"),
        (Bool, _) => wrong("true or false"),
        (Number, _) => wrong("a number"),
        (Unsupported, _) => problems.add(node.line, path, "is not supported yet"),
        (List(inner), Value::List(items)) => {
            for (i, item) in items.iter().enumerate() {
                check(item, &format!("{path}[{i}]"), inner, problems);
            }
        }
        (List(_), _) => wrong("a list"),
        (Shape::Object(fields), Value::Map(entries)) => {
            for (name, line, value) in entries {
                let path = format!("{path}.{name}");
                match fields.iter().find(|(known, _)| known == name) {
                    Some((_, inner)) => check(value, &path, inner, problems),
                    None => problems.add(*line, &path, "unknown field"),
                }
            }
        }
        (Shape::Object(_), _) => wrong("an object"),
    }
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
            &Shape::Object(&[("secretStore", Text)]),
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
