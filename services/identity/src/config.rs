//! What the service can be told, and what is refused.

use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, path::PathBuf, time::Duration};
use weft_model::TrustDomain;
use weft_telemetry::TelemetryConfig;

const DAY: u64 = 24 * 3600;
const MIN_TTL: u64 = 60;
const MAX_TTL: u64 = 30 * DAY;

/// Configuration of the identity service.
#[derive(Debug, Clone, Serialize, Deserialize)]
// The derived functions are wrapped below, so that what is read is also checked.
#[serde(default, deny_unknown_fields, remote = "Self")]
pub struct Config {
    /// Where gRPC is served.
    pub listen: SocketAddr,
    /// Holds the database `identity.db` and, unless set otherwise, the key file.
    pub state_dir: PathBuf,
    /// Holds the operators' socket `identity.sock`; none is served without it.
    pub run_dir: Option<PathBuf>,
    /// Whose members the certificates name. Fixed at the first start.
    pub trust_domain: String,
    /// `host:port` of the policy service, whose registry says which workload runs where.
    pub policy_addr: Option<String>,
    /// The authority.
    pub ca: CaConfig,
    /// Logs, metrics, traces.
    pub telemetry: TelemetryConfig,
}

/// Configuration of the authority.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CaConfig {
    /// File with the key that seals the authority's keys; `<state_dir>/key-encryption-key` when
    /// not set. Made on first start.
    pub key_encryption_key: Option<PathBuf>,
    /// Lifetime of control services' certificates, seconds.
    pub service_ttl_seconds: u64,
    /// Lifetime of nodes' certificates, seconds.
    pub node_ttl_seconds: u64,
    /// Lifetime of workloads' certificates, seconds.
    pub workload_ttl_seconds: u64,
    /// Entries of the audit record that are kept.
    pub audit_entries: u64,
}

impl Serialize for Config {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let config = Self::deserialize(deserializer)?;
        config.check().map_err(serde::de::Error::custom)?;
        Ok(config)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 7301)),
            state_dir: weft_config::state_dir("identity"),
            run_dir: Some(weft_config::run_dir()),
            trust_domain: TrustDomain::default().as_str().to_owned(),
            policy_addr: None,
            ca: CaConfig::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

impl Default for CaConfig {
    fn default() -> Self {
        Self {
            key_encryption_key: None,
            service_ttl_seconds: DAY,
            node_ttl_seconds: DAY,
            workload_ttl_seconds: DAY,
            audit_entries: 100_000,
        }
    }
}

/// A setting that can not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ConfigError {
    field: &'static str,
    problem: String,
}

impl Config {
    /// Checks what can be checked without touching anything.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.parsed_trust_domain()?;
        let ttls = [
            ("ca.service_ttl_seconds", self.ca.service_ttl_seconds),
            ("ca.node_ttl_seconds", self.ca.node_ttl_seconds),
            ("ca.workload_ttl_seconds", self.ca.workload_ttl_seconds),
        ];
        for (field, seconds) in ttls {
            if !(MIN_TTL..=MAX_TTL).contains(&seconds) {
                let problem = format!("{seconds} seconds, must be {MIN_TTL} to {MAX_TTL}");
                return Err(ConfigError { field, problem });
            }
        }
        if let Some(address) = &self.policy_addr {
            let sound = address
                .rsplit_once(':')
                .is_some_and(|(h, p)| !h.is_empty() && p.parse::<u16>().is_ok());
            if !sound {
                let problem = format!("{address:?} is not host:port");
                return Err(ConfigError {
                    field: "policy_addr",
                    problem,
                });
            }
        }
        Ok(())
    }

    pub(crate) fn parsed_trust_domain(&self) -> Result<TrustDomain, ConfigError> {
        TrustDomain::new(&self.trust_domain).map_err(|e| ConfigError {
            field: "trust_domain",
            problem: e.to_string(),
        })
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.state_dir.join("identity.db")
    }

    pub(crate) fn key_file(&self) -> PathBuf {
        self.ca
            .key_encryption_key
            .clone()
            .unwrap_or_else(|| self.state_dir.join("key-encryption-key"))
    }
}

impl CaConfig {
    pub(crate) fn service_ttl(&self) -> Duration {
        Duration::from_secs(self.service_ttl_seconds)
    }

    pub(crate) fn node_ttl(&self) -> Duration {
        Duration::from_secs(self.node_ttl_seconds)
    }

    pub(crate) fn workload_ttl(&self) -> Duration {
        Duration::from_secs(self.workload_ttl_seconds)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_can_not_work_is_refused_by_name() {
        Config::default().check().unwrap();
        let mut short = Config::default();
        short.ca.node_ttl_seconds = 10;
        assert!(
            short
                .check()
                .unwrap_err()
                .to_string()
                .starts_with("ca.node_ttl_seconds: 10")
        );
        let address = Config {
            policy_addr: Some("policy".into()),
            ..Config::default()
        };
        assert!(address.check().is_err());
        let read = serde_json::from_str::<Config>(r#"{"ca": {"node_ttl_seconds": 10}}"#);
        assert!(read.unwrap_err().to_string().contains("ca.node_ttl_seconds"));
        let domain = Config {
            trust_domain: "UPPER".into(),
            ..Config::default()
        };
        assert!(domain.check().is_err());
    }
}
