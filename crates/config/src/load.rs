//! Merging the layers.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A configuration file larger than this is a mistake (1 MiB).
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Why there is no configuration. One line each: what, where, what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file that was named can not be read.
    #[error("cannot read configuration {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is too large.
    #[error("configuration {} has {size} bytes, more than {MAX_FILE_BYTES}", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// The file is no YAML.
    #[error("{}:{line}:{column}: {reason}", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// Column, from 1.
        column: u64,
        /// What is wrong.
        reason: String,
    },
    /// A field of the file that is unknown or has a wrong value.
    #[error("{}:{line}:{column}: field {field}: {reason}", .path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// Column, from 1.
        column: u64,
        /// Dotted path; `.` is the whole file.
        field: String,
        /// What is wrong and, for unknown fields, what is possible.
        reason: String,
    },
    /// A field with a wrong value that no line of a file is to blame for.
    #[error("configuration field {field}: {reason} (set by {origin})")]
    Field {
        /// Dotted path.
        field: String,
        /// What is wrong.
        reason: String,
        /// Which layer the value comes from.
        origin: &'static str,
    },
}

/// Merges defaults, the file and the flags (with environment) into a `C`.
///
/// `named` is a file that the user asked for and must be there; without it `fallback` is read when
/// it exists.
pub fn load<C, F>(named: Option<&Path>, fallback: &Path, flags: &F) -> Result<C, ConfigError>
where
    C: Serialize + DeserializeOwned + Default,
    F: Serialize,
{
    let internal = |e: serde_json::Error| ConfigError::Field {
        field: ".".into(),
        reason: e.to_string(),
        origin: "the built-in defaults",
    };
    let mut merged = serde_json::to_value(C::default()).map_err(internal)?;
    let path = named.unwrap_or(fallback);
    let text = read(path, named.is_some())?;
    if let Some(text) = &text {
        merge(&mut merged, parse(path, text)?);
    }
    merge(&mut merged, serde_json::to_value(flags).map_err(internal)?);
    serde_path_to_error::deserialize(merged).map_err(|e| {
        text.and_then(|text| blame_file::<C>(path, &text))
            .unwrap_or_else(|| ConfigError::Field {
                field: e.path().to_string(),
                reason: e.inner().to_string(),
                origin: "a flag or the environment",
            })
    })
}

/// The file's own mistake with its place, found by reading it once more alone. Nothing when the file
/// is fine by itself, so that the layers above it are to blame.
fn blame_file<C: DeserializeOwned>(path: &Path, text: &str) -> Option<ConfigError> {
    let mut track = serde_path_to_error::Track::new();
    let mut place = None;
    let outcome = serde_saphyr::with_deserializer_from_str(text, |yaml| {
        C::deserialize(serde_path_to_error::Deserializer::new(yaml, &mut track)).inspect_err(|e| {
            place = e.location();
        })
    });
    let error = outcome.err()?;
    let (line, column) = place
        .or_else(|| error.location())
        .map_or((1, 1), |l| (l.line(), l.column()));
    Some(ConfigError::InFile {
        path: path.to_owned(),
        line,
        column,
        field: track.path().to_string(),
        reason: first_line(&error),
    })
}

/// The library may draw the place below its message; one line is enough here.
fn first_line(error: &serde_saphyr::Error) -> String {
    let whole = error.to_string();
    let line = whole.lines().next().unwrap_or("not YAML");
    line.trim_start_matches("error: ").to_owned()
}

/// The text of the file; nothing when it may be absent and is, or holds only comments.
fn read(path: &Path, required: bool) -> Result<Option<String>, ConfigError> {
    let failed = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let size = match fs::metadata(path) {
        Ok(meta) => meta.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound && !required => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    if size > MAX_FILE_BYTES {
        return Err(ConfigError::TooLarge {
            path: path.to_owned(),
            size,
        });
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    if text
        .lines()
        .all(|l| l.trim().is_empty() || l.trim_start().starts_with('#'))
    {
        return Ok(None);
    }
    Ok(Some(text))
}

fn parse(path: &Path, text: &str) -> Result<Value, ConfigError> {
    let value: Value = serde_saphyr::from_str(text).map_err(|e| {
        let (line, column) = e.location().map_or((1, 1), |l| (l.line(), l.column()));
        ConfigError::Syntax {
            path: path.to_owned(),
            line,
            column,
            reason: first_line(&e),
        }
    })?;
    match value {
        Value::Object(_) => Ok(value),
        _ => Err(ConfigError::Syntax {
            path: path.to_owned(),
            line: 1,
            column: 1,
            reason: "a configuration is a mapping of fields to values".into(),
        }),
    }
}

/// Lays `over` on `under`: mappings are merged, everything else is replaced.
fn merge(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                merge_field(under, key, value);
            }
        }
        (under, over) => *under = over,
    }
}

fn merge_field(under: &mut Map<String, Value>, key: String, value: Value) {
    match under.get_mut(&key) {
        Some(slot) => merge(slot, value),
        None => {
            under.insert(key, value);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Serialize, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Config {
        listen: String,
        nested: Nested,
        names: Vec<String>,
    }

    #[derive(Debug, Default, Serialize, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Nested {
        level: u32,
        other: u32,
    }

    impl Default for Config {
        fn default() -> Self {
            Self {
                listen: "127.0.0.1:1".into(),
                nested: Nested { level: 1, other: 2 },
                names: vec!["a".into()],
            }
        }
    }

    #[derive(Default, Serialize)]
    struct Flags {
        #[serde(skip_serializing_if = "Option::is_none")]
        listen: Option<String>,
    }

    fn with(text: &str, flags: &Flags) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.yaml");
        fs::write(&path, text).unwrap();
        load(Some(&path), Path::new("/nowhere"), flags)
    }

    #[test]
    fn each_layer_overrides_the_one_below() {
        let none = Flags::default();
        let absent: Config = load(None, Path::new("/nowhere/x.yaml"), &none).unwrap();
        assert_eq!(absent, Config::default());
        let file = with("listen: 1.1.1.1:2\nnested: {level: 5}\nnames: [b, c]\n", &none).unwrap();
        assert_eq!(
            (file.listen.as_str(), file.nested.level, file.nested.other),
            ("1.1.1.1:2", 5, 2)
        );
        assert_eq!(file.names, ["b", "c"]);
        let flags = Flags {
            listen: Some("9.9.9.9:9".into()),
        };
        assert_eq!(with("listen: 1.1.1.1:2\n", &flags).unwrap().listen, "9.9.9.9:9");
        assert_eq!(
            with("# nothing but a comment\n", &none).unwrap(),
            Config::default()
        );
    }

    #[test]
    fn mistakes_name_the_place() {
        let none = Flags::default();
        let unknown = with("listen: x\nnested:\n  levle: 5\n", &none)
            .unwrap_err()
            .to_string();
        assert!(unknown.contains("x.yaml:3:"), "{unknown}");
        assert!(unknown.contains("field nested.levle: "), "{unknown}");
        assert!(unknown.contains("level"), "{unknown}");
        let kind = with("listen: x\nnested: {level: many}\n", &none)
            .unwrap_err()
            .to_string();
        assert!(
            kind.contains("x.yaml:2:") && kind.contains("field nested.level: "),
            "{kind}"
        );
        assert!(!kind.contains('\n'), "{kind}");
        let syntax = with("listen: x\n  bad: [\n", &none).unwrap_err();
        assert!(
            matches!(&syntax, ConfigError::Syntax { line, .. } if *line >= 2),
            "{syntax}"
        );
        assert!(!syntax.to_string().contains('\n'), "{syntax}");
        let absent =
            load::<Config, _>(Some(Path::new("/nowhere/x.yaml")), Path::new("/"), &none).unwrap_err();
        assert!(absent.to_string().contains("/nowhere/x.yaml"));
        assert!(with("- a list\n", &none).is_err());
        assert!(
            with("listen: x\nlisten: y\n", &none).is_err(),
            "a field given twice"
        );
    }

    #[test]
    fn a_wrong_flag_is_not_blamed_on_the_file() {
        #[derive(Serialize)]
        struct Wrong {
            names: u32,
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.yaml");
        fs::write(&path, "listen: x\n").unwrap();
        let error = load::<Config, _>(Some(&path), Path::new("/"), &Wrong { names: 5 }).unwrap_err();
        assert!(
            matches!(&error, ConfigError::Field { field, .. } if field == "names"),
            "{error}"
        );
        assert!(error.to_string().contains("a flag or the environment"), "{error}");
    }

    proptest::proptest! {
        /// Whatever a file holds, it is read or refused in one line.
        #[test]
        fn no_file_breaks_the_reader(text in "([a-z\\-:{}\\[\\]&*!|>'\"#, \n\t\u{0}é]|listen: |nested: |level: |1e9){0,40}") {
            if let Err(error) = with(&text, &Flags::default()) {
                proptest::prop_assert!(!error.to_string().contains('\n'), "{error}");
            }
        }
    }
}
