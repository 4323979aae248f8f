//! What Kubernetes says of a token and of a pod, read.

use crate::{core::Decision, reason::Reason, refused::Refused};
use k8s_openapi::api::{authentication::v1::UserInfo, core::v1 as core_v1};
use weft_model::check_app_id;

/// Extra fields of a token that is bound to a pod (KEP-1205).
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// The annotation by which Dapr's users name their apps.
const APP_ID: &str = "dapr.io/app-id";
/// How Kubernetes writes the name of a service account.
pub const ACCOUNT: &str = "system:serviceaccount:";

/// A pod that runs, as the API server knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What it runs as.
    pub service_account: String,
    /// Its annotation; empty for none.
    pub app_id: String,
    /// Where it runs.
    pub node: String,
}

/// What a token says of itself, after the API server has vouched for it.
#[derive(Debug, PartialEq, Eq)]
pub struct Bound {
    /// Of the pod.
    pub namespace: String,
    /// Of the token.
    pub service_account: String,
    /// Its name.
    pub pod: String,
    uid: String,
}

/// Namespace, account and pod of a token that was vouched for.
pub fn bound(user: &UserInfo) -> Decision<Bound> {
    let name = user.username.as_deref().unwrap_or_default();
    let account = name.strip_prefix(ACCOUNT).and_then(|rest| rest.split_once(':'));
    let Some((namespace, service_account)) = account.filter(|(n, a)| !n.is_empty() && !a.is_empty()) else {
        let reason = format!("the token is of {name:?}, which is no service account");
        return Err(Refused::denied(Reason::TokenUnbound, reason));
    };
    let extra = |key: &str| match user.extra.as_ref().and_then(|e| e.get(key)).map(Vec::as_slice) {
        Some([one]) if !one.is_empty() => Some(one.clone()),
        _ => None,
    };
    let (Some(pod), Some(uid)) = (extra(POD_NAME), extra(POD_UID)) else {
        let reason = format!(
            "the token of {name} is bound to no pod: project one into the pod (serviceAccountToken), a token of \
             a Secret is not taken"
        );
        return Err(Refused::denied(Reason::TokenUnbound, reason));
    };
    Ok(Bound {
        namespace: namespace.into(),
        service_account: service_account.into(),
        pod,
        uid,
    })
}

/// The pod that a token is bound to, if it is still there and runs.
pub fn check_pod(bound: &Bound, found: Option<core_v1::Pod>) -> Decision<Pod> {
    let which = format!("pod {}/{}", bound.namespace, bound.pod);
    let Some(found) = found else {
        return Err(Refused::denied(Reason::PodGone, format!("{which} is gone")));
    };
    if found.metadata.uid.as_ref() != Some(&bound.uid) {
        let reason = format!("{which} was replaced by another of its name since the token was made");
        return Err(Refused::denied(Reason::PodReplaced, reason));
    }
    let pod = live(found, &bound.namespace)
        .map_err(|why| Refused::denied(Reason::PodGone, format!("{which} {why}")))?;
    if pod.service_account != bound.service_account {
        let reason = format!(
            "{which} runs as service account {:?}, the token is of {:?}",
            pod.service_account, bound.service_account
        );
        return Err(Refused::denied(Reason::OtherIdentity, reason));
    }
    if !pod.app_id.is_empty()
        && let Err(error) = check_app_id(&pod.app_id)
    {
        return Err(Refused::denied(
            Reason::OtherIdentity,
            format!("{which}, annotation {APP_ID}: {error}"),
        ));
    }
    Ok(pod)
}

/// A pod that was placed and has not ended, or why it is none.
pub fn live(pod: core_v1::Pod, namespace: &str) -> Result<Pod, String> {
    if pod.metadata.deletion_timestamp.is_some() {
        return Err("is being deleted".into());
    }
    let phase = pod.status.and_then(|s| s.phase).unwrap_or_default();
    if matches!(phase.as_str(), "Succeeded" | "Failed") {
        return Err(format!("has ended ({phase})"));
    }
    let spec = pod.spec.unwrap_or_default();
    let Some(node) = spec.node_name.filter(|node| !node.is_empty()) else {
        return Err("is on no node yet".into());
    };
    let app_id = pod.metadata.annotations.and_then(|mut all| all.remove(APP_ID));
    Ok(Pod {
        namespace: namespace.to_owned(),
        name: pod.metadata.name.unwrap_or_default(),
        service_account: spec.service_account_name.unwrap_or_default(),
        app_id: app_id.unwrap_or_default(),
        node,
    })
}
