//! What of outside is taken as evidence.

use crate::pattern::{self, HostPattern};
use jsonwebtoken::Algorithm;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use std::path::PathBuf;
use weft_model::{check_dns_label, check_name};

const MAX_LEEWAY: u64 = 10;
const MAX_AUDIENCES: usize = 16;

/// Evidence that is taken. None by default: then only join tokens admit anybody.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AttestationConfig {
    /// Service-account tokens of a Kubernetes cluster.
    pub kubernetes: Option<KubernetesConfig>,
    /// JWTs of another issuer.
    pub jwt: Option<JwtConfig>,
}

/// The cluster, and what is believed of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KubernetesConfig {
    /// How the API server is reached; as a pod of the cluster when not set.
    pub kubeconfig: Option<PathBuf>,
    /// A token must be for one of these. Empty: this service's SPIFFE ID, and Dapr's.
    #[serde(deserialize_with = "audiences")]
    pub audiences: Vec<String>,
    /// Service accounts of the agents: their pods may be the node that they run on.
    #[serde(deserialize_with = "agents")]
    pub node_agents: Vec<NodeAgent>,
    /// What such a node may host at most; of that, it gets what Kubernetes has placed on it.
    #[serde(deserialize_with = "patterns")]
    pub may_host: Vec<HostPattern>,
    /// How long an answer of the API server is waited for: 1 to 30.
    #[serde(deserialize_with = "timeout")]
    pub timeout_seconds: u64,
}

impl Default for KubernetesConfig {
    fn default() -> Self {
        let all = HostPattern {
            namespace: "*".into(),
            app_id: "*".into(),
        };
        Self {
            kubeconfig: None,
            audiences: Vec::new(),
            node_agents: Vec::new(),
            may_host: vec![all],
            timeout_seconds: five(),
        }
    }
}

/// A service account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeAgent {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub service_account: String,
}

/// Whose JWTs are taken, and what they must say.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtConfig {
    /// The issuer's keys (RFC 7517): a file, or an `https://` address.
    pub jwks: String,
    /// The certificate authorities that the address is believed by, PEM.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// A token must be for one of these.
    #[serde(deserialize_with = "some_audiences")]
    pub audiences: Vec<String>,
    /// `iss` must be this one, where it is set.
    #[serde(default)]
    pub issuer: Option<String>,
    /// A token must be signed with one of these.
    #[serde(default = "all_algorithms", deserialize_with = "algorithms")]
    pub algorithms: Vec<JwtAlgorithm>,
    /// How far the issuer's clock may be off: 0 to 10.
    #[serde(default = "ten", deserialize_with = "leeway")]
    pub leeway_seconds: u64,
    /// How old the keys may become: 10 to 86400.
    #[serde(default = "five_minutes", deserialize_with = "refresh")]
    pub refresh_seconds: u64,
    /// How long the keys are waited for: 1 to 30.
    #[serde(default = "five", deserialize_with = "timeout")]
    pub timeout_seconds: u64,
    /// A token with an ID (`jti`) is good for one key. To be switched off for callers that show the same
    /// token again and again, as daprd does with a file.
    #[serde(default = "yes")]
    pub single_use: bool,
}

/// How a JWT may be signed. Nothing that needs a shared secret, and never not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::upper_case_acronyms, missing_docs)]
pub enum JwtAlgorithm {
    RS256,
    RS384,
    RS512,
    ES256,
    ES384,
    EdDSA,
}

impl From<JwtAlgorithm> for Algorithm {
    fn from(algorithm: JwtAlgorithm) -> Self {
        match algorithm {
            JwtAlgorithm::RS256 => Self::RS256,
            JwtAlgorithm::RS384 => Self::RS384,
            JwtAlgorithm::RS512 => Self::RS512,
            JwtAlgorithm::ES256 => Self::ES256,
            JwtAlgorithm::ES384 => Self::ES384,
            JwtAlgorithm::EdDSA => Self::EdDSA,
        }
    }
}

fn all_algorithms() -> Vec<JwtAlgorithm> {
    use JwtAlgorithm::{ES256, ES384, EdDSA, RS256, RS384, RS512};
    vec![RS256, RS384, RS512, ES256, ES384, EdDSA]
}

fn five() -> u64 {
    5
}

fn ten() -> u64 {
    MAX_LEEWAY
}

fn five_minutes() -> u64 {
    300
}

fn yes() -> bool {
    true
}

fn within<'de, D: Deserializer<'de>>(d: D, least: u64, most: u64) -> Result<u64, D::Error> {
    let seconds = u64::deserialize(d)?;
    if (least..=most).contains(&seconds) {
        return Ok(seconds);
    }
    Err(D::Error::custom(format!(
        "{seconds} seconds, must be {least} to {most}"
    )))
}

fn leeway<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    within(d, 0, MAX_LEEWAY)
}

fn refresh<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    within(d, 10, 86_400)
}

fn timeout<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    within(d, 1, 30)
}

fn audiences<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    let all = Vec::<String>::deserialize(d)?;
    if all.len() > MAX_AUDIENCES || all.iter().any(String::is_empty) {
        return Err(D::Error::custom(format!(
            "at most {MAX_AUDIENCES} audiences, none of them empty"
        )));
    }
    Ok(all)
}

fn some_audiences<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    let all = audiences(d)?;
    if all.is_empty() {
        return Err(D::Error::custom(
            "at least one audience: tokens for others must not be taken",
        ));
    }
    Ok(all)
}

fn algorithms<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<JwtAlgorithm>, D::Error> {
    let all = Vec::<JwtAlgorithm>::deserialize(d)?;
    if all.is_empty() {
        return Err(D::Error::custom("at least one algorithm"));
    }
    Ok(all)
}

fn agents<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<NodeAgent>, D::Error> {
    let all = Vec::<NodeAgent>::deserialize(d)?;
    for agent in &all {
        check_dns_label(&agent.namespace).map_err(D::Error::custom)?;
        check_name(&agent.service_account).map_err(D::Error::custom)?;
    }
    Ok(all)
}

fn patterns<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<HostPattern>, D::Error> {
    let all = Vec::<HostPattern>::deserialize(d)?;
    pattern::check(&all).map(|()| all).map_err(D::Error::custom)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(config: Value) -> Result<AttestationConfig, String> {
        serde_json::from_value(config).map_err(|e| e.to_string())
    }

    #[test]
    fn the_documentations_examples_are_read() {
        let docs = include_str!("../../../../docs/identity.md");
        let examples: Vec<_> = docs
            .split("```yaml\n")
            .skip(1)
            .filter_map(|rest| rest.split("```").next())
            .collect();
        assert!(examples.len() >= 2);
        for example in examples {
            serde_saphyr::from_str::<crate::Config>(example).unwrap_or_else(|e| panic!("{e}: {example}"));
        }
    }

    #[test]
    fn nothing_is_taken_unless_it_is_asked_for() {
        let config = read(json!({})).unwrap();
        assert!(config.kubernetes.is_none() && config.jwt.is_none());
        // Nothing that a file says makes the service take callers at their word.
        assert!(
            read(json!({"insecure": true}))
                .unwrap_err()
                .contains("unknown field")
        );
    }

    #[test]
    fn what_can_not_work_is_refused_by_name() {
        let jwt = |change: Value| {
            let mut config = json!({"jwks": "/keys.json", "audiences": ["weft"]});
            config
                .as_object_mut()
                .unwrap()
                .extend(change.as_object().unwrap().clone());
            read(json!({"jwt": config}))
        };
        jwt(json!({})).unwrap();
        jwt(json!({"leeway_seconds": 10, "algorithms": ["ES256"]})).unwrap();
        for (change, reason) in [
            (json!({"leeway_seconds": 11}), "11 seconds, must be 0 to 10"),
            (json!({"algorithms": ["HS256"]}), "HS256"),
            (json!({"algorithms": ["none"]}), "none"),
            (json!({"algorithms": []}), "at least one algorithm"),
            (json!({"audiences": []}), "at least one audience"),
            (json!({"refresh_seconds": 1}), "must be 10"),
            (json!({"timeout_seconds": 0}), "must be 1"),
        ] {
            let error = jwt(change).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        let agent = |namespace: &str| {
            let agents = json!([{"namespace": namespace, "service_account": "agent"}]);
            read(json!({"kubernetes": {"node_agents": agents}}))
        };
        agent("weft-system").unwrap();
        assert!(agent("Weft").unwrap_err().contains("name"));
    }
}
