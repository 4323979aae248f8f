//! Matching label selectors as Cilium does.

use crate::fault::{Fault, made};
use weft_model::{Labels, NAMESPACE_LABEL, NAMESPACE_LABELS_PREFIX};
use weft_resources::{LabelKey, LabelSelector, Operator, Requirement};

const NAMESPACE_KEY: &str = "io.kubernetes.pod.namespace";

/// Values of the labels that a key means; one at most unless the key is of any source.
fn values<'l>(labels: &'l Labels, key: &'l LabelKey) -> Box<dyn Iterator<Item = &'l str> + 'l> {
    match &key.source {
        Some(source) if !made(Fault::SourceOfLabelIsIgnored) => {
            Box::new(labels.get(&format!("{source}:{}", key.name)).into_iter())
        }
        _ => Box::new(labels.iter().filter_map(|(full, value)| {
            let name = full.split_once(':').map_or(full, |(_, name)| name);
            (name == key.name).then_some(value)
        })),
    }
}

fn holds(requirement: &Requirement, labels: &Labels) -> bool {
    let mut found = values(labels, &requirement.key);
    let listed = |value: &str| requirement.values.iter().any(|v| v == value);
    match requirement.operator {
        Operator::In => found.any(listed),
        Operator::NotIn if made(Fault::NotInNeedsTheLabel) => found.any(|v| !listed(v)),
        Operator::NotIn => !found.any(listed),
        Operator::Exists => found.next().is_some(),
        Operator::DoesNotExist => found.next().is_none(),
    }
}

/// Whether something has all labels of a selector, whatever it is and wherever.
pub(crate) fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    selector.requirements.iter().all(|r| holds(r, labels))
}

fn is_namespace_key(key: &LabelKey) -> bool {
    key.name == NAMESPACE_KEY && matches!(key.source.as_deref(), None | Some("k8s"))
}

/// Whether `labels` are a workload that a policy of `namespace` is about. The policy's own namespace
/// always holds: a namespace among the selector's labels can not reach into another one. Without a namespace
/// the policy is about all workloads.
pub(crate) fn selects_subject(selector: &LabelSelector, namespace: &str, labels: &Labels) -> bool {
    let overridden =
        |r: &Requirement| r.operator == Operator::In && r.values.len() == 1 && is_namespace_key(&r.key);
    (is_of(labels, namespace) || made(Fault::SubjectsOfEveryNamespace))
        && selector
            .requirements
            .iter()
            .filter(|r| namespace.is_empty() || !overridden(r))
            .all(|r| holds(r, labels))
}

/// Whether `labels` are of a workload of `namespace`; of any workload when that is empty.
fn is_of(labels: &Labels, namespace: &str) -> bool {
    labels
        .get(NAMESPACE_LABEL)
        .is_some_and(|found| namespace.is_empty() || found == namespace)
}

/// Whether `labels` are a peer that a policy of `namespace` means. Peers are of the policy's own namespace
/// unless the selector says something about namespaces, or about reserved peers, which have none. Those of a
/// policy of the cluster are workloads of any namespace.
pub(crate) fn selects_peer(selector: &LabelSelector, namespace: &str, labels: &Labels) -> bool {
    (is_widened(selector) || is_of(labels, namespace)) && matches(selector, labels)
}

/// Whether a selector of peers says something about namespaces, or about reserved peers.
pub(crate) fn is_widened(selector: &LabelSelector) -> bool {
    let elsewhere = |r: &Requirement| {
        is_namespace_key(&r.key)
            || r.key.name.starts_with(NAMESPACE_LABELS_PREFIX)
            || r.key.source.as_deref() == Some("reserved")
    };
    selector.requirements.iter().any(elsewhere) || made(Fault::PeersOfEveryNamespace)
}
