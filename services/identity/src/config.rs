//! What the service can be told, and what is refused.

use crate::{attest::AttestationConfig, authority::KeyType, kek::KekSource};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use std::{net::SocketAddr, num::NonZeroU32, path::PathBuf, time::Duration};
use weft_model::{SvidForm, TrustDomain};
use weft_rpc::Rate;
use weft_telemetry::TelemetryConfig;

const DAY: u64 = 24 * 3600;
const MIN_TTL: u64 = 60;
const MAX_TTL: u64 = 30 * DAY;
const MAX_JWT_TTL: u64 = 3600;
/// An issuer must live twice as long as what it signs, since it is replaced at half of its life.
const MIN_CA_TTL: u64 = 2 * MIN_TTL;
const MAX_CA_TTL: u64 = 36_500 * DAY;

/// Configuration of the identity service.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where gRPC is served.
    pub listen: SocketAddr,
    /// Holds the database `identity.db` and, unless set otherwise, the key file.
    pub state_dir: PathBuf,
    /// `postgres://user:password@host/database`, which any number of replicas may share; without it
    /// the state is in a file.
    pub database_url: Option<String>,
    /// Holds the operators' socket `identity.sock`; none is served without it.
    pub run_dir: Option<PathBuf>,
    /// Whose members the certificates name. Fixed at the first start.
    #[serde(deserialize_with = "trust_domain")]
    pub trust_domain: String,
    /// `host:port` of the policy service, whose registry says which workload runs where.
    #[serde(deserialize_with = "policy_addr")]
    pub policy_addr: Option<String>,
    /// The authority.
    pub ca: CaConfig,
    /// Evidence beside join tokens that is taken for who somebody is.
    pub attestation: AttestationConfig,
    /// How much one caller may ask.
    pub limits: LimitsConfig,
    /// Logs, metrics, traces.
    pub telemetry: TelemetryConfig,
}

/// How many calls of one caller are answered: so many at once, and so many per second after that.
/// More is refused with RESOURCE_EXHAUSTED.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Calls at once of a service, a node, an operator. A node that starts with 10,000 workloads asks
    /// for two certificates of each.
    pub member_burst: NonZeroU32,
    /// And per second.
    pub member_per_second: NonZeroU32,
    /// Calls at once of one address without a certificate, or of a workload's certificate.
    pub stranger_burst: NonZeroU32,
    /// And per second.
    pub stranger_per_second: NonZeroU32,
}

/// Configuration of the authority.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CaConfig {
    /// File with the key that seals the authority's keys; `<state_dir>/key-encryption-key` when
    /// not set. Made on first start.
    pub key_encryption_key: Option<PathBuf>,
    /// Instead of the file: the environment variable that holds the key.
    pub key_encryption_key_env: Option<String>,
    /// Instead of the file: a program and its arguments that print the key, for example by asking
    /// a KMS.
    pub key_encryption_key_command: Vec<String>,
    /// Kind of the authority's own keys: p256 or ed25519.
    pub key_type: KeyType,
    /// Root and issuer by the operator: a folder with `ca.crt`, `issuer.crt` and `issuer.key` (and
    /// `ca.key`, if new issuers are to be made here), or a Secret's manifest with the same. Read
    /// again when it changes.
    pub supplied: Option<PathBuf>,
    /// Lifetime of workloads' JWT-SVIDs, seconds: 60 to 3600. Whoever gets one can use it until then.
    #[serde(deserialize_with = "jwt_ttl")]
    pub jwt_ttl_seconds: u64,
    /// Lifetime of roots made here, seconds.
    #[serde(deserialize_with = "ca_ttl")]
    pub root_ttl_seconds: u64,
    /// Lifetime of issuers made here, seconds.
    #[serde(deserialize_with = "ca_ttl")]
    pub issuer_ttl_seconds: u64,
    /// Lifetime of control services' certificates, seconds.
    #[serde(deserialize_with = "ttl")]
    pub service_ttl_seconds: u64,
    /// Lifetime of nodes' certificates, seconds.
    #[serde(deserialize_with = "ttl")]
    pub node_ttl_seconds: u64,
    /// Lifetime of workloads' certificates, seconds.
    #[serde(deserialize_with = "ttl")]
    pub workload_ttl_seconds: u64,
    /// Which of a workload's names its SPIFFE ID is made of: app-id or service-account. The policy service
    /// must be told the same.
    pub svid_form: SvidForm,
    /// Entries of the audit record that are kept.
    pub audit_entries: u64,
}

// Wrong values are found while the configuration is read, so that they are told with their place and
// `--check-config` finds them too.

fn trust_domain<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let text = String::deserialize(d)?;
    TrustDomain::new(&text).map(|_| text).map_err(D::Error::custom)
}

fn policy_addr<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    let address = Option::<String>::deserialize(d)?;
    let checked = address.as_deref().map_or(Ok(()), check_address);
    checked.map(|()| address).map_err(D::Error::custom)
}

fn ttl<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    let seconds = u64::deserialize(d)?;
    check_ttl(seconds).map(|()| seconds).map_err(D::Error::custom)
}

fn ca_ttl<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    let seconds = u64::deserialize(d)?;
    check_ca_ttl(seconds).map(|()| seconds).map_err(D::Error::custom)
}

fn jwt_ttl<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    let seconds = u64::deserialize(d)?;
    check_jwt_ttl(seconds).map(|()| seconds).map_err(D::Error::custom)
}

fn check_jwt_ttl(seconds: u64) -> Result<(), String> {
    let sound = (MIN_TTL..=MAX_JWT_TTL).contains(&seconds);
    sound
        .then_some(())
        .ok_or_else(|| format!("{seconds} seconds, must be {MIN_TTL} to {MAX_JWT_TTL}"))
}

fn check_address(address: &str) -> Result<(), String> {
    let sound = address
        .rsplit_once(':')
        .is_some_and(|(h, p)| !h.is_empty() && p.parse::<u16>().is_ok());
    sound
        .then_some(())
        .ok_or_else(|| format!("{address:?} is not host:port"))
}

fn check_ttl(seconds: u64) -> Result<(), String> {
    let sound = (MIN_TTL..=MAX_TTL).contains(&seconds);
    sound
        .then_some(())
        .ok_or_else(|| format!("{seconds} seconds, must be {MIN_TTL} to {MAX_TTL}"))
}

fn check_ca_ttl(seconds: u64) -> Result<(), String> {
    let sound = (MIN_CA_TTL..=MAX_CA_TTL).contains(&seconds);
    sound
        .then_some(())
        .ok_or_else(|| format!("{seconds} seconds, must be {MIN_CA_TTL} to {MAX_CA_TTL}"))
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 7301)),
            state_dir: weft_config::state_dir("identity"),
            database_url: None,
            run_dir: Some(weft_config::run_dir()),
            trust_domain: TrustDomain::default().as_str().to_owned(),
            policy_addr: None,
            ca: CaConfig::default(),
            attestation: AttestationConfig::default(),
            limits: LimitsConfig::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let calls = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        Self {
            member_burst: calls(50_000),
            member_per_second: calls(1000),
            stranger_burst: calls(1000),
            stranger_per_second: calls(50),
        }
    }
}

impl LimitsConfig {
    pub(crate) fn members(&self) -> Rate {
        Rate {
            burst: self.member_burst.get(),
            per_second: self.member_per_second.get(),
        }
    }

    pub(crate) fn strangers(&self) -> Rate {
        Rate {
            burst: self.stranger_burst.get(),
            per_second: self.stranger_per_second.get(),
        }
    }
}

impl Default for CaConfig {
    fn default() -> Self {
        Self {
            key_encryption_key: None,
            key_encryption_key_env: None,
            key_encryption_key_command: Vec::new(),
            key_type: KeyType::P256,
            supplied: None,
            jwt_ttl_seconds: 300,
            root_ttl_seconds: 3650 * DAY,
            issuer_ttl_seconds: 365 * DAY,
            service_ttl_seconds: DAY,
            node_ttl_seconds: DAY,
            workload_ttl_seconds: DAY,
            svid_form: SvidForm::default(),
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
            check_ttl(seconds).map_err(|problem| ConfigError { field, problem })?;
        }
        let lives = [
            ("ca.root_ttl_seconds", self.ca.root_ttl_seconds),
            ("ca.issuer_ttl_seconds", self.ca.issuer_ttl_seconds),
        ];
        check_jwt_ttl(self.ca.jwt_ttl_seconds).map_err(|problem| ConfigError {
            field: "ca.jwt_ttl_seconds",
            problem,
        })?;
        for (field, seconds) in lives {
            check_ca_ttl(seconds).map_err(|problem| ConfigError { field, problem })?;
        }
        if let Some(url) = &self.database_url
            && !(url.starts_with("postgres://") || url.starts_with("postgresql://"))
        {
            return Err(ConfigError {
                field: "database_url",
                problem: "must begin with postgres://; without it, the state is in a file".into(),
            });
        }
        self.kek_source()?;
        if let Some(address) = &self.policy_addr {
            check_address(address).map_err(|problem| ConfigError {
                field: "policy_addr",
                problem,
            })?;
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

    /// Where the key-encryption key is: one place.
    pub(crate) fn kek_source(&self) -> Result<KekSource, ConfigError> {
        let ca = &self.ca;
        let command = (!ca.key_encryption_key_command.is_empty()).then_some(&ca.key_encryption_key_command);
        match (&ca.key_encryption_key, &ca.key_encryption_key_env, command) {
            (None, None, None) => Ok(KekSource::File(self.state_dir.join("key-encryption-key"))),
            (Some(path), None, None) => Ok(KekSource::File(path.clone())),
            (None, Some(name), None) => Ok(KekSource::Env(name.clone())),
            (None, None, Some(words)) => Ok(KekSource::Command(words.clone())),
            _ => Err(ConfigError {
                field: "ca.key_encryption_key",
                problem: "only one of key_encryption_key, key_encryption_key_env and \
                          key_encryption_key_command may be set"
                    .into(),
            }),
        }
    }

    /// The last certificate of the service itself, to be compared with the database.
    pub(crate) fn own_certificate(&self) -> PathBuf {
        self.state_dir.join("own-certificate.pem")
    }
}

impl CaConfig {
    pub(crate) fn root_ttl(&self) -> Duration {
        Duration::from_secs(self.root_ttl_seconds)
    }

    pub(crate) fn issuer_ttl(&self) -> Duration {
        Duration::from_secs(self.issuer_ttl_seconds)
    }

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
        let mut long = Config::default();
        long.ca.jwt_ttl_seconds = 3601;
        assert!(
            long.check()
                .unwrap_err()
                .to_string()
                .starts_with("ca.jwt_ttl_seconds: 3601")
        );
        let address = Config {
            policy_addr: Some("policy".into()),
            ..Config::default()
        };
        assert!(address.check().is_err());
        let read = serde_json::from_str::<Config>(r#"{"ca": {"node_ttl_seconds": 10}}"#);
        assert!(read.unwrap_err().to_string().contains("10 seconds, must be 60"));
        let read = serde_json::from_str::<Config>(r#"{"limits": {"stranger_burst": 0}}"#);
        assert!(read.unwrap_err().to_string().contains("nonzero"));
        let url = Config {
            database_url: Some("mysql://h/d".into()),
            ..Config::default()
        };
        assert!(url.check().unwrap_err().to_string().starts_with("database_url"));
        let mut keys = Config::default();
        keys.ca.key_encryption_key_env = Some("KEK".into());
        keys.check().unwrap();
        keys.ca.key_encryption_key_command = vec!["kms".into()];
        assert!(keys.check().unwrap_err().to_string().contains("only one of"));
        let read = serde_json::from_str::<Config>(r#"{"ca": {"key_type": "ed25519"}}"#).unwrap();
        assert_eq!(read.ca.key_type, KeyType::Ed25519);
        let domain = Config {
            trust_domain: "UPPER".into(),
            ..Config::default()
        };
        assert!(domain.check().is_err());
    }
}
