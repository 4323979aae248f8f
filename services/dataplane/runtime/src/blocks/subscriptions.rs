//! What an app subscribes to: its own answer to `GET /dapr/subscribe`, and manifests of kind
//! Subscription.

use super::rules::{Rule, Rules};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Of one app.
const MAX_SUBSCRIPTIONS: usize = 1024;
/// Of one subscription, and of all of an app.
const MAX_RULES: usize = 64;
const MAX_RULES_IN_ALL: usize = 2048;

/// Where a subscription comes from, as Dapr's metadata API names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// A manifest.
    Declarative,
    /// The app's own answer.
    Programmatic,
    /// A stream that the app has open.
    Streaming,
}

impl Origin {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Declarative => "DECLARATIVE",
            Self::Programmatic => "PROGRAMMATIC",
            Self::Streaming => "STREAMING",
        }
    }
}

/// One subscription.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Subscription {
    pub pubsub: String,
    pub topic: String,
    pub rules: Rules,
    pub metadata: Vec<(String, String)>,
    pub dead_letter: Option<String>,
    pub origin: Origin,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    pubsubname: String,
    topic: String,
    route: Option<String>,
    routes: Option<Routes>,
    metadata: Option<BTreeMap<String, String>>,
    #[serde(rename = "deadLetterTopic")]
    dead_letter: Option<String>,
    #[serde(rename = "bulkSubscribe")]
    bulk: Option<Bulk>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Routes {
    rules: Option<Vec<RuleEntry>>,
    default: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RuleEntry {
    r#match: Option<String>,
    path: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Bulk {
    enabled: bool,
}

impl Entry {
    fn read(self, origin: Origin) -> Result<Subscription, String> {
        let what = format!("subscription to topic {:?} of {:?}", self.topic, self.pubsubname);
        if self.pubsubname.is_empty() || self.topic.is_empty() {
            return Err(format!("{what}: both must be named"));
        }
        if self.bulk.is_some_and(|bulk| bulk.enabled) {
            return Err(format!("{what}: bulkSubscribe is not served yet"));
        }
        let routes = self.routes.unwrap_or_default();
        let given = routes.rules.unwrap_or_default();
        if given.len() > MAX_RULES {
            return Err(format!("{what}: more than {MAX_RULES} rules"));
        }
        let mut rules = Vec::with_capacity(given.len() + 1);
        for rule in given {
            let condition = rule.r#match.unwrap_or_default();
            rules.push(Rule::new(&condition, &rule.path).map_err(|e| format!("{what}: {e}"))?);
        }
        let default = routes.default.filter(|path| !path.is_empty());
        if let Some(path) = default.or(self.route).filter(|path| !path.is_empty()) {
            rules.push(Rule::new("", &path)?);
        }
        if rules.is_empty() {
            return Err(format!("{what}: it has no route"));
        }
        Ok(Subscription {
            pubsub: self.pubsubname,
            topic: self.topic,
            rules: Rules(rules),
            metadata: self.metadata.unwrap_or_default().into_iter().collect(),
            dead_letter: self.dead_letter.filter(|topic| !topic.is_empty()),
            origin,
        })
    }
}

/// The app's answer; with it what of it can not be used, in words. Reading conditions takes its time.
pub(crate) fn programmatic(body: &[u8]) -> Result<(Vec<Subscription>, Vec<String>), String> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Default::default());
    }
    let entries: Option<Vec<Entry>> =
        serde_json::from_slice(body).map_err(|e| format!("error deserializing subscriptions: {e}"))?;
    let entries = entries.unwrap_or_default();
    if entries.len() > MAX_SUBSCRIPTIONS {
        return Err(format!("more than {MAX_SUBSCRIPTIONS} subscriptions"));
    }
    let rules = |entry: &Entry| {
        entry
            .routes
            .as_ref()
            .and_then(|r| r.rules.as_ref())
            .map_or(0, Vec::len)
    };
    if entries.iter().map(rules).sum::<usize>() > MAX_RULES_IN_ALL {
        return Err(format!("more than {MAX_RULES_IN_ALL} rules"));
    }
    let (mut sound, mut problems) = (Vec::new(), Vec::new());
    for entry in entries {
        match entry.read(Origin::Programmatic) {
            Ok(subscription) => sound.push(subscription),
            Err(problem) => problems.push(problem),
        }
    }
    Ok((sound, problems))
}

/// A manifest's `spec`: `route` (v1alpha1) or `routes` (v2alpha1).
pub(crate) fn declarative(json: &[u8]) -> Result<Subscription, String> {
    #[derive(Deserialize)]
    struct Manifest {
        spec: Entry,
    }
    let manifest: Manifest = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    manifest.spec.read(Origin::Declarative)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_routes_are_read() {
        let body = br#"[
            {"pubsubname": "bus", "topic": "a", "route": "on-a", "metadata": {"rawPayload": "true"}, "deadLetterTopic": "dead"},
            {"pubsubname": "bus", "topic": "b", "routes": {"rules": [{"match": "event.type == \"x\"", "path": "/x"}], "default": "/rest"}},
            {"pubsubname": "bus", "topic": "c", "route": "/c", "deadLetterTopic": ""}
        ]"#;
        let (read, problems) = programmatic(body).unwrap();
        assert_eq!(problems, [""; 0]);
        assert_eq!(read[0].rules.paths(), ["/on-a"]);
        assert_eq!(read[0].metadata, [("rawPayload".to_owned(), "true".to_owned())]);
        assert_eq!(
            (read[0].dead_letter.as_deref(), &read[2].dead_letter),
            (Some("dead"), &None)
        );
        assert_eq!(read[1].rules.paths(), ["/x", "/rest"]);
        let manifest =
            br#"{"spec": {"pubsubname": "bus", "topic": "a", "routes": {"default": "/a"}}, "scopes": ["x"]}"#;
        assert_eq!(declarative(manifest).unwrap().origin, Origin::Declarative);
    }

    #[test]
    fn what_can_not_be_used_is_named_and_the_rest_goes_on() {
        let body = br#"[
            {"pubsubname": "bus", "topic": "a"},
            {"topic": "b", "route": "/b"},
            {"pubsubname": "bus", "topic": "c", "route": "/c", "bulkSubscribe": {"enabled": true}},
            {"pubsubname": "bus", "topic": "d", "routes": {"rules": [{"match": "event.", "path": "/x"}]}},
            {"pubsubname": "bus", "topic": "e", "route": "/e"}
        ]"#;
        let (read, problems) = programmatic(body).unwrap();
        assert_eq!(read.len(), 1);
        for (problem, said) in problems
            .iter()
            .zip(["no route", "must be named", "bulkSubscribe", "event."])
        {
            assert!(problem.contains(said), "{problem}");
        }
        assert_eq!(problems.len(), 4);
        assert_eq!(programmatic(b" ").unwrap(), Default::default());
        assert_eq!(programmatic(b"null").unwrap(), Default::default());
        assert!(programmatic(b"{}").is_err());
        let many = format!("[{}]", vec!["{}"; MAX_SUBSCRIPTIONS + 1].join(","));
        assert!(programmatic(many.as_bytes()).is_err());
    }

    #[test]
    fn fuzz_subscriptions() {
        let seeds = [
            r#"[{"pubsubname": "bus", "topic": "a", "route": "on-a", "metadata": {"rawPayload": "true"}, "deadLetterTopic": "dead"}]"#,
            r#"[{"pubsubname": "bus", "topic": "b", "routes": {"rules": [{"match": "event.type == \"x\" && has(event.data.a)", "path": "/x"}], "default": "/r"}}]"#,
        ];
        let corpus =
            weft_fuzz::Corpus::of(seeds).words(["event.", "==", "null", "&&", "in", "[]", "\"match\""]);
        weft_fuzz::target!(corpus, |body: &[u8]| {
            if let Ok((sound, _)) = programmatic(body) {
                for subscription in sound {
                    assert!(!subscription.rules.paths().is_empty() && !subscription.topic.is_empty());
                }
            }
        });
    }
}
