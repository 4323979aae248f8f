//! `v1` Service: what of it has a meaning here.

use crate::{
    SharedApp,
    fields::{Field, Object, Problems},
};
use std::{collections::BTreeMap, net::IpAddr};
use weft_model::check_dns_label;

/// A name for a set of workloads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Labels that its workloads have; without any, none are selected.
    pub selector: BTreeMap<String, String>,
    /// Addresses it is reached by; empty for headless ones and before any is given.
    pub cluster_ips: Vec<IpAddr>,
    /// `clusterIP: None`: it wants no address, only its name.
    pub headless: bool,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// It leads to shared endpoints.
    pub shared: Option<SharedApp>,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty only when it is the only one.
    pub name: String,
    /// The port callers use.
    pub port: u16,
    /// The port at the workload.
    pub target: TargetPort,
    /// IANA protocol number.
    pub protocol: u8,
    /// `appProtocol`, as written.
    pub app_protocol: String,
}

/// Where a Service's port leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    /// This port.
    Number(u16),
    /// A port that the workload names. Workloads have one app port, so it is that one.
    Named(String),
}

pub(crate) fn read(
    object: &mut Object<'_>,
    shared: Option<SharedApp>,
    problems: &mut Problems,
) -> Option<Service> {
    let mut spec = object.need("spec", problems)?.object(problems)?;
    if let Some(field) = spec.take("type") {
        let kind = field.text(problems)?;
        if !matches!(kind.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
            field.fail(
                problems,
                format_args!("type {kind} is not supported yet; use ClusterIP"),
            );
        }
    }
    let selected = spec.take("selector");
    let selector = selected
        .as_ref()
        .and_then(|f| f.text_map(problems))
        .unwrap_or_default();
    if let Some(field) = selected.filter(|_| shared.is_some() && !selector.is_empty()) {
        field.fail(
            problems,
            "must not be given with annotation weft.dev/shared-app: agents answer, not pods",
        );
    }
    let (cluster_ips, headless) = addresses(&mut spec, problems);
    let mut ports = Vec::new();
    for field in spec
        .take("ports")
        .and_then(|f| f.list(problems))
        .unwrap_or_default()
    {
        ports.extend(port(&field, problems));
    }
    for (i, port) in ports.iter().enumerate() {
        if ports.len() > 1 && (port.name.is_empty() || ports[..i].iter().any(|p| p.name == port.name)) {
            let path = format!("spec.ports[{i}].name");
            problems.add(
                spec.line,
                &path,
                "must be given and unique when there are several ports",
            );
        }
        let same = |p: &ServicePort| (p.port, p.protocol) == (port.port, port.protocol);
        if ports[..i].iter().any(same) {
            let path = format!("spec.ports[{i}]");
            problems.add(spec.line, &path, "port and protocol are those of another port");
        }
    }
    spec.unsupported(
        &["externalName", "externalIPs", "loadBalancerSourceRanges"],
        problems,
    );
    // How other proxies enter a cluster, or defaults that clusters fill in.
    spec.ignore(&[
        "allocateLoadBalancerNodePorts",
        "externalTrafficPolicy",
        "healthCheckNodePort",
        "internalTrafficPolicy",
        "ipFamilies",
        "ipFamilyPolicy",
        "loadBalancerClass",
        "loadBalancerIP",
        "publishNotReadyAddresses",
        "sessionAffinity",
        "sessionAffinityConfig",
        "trafficDistribution",
    ]);
    spec.finish(problems);
    Some(Service {
        selector,
        cluster_ips,
        headless,
        ports,
        shared,
    })
}

fn addresses(spec: &mut Object<'_>, problems: &mut Problems) -> (Vec<IpAddr>, bool) {
    let mut fields: Vec<Field<'_>> = spec.take("clusterIP").into_iter().collect();
    fields.extend(
        spec.take("clusterIPs")
            .and_then(|f| f.list(problems))
            .unwrap_or_default(),
    );
    let (mut addresses, mut headless) = (Vec::new(), false);
    for field in fields {
        let Some(text) = field.text(problems) else {
            continue;
        };
        match text.parse::<IpAddr>() {
            Ok(address) if !addresses.contains(&address) => addresses.push(address),
            Ok(_) => {}
            Err(_) if text.is_empty() => {}
            Err(_) if text == "None" => headless = true,
            Err(_) => field.fail(problems, format_args!("{text:?} is no IP address")),
        }
    }
    (addresses, headless)
}

fn port(field: &Field<'_>, problems: &mut Problems) -> Option<ServicePort> {
    let mut object = field.object(problems)?;
    let port = object.need("port", problems).and_then(|f| {
        let port = f.port(problems)?;
        if port == 0 {
            f.fail(problems, "must be a port number from 1 to 65535");
        }
        Some(port)
    });
    let name = object
        .take("name")
        .and_then(|f| f.checked(problems, check_dns_label))
        .unwrap_or_default();
    let app_protocol = object
        .take("appProtocol")
        .and_then(|f| f.text(problems))
        .unwrap_or_default();
    let protocol = match object.take("protocol") {
        None => Some(6),
        Some(f) => f.text(problems).and_then(|text| {
            let number = match text.as_str() {
                "TCP" => Some(6),
                "UDP" => Some(17),
                "SCTP" => Some(132),
                _ => None,
            };
            if number.is_none() {
                f.fail(problems, format_args!("{text:?} is none of TCP, UDP, SCTP"));
            }
            number
        }),
    };
    let target = object.take("targetPort").map(|f| match &f.node.value {
        crate::tree::Value::Text(s) if !s.bytes().all(|b| b.is_ascii_digit()) => {
            Some(TargetPort::Named(s.clone()))
        }
        _ => f.port(problems).map(TargetPort::Number),
    });
    object.ignore(&["nodePort"]);
    object.finish(problems);
    let port = port?;
    let target = target.unwrap_or(Some(TargetPort::Number(port)))?;
    Some(ServicePort {
        name,
        port,
        target,
        protocol: protocol?,
        app_protocol,
    })
}
