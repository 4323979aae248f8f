//! What a node may say of a workload.

use super::ports::named_ports;
use std::net::IpAddr;
use weft_model::{SvidForm, TrustDomain, check_app_id, check_dns_label, check_name};
use weft_proto::weft::policy::v1 as pb;

const MAX_LABELS: usize = 128;
const MAX_ANNOTATIONS_BYTES: usize = 64 * 1024;
const MAX_ADDRESSES: usize = 16;

/// Why a workload is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RegisterError {
    #[error("workload {field}: {problem}")]
    Invalid { field: &'static str, problem: String },
    #[error("workload {id} is of node {owner}; a node speaks for its own workloads only")]
    NotYours { id: String, owner: String },
    #[error("address {address} is in use by workload {by} of node {node}")]
    AddressInUse {
        address: IpAddr,
        by: String,
        node: String,
    },
    #[error("{0}")]
    Full(String),
}

/// Wraps what is wrong with one field.
pub(super) fn invalid<E: ToString>(field: &'static str) -> impl Fn(E) -> RegisterError {
    move |e| RegisterError::Invalid {
        field,
        problem: e.to_string(),
    }
}

/// The last part of a workload's SPIFFE ID.
pub(crate) fn svid_name(message: &pb::Workload, form: SvidForm) -> &str {
    form.name(&message.app_id, &message.service_account)
}

/// The workload's SPIFFE ID.
pub(super) fn spiffe_id(
    message: &pb::Workload,
    domain: &TrustDomain,
    form: SvidForm,
) -> Result<String, RegisterError> {
    let id = form
        .id(domain, &message.namespace, svid_name(message, form))
        .map_err(invalid("spiffe_id"))?;
    Ok(id.to_string())
}

/// Other nodes that connect to a loopback address reach themselves, so one is taken only where all nodes
/// are on one machine: the node says that it runs without root, and this service was started for that.
pub(crate) fn check_loopback(
    message: &pb::Workload,
    rootless: bool,
    insecure: bool,
) -> Result<(), RegisterError> {
    let addresses = message.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok());
    let Some(loopback) = addresses.map(|a| a.to_canonical()).find(IpAddr::is_loopback) else {
        return Ok(());
    };
    let why = match (rootless, insecure) {
        (true, true) => return Ok(()),
        (false, _) => "only an agent that runs with --rootless may register one",
        (true, false) => {
            "other nodes would reach themselves by it: set --address on the agent, or start the policy service \
             with --insecure-loopback if all of the mesh is on one machine"
        }
    };
    Err(RegisterError::Invalid {
        field: "addresses",
        problem: format!("{loopback} is a loopback address; {why}"),
    })
}

/// Checks what a node says of a workload, for what is put into names, maps and other nodes.
pub(crate) fn check(node: &str, message: &pb::Workload) -> Result<(), RegisterError> {
    let fail = |field: &'static str, problem: &str| RegisterError::Invalid {
        field,
        problem: problem.into(),
    };
    if message.node != node {
        let (id, owner) = (message.id.clone(), message.node.clone());
        return Err(RegisterError::NotYours { id, owner });
    }
    check_dns_label(&message.namespace).map_err(invalid("namespace"))?;
    check_name(&message.name).map_err(invalid("name"))?;
    let start = format!("{node}/{}/{}/", message.namespace, message.name);
    let rest = message.id.strip_prefix(&start).unwrap_or_default();
    let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if rest.is_empty() || rest.len() > 128 || !rest.bytes().all(sound) {
        return Err(fail(
            "id",
            "must be <node>/<namespace>/<name>/<start>, each as the fields say",
        ));
    }
    if !message.app_id.is_empty() {
        check_app_id(&message.app_id).map_err(invalid("app_id"))?;
    }
    if !message.service_account.is_empty() {
        check_name(&message.service_account).map_err(invalid("service_account"))?;
    }
    if message.kind() == pb::WorkloadKind::Unspecified {
        return Err(fail("kind", "must be a pod or a process"));
    }
    if message.app_port > 65_535 {
        return Err(fail("app_port", "must be 0 to 65535"));
    }
    if !["", "http", "grpc", "https", "grpcs", "h2c"].contains(&message.app_protocol.as_str()) {
        return Err(fail("app_protocol", "must be http, grpc, https, grpcs or h2c"));
    }
    if message.addresses.len() > MAX_ADDRESSES {
        return Err(fail("addresses", "are more than 16"));
    }
    // What is no IP address is told where addresses are read.
    let addresses = message.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok());
    // Other nodes connect to it. Loopback has a check of its own.
    let nowhere = |a: IpAddr| {
        a.is_unspecified() || a.is_multicast() || a == IpAddr::from(std::net::Ipv4Addr::BROADCAST)
    };
    if addresses.map(|a| a.to_canonical()).any(nowhere) {
        return Err(fail("addresses", "hold one that is no host's"));
    }
    if message.labels.len() > MAX_LABELS {
        return Err(fail("labels", "are more than 128"));
    }
    for (key, value) in &message.labels {
        let key_sound = |b: u8| sound(b) || b == b'/';
        if key.is_empty() || key.len() > 317 || !key.bytes().all(key_sound) {
            return Err(fail("labels", "have a key that is no label key"));
        }
        if value.len() > 63 || !value.bytes().all(sound) {
            return Err(fail("labels", "have a value that is no label value"));
        }
    }
    if message
        .annotations
        .iter()
        .map(|(k, v)| k.len() + v.len())
        .sum::<usize>()
        > MAX_ANNOTATIONS_BYTES
    {
        return Err(fail("annotations", "are larger than 64 KiB"));
    }
    named_ports(message).map_err(invalid("named_ports"))?;
    Ok(())
}
