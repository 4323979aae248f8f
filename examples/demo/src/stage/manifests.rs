//! What a cluster does with manifests beside what the policy service does: pods for Deployments; and
//! how objects are asked for.

use super::{Stage, StagePod};
use crate::command::{output, wait_for};
use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use weft_proto::weft::dataplane::v1::{WorkloadSpec, workload_spec::Place};

/// Of `apps/v1`, what counts here.
#[derive(Debug, Deserialize)]
struct Deployment {
    metadata: Metadata,
    spec: DeploymentSpec,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct DeploymentSpec {
    replicas: u16,
    template: Template,
}

#[derive(Debug, Deserialize)]
struct Template {
    metadata: Metadata,
    spec: PodSpec,
}

#[derive(Debug, Deserialize)]
struct PodSpec {
    containers: Vec<Container>,
}

#[derive(Debug, Deserialize)]
struct Container {
    image: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    ports: Vec<ContainerPort>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPort {
    container_port: u16,
}

impl Stage {
    /// Makes the pods that Deployments ask for, in turn on each of these nodes, and starts in each the
    /// example that its image is named after. Answers the pods' names.
    pub async fn deploy(&mut self, manifest: &str, nodes: &[&str]) -> Result<Vec<String>> {
        let deployments: Vec<Deployment> = serde_saphyr::from_multiple(manifest)?;
        let mut names = Vec::new();
        for deployment in deployments {
            for replica in 0..deployment.spec.replicas {
                let template = &deployment.spec.template;
                let name = format!("{}-{replica}", deployment.metadata.name);
                let spec = WorkloadSpec {
                    namespace: deployment.metadata.namespace.clone(),
                    name: name.clone(),
                    labels: template.metadata.labels.clone().into_iter().collect(),
                    annotations: template.metadata.annotations.clone().into_iter().collect(),
                    ..WorkloadSpec::default()
                };
                let node = nodes[usize::from(replica) % nodes.len()];
                self.place(node, spec).await?;
                for container in &template.spec.containers {
                    self.start_container(&name, container).await?;
                }
                names.push(name);
            }
        }
        Ok(names)
    }

    /// A pod without app-id, of which is known what its labels say; nothing runs in it yet.
    pub async fn place_plain(&mut self, node: &str, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        let spec = WorkloadSpec {
            namespace: "default".into(),
            name: name.into(),
            labels: labels
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            ..WorkloadSpec::default()
        };
        self.place(node, spec).await
    }

    /// A pod as its specification says, with a network namespace of its own.
    pub async fn place(&mut self, node: &str, spec: WorkloadSpec) -> Result<()> {
        let name = spec.name.clone();
        let net = self.node(node)?.net.pod(&name)?;
        let spec = WorkloadSpec {
            place: Some(Place::NetnsPath(net.namespace().path().display().to_string())),
            addresses: net.addresses().iter().map(ToString::to_string).collect(),
            ..spec
        };
        let has_app_id = !spec.app_id.is_empty();
        let placed = self.register(node, spec).await?;
        let pod = StagePod {
            net,
            node: node.into(),
            has_app_id,
            cgroup: Some(placed.cgroup).filter(|c| !c.is_empty()).map(Into::into),
            app: None,
        };
        self.pods.insert(name, pod);
        Ok(())
    }

    /// As a user without rights, who may open low ports in a pod's own network, and with the pod's name
    /// as host name: what a container runtime gives a container.
    async fn start_container(&mut self, pod: &str, container: &Container) -> Result<()> {
        let (_, image) = container.image.rsplit_once('/').context("an image of ours")?;
        let mut command = self.binary(&format!("weft-example-{image}"));
        command.args(&container.args);
        let command = self.logged(command, pod)?;
        let namespace = self.pod_namespace(pod)?;
        namespace.sysctl("ipv4/ip_unprivileged_port_start", "0")?;
        let process = namespace.spawn(command, &self.in_pod(pod).hostname(pod))?;
        for port in container.ports.iter().map(|p| p.container_port) {
            let address = (std::net::Ipv4Addr::LOCALHOST, port);
            wait_for(pod, super::START, || {
                let namespace = namespace.clone();
                async move { Ok(namespace.connect(address).map(drop)?) }
            })
            .await
            .with_context(|| self.log_tail(pod))?;
        }
        if let Some(pod) = self.pods.get_mut(pod) {
            pod.app = Some(process);
        }
        Ok(())
    }

    /// An object with its status, as `weft get` shows it.
    pub async fn object(&self, kind: &str, name: &str) -> Result<Value> {
        let mut get = self.weft(&self.identity_run_dir());
        get.args(["get", kind, name, "-o", "json"]);
        Ok(serde_json::from_str(&output(get).await?)?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_deployments_are_read() {
        let all: Vec<Deployment> =
            serde_saphyr::from_multiple(include_str!("../../../whoami/whoami.yaml")).unwrap();
        let read: Vec<_> = all
            .iter()
            .map(|d| (&*d.metadata.name, d.spec.replicas, &d.spec.template))
            .collect();
        let [("whoami-v1", 2, one), ("whoami-v2", 2, two)] = read[..] else {
            panic!("{read:?}");
        };
        assert_eq!(one.metadata.labels["version"], "v1");
        assert!(two.metadata.annotations.is_empty());
        assert_eq!(two.spec.containers[0].args, ["--name=v2"]);
        assert_eq!(two.spec.containers[0].ports[0].container_port, 80);
    }
}
