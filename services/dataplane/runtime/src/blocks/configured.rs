//! What a manifest of kind Configuration says of the apps that name it: which secrets they may see.

use serde::Deserialize;

/// Stores of one Configuration that are spoken of.
const MAX_SCOPES: usize = 256;

/// A Configuration, as far as building blocks act on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Configured {
    scopes: Vec<SecretScope>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SecretScope {
    store_name: String,
    default_access: String,
    allowed_secrets: Vec<String>,
    denied_secrets: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Manifest {
    spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    secrets: Secrets,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Secrets {
    scopes: Vec<SecretScope>,
}

impl Configured {
    /// Reads a manifest as JSON.
    pub fn read(json: &[u8]) -> Result<Self, String> {
        let manifest: Manifest = serde_json::from_slice(json).map_err(|e| e.to_string())?;
        let scopes = manifest.spec.secrets.scopes;
        if scopes.len() > MAX_SCOPES {
            return Err(format!("spec.secrets.scopes: more than {MAX_SCOPES}"));
        }
        for (i, scope) in scopes.iter().enumerate() {
            let at = format!("spec.secrets.scopes[{i}]");
            if scope.store_name.is_empty() {
                return Err(format!("{at}.storeName is missing"));
            }
            if scopes[..i]
                .iter()
                .any(|other| other.store_name == scope.store_name)
            {
                return Err(format!(
                    "{at}: storeName {:?} is there more than once",
                    scope.store_name
                ));
            }
            let access = scope.default_access.to_ascii_lowercase();
            if !matches!(access.as_str(), "" | "allow" | "deny") {
                return Err(format!(
                    "{at}.defaultAccess: {:?} is neither allow nor deny",
                    scope.default_access
                ));
            }
        }
        Ok(Self { scopes })
    }

    /// Whether an app may see a secret of a store: what is allowed by name is all that is; else all but
    /// what is denied, by name or by default.
    pub fn allows(&self, store: &str, secret: &str) -> bool {
        let Some(scope) = self.scopes.iter().find(|scope| scope.store_name == store) else {
            return true;
        };
        let among = |list: &[String]| list.iter().any(|known| known == secret);
        if !scope.allowed_secrets.is_empty() {
            return among(&scope.allowed_secrets);
        }
        !among(&scope.denied_secrets) && !scope.default_access.eq_ignore_ascii_case("deny")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(scopes: &str) -> Result<Configured, String> {
        Configured::read(
            format!(r#"{{"spec": {{"secrets": {{"scopes": {scopes}}}, "tracing": {{}}}}}}"#).as_bytes(),
        )
    }

    #[test]
    fn secrets_are_scoped_as_dapr_scopes_them() {
        let read = read(
            r#"[{"storeName": "some", "defaultAccess": "Deny", "allowedSecrets": ["a"]},
                {"storeName": "most", "deniedSecrets": ["a"]},
                {"storeName": "none", "defaultAccess": "deny"},
                {"storeName": "both", "allowedSecrets": ["a"], "deniedSecrets": ["a"]}]"#,
        )
        .unwrap();
        for (store, secret, allowed) in [
            ("some", "a", true),
            ("some", "b", false),
            ("most", "a", false),
            ("most", "b", true),
            ("none", "a", false),
            ("both", "a", true),
            ("both", "b", false),
            ("other", "a", true),
        ] {
            assert_eq!(read.allows(store, secret), allowed, "{store} {secret}");
        }
        assert!(Configured::read(b"{}").unwrap().allows("any", "a"));
    }

    #[test]
    fn what_can_not_be_meant_is_said() {
        for (scopes, said) in [
            (r#"[{"defaultAccess": "deny"}]"#, "storeName is missing"),
            (
                r#"[{"storeName": "a"}, {"storeName": "a"}]"#,
                "[1]: storeName \"a\" is there more than once",
            ),
            (
                r#"[{"storeName": "a", "defaultAccess": "never"}]"#,
                "neither allow nor deny",
            ),
            (r#"{}"#, "sequence"),
        ] {
            let error = read(scopes).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
