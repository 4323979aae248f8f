//! Who asks, shown by something other than a certificate of this mesh, and what may be signed for
//! them. Decides from evidence alone; what is signed, recorded and counted is [`crate::bootstrap`]'s.
//!
//! Join tokens ([`crate::tokens`]) and nodes that ask for their workloads ([`crate::grants`]) are
//! judged where their state is. The API server and the source of JWT keys are across the border.

mod config;
mod fetch;
mod jwks;
mod jwt;
mod kubernetes;

pub use config::{AttestationConfig, JwtAlgorithm, JwtConfig, KubernetesConfig, NodeAgent};
pub use fetch::FetchError;

use crate::{
    core::Decision, db::Db, error::StartError, pattern::HostPattern, reason::Reason, refused::Refused,
};
use jwt::{Jwt, Once};
use kubernetes::Kubernetes;
use tonic::Code;
use weft_model::{Principal, SpiffeId, SvidForm, TrustDomain};
use weft_tls::Clock;

/// Longer tokens are not looked at. A projected service-account token has about 1,200 bytes.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// How the record names a node or workload that Kubernetes speaks for.
pub const BY_KUBERNETES: &str = "kubernetes";
/// How the record names a workload that a JWT speaks for.
pub const BY_JWT: &str = "jwt";
/// How the record names a workload that nothing speaks for.
pub const BY_NOTHING: &str = "insecure";

/// What a caller shows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Evidence<'a> {
    /// A token of a Kubernetes service account, bound to a pod.
    Kubernetes {
        /// As the kubelet projects it.
        token: &'a str,
    },
    /// A JWT of an issuer that is configured.
    Jwt {
        /// Compact serialization.
        token: &'a str,
    },
    /// Nothing. Taken only where the process asked for it ([`crate::Env::insecure_attestation`]).
    Insecure,
}

impl std::fmt::Debug for Evidence<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.how())
    }
}

impl Evidence<'_> {
    /// As the audit record names it.
    pub fn how(&self) -> &'static str {
        match self {
            Self::Kubernetes { .. } => BY_KUBERNETES,
            Self::Jwt { .. } => BY_JWT,
            Self::Insecure => BY_NOTHING,
        }
    }
}

/// Whom a caller wants to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted<'a> {
    /// The app of this name, whatever form its ID has.
    App {
        /// Its namespace.
        namespace: &'a str,
        /// Its app-id.
        app_id: &'a str,
    },
    /// Exactly this one: a workload, or a node.
    Id(&'a SpiffeId),
    /// The workload that the evidence names.
    Own,
}

/// A question to the [`Attestor`].
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Whom the caller wants to be.
    pub wanted: Wanted<'a>,
    /// The node whose certificate the caller showed, if it did: then the pod must be on it.
    pub node: Option<&'a str>,
}

/// What may be signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// For whom.
    pub id: SpiffeId,
    /// As the audit record names it.
    pub how: &'static str,
    /// Who asked, for the audit record.
    pub who: String,
    /// The node that the workload runs on, where the evidence says so.
    pub node: Option<String>,
    /// For a node: what it may host at most.
    pub may_host: Vec<HostPattern>,
    /// A token that is good for one key: [`Attestor::use_up`].
    once: Option<Once>,
}

/// Everything that attests. One for the service.
#[derive(Debug)]
pub struct Attestor {
    trust_domain: TrustDomain,
    form: SvidForm,
    kubernetes: Option<Kubernetes>,
    jwt: Option<Jwt>,
    insecure: bool,
    /// Said once, when it first matters.
    warned: std::sync::Once,
}

fn off(what: &str, setting: &str) -> Refused {
    Refused::denied(
        Reason::AttestationOff,
        format!("this identity service takes no {what}: `{setting}` is not set in its configuration"),
    )
}

fn other(id: &SpiffeId, who: &str, is: &dyn std::fmt::Display) -> Refused {
    Refused::denied(Reason::OtherIdentity, format!("{who} is {is}, not {id}"))
}

impl Attestor {
    /// Prepares what is configured; reads keys from a file, but asks nobody yet.
    pub async fn new(
        config: &AttestationConfig,
        trust_domain: &TrustDomain,
        form: SvidForm,
        clock: &Clock,
        db: &Db,
        insecure: bool,
    ) -> Result<Self, StartError> {
        let kubernetes = match &config.kubernetes {
            Some(settings) => Some(Kubernetes::new(settings, trust_domain).await?),
            None => None,
        };
        let jwt = config.jwt.as_ref();
        Ok(Self {
            kubernetes,
            jwt: jwt
                .map(|settings| Jwt::new(settings, clock.clone(), db.clone()))
                .transpose()?,
            trust_domain: trust_domain.clone(),
            form,
            insecure,
            warned: std::sync::Once::new(),
        })
    }

    /// Whether evidence of this kind is taken here, whatever it says.
    pub fn takes(&self, evidence: &Evidence<'_>) -> bool {
        match evidence {
            Evidence::Kubernetes { .. } => self.kubernetes.is_some(),
            Evidence::Jwt { .. } => self.jwt.is_some(),
            Evidence::Insecure => self.insecure,
        }
    }

    /// Judges the evidence. `who` is set to whoever showed it as soon as that is known, also when more
    /// is asked for than it shows.
    pub async fn attest(
        &self,
        evidence: &Evidence<'_>,
        asked: &Asked<'_>,
        who: &mut String,
    ) -> Decision<Granted> {
        match evidence {
            Evidence::Kubernetes { token } => {
                let by = self.kubernetes.as_ref();
                let by =
                    by.ok_or_else(|| off("Kubernetes service-account tokens", "attestation.kubernetes"))?;
                bounded(token)?;
                self.by_kubernetes(by, token, asked, who).await
            }
            Evidence::Jwt { token } => {
                let by = self.jwt.as_ref();
                let by = by.ok_or_else(|| off("JWTs of other issuers", "attestation.jwt"))?;
                bounded(token)?;
                let id = self.workload_wanted(asked.wanted)?;
                let shown = by.check(token, who).await?;
                if shown.subject != id.as_str() {
                    let reason = format!("the token is for {:?}, not for {id}", shown.subject);
                    return Err(Refused::denied(Reason::TokenSubject, reason));
                }
                Ok(Granted {
                    once: shown.once,
                    ..self.granted(id, BY_JWT, who)
                })
            }
            Evidence::Insecure if self.insecure => {
                let id = self.workload_wanted(asked.wanted)?;
                *who = "anybody".into();
                self.warned.call_once(|| {
                    tracing::warn!(
                        %id,
                        "INSECURE: certificates are given to whoever asks, for any workload, without a proof of who \
                         it is"
                    );
                });
                Ok(self.granted(id, BY_NOTHING, who))
            }
            Evidence::Insecure => Err(Refused::denied(
                Reason::AttestationOff,
                "nothing was shown that says who asks; certificates without a proof are given by `weft dev` only",
            )),
        }
    }

    /// Uses up evidence that is good for one key, for this one (DER). Last of all, so that what is
    /// refused for another reason is as good as before.
    pub async fn use_up(&self, granted: &Granted, key: &[u8]) -> Decision<()> {
        match (&self.jwt, &granted.once) {
            (Some(by), Some(once)) => by.use_up(once, key).await,
            _ => Ok(()),
        }
    }

    fn granted(&self, id: SpiffeId, how: &'static str, who: &str) -> Granted {
        Granted {
            id,
            how,
            who: who.to_owned(),
            node: None,
            may_host: Vec::new(),
            once: None,
        }
    }

    /// The ID of a workload that is asked for by name: evidence that names no pod has to name it itself.
    fn workload_wanted(&self, wanted: Wanted<'_>) -> Decision<SpiffeId> {
        let id = match wanted {
            Wanted::Id(id) => id.clone(),
            Wanted::App { namespace, app_id } => self
                .form
                .id(&self.trust_domain, namespace, app_id)
                .map_err(|e| Refused::denied(Reason::NotNameable, e.to_string()))?,
            Wanted::Own => {
                return Err(Refused::field("spiffe_id", "say which SPIFFE ID is asked for"));
            }
        };
        self.check_workload(&id)?;
        Ok(id)
    }

    fn check_workload(&self, id: &SpiffeId) -> Decision<()> {
        let ours = id.trust_domain() == self.trust_domain && self.form.read(id).is_some();
        ours.then_some(()).ok_or_else(|| {
            let example = match self.form {
                SvidForm::AppId => "/ns/<namespace>/<app-id>",
                SvidForm::ServiceAccount => "/ns/<namespace>/sa/<service-account>",
            };
            Refused::denied(
                Reason::OtherIdentity,
                format!(
                    "{id} is no workload of this mesh: those are spiffe://{}{example}",
                    self.trust_domain
                ),
            )
        })
    }

    async fn by_kubernetes(
        &self,
        by: &Kubernetes,
        token: &str,
        asked: &Asked<'_>,
        who: &mut String,
    ) -> Decision<Granted> {
        let pod = by.attest(token, who).await?;
        if let Some(node) = asked.node
            && node != pod.node
        {
            let reason = format!(
                "pod {}/{} runs on node {:?}, not on {node:?}",
                pod.namespace, pod.name, pod.node
            );
            return Err(Refused::denied(Reason::PodElsewhere, reason));
        }
        if let Wanted::Id(id) = asked.wanted
            && id.trust_domain() == self.trust_domain
            && let Principal::Node(name) = id.principal()
        {
            return self.node_by_kubernetes(by, &pod, id, &name, who);
        }
        let name = self.form.name(&pod.app_id, &pod.service_account);
        let id = self
            .form
            .id(&self.trust_domain, &pod.namespace, name)
            .map_err(|e| Refused::denied(Reason::NotNameable, e.to_string()))?;
        self.check_workload(&id)?;
        match asked.wanted {
            Wanted::Id(wanted) if *wanted != id => return Err(other(wanted, who, &id)),
            Wanted::App { namespace, app_id } => {
                let is = SvidForm::AppId.name(&pod.app_id, &pod.service_account);
                if (namespace, app_id) != (pod.namespace.as_str(), is) {
                    let reason = format!("{who} is app {}/{is}, not {namespace}/{app_id}", pod.namespace);
                    return Err(Refused::denied(Reason::OtherIdentity, reason));
                }
            }
            Wanted::Id(_) | Wanted::Own => {}
        }
        Ok(Granted {
            node: Some(pod.node),
            ..self.granted(id, BY_KUBERNETES, who)
        })
    }

    /// A node is whoever its agent's pod runs on.
    fn node_by_kubernetes(
        &self,
        by: &Kubernetes,
        pod: &kubernetes::Pod,
        id: &SpiffeId,
        name: &str,
        who: &str,
    ) -> Decision<Granted> {
        if !by.is_agent(pod) {
            let reason = format!(
                "{who} is no node's agent: service account {}/{} is not among attestation.kubernetes.node_agents",
                pod.namespace, pod.service_account
            );
            return Err(Refused::denied(Reason::OtherIdentity, reason));
        }
        if pod.node != name {
            return Err(other(id, who, &format!("the agent of node {:?}", pod.node)));
        }
        Ok(Granted {
            node: Some(pod.node.clone()),
            may_host: by.may_host().to_vec(),
            ..self.granted(id.clone(), BY_KUBERNETES, who)
        })
    }

    /// Whether a pod with this name ([`SvidForm::name`]) is on a node that Kubernetes speaks for.
    pub async fn hosts(&self, node: &str, namespace: &str, name: &str) -> Decision<()> {
        let by = self.kubernetes.as_ref().ok_or_else(|| {
            Refused::unavailable(
                Reason::AttestorAway,
                format!(
                    "node {node:?} joined by Kubernetes, which this identity service does not ask any more: \
                 `attestation.kubernetes` is not set in its configuration"
                ),
            )
        })?;
        if by.hosts(self.form, node, namespace, name).await? {
            return Ok(());
        }
        Err(Refused::denied(
            Reason::PodNotOnNode,
            format!("Kubernetes has no pod of {namespace}/{name} on node {node:?}"),
        ))
    }
}

fn bounded(token: &str) -> Decision<()> {
    let problem = match token.len() {
        0 => "the token is empty".to_owned(),
        n if n > MAX_TOKEN_BYTES => {
            format!("the token has {n} bytes, at most {MAX_TOKEN_BYTES} are read")
        }
        _ => return Ok(()),
    };
    Err(Refused::denied(Reason::TokenMalformed, problem).with_code(Code::InvalidArgument))
}
