//! A component's metadata, and the check of it: every key is known and every needed one is there, or
//! the error names them.

use std::time::Duration;

/// Of one component.
const MAX_KEYS: usize = 128;
/// Of one value.
const MAX_VALUE: usize = 64 * 1024;

/// A building block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Block {
    /// `state.*`
    State,
    /// `pubsub.*`
    PubSub,
    /// `bindings.*`
    Bindings,
    /// `secretstores.*`
    Secrets,
    /// `configuration.*`
    Configuration,
    /// `lock.*`
    Lock,
}

impl Block {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::State,
        Self::PubSub,
        Self::Bindings,
        Self::Secrets,
        Self::Configuration,
        Self::Lock,
    ];

    /// The first part of `spec.type`.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::PubSub => "pubsub",
            Self::Bindings => "bindings",
            Self::Secrets => "secretstores",
            Self::Configuration => "configuration",
            Self::Lock => "lock",
        }
    }

    /// What the runtime reads itself, whatever the driver.
    fn common(self) -> &'static [&'static str] {
        match self {
            Self::State | Self::Lock => &["keyPrefix"],
            Self::PubSub => &[
                "consumerID",
                "publishingScopes",
                "subscriptionScopes",
                "allowedTopics",
                "protectedTopics",
            ],
            Self::Bindings => &["direction", "route"],
            Self::Secrets | Self::Configuration => &[],
        }
    }

    /// What Dapr's runtime reads itself and this one does not: taking it without acting on it would
    /// leave undone what its author asked for.
    fn unsupported(self) -> &'static [&'static str] {
        match self {
            Self::State => &[
                "actorStateStore",
                "outboxPublishPubsub",
                "outboxPublishTopic",
                "outboxPubsub",
                "outboxDiscardWhenMissingState",
                "primaryEncryptionKey",
                "secondaryEncryptionKey",
            ],
            _ => &[],
        }
    }
}

/// A key that a driver knows.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its name; case does not count.
    pub name: &'static str,
    /// Without it the component can not be.
    pub required: bool,
}

impl Field {
    /// One that must be there.
    pub const fn required(name: &'static str) -> Self {
        Self { name, required: true }
    }

    /// One that may be there.
    pub const fn optional(name: &'static str) -> Self {
        Self {
            name,
            required: false,
        }
    }
}

/// What a driver knows.
#[derive(Debug, Clone, Copy)]
pub struct Schema {
    /// Its keys.
    pub fields: &'static [Field],
}

/// What is wrong with a component's metadata.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// Keys that nobody reads.
    #[error("unknown metadata {}; known are {}", quoted(.keys), quoted(.known))]
    Unknown {
        /// As written.
        keys: Vec<String>,
        /// What could have been meant.
        known: Vec<String>,
    },
    /// Keys that must be there.
    #[error("missing metadata {}", quoted(.0))]
    Missing(Vec<String>),
    /// Keys that Dapr knows and that have no effect here yet.
    #[error("metadata {} is not supported yet", quoted(.0))]
    Unsupported(Vec<String>),
    /// A key that is there twice.
    #[error("metadata \"{0}\" is there more than once")]
    Twice(String),
    /// A value that can not be read.
    #[error("metadata \"{key}\": {problem}")]
    Value {
        /// Its key.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// More than a bound.
    #[error("more than {0}")]
    TooMuch(String),
}

fn quoted(keys: &[String]) -> String {
    let keys: Vec<String> = keys.iter().map(|key| format!("\"{key}\"")).collect();
    keys.join(", ")
}

/// A component's metadata. Its values may be secrets, so they are not shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Metadata(Vec<(String, String)>);

impl std::fmt::Debug for Metadata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(key, _)| key)).finish()
    }
}

impl Metadata {
    /// Of these pairs.
    pub fn new(pairs: Vec<(String, String)>) -> Result<Self, MetadataError> {
        if pairs.len() > MAX_KEYS {
            return Err(MetadataError::TooMuch(format!("{MAX_KEYS} keys")));
        }
        for (at, (key, value)) in pairs.iter().enumerate() {
            if value.len() > MAX_VALUE {
                return Err(MetadataError::Value {
                    key: key.clone(),
                    problem: format!("longer than {MAX_VALUE} bytes"),
                });
            }
            if pairs[..at]
                .iter()
                .any(|(other, _)| other.eq_ignore_ascii_case(key))
            {
                return Err(MetadataError::Twice(key.clone()));
            }
        }
        Ok(Self(pairs))
    }

    /// All pairs, as written.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.0
    }

    /// The value of a key, whatever its case.
    pub fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(key));
        found.map(|(_, value)| value.as_str())
    }

    /// The value of a key as a number.
    pub fn number(&self, key: &str) -> Result<Option<u64>, MetadataError> {
        let read = |text: &str| {
            let parsed = text.trim().parse();
            parsed.map_err(|_| wrong(key, format!("{text:?} is no whole number")))
        };
        self.get(key).map(read).transpose()
    }

    /// The value of a key as a duration: as Go writes it (`1m30s`), or a number of seconds.
    pub fn duration(&self, key: &str) -> Result<Option<Duration>, MetadataError> {
        let read = |text: &str| {
            let seconds = || text.parse().ok().map(Duration::from_secs);
            let parsed = crate::time::duration(text).or_else(seconds);
            parsed.ok_or_else(|| wrong(key, format!("{text:?} is no duration")))
        };
        self.get(key).map(read).transpose()
    }

    /// The value of a key as a truth value, as Dapr reads them; `false` when it is not there.
    pub fn truth(&self, key: &str) -> Result<bool, MetadataError> {
        let text = self.get(key).unwrap_or_default().trim();
        match text.to_ascii_lowercase().as_str() {
            "y" | "yes" | "true" | "t" | "on" | "1" => Ok(true),
            "" | "n" | "no" | "false" | "f" | "off" | "0" => Ok(false),
            _ => Err(wrong(key, format!("{text:?} is neither true nor false"))),
        }
    }

    /// What is wrong with the value of a key.
    pub fn wrong(key: &str, problem: impl Into<String>) -> MetadataError {
        wrong(key, problem.into())
    }

    /// Checks all keys against what the building block and the driver know.
    pub fn check(&self, block: Block, schema: &Schema) -> Result<(), MetadataError> {
        let known = || {
            let own = schema.fields.iter().map(|field| field.name);
            own.chain(block.common().iter().copied())
        };
        let is = |key: &str, name: &str| key.eq_ignore_ascii_case(name);
        let mut unknown = Vec::new();
        let mut unsupported = Vec::new();
        for (key, value) in &self.0 {
            if known().any(|name| is(key, name)) {
                continue;
            }
            if block.unsupported().iter().any(|name| is(key, name)) {
                // Switched off is as if it was not there.
                if !value.eq_ignore_ascii_case("false") {
                    unsupported.push(key.clone());
                }
            } else {
                unknown.push(key.clone());
            }
        }
        if !unknown.is_empty() {
            return Err(MetadataError::Unknown {
                keys: unknown,
                known: known().map(str::to_owned).collect(),
            });
        }
        let missing = schema.fields.iter().filter(|field| field.required);
        let missing =
            missing.filter(|field| self.get(field.name).is_none_or(|value| value.trim().is_empty()));
        let missing: Vec<String> = missing.map(|field| field.name.to_owned()).collect();
        if !missing.is_empty() {
            return Err(MetadataError::Missing(missing));
        }
        match unsupported.is_empty() {
            true => Ok(()),
            false => Err(MetadataError::Unsupported(unsupported)),
        }
    }
}

fn wrong(key: &str, problem: String) -> MetadataError {
    MetadataError::Value {
        key: key.to_owned(),
        problem,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SCHEMA: Schema = Schema {
        fields: &[
            Field {
                name: "schedule",
                required: true,
            },
            Field {
                name: "zone",
                required: false,
            },
        ],
    };

    fn metadata(pairs: &[(&str, &str)]) -> Metadata {
        let pairs = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Metadata::new(pairs.collect()).unwrap()
    }

    #[test]
    fn an_error_names_the_keys_it_is_about() {
        let check = |pairs: &[(&str, &str)]| metadata(pairs).check(Block::Bindings, &SCHEMA);
        assert_eq!(
            check(&[("SCHEDULE", "@every 1s"), ("direction", "input")]),
            Ok(())
        );
        let unknown = check(&[("schedule", "x"), ("schedul", "x"), ("b", "x")]).unwrap_err();
        assert_eq!(
            unknown.to_string(),
            "unknown metadata \"schedul\", \"b\"; known are \"schedule\", \"zone\", \"direction\", \"route\""
        );
        assert_eq!(
            check(&[("zone", "x")]).unwrap_err().to_string(),
            "missing metadata \"schedule\""
        );
        assert_eq!(
            check(&[("schedule", " ")]),
            Err(MetadataError::Missing(vec!["schedule".into()]))
        );
        let state = Schema { fields: &[] };
        let outbox = metadata(&[("outboxPubsub", "p")]).check(Block::State, &state);
        assert_eq!(
            outbox,
            Err(MetadataError::Unsupported(vec!["outboxPubsub".into()]))
        );
        let off = metadata(&[("actorStateStore", "false")]).check(Block::State, &state);
        assert_eq!(off, Ok(()));
    }

    #[test]
    fn a_key_is_there_once_and_its_value_is_bounded() {
        let pair = |k: &str, v: String| (k.to_owned(), v);
        let twice = Metadata::new(vec![pair("a", "1".into()), pair("A", "2".into())]);
        assert_eq!(twice, Err(MetadataError::Twice("A".into())));
        assert!(Metadata::new(vec![pair("a", "x".repeat(MAX_VALUE))]).is_ok());
        assert!(Metadata::new(vec![pair("a", "x".repeat(MAX_VALUE + 1))]).is_err());
        let many = |n| (0..n).map(|i| pair(&i.to_string(), String::new())).collect();
        assert!(Metadata::new(many(MAX_KEYS)).is_ok());
        assert!(Metadata::new(many(MAX_KEYS + 1)).is_err());
    }

    #[test]
    fn numbers_and_durations_are_read_or_named() {
        let m = metadata(&[("n", "12"), ("d", "1m30s"), ("s", "5"), ("bad", "soon")]);
        assert_eq!(m.number("N"), Ok(Some(12)));
        assert_eq!(m.duration("d"), Ok(Some(Duration::from_secs(90))));
        assert_eq!(m.duration("s"), Ok(Some(Duration::from_secs(5))));
        assert_eq!(m.number("none"), Ok(None));
        assert!(m.number("bad").unwrap_err().to_string().contains("\"bad\""));
        assert!(m.duration("bad").unwrap_err().to_string().contains("\"soon\""));
    }

    proptest! {
        /// Whatever is written, a key is either known, or named.
        #[test]
        fn no_unknown_key_passes(keys in proptest::collection::vec("[a-zA-Z]{1,12}", 0..6)) {
            let pairs = keys.iter().map(|k| (k.clone(), "v".to_owned())).collect();
            let Ok(metadata) = Metadata::new(pairs) else { return Ok(()) };
            let known = ["schedule", "zone", "direction", "route"];
            let strange: Vec<_> = keys.iter().filter(|k| !known.iter().any(|n| n.eq_ignore_ascii_case(k))).collect();
            let checked = metadata.check(Block::Bindings, &SCHEMA);
            if strange.is_empty() {
                let unknown = matches!(checked, Err(MetadataError::Unknown { .. }));
                prop_assert!(!unknown);
            } else {
                let text = checked.unwrap_err().to_string();
                for key in strange {
                    let quoted = format!("\"{key}\"");
                    prop_assert!(text.contains(&quoted), "{text}");
                }
            }
        }
    }
}
