//! What the service can be told, and what is refused.

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use std::{net::SocketAddr, path::PathBuf, time::Duration};
use weft_enroll::{EnrollError, TokenSource};
use weft_model::{SpiffeError, SvidForm, TrustDomain};
use weft_store::DatabaseUrl;

const DAY: u64 = 24 * 3600;

/// Configuration of the policy service.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where gRPC is served.
    pub listen: SocketAddr,
    /// Where what is desired is read.
    pub source: Source,
    /// Folder of manifests. Without one, nothing is desired and only the registry works.
    pub resources: Option<PathBuf>,
    /// How the API server is reached; without one, as the account of this service's pod.
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of the Lease by which one of several replicas writes statuses; without one, that of the
    /// account, or of the kubeconfig's context.
    pub lease_namespace: Option<String>,
    /// How long that Lease lasts.
    #[serde(deserialize_with = "lease")]
    pub lease_seconds: u64,
    /// The longest time until what failed at the API server is tried again, and a kind that is not
    /// installed is looked for.
    #[serde(deserialize_with = "retry")]
    pub retry_seconds: u64,
    /// Holds the database `policy.db` and, in `member`, this service's key and certificate.
    pub state_dir: PathBuf,
    /// `postgres://user:password@host/database`, which belongs to one such service at a time; without it the
    /// state is in a file.
    pub database_url: Option<DatabaseUrl>,
    /// Holds `policy.sock` for operators on this machine, and is not a folder of state. Without one
    /// there is no such socket.
    pub run_dir: Option<PathBuf>,
    /// Of the SPIFFE IDs that are derived.
    #[serde(deserialize_with = "trust_domain")]
    pub trust_domain: String,
    /// Which of a workload's names its SPIFFE ID is made of: app-id or service-account, as the identity
    /// service has it.
    pub svid_form: SvidForm,
    /// `host:port` of the identity service.
    #[serde(deserialize_with = "address")]
    pub identity_addr: String,
    /// Join token for the first start.
    pub join_token: Option<Token>,
    /// File with the join token for the first start.
    pub join_token_file: Option<PathBuf>,
    /// Takes workloads on loopback addresses from agents that run without root: only for a mesh that is
    /// all on one machine.
    pub insecure_loopback: bool,
    /// How long a number keeps its labels after its last workload went away.
    #[serde(deserialize_with = "grace")]
    pub identity_grace_seconds: u64,
    /// How long a node may be away before its workloads count as gone.
    #[serde(deserialize_with = "timeout")]
    pub node_timeout_seconds: u64,
    /// Ranges of virtual addresses for Services whose manifests name none: at most one of each family.
    #[serde(deserialize_with = "service_cidrs")]
    pub service_cidrs: Vec<String>,
    /// Ranges of addresses for shared endpoints: at most one of each family. No packet ever goes there.
    #[serde(deserialize_with = "shared_cidrs")]
    pub shared_cidrs: Vec<String>,
    /// How long a node may be away before a shared endpoint of which there is one for the cluster moves
    /// to another.
    #[serde(deserialize_with = "grace")]
    pub shared_move_seconds: u64,
    /// So long a workload's start waits at most for the nodes whose policies name it; 0: not at all.
    #[serde(deserialize_with = "start_wait")]
    pub start_wait_milliseconds: u64,
    /// Logs, traces and metrics.
    pub telemetry: weft_telemetry::TelemetryConfig,
}

/// Where what is desired is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A folder of manifests.
    Folder,
    /// The API server of a Kubernetes cluster.
    Kubernetes,
}

impl std::str::FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "folder" => Ok(Self::Folder),
            "kubernetes" => Ok(Self::Kubernetes),
            _ => Err("must be folder or kubernetes".into()),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 7303)),
            source: Source::Folder,
            resources: None,
            kubeconfig: None,
            lease_namespace: None,
            lease_seconds: 15,
            retry_seconds: 30,
            state_dir: weft_config::state_dir("policy"),
            database_url: None,
            run_dir: Some(weft_config::run_dir()),
            trust_domain: TrustDomain::default().as_str().to_owned(),
            svid_form: SvidForm::default(),
            identity_addr: "127.0.0.1:7301".into(),
            join_token: None,
            join_token_file: None,
            insecure_loopback: false,
            identity_grace_seconds: 60,
            node_timeout_seconds: 600,
            service_cidrs: vec!["10.96.0.0/12".into(), "fd00:10:96::/112".into()],
            shared_cidrs: vec!["198.18.0.0/16".into(), "fd00:10:97::/112".into()],
            shared_move_seconds: 15,
            start_wait_milliseconds: 1_000,
            telemetry: weft_telemetry::TelemetryConfig::default(),
        }
    }
}

// Wrong values are found while the configuration is read, so that `--check-config` finds them too.

fn trust_domain<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let text = String::deserialize(d)?;
    TrustDomain::new(&text).map(|_| text).map_err(D::Error::custom)
}

fn address<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let text = String::deserialize(d)?;
    let parts = text.rsplit_once(':');
    if !parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
        return Err(D::Error::custom(format!("{text:?} is not host:port")));
    }
    Ok(text)
}

fn lease<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    // Shorter ones would be lost by every pause.
    within(d, 2, 3_600)
}

fn retry<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    within(d, 1, 3_600)
}

fn period<'de, D: Deserializer<'de>>(d: D, least: u64) -> Result<u64, D::Error> {
    within(d, least, DAY)
}

fn within<'de, D: Deserializer<'de>>(d: D, least: u64, most: u64) -> Result<u64, D::Error> {
    let seconds = u64::deserialize(d)?;
    if !(least..=most).contains(&seconds) {
        return Err(D::Error::custom(format!(
            "{seconds} seconds, must be {least} to {most}"
        )));
    }
    Ok(seconds)
}

fn grace<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    period(d, 0)
}

fn timeout<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    period(d, 5)
}

fn start_wait<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    let milliseconds = u64::deserialize(d)?;
    // Agents give a registration five seconds.
    if milliseconds > 3_000 {
        return Err(D::Error::custom(format!(
            "{milliseconds} milliseconds, must be 0 to 3000"
        )));
    }
    Ok(milliseconds)
}

fn service_cidrs<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    cidrs(d)
}

fn shared_cidrs<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    cidrs(d)
}

/// At most one of each family, with room in it.
fn cidrs<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    let texts = Vec::<String>::deserialize(d)?;
    let mut families = Vec::new();
    for text in &texts {
        let net: IpNet = text
            .parse()
            .map_err(|e| D::Error::custom(format!("{text:?}: {e}")))?;
        if net.max_prefix_len() - net.prefix_len() < 2 {
            return Err(D::Error::custom(format!("{net} has no room for addresses")));
        }
        if families.contains(&net.max_prefix_len()) {
            return Err(D::Error::custom(format!("{net} is the second of its family")));
        }
        families.push(net.max_prefix_len());
    }
    Ok(texts)
}

/// A secret that `Debug` does not show.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(#[serde(deserialize_with = "token")] String);

fn token<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let text = String::deserialize(d)?;
    // The error holds nothing of the text.
    TokenSource::text(&text).map(|_| text).map_err(D::Error::custom)
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(not shown)")
    }
}

impl Config {
    pub(crate) fn parsed_trust_domain(&self) -> Result<TrustDomain, SpiffeError> {
        TrustDomain::new(&self.trust_domain)
    }

    pub(crate) fn token(&self) -> Result<Option<TokenSource>, EnrollError> {
        if let Some(token) = &self.join_token {
            return TokenSource::text(&token.0).map(Some);
        }
        Ok(self.join_token_file.clone().map(TokenSource::File))
    }

    pub(crate) fn identity_grace(&self) -> Duration {
        Duration::from_secs(self.identity_grace_seconds)
    }

    pub(crate) fn node_timeout(&self) -> Duration {
        Duration::from_secs(self.node_timeout_seconds)
    }

    pub(crate) fn service_ranges(&self) -> Vec<IpNet> {
        ranges(&self.service_cidrs)
    }

    /// The same for shared endpoints.
    pub(crate) fn shared_ranges(&self) -> Vec<IpNet> {
        ranges(&self.shared_cidrs)
    }

    /// Two ranges that would give the same address twice.
    pub(crate) fn overlap(&self) -> Option<(IpNet, IpNet)> {
        let services = self.service_ranges();
        let mut pairs = services
            .into_iter()
            .flat_map(|s| self.shared_ranges().into_iter().map(move |shared| (s, shared)));
        pairs.find(|(a, b)| a.contains(b) || b.contains(a))
    }

    pub(crate) fn shared_move_after(&self) -> Duration {
        Duration::from_secs(self.shared_move_seconds)
    }

    pub(crate) fn start_wait(&self) -> Duration {
        Duration::from_millis(self.start_wait_milliseconds)
    }

    pub(crate) fn cluster_settings(&self) -> crate::cluster::Settings {
        crate::cluster::Settings {
            lease_namespace: self.lease_namespace.clone(),
            lease: Duration::from_secs(self.lease_seconds),
            retry: Duration::from_secs(self.retry_seconds),
        }
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.state_dir.join("policy.db")
    }
}

fn ranges(texts: &[String]) -> Vec<IpNet> {
    let parsed = texts.iter().filter_map(|text| text.parse::<IpNet>().ok());
    parsed.map(|net| net.trunc()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_not_work_is_refused_by_name() {
        let read = serde_json::from_str::<Config>;
        assert!(read("{}").is_ok());
        assert!(read(r#"{"source": "kubernetes", "lease_seconds": 2, "retry_seconds": 1}"#).is_ok());
        assert!(read(r#"{"identity_addr": "identity:7301", "identity_grace_seconds": 0}"#).is_ok());
        assert!(read(r#"{"database_url": "postgres://u:p@h/d"}"#).is_ok());
        for bad in [
            r#"{"trust_domain": "A"}"#,
            r#"{"identity_addr": "x"}"#,
            r#"{"node_timeout_seconds": 1}"#,
            r#"{"resource": "/x"}"#,
            r#"{"service_cidrs": ["10.0.0.0/31"]}"#,
            r#"{"service_cidrs": ["10.0.0.0/24", "10.1.0.0/24"]}"#,
            r#"{"start_wait_milliseconds": 60000}"#,
            r#"{"database_url": "mysql://u:p@h/d"}"#,
            r#"{"shared_cidrs": ["198.18.0.0/31"]}"#,
            r#"{"shared_cidrs": ["198.18.0.0/24", "198.19.0.0/24"]}"#,
            r#"{"shared_move_seconds": 90000}"#,
            r#"{"source": "etcd"}"#,
            r#"{"lease_seconds": 1}"#,
            r#"{"retry_seconds": 0}"#,
        ] {
            assert!(read(bad).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn services_and_shared_endpoints_have_no_address_in_common() {
        let read = |shared: &str| Config {
            shared_cidrs: vec![shared.into()],
            ..Config::default()
        };
        assert!(Config::default().overlap().is_none());
        assert!(read("10.95.0.0/16").overlap().is_none());
        assert!(read("10.97.0.0/16").overlap().is_some());
        assert!(read("10.0.0.0/8").overlap().is_some());
    }

    #[test]
    fn the_token_is_not_shown() {
        let config = Config {
            join_token: Some(Token("secret".into())),
            ..Config::default()
        };
        assert!(!format!("{config:?}").contains("secret"));
    }
}
