//! Kubernetes speaks for its pods: the API server says whose a service-account token is
//! (TokenReview), and what the pod it is bound to is called and where it runs.
//!
//! The token alone is not believed: a pod that is gone, that another of its name has replaced, or
//! that has ended gets nothing, however long its token would still be good for.

mod pod;

pub(super) use pod::Pod;

use super::config::{KubernetesConfig, NodeAgent};
use crate::{core::Decision, error::StartError, pattern::HostPattern, reason::Reason, refused::Refused};
use http_body_util::{LengthLimitError, Limited};
use hyper::Response;
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    core::v1 as core_v1,
};
use kube::{
    Api, Client, Config,
    api::{ListParams, PostParams},
    client::{ClientBuilder, DynBody},
    config::{KubeConfigOptions, Kubeconfig},
};
use parking_lot::Mutex;
use pod::{ACCOUNT, Bound, bound, check_pod, live};
use std::{
    collections::HashMap,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;
use tower::util::MapResponseLayer;
use tracing::{instrument::WithSubscriber, subscriber::NoSubscriber};
use weft_model::{SvidForm, TrustDomain};

/// Questions on their way to the API server at once; more wait.
const AT_ONCE: usize = 64;
/// Bytes of one answer that are read. The API server takes no object of more than 1.5 MiB, and a page
/// of pods has some tens of KiB for each at most.
const MAX_ANSWER: usize = 4 << 20;
/// The pods of one namespace on one node are asked for in pages: all of them are more than any node runs.
const PAGE: u32 = 100;
const MAX_PAGES: usize = 10;
/// How long the pods of a node are remembered. A pod that left keeps its name so much longer.
const REMEMBERED: Duration = Duration::from_secs(2);
const MAX_REMEMBERED: usize = 4096;

type Names = Arc<Vec<Pod>>;

/// The cluster.
pub(super) struct Kubernetes {
    client: Client,
    audiences: Vec<String>,
    node_agents: Vec<NodeAgent>,
    may_host: Vec<HostPattern>,
    timeout: Duration,
    at_once: Semaphore,
    /// Pods by node and namespace.
    pods: Mutex<HashMap<(String, String), (Instant, Names)>>,
}

impl std::fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubernetes")
            .field("audiences", &self.audiences)
            .finish_non_exhaustive()
    }
}

/// The audiences of this mesh: its own, and those that Dapr's injector projects tokens for.
fn own_audiences(trust_domain: &TrustDomain) -> Vec<String> {
    vec![
        format!("spiffe://{trust_domain}/weft/service/identity"),
        format!("spiffe://{trust_domain}/ns/dapr-system/dapr-sentry"),
        "dapr.io/sentry".into(),
    ]
}

async fn client(settings: &KubernetesConfig) -> Result<Client, StartError> {
    let unusable = |e: &dyn std::fmt::Display| StartError::Kubernetes(e.to_string());
    let mut config = match &settings.kubeconfig {
        Some(path) => {
            let read = Kubeconfig::read_from(path).map_err(|e| unusable(&e))?;
            // Reads only what the file names; nothing is asked.
            Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
                .await
                .map_err(|e| unusable(&e))?
        }
        None => Config::incluster().map_err(|e| {
            unusable(&format!(
                "{e}; outside of a cluster, set attestation.kubernetes.kubeconfig"
            ))
        })?,
    };
    // Whoever asks is told to ask again; it is not for this service to add to what is too much.
    config.default_retry = false;
    let client = ClientBuilder::try_from(config).map_err(|e| unusable(&e))?;
    let bounded = |answer: Response<Box<DynBody>>| answer.map(|body| Limited::new(body, MAX_ANSWER));
    Ok(client.with_layer(&MapResponseLayer::new(bounded)).build())
}

/// Whether an answer was given up because it is too large.
fn is_too_large(error: &kube::Error) -> bool {
    let mut cause = Some(error as &(dyn std::error::Error + 'static));
    while let Some(error) = cause {
        if error.is::<LengthLimitError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

impl Kubernetes {
    /// Prepares a client; asks nothing yet.
    pub async fn new(settings: &KubernetesConfig, trust_domain: &TrustDomain) -> Result<Self, StartError> {
        let audiences = match settings.audiences.as_slice() {
            [] => own_audiences(trust_domain),
            set => set.to_vec(),
        };
        Ok(Self {
            client: client(settings).await?,
            audiences,
            node_agents: settings.node_agents.clone(),
            may_host: settings.may_host.clone(),
            timeout: Duration::from_secs(settings.timeout_seconds),
            at_once: Semaphore::new(AT_ONCE),
            pods: Mutex::default(),
        })
    }

    /// What nodes of this cluster may host at most.
    pub fn may_host(&self) -> &[HostPattern] {
        &self.may_host
    }

    /// Whether a pod may be the node that it runs on.
    pub fn is_agent(&self, pod: &Pod) -> bool {
        self.node_agents
            .iter()
            .any(|agent| (&agent.namespace, &agent.service_account) == (&pod.namespace, &pod.service_account))
    }

    /// The pod that a token is bound to.
    pub async fn attest(&self, token: &str, who: &mut String) -> Decision<Pod> {
        let bound = self.review(token, who).await?;
        let pods: Api<core_v1::Pod> = Api::namespaced(self.client.clone(), &bound.namespace);
        let found = self.ask("read the pod", pods.get_opt(&bound.pod)).await?;
        check_pod(&bound, found)
    }

    async fn review(&self, token: &str, who: &mut String) -> Decision<Bound> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(self.audiences.clone()),
                token: Some(token.to_owned()),
            },
            ..TokenReview::default()
        };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let plain = PostParams::default();
        let answer = self.ask("review the token", reviews.create(&plain, &review));
        let status = answer.await?.status.unwrap_or_default();
        let user = status.user.unwrap_or_default();
        if status.authenticated != Some(true) {
            // Its own words, for example that the token has expired, are for the caller as well.
            let said = status.error.unwrap_or_default();
            let said: String = said.chars().filter(|c| !c.is_control()).take(200).collect();
            let (reason, why) = match said.as_str() {
                "" => (Reason::TokenInvalid, "it gave no reason".to_owned()),
                text if text.contains("expired") => (Reason::TokenExpired, said),
                text if text.contains("audience") => (Reason::TokenAudience, said),
                _ => (Reason::TokenInvalid, said),
            };
            return Err(Refused::denied(
                reason,
                format!("Kubernetes does not vouch for the token: {why}"),
            ));
        }
        if let Some(name) = &user.username {
            name.clone_into(who);
        }
        let meant = status.audiences.unwrap_or_default();
        // An API server that knows nothing of audiences answers with none.
        if !meant.iter().any(|audience| self.audiences.contains(audience)) {
            let reason = format!(
                "the token is for {}, and must be for one of {}",
                list(&meant),
                list(&self.audiences)
            );
            return Err(Refused::denied(Reason::TokenAudience, reason));
        }
        let bound = bound(&user)?;
        *who = format!(
            "{ACCOUNT}{}:{} (pod {})",
            bound.namespace, bound.service_account, bound.pod
        );
        Ok(bound)
    }

    /// Whether a pod of this name is on the node.
    pub async fn hosts(&self, form: SvidForm, node: &str, namespace: &str, name: &str) -> Decision<bool> {
        let is = |pods: &[Pod]| {
            pods.iter()
                .any(|pod| form.name(&pod.app_id, &pod.service_account) == name)
        };
        let key = (node.to_owned(), namespace.to_owned());
        let remembered = self.pods.lock().get(&key).cloned();
        if let Some((since, pods)) = remembered
            && since.elapsed() < REMEMBERED
            && is(&pods)
        {
            return Ok(true);
        }
        let asked = Instant::now();
        let pods = self.pods_of(node, namespace).await?;
        let hosted = is(&pods);
        let mut known = self.pods.lock();
        if known.len() >= MAX_REMEMBERED {
            known.clear();
        }
        known.insert(key, (asked, Arc::new(pods)));
        Ok(hosted)
    }

    async fn pods_of(&self, node: &str, namespace: &str) -> Decision<Vec<Pod>> {
        let mut page = ListParams::default()
            .fields(&format!("spec.nodeName={node}"))
            .limit(PAGE);
        let api: Api<core_v1::Pod> = Api::namespaced(self.client.clone(), namespace);
        let mut pods = Vec::new();
        for _ in 0..MAX_PAGES {
            let found = self.ask("list the node's pods", api.list(&page)).await?;
            // The selector is the server's to obey; what it sends is looked at all the same.
            let alive = found
                .items
                .into_iter()
                .filter_map(|pod| live(pod, namespace).ok());
            pods.extend(alive.filter(|pod| pod.node == node));
            match found.metadata.continue_.filter(|more| !more.is_empty()) {
                Some(more) => page.continue_token = Some(more),
                None => break,
            }
        }
        Ok(pods)
    }

    /// One question, with an end.
    async fn ask<T>(&self, what: &str, question: impl Future<Output = kube::Result<T>>) -> Decision<T> {
        let answer = tokio::time::timeout(self.timeout, async {
            // The semaphore is never closed.
            let _place = self.at_once.acquire().await;
            quietly(question).await
        });
        let why = match answer.await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(kube::Error::Api(status))) => match status.code {
                429 => "the API server has too many requests; ask again later".to_owned(),
                403 => {
                    tracing::error!(
                        what,
                        message = status.message,
                        "the API server does not permit it: this service needs create on tokenreviews, and get and list on pods"
                    );
                    "the API server does not permit it; the identity service's log says what is missing"
                        .into()
                }
                code => format!("the API server answered with status {code}"),
            },
            Ok(Err(error)) if is_too_large(&error) => {
                format!("the API server answered with more than {MAX_ANSWER} bytes")
            }
            Ok(Err(error)) => {
                tracing::warn!(what, %error, "the API server's answer can not be used");
                "the API server can not be reached or gave no sensible answer".into()
            }
            Err(_) => format!("the API server did not answer within {:?}", self.timeout),
        };
        Err(Refused::unavailable(
            Reason::AttestorAway,
            format!("could not {what}: {why}"),
        ))
    }
}

/// Without a word in the log: of an answer that it can not read, the client writes down all, and a
/// review's has the token in it.
fn quietly<F: Future>(question: F) -> impl Future<Output = F::Output> {
    question.with_subscriber(NoSubscriber::new())
}

fn list(all: &[String]) -> String {
    match all {
        [] => "no audience".into(),
        all => all.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tracing::{Event, Metadata, Subscriber, span};

    /// Counts what is logged.
    struct Count(Arc<AtomicUsize>);

    impl Subscriber for Count {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }
        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn event(&self, _: &Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    #[tokio::test]
    async fn what_the_client_would_log_is_not_logged() {
        let logged = Arc::new(AtomicUsize::new(0));
        let _guard = tracing::subscriber::set_default(Count(logged.clone()));
        let question = async || {
            tracing::warn!("a token");
            tokio::task::yield_now().await;
            tracing::warn!("and again");
        };
        question().await;
        assert_eq!(logged.load(Ordering::Relaxed), 2);
        quietly(question()).await;
        assert_eq!(logged.load(Ordering::Relaxed), 2);
    }
}
