//! Who is where in the cluster that is measured, and what its manifests say.
//!
//! Namespaces have fifty Services each; the workloads of one Service have the same labels and are on as many
//! nodes as there are of them. A node hosts workloads of one namespace or two. Policies are about one Service
//! each and name another of the namespace, one in a hundred one of another namespace.

use super::Scale;
use anyhow::Result;
use std::{fmt::Write as _, fs, path::Path};

/// Services of a namespace.
pub const TOGETHER: usize = 50;
/// Objects of a manifest file.
const OF_A_FILE: usize = 100;
/// Addresses of a node's range for its own workloads; above them are those that come and go.
pub const OWN: usize = 200;

/// The namespace of a Service.
pub fn namespace(service: usize) -> String {
    format!("ns-{}", service / TOGETHER)
}

/// Another Service of the namespace.
pub fn peer(service: usize, step: usize, services: usize) -> usize {
    let first = service / TOGETHER * TOGETHER;
    let here = TOGETHER.min(services - first);
    first + (service - first + step) % here
}

/// A policy about one Service that names another.
pub fn policy(name: &str, service: usize, from: usize, port: usize) -> String {
    let elsewhere = if namespace(from) == namespace(service) {
        String::new()
    } else {
        format!(", k8s:io.kubernetes.pod.namespace: {}", namespace(from))
    };
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}, namespace: {}}}\nspec:\n  \
         endpointSelector: {{matchLabels: {{app: s-{service}}}}}\n  ingress:\n  - fromEndpoints: [{{matchLabels: \
         {{app: s-{from}{elsewhere}}}}}]\n    toPorts: [{{ports: [{{port: '{port}', protocol: TCP}}]}}]\n---\n",
        namespace(service)
    )
}

/// In the range of a node.
pub fn address(node: usize, number: usize) -> String {
    format!("10.{}.{}.{number}", node >> 8, node & 255)
}

/// Whom a policy is about, and whom it names.
pub fn subject_and_peer(number: usize, scale: Scale) -> (usize, usize) {
    let subject = number % scale.services;
    if number % 100 == 99 {
        return (subject, (subject + scale.services / 2) % scale.services);
    }
    (
        subject,
        peer(subject, 1 + number / scale.services, scale.services),
    )
}

/// One file for each hundred objects.
pub fn write_manifests(folder: &Path, scale: Scale) -> Result<()> {
    fs::create_dir(folder)?;
    let mut text = String::new();
    for service in 0..scale.services {
        write!(
            text,
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s-{service}, namespace: {}}}\nspec:\n  selector: \
             {{app: s-{service}}}\n  ports: [{{port: 80, targetPort: 8080}}]\n---\n",
            namespace(service)
        )?;
        if (service + 1) % OF_A_FILE == 0 || service + 1 == scale.services {
            fs::write(
                folder.join(format!("services-{service}.yaml")),
                std::mem::take(&mut text),
            )?;
        }
    }
    for number in 0..scale.policies {
        let (subject, from) = subject_and_peer(number, scale);
        text += &policy(&format!("p-{number}"), subject, from, 8_080);
        if (number + 1) % OF_A_FILE == 0 || number + 1 == scale.policies {
            fs::write(
                folder.join(format!("policies-{number}.yaml")),
                std::mem::take(&mut text),
            )?;
        }
    }
    Ok(())
}
