//! SPIFFE IDs, and the principals that Weft reads out of their paths.
//!
//! Syntax as in the SPIFFE-ID standard (sections 2.1 to 2.4): lower-case trust domain, path
//! segments of letters, digits, `.`, `-`, `_`, no empty or dot segments, at most 2048 bytes.

use crate::name::{check_app_id, check_dns_label, check_name};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, sync::Arc};

/// A SPIFFE ID is refused above this many bytes (SPIFFE-ID, section 2.3).
const MAX_ID_BYTES: usize = 2048;
/// A trust domain is refused above this many bytes (SPIFFE-ID, section 2.1).
const MAX_TRUST_DOMAIN_BYTES: usize = 255;

/// Why a text is no SPIFFE ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// No `spiffe://` at the start.
    #[error("SPIFFE ID {0:?} does not start with spiffe://")]
    Scheme(String),
    /// Empty, too long, or with a character outside `[a-z0-9.-_]`.
    #[error("trust domain {0:?} must be 1 to 255 of a-z, 0-9, '.', '-' and '_'")]
    TrustDomain(String),
    /// An empty or dot segment, a trailing slash, or a character outside `[A-Za-z0-9.-_]`.
    #[error("path of SPIFFE ID {0:?} must be segments of letters, digits, '.', '-' and '_'")]
    Path(String),
    /// More than 2048 bytes.
    #[error("a SPIFFE ID of {0} bytes is longer than the standard's 2048")]
    TooLong(usize),
}

/// The domain that a root of trust speaks for. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Checks and wraps `name`.
    pub fn new(name: &str) -> Result<Self, SpiffeError> {
        let legal = |c: u8| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        if name.is_empty() || name.len() > MAX_TRUST_DOMAIN_BYTES || !name.bytes().all(legal) {
            return Err(SpiffeError::TrustDomain(name.to_owned()));
        }
        Ok(Self(name.into()))
    }

    /// The name, without scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `spiffe://<td>/weft/service/<name>`.
    pub fn service(&self, name: &str) -> Result<SpiffeId, SpiffeError> {
        SpiffeId::new(self, &format!("/weft/service/{name}"))
    }

    /// `spiffe://<td>/weft/node/<name>`.
    pub fn node(&self, name: &str) -> Result<SpiffeId, SpiffeError> {
        SpiffeId::new(self, &format!("/weft/node/{name}"))
    }

    /// `spiffe://<td>/weft/ingress/<node>`: as whom the gateways of a node call workloads of others.
    /// It has no rights in Weft's own APIs.
    pub fn ingress(&self, node: &str) -> Result<SpiffeId, SpiffeError> {
        SpiffeId::new(self, &format!("/weft/ingress/{node}"))
    }

    /// `spiffe://<td>/weft/admin/<name>`.
    pub fn admin(&self, name: &str) -> Result<SpiffeId, SpiffeError> {
        SpiffeId::new(self, &format!("/weft/admin/{name}"))
    }

    /// `spiffe://<td>/ns/<namespace>/<app-id>`.
    pub fn workload(&self, namespace: &str, app_id: &str) -> Result<SpiffeId, SpiffeError> {
        SpiffeId::new(self, &format!("/ns/{namespace}/{app_id}"))
    }
}

impl Default for TrustDomain {
    /// `cluster.local`.
    fn default() -> Self {
        Self("cluster.local".into())
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::new(s)
    }
}

/// A checked SPIFFE ID. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Where the path begins in `text`; equal to its length when there is none.
    path_at: usize,
}

/// Whom a SPIFFE ID names, by the paths that Weft gives out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// A control service: `/weft/service/<name>`.
    Service(String),
    /// A node's agent: `/weft/node/<name>`.
    Node(String),
    /// An operator: `/weft/admin/<name>`.
    Admin(String),
    /// A workload: `/ns/<namespace>/<app-id>`.
    Workload {
        /// Namespace of the workload.
        namespace: String,
        /// App-id, or the service account's name where there is no app-id.
        name: String,
    },
    /// A workload named by its service account: `/ns/<namespace>/sa/<service-account>`.
    ServiceAccount {
        /// Namespace of the workload.
        namespace: String,
        /// The service account's name.
        name: String,
    },
    /// Any other path: known to the CA, without rights in Weft.
    Other,
}

/// Which of a workload's names its SPIFFE ID is made of. One for the whole mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SvidForm {
    /// `/ns/<namespace>/<app-id>`, with the service account where there is no app-id: as Dapr.
    #[default]
    AppId,
    /// `/ns/<namespace>/sa/<service-account>`: as SPIRE and other meshes.
    ServiceAccount,
}

impl SvidForm {
    /// The name that the last part of the ID is made of, and that host patterns are about.
    pub fn name<'a>(self, app_id: &'a str, service_account: &'a str) -> &'a str {
        // What Kubernetes names an account that nobody named.
        let account = if service_account.is_empty() {
            "default"
        } else {
            service_account
        };
        match self {
            Self::AppId if !app_id.is_empty() => app_id,
            Self::AppId | Self::ServiceAccount => account,
        }
    }

    /// The ID of a workload with [`SvidForm::name`] `name`.
    pub fn id(self, domain: &TrustDomain, namespace: &str, name: &str) -> Result<SpiffeId, SpiffeError> {
        match self {
            Self::AppId => domain.workload(namespace, name),
            Self::ServiceAccount => SpiffeId::new(domain, &format!("/ns/{namespace}/sa/{name}")),
        }
    }

    /// Namespace and name, if this is a workload's ID of this form.
    pub fn read(self, id: &SpiffeId) -> Option<(String, String)> {
        match (self, id.principal()) {
            (Self::AppId, Principal::Workload { namespace, name })
            | (Self::ServiceAccount, Principal::ServiceAccount { namespace, name }) => {
                Some((namespace, name))
            }
            _ => None,
        }
    }
}

impl SpiffeId {
    /// Joins a trust domain and a path that is empty or starts with `/`.
    pub fn new(trust_domain: &TrustDomain, path: &str) -> Result<Self, SpiffeError> {
        let text = format!("spiffe://{trust_domain}{path}");
        if text.len() > MAX_ID_BYTES {
            return Err(SpiffeError::TooLong(text.len()));
        }
        let legal = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_');
        let segment = |s: &str| !s.is_empty() && s != "." && s != ".." && s.bytes().all(legal);
        let sound = path.is_empty() || path.strip_prefix('/').is_some_and(|p| p.split('/').all(segment));
        if !sound {
            return Err(SpiffeError::Path(text));
        }
        let path_at = text.len() - path.len();
        Ok(Self {
            text: text.into(),
            path_at,
        })
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The part between `spiffe://` and the path.
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(self.text["spiffe://".len()..self.path_at].into())
    }

    /// The path with its leading slash, or an empty text.
    pub fn path(&self) -> &str {
        &self.text[self.path_at..]
    }

    /// Reads whom this ID names. Only meaningful inside Weft's own trust domain: compare
    /// [`SpiffeId::trust_domain`] first.
    pub fn principal(&self) -> Principal {
        let mut segments = self.path().split('/').skip(1);
        let four = (segments.next(), segments.next(), segments.next(), segments.next());
        if segments.next().is_some() {
            return Principal::Other;
        }
        match four {
            (Some("weft"), Some("service"), Some(name), None) if check_dns_label(name).is_ok() => {
                Principal::Service(name.into())
            }
            (Some("weft"), Some("node"), Some(name), None) => Principal::Node(name.into()),
            (Some("weft"), Some("admin"), Some(name), None) => Principal::Admin(name.into()),
            (Some("ns"), Some(namespace), Some(name), None)
                if check_dns_label(namespace).is_ok() && check_app_id(name).is_ok() =>
            {
                Principal::Workload {
                    namespace: namespace.into(),
                    name: name.into(),
                }
            }
            (Some("ns"), Some(namespace), Some("sa"), Some(name))
                if check_dns_label(namespace).is_ok() && check_name(name).is_ok() =>
            {
                Principal::ServiceAccount {
                    namespace: namespace.into(),
                    name: name.into(),
                }
            }
            _ => Principal::Other,
        }
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if s.len() > MAX_ID_BYTES {
            return Err(SpiffeError::TooLong(s.len()));
        }
        let rest = s
            .strip_prefix("spiffe://")
            .ok_or_else(|| SpiffeError::Scheme(s.to_owned()))?;
        let (domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        Self::new(&TrustDomain::new(domain)?, path)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn principals_are_read_from_paths() {
        let principal = |s: &str| s.parse::<SpiffeId>().unwrap().principal();
        assert_eq!(
            principal("spiffe://td/weft/service/policy"),
            Principal::Service("policy".into())
        );
        assert_eq!(
            principal("spiffe://td/weft/node/n1"),
            Principal::Node("n1".into())
        );
        assert_eq!(
            principal("spiffe://td/ns/default/cart"),
            Principal::Workload {
                namespace: "default".into(),
                name: "cart".into()
            }
        );
        // One segment more is another path, never the same principal.
        assert_eq!(principal("spiffe://td/weft/node/n1/x"), Principal::Other);
        assert_eq!(principal("spiffe://td/weft/node"), Principal::Other);
        assert_eq!(principal("spiffe://td"), Principal::Other);
    }

    #[test]
    fn each_form_makes_and_reads_its_own_ids() {
        let domain = TrustDomain::default();
        for (form, path) in [
            (SvidForm::AppId, "/ns/shop/cart"),
            (SvidForm::ServiceAccount, "/ns/shop/sa/runner"),
        ] {
            let name = form.name("cart", "runner");
            let id = form.id(&domain, "shop", name).unwrap();
            assert_eq!(id.path(), path);
            assert_eq!(form.read(&id), Some(("shop".into(), name.into())));
            let other = match form {
                SvidForm::AppId => SvidForm::ServiceAccount,
                SvidForm::ServiceAccount => SvidForm::AppId,
            };
            assert_eq!(other.read(&id), None);
        }
        assert_eq!(SvidForm::AppId.name("", "runner"), "runner");
        assert_eq!(SvidForm::AppId.name("", ""), "default");
        assert_eq!(SvidForm::ServiceAccount.name("cart", ""), "default");
        // An app that is called "sa" is no service account, and one segment more is neither.
        let app = domain.workload("shop", "sa").unwrap();
        assert_eq!(SvidForm::ServiceAccount.read(&app), None);
        let deep = SpiffeId::new(&domain, "/ns/shop/sa/runner/x").unwrap();
        assert_eq!(deep.principal(), Principal::Other);
    }

    #[test]
    fn bad_ids_are_refused() {
        for bad in [
            "https://td/x",
            "spiffe://",
            "spiffe:///x",
            "spiffe://TD/x",
            "spiffe://td/",
            "spiffe://td//x",
            "spiffe://td/./x",
            "spiffe://td/../x",
            "spiffe://td/x/",
            "spiffe://td/a b",
            "spiffe://td/%2e%2e",
            "spiffe://td:1/x",
            "spiffe://u@td/x",
            "spiffe://td/x?q",
            "spiffe://td/x#f",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad} was taken");
        }
        assert!(
            format!("spiffe://td/{}", "a".repeat(2100))
                .parse::<SpiffeId>()
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn what_parses_prints_the_same(s in "spiffe://[a-z0-9.]{1,8}(/[A-Za-z0-9._-]{1,6}){0,4}") {
            if let Ok(id) = s.parse::<SpiffeId>() {
                prop_assert_eq!(id.as_str(), s.as_str());
                prop_assert_eq!(SpiffeId::new(&id.trust_domain(), id.path()).unwrap(), id);
            }
        }

        #[test]
        fn any_text_is_parsed_without_panic(s in "\\PC{0,64}") {
            let _ = s.parse::<SpiffeId>();
            let _ = format!("spiffe://{s}").parse::<SpiffeId>();
        }
    }
}
