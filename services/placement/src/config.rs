//! What the service can be told, and what is refused.

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use std::{net::SocketAddr, path::PathBuf};
use weft_enroll::TokenSource;
use weft_model::TrustDomain;
use weft_placement_protocol::{DEFAULT_SLOTS, SlotCount};
use weft_store::DatabaseUrl;
use weft_telemetry::TelemetryConfig;

/// Configuration of the placement service.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where gRPC is served.
    pub listen: SocketAddr,
    /// Holds the database `placement.db`, and the service's key and certificate.
    pub state_dir: PathBuf,
    /// `postgres://user:password@host/database`, which belongs to one such service at a time; without it the
    /// state is in a file.
    pub database_url: Option<DatabaseUrl>,
    /// Whose members the service belongs to.
    #[serde(deserialize_with = "trust_domain")]
    pub trust_domain: String,
    /// `host:port` of the identity service.
    #[serde(deserialize_with = "address")]
    pub identity_addr: String,
    /// Token for the first start.
    pub join_token: Option<Token>,
    /// File with the token for the first start.
    pub join_token_file: Option<PathBuf>,
    /// Slots of actor types that are new: a power of two. Types that exist keep theirs.
    #[serde(deserialize_with = "slots")]
    pub slots: u32,
    /// Logs, traces, metrics.
    pub telemetry: TelemetryConfig,
}

// Wrong values are found while the configuration is read, so that `--check-config` finds them too.

fn trust_domain<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let text = String::deserialize(d)?;
    TrustDomain::new(&text).map(|_| text).map_err(D::Error::custom)
}

fn address<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let text = String::deserialize(d)?;
    if !is_address(&text) {
        return Err(D::Error::custom(format!("{text:?} is not host:port")));
    }
    Ok(text)
}

fn slots<'de, D: Deserializer<'de>>(d: D) -> Result<u32, D::Error> {
    let slots = u32::deserialize(d)?;
    SlotCount::new(slots)
        .map(SlotCount::get)
        .map_err(D::Error::custom)
}

fn is_address(text: &str) -> bool {
    text.rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
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

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 7302)),
            state_dir: weft_config::state_dir("placement"),
            database_url: None,
            trust_domain: TrustDomain::default().as_str().to_owned(),
            identity_addr: "127.0.0.1:7301".into(),
            join_token: None,
            join_token_file: None,
            slots: DEFAULT_SLOTS.get(),
            telemetry: TelemetryConfig::default(),
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

/// A configuration in which every value was found good.
#[derive(Debug)]
pub(crate) struct Checked {
    pub trust_domain: TrustDomain,
    pub slots: SlotCount,
    pub token: Option<TokenSource>,
}

impl Config {
    /// Checks what can be checked without touching anything.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.checked().map(drop)
    }

    pub(crate) fn checked(&self) -> Result<Checked, ConfigError> {
        let error = |field, problem: String| ConfigError { field, problem };
        let trust_domain =
            TrustDomain::new(&self.trust_domain).map_err(|e| error("trust_domain", e.to_string()))?;
        let slots = SlotCount::new(self.slots).map_err(|e| error("slots", e.to_string()))?;
        if !is_address(&self.identity_addr) {
            return Err(error(
                "identity_addr",
                format!("{:?} is not host:port", self.identity_addr),
            ));
        }
        let token = match (&self.join_token, &self.join_token_file) {
            (Some(token), _) => {
                Some(TokenSource::text(&token.0).map_err(|e| error("join_token", e.to_string()))?)
            }
            (None, file) => file.clone().map(TokenSource::File),
        };
        Ok(Checked {
            trust_domain,
            slots,
            token,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_can_not_work_is_refused_by_name() {
        let with = |f: fn(&mut Config)| {
            let mut config = Config::default();
            f(&mut config);
            config.check().map_err(|e| e.to_string())
        };
        assert_eq!(with(|_| {}), Ok(()));
        for (field, bad) in [
            ("slots", with(|c| c.slots = 1000)),
            ("trust_domain", with(|c| c.trust_domain = "UPPER".into())),
            ("identity_addr", with(|c| c.identity_addr = "identity".into())),
            (
                "join_token",
                with(|c| c.join_token = Some(Token("secret-text".into()))),
            ),
        ] {
            let message = bad.unwrap_err();
            assert!(message.starts_with(&format!("{field}: ")), "{message}");
            assert!(!message.contains("secret-text"), "{message}");
        }
        let shown = format!(
            "{:?}",
            Config {
                join_token: Some(Token("secret-text".into())),
                ..Config::default()
            }
        );
        assert!(!shown.contains("secret-text"), "{shown}");
    }
}
