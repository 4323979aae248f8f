//! Whose request it is: one [`AppContext`] per app and way in. Everything a request may touch of
//! its app hangs here; nothing of an app is global.

use aws_lc_rs::{constant_time::verify_slices_are_equal, digest};
use http::HeaderValue;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use weft_flows::{Party, Proof};
use weft_tls::SvidCell;

/// Extended metadata of one app: more than this many keys are refused.
const MAX_EXTENDED_KEYS: usize = 128;
/// Extended metadata of one app: more than this many bytes in a key and its value are refused.
const MAX_EXTENDED_BYTES: usize = 8 * 1024;

/// An API token, kept as its digest only: comparing digests in constant time tells nothing about
/// the token, nor about its length.
#[derive(Clone)]
pub struct Token([u8; 32]);

impl Token {
    /// Keeps the digest of `token`.
    pub fn new(token: &str) -> Self {
        Self(sha256(token.as_bytes()))
    }

    /// Whether `shown` is the token.
    pub fn matches(&self, shown: &[u8]) -> bool {
        verify_slices_are_equal(&self.0, &sha256(shown)).is_ok()
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// What the agent knows of an app's readiness. Shared by the app's contexts and whoever probes.
#[derive(Debug, Default)]
pub struct AppHealth {
    app: AtomicBool,
    outbound: AtomicBool,
}

impl AppHealth {
    /// Sets whether the app listens on its port (or has none): `/v1.0/healthz`.
    pub fn set_app(&self, ready: bool) {
        self.app.store(ready, Ordering::Release);
    }

    /// Sets whether the app may call out (identity and policy are there): `/v1.0/healthz/outbound`.
    pub fn set_outbound(&self, ready: bool) {
        self.outbound.store(ready, Ordering::Release);
    }

    /// Whether the app may be called and may call.
    pub fn is_ready(&self) -> bool {
        self.app.load(Ordering::Acquire) && self.is_outbound_ready()
    }

    /// Whether the app may call out.
    pub fn is_outbound_ready(&self) -> bool {
        self.outbound.load(Ordering::Acquire)
    }
}

/// How the app itself is reached, as the metadata API tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppChannel {
    /// 0 when the app takes no calls.
    pub port: u16,
    /// "http" when empty.
    pub protocol: String,
}

/// What an [`AppContext`] is made of.
#[derive(Debug, Clone)]
pub struct AppSpec {
    /// The workload's id, as the registry has it.
    pub workload: Arc<str>,
    /// Who it is, as flows show it.
    pub party: Arc<Party>,
    /// How its connections are known to be its own.
    pub proof: Proof,
    /// The token its calls must show.
    pub token: Option<Token>,
    /// Its tunnel certificate; without one no other node can be called.
    pub svid: Option<SvidCell>,
    /// How the app is reached.
    pub channel: AppChannel,
    /// Its readiness.
    pub health: Arc<AppHealth>,
}

/// What an app's annotations say of its runtime.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct AppSettings {
    /// `dapr.io/config`: the Configuration of its namespace that counts for it; empty for none.
    pub configuration: String,
    /// `dapr.io/env`: the environment of its runtime.
    pub environment: Arc<BTreeMap<String, String>>,
}

impl std::fmt::Debug for AppSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppSettings")
            .field("configuration", &self.configuration)
            .finish_non_exhaustive()
    }
}

impl AppSettings {
    /// As annotations say: `dapr.io/config: <name>` and `dapr.io/env: A=1,B=2`.
    pub fn of<'a>(annotations: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        let mut settings = Self::default();
        for (name, value) in annotations {
            match name.as_str() {
                "dapr.io/config" => value.trim().clone_into(&mut settings.configuration),
                "dapr.io/env" => {
                    let pairs = value.split(',').filter_map(|pair| pair.split_once('='));
                    let pairs = pairs.map(|(name, value)| (name.trim().to_owned(), value.to_owned()));
                    settings.environment = Arc::new(pairs.filter(|(name, _)| !name.is_empty()).collect());
                }
                _ => {}
            }
        }
        settings
    }
}

/// Whose request it is, and by which proof.
#[derive(Debug)]
pub struct AppContext {
    spec: AppSpec,
    settings: AppSettings,
    headers: CallerHeaders,
    extended: Mutex<BTreeMap<String, String>>,
}

/// What every call of this app carries, made once.
#[derive(Debug)]
pub(crate) struct CallerHeaders {
    pub app_id: HeaderValue,
    pub namespace: HeaderValue,
    pub forwarded: HeaderValue,
    pub forwarded_for: Option<HeaderValue>,
    pub forwarded_host: HeaderValue,
}

impl CallerHeaders {
    pub(crate) fn of(party: &Party) -> Self {
        // Names and addresses are checked where they enter; should one not be a legal header
        // value, it is left empty rather than passed on as something else.
        let value = |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""));
        let address = party.address.map(|a| a.to_string());
        let forwarded = match party.address {
            Some(std::net::IpAddr::V6(a)) => format!("for=\"[{a}]\";host={}", party.workload),
            Some(a) => format!("for={a};host={}", party.workload),
            None => format!("host={}", party.workload),
        };
        Self {
            app_id: value(&party.app_id),
            namespace: value(&party.namespace),
            forwarded: value(&forwarded),
            forwarded_for: address.as_deref().map(value),
            forwarded_host: value(&party.workload),
        }
    }
}

impl AppContext {
    /// For one app and one way in.
    pub fn new(spec: AppSpec) -> Arc<Self> {
        Self::with_settings(spec, AppSettings::default())
    }

    /// As [`AppContext::new`], with what annotations say.
    pub fn with_settings(spec: AppSpec, settings: AppSettings) -> Arc<Self> {
        let headers = CallerHeaders::of(&spec.party);
        Arc::new(Self {
            spec,
            settings,
            headers,
            extended: Mutex::default(),
        })
    }

    /// The workload's id.
    pub fn workload(&self) -> &Arc<str> {
        &self.spec.workload
    }

    /// Who it is.
    pub fn party(&self) -> &Arc<Party> {
        &self.spec.party
    }

    /// How its connections are known to be its own.
    pub fn proof(&self) -> Proof {
        self.spec.proof
    }

    /// The token its calls must show.
    pub fn token(&self) -> Option<&Token> {
        self.spec.token.as_ref()
    }

    /// Its tunnel certificate.
    pub fn svid(&self) -> Option<&SvidCell> {
        self.spec.svid.as_ref()
    }

    /// How the app is reached.
    pub fn channel(&self) -> &AppChannel {
        &self.spec.channel
    }

    /// What its annotations say.
    pub fn settings(&self) -> &AppSettings {
        &self.settings
    }

    /// Its readiness.
    pub fn health(&self) -> &AppHealth {
        &self.spec.health
    }

    pub(crate) fn headers(&self) -> &CallerHeaders {
        &self.headers
    }

    /// The extended metadata that the app has set.
    pub(crate) fn extended(&self) -> BTreeMap<String, String> {
        self.extended.lock().clone()
    }

    /// Sets a key of the extended metadata; `false` when that would go over the bound.
    pub(crate) fn set_extended(&self, key: &str, value: &str) -> bool {
        let mut extended = self.extended.lock();
        let room = extended.len() < MAX_EXTENDED_KEYS || extended.contains_key(key);
        if !room || key.len() + value.len() > MAX_EXTENDED_BYTES {
            return false;
        }
        extended.insert(key.to_owned(), value.to_owned());
        true
    }
}
