//! Label sets with source prefix, as security identities are made of.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// The label that names a workload's namespace.
pub const NAMESPACE_LABEL: &str = "k8s:io.kubernetes.pod.namespace";
/// What the labels of a workload's namespace begin with, before a dot and their key.
pub const NAMESPACE_LABELS_PREFIX: &str = "io.cilium.k8s.namespace.labels";
/// The label derived from annotation `dapr.io/app-id`, which policies select.
pub const APP_ID_LABEL: &str = "k8s:dapr.io/app-id";
/// The label that names a workload's service account.
pub const SERVICE_ACCOUNT_LABEL: &str = "k8s:io.cilium.k8s.policy.serviceaccount";

/// A set of labels, each `<source>:<key>` → value, in a fixed order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    /// The labels by which policies know a workload: its own (source `k8s`), its namespace, its
    /// app-id and its service account. A workload can not set the last three itself, nor labels of its
    /// namespace.
    pub fn for_workload<'a>(
        own: impl IntoIterator<Item = (&'a str, &'a str)>,
        namespace: &str,
        app_id: &str,
        service_account: &str,
    ) -> Self {
        let of_namespace = |key: &str| {
            let rest = key.strip_prefix(NAMESPACE_LABELS_PREFIX);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let mut all: BTreeMap<String, String> = own
            .into_iter()
            .filter(|(key, _)| !of_namespace(key))
            .map(|(k, v)| (format!("k8s:{k}"), v.to_owned()))
            .collect();
        all.insert(NAMESPACE_LABEL.into(), namespace.into());
        all.remove(APP_ID_LABEL);
        all.remove(SERVICE_ACCOUNT_LABEL);
        if !app_id.is_empty() {
            all.insert(APP_ID_LABEL.into(), app_id.into());
        }
        if !service_account.is_empty() {
            all.insert(SERVICE_ACCOUNT_LABEL.into(), service_account.into());
        }
        Self(all)
    }

    /// These and the labels of the workload's namespace, its name among them.
    pub fn with_namespace<'a>(&self, own: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut all = self.0.clone();
        let key = |key: &str| format!("k8s:{NAMESPACE_LABELS_PREFIX}.{key}");
        all.extend(own.into_iter().map(|(k, v)| (key(k), v.to_owned())));
        if let Some(name) = self.namespace() {
            all.insert(key("kubernetes.io/metadata.name"), name.to_owned());
        }
        Self(all)
    }

    /// The value under a key with source prefix (`k8s:app`).
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// All labels in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// The namespace label's value.
    pub fn namespace(&self) -> Option<&str> {
        self.get(NAMESPACE_LABEL)
    }
}

impl FromIterator<(String, String)> for Labels {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(iter: T) -> Self {
        Self(iter.into_iter().collect())
    }
}

impl fmt::Display for Labels {
    /// `k=v,k=v`: also the key under which identities are stored, since the order is fixed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (k, v)) in self.0.iter().enumerate() {
            write!(f, "{}{k}={v}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_labels_can_not_be_forged() {
        let own = [
            ("dapr.io/app-id", "admin"),
            ("io.kubernetes.pod.namespace", "kube-system"),
            ("io.cilium.k8s.namespace.labels.team", "admins"),
            ("app", "x"),
        ];
        let labels = Labels::for_workload(own, "default", "cart", "");
        assert_eq!(labels.get(APP_ID_LABEL), Some("cart"));
        assert_eq!(labels.namespace(), Some("default"));
        assert_eq!(labels.get("k8s:app"), Some("x"));
        assert_eq!(labels.iter().count(), 3, "{labels}");
        let team = "k8s:io.cilium.k8s.namespace.labels.team";
        assert_eq!(labels.with_namespace([("team", "shop")]).get(team), Some("shop"));
        // Without an app-id, the label a workload wrote itself does not make it one.
        assert_eq!(
            Labels::for_workload(own, "default", "", "").get(APP_ID_LABEL),
            None
        );
    }
}
