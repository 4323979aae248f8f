//! What shape the parts of Dapr's objects have.

use crate::{
    fields::Problems,
    tree::{Node, Value},
};

/// The shape of a part of an object.
pub(super) enum Shape {
    /// Whatever JSON can say.
    Free,
    Text,
    Bool,
    Number,
    List(&'static Shape),
    /// Whatever names, each with this.
    Map(&'static Shape),
    /// As Go writes it: `1m30s`.
    Duration,
    /// One of these texts.
    OneOf(&'static [&'static str]),
    /// These fields and no others.
    Object(&'static [(&'static str, Shape)]),
    /// Known to Dapr, without effect in this version.
    Unsupported,
}

use Shape::{Bool, Duration, Free, List, Map, Number, OneOf, Text, Unsupported};

const fn object(fields: &'static [(&'static str, Shape)]) -> Shape {
    Shape::Object(fields)
}

pub(super) const COMPONENT: Shape = object(&[
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

pub(super) const SUBSCRIPTION_V1: Shape = object(&[
    ("pubsubname", Text),
    ("topic", Text),
    ("route", Text),
    ("metadata", Free),
    ("deadLetterTopic", Text),
    ("bulkSubscribe", BULK),
]);

pub(super) const SUBSCRIPTION_V2: Shape = object(&[
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
        "http",
        object(&[
            ("increasedCardinality", Bool),
            ("pathMatching", List(&Text)),
            ("excludeVerbs", Bool),
        ]),
    ),
]);

pub(super) const CONFIGURATION: Shape = object(&[
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
    // Restrictions: taking them without acting on them would leave open what their author closed.
    ("accessControl", Unsupported),
    ("api", Unsupported),
    ("components", Unsupported),
]);

const TARGET: [(&str, Shape); 3] = [("timeout", Text), ("retry", Text), ("circuitBreaker", Text)];

pub(super) const RESILIENCY: Shape = object(&[
    (
        "policies",
        object(&[
            ("timeouts", Map(&Duration)),
            (
                "retries",
                Map(&object(&[
                    ("policy", OneOf(&["constant", "exponential"])),
                    ("duration", Duration),
                    ("maxInterval", Duration),
                    ("maxRetries", Number),
                    (
                        "matching",
                        object(&[("httpStatusCodes", Text), ("gRPCStatusCodes", Text)]),
                    ),
                ])),
            ),
            (
                "circuitBreakers",
                Map(&object(&[
                    ("maxRequests", Number),
                    ("interval", Duration),
                    ("timeout", Duration),
                    ("trip", Text),
                ])),
            ),
        ]),
    ),
    (
        "targets",
        object(&[
            (
                "apps",
                Map(&object(&[
                    ("timeout", Text),
                    ("retry", Text),
                    ("circuitBreaker", Text),
                    ("circuitBreakerCacheSize", Number),
                ])),
            ),
            (
                "actors",
                Map(&object(&[
                    ("timeout", Text),
                    ("retry", Text),
                    ("circuitBreaker", Text),
                    ("circuitBreakerScope", OneOf(&["type", "id", "both"])),
                    ("circuitBreakerCacheSize", Number),
                ])),
            ),
            (
                "components",
                Map(&object(&[
                    ("inbound", object(&TARGET)),
                    ("outbound", object(&TARGET)),
                ])),
            ),
        ]),
    ),
]);

const SOURCE: [(&str, Shape); 3] = [
    ("value", Free),
    ("secretKeyRef", object(&[("name", Text), ("key", Text)])),
    ("envRef", Text),
];

pub(super) const HTTP_ENDPOINT: Shape = object(&[
    ("baseUrl", Text),
    ("headers", List(&METADATA)),
    (
        "clientTLS",
        object(&[
            ("rootCA", object(&SOURCE)),
            ("certificate", object(&SOURCE)),
            ("privateKey", object(&SOURCE)),
            (
                "renegotiation",
                OneOf(&[
                    "RenegotiateNever",
                    "RenegotiateOnceAsClient",
                    "RenegotiateFreelyAsClient",
                ]),
            ),
        ]),
    ),
]);

/// Whether Go reads it as a duration.
fn is_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    let mut parts = 0;
    while !rest.is_empty() {
        let number = rest
            .bytes()
            .take_while(|b| b.is_ascii_digit() || *b == b'.')
            .count();
        let (digits, unit) = rest.split_at(number);
        let sound = digits.bytes().any(|b| b.is_ascii_digit()) && digits.matches('.').count() <= 1;
        let units = ["ns", "us", "µs", "μs", "ms", "s", "m", "h"];
        let Some(unit) = units.iter().find(|u| unit.starts_with(**u)).filter(|_| sound) else {
            return false;
        };
        // No unit begins like another one but for m and ms, which comes first.
        (rest, parts) = (&rest[number + unit.len()..], parts + 1);
    }
    parts > 0
}

/// Says where a part of an object has another shape.
pub(super) fn check(node: &Node, path: &str, shape: &Shape, problems: &mut Problems) {
    let mut wrong = |what: &str| {
        let quote = matches!(shape, Text | Duration | OneOf(_))
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
        (Duration, Value::Text(text)) if is_duration(text) => {}
        (Duration, Value::Text(text)) => {
            problems.add(
                node.line,
                path,
                format_args!("{text:?} is no duration such as 5s or 1m30s"),
            );
        }
        (OneOf(known), Value::Text(text)) if known.contains(&text.as_str()) => {}
        (OneOf(known), Value::Text(text)) => {
            problems.add(
                node.line,
                path,
                format_args!("{text:?} is none of {}", known.join(", ")),
            );
        }
        (Map(inner), Value::Map(entries)) => {
            for (name, _, value) in entries {
                check(value, &format!("{path}.{name}"), inner, problems);
            }
        }
        (Map(_), _) => wrong("an object"),
        (Text | Duration | OneOf(_), _) => wrong("a text"),
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
