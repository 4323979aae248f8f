//! From what the policy service sent and what runs here to what the kernel's tables are made of.

use crate::{journal::Pages, locals::Local, mesh::Sent, places, view::View};
use ipnet::IpNet;
use std::{
    net::IpAddr,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};
use weft_bpf::Transport;
use weft_datapath::{Governed, Here, Node, Port, Service, There, Update};
use weft_model::NumericIdentity;
use weft_proto::weft::policy::v1::{self as pb, WorkloadKind, resource::Body};

/// What is desired, where something changed.
pub fn update(view: &View, node: &str, own_addresses: &[IpAddr], pages: Pages) -> Update {
    let mut update = Update {
        complete: pages.all,
        ..Update::default()
    };
    view.mesh.sent(|sent| {
        let mut here = pages.here;
        if pages.all {
            here.extend(view.locals.all().iter().map(|l| l.id.to_string()));
            for (kind, name) in sent.names() {
                resource(&mut update, sent, (view, node, own_addresses), kind, name);
            }
        } else {
            for (kind, name) in &pages.resources {
                if kind == "endpoint" {
                    here.insert(name.clone());
                }
                resource(&mut update, sent, (view, node, own_addresses), kind, name);
            }
        }
        for id in here {
            if let Some(local) = view.locals.get(&id) {
                let captures = view.locals.captures(&local);
                let told = sent.endpoint(&id);
                let audit = view.mesh.audits(told.and_then(|e| e.workload.as_ref()));
                let here = here_of(&local, captures, told).map(|here| Here { audit, ..here });
                update.here.push((local.id.clone(), here));
            } else {
                update.here.push((id.as_str().into(), None));
            }
        }
    });
    if pages.all && update.nodes.iter().all(|(name, _)| **name != *node) {
        // The policy service may not know this node yet; its own addresses are its own all the same.
        let own = node_of(&pb::Node::default(), true, own_addresses);
        update.nodes.push((node.into(), Some(own)));
    }
    update
}

fn resource(
    update: &mut Update,
    sent: &dyn Sent,
    (view, node, own_addresses): (&View, &str, &[IpAddr]),
    kind: &str,
    name: &str,
) {
    let id: Arc<str> = name.into();
    let body = sent.other(kind, name).and_then(|r| r.body.as_ref());
    match kind {
        "endpoint" => {
            let workload = sent.endpoint(name).and_then(|e| e.workload.as_ref());
            // This node's are what runs here, whatever the service believes; but shared endpoints do not run.
            let there = workload.filter(|w| w.node != node || w.shared.is_some());
            // What goes to a process's own ports is the agent's to carry, as what goes to a Service's.
            update.services.push((id.clone(), there.and_then(ports_of)));
            update.there.push((id, there.map(there_of)));
        }
        "policy-set" => update.sets.push((id, sent.set(name).map(|c| c.shared()))),
        "node" => {
            let own = name == node;
            let found = match body {
                Some(Body::Node(found)) => Some(node_of(found, own, own_addresses)),
                _ if own => Some(node_of(&pb::Node::default(), true, own_addresses)),
                _ => None,
            };
            update.nodes.push((id, found));
        }
        "service" => {
            let found = match body {
                Some(Body::Service(service)) => {
                    let routed = view.mesh.routing.takes(&service.namespace, &service.name);
                    Some(service_of(service, routed))
                }
                _ => None,
            };
            update.services.push((id, found));
        }
        _ => {}
    }
}

fn here_of(local: &Local, capture: bool, told: Option<&Arc<pb::Endpoint>>) -> Option<Here> {
    // Without a number the kernel knows nothing of it.
    let seat = Some(&local.seat).filter(|seat| seat.number != 0)?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    let governed = told.and_then(|e| {
        let workload = e.workload.as_ref().filter(|w| w.identity != 0)?;
        Some(Governed {
            identity: NumericIdentity(workload.identity),
            set: e.policy_set.as_str().into(),
        })
    });
    Some(Here {
        number: seat.number,
        pod: local.kind == WorkloadKind::Pod,
        addresses: seat.addresses.clone(),
        app_port: seat.app_port,
        proven: local.is_proven(now),
        capture,
        audit: false,
        governed,
    })
}

fn parsed<T: std::str::FromStr>(texts: &[String]) -> impl Iterator<Item = T> {
    texts.iter().filter_map(|text| text.parse().ok())
}

/// The ports of a process of another node, at the address that it shares with others there.
fn ports_of(workload: &pb::Workload) -> Option<Service> {
    let process = workload.kind() != WorkloadKind::Pod && workload.shared.is_none();
    let ports = process.then(|| places::ports(workload))?;
    let port = |port: u16| Port {
        port,
        target: port,
        transport: Transport::Tcp,
        capture: true,
    };
    let service = Service {
        addresses: parsed(&workload.addresses).collect(),
        ports: ports.into_iter().map(port).collect(),
        endpoints: vec![workload.id.as_str().into()],
    };
    Some(service).filter(|service| !service.ports.is_empty())
}

fn there_of(workload: &pb::Workload) -> There {
    There {
        node: workload.node.as_str().into(),
        pod: workload.kind() == WorkloadKind::Pod,
        addresses: parsed(&workload.addresses).collect(),
        app_port: u16::try_from(workload.app_port).unwrap_or(0),
        identity: NumericIdentity(workload.identity),
        shared: workload.shared.is_some(),
    }
}

fn node_of(node: &pb::Node, own: bool, own_addresses: &[IpAddr]) -> Node {
    let mut addresses: Vec<IpAddr> = parsed(&node.addresses).collect();
    if own {
        addresses.extend(
            own_addresses
                .iter()
                .filter(|a| !addresses.contains(a))
                .collect::<Vec<_>>(),
        );
    }
    // Loopback is each namespace's own.
    addresses.retain(|a| !a.to_canonical().is_loopback());
    Node {
        own,
        addresses,
        pod_cidrs: parsed::<IpNet>(&node.pod_cidrs).collect(),
        shared_cidrs: parsed::<IpNet>(&node.shared_cidrs).collect(),
    }
}

/// `routed`: requests to it are routed one by one, so connections go to the proxy.
fn service_of(service: &pb::Service, routed: bool) -> Service {
    let ports = service.ports.iter().filter_map(|port| {
        let transport = match port.protocol {
            0 | 6 => Transport::Tcp,
            17 => Transport::Udp,
            _ => return None,
        };
        Some(Port {
            port: u16::try_from(port.port).ok().filter(|p| *p != 0)?,
            target: u16::try_from(port.target_port).unwrap_or(0),
            transport,
            capture: routed && transport == Transport::Tcp,
        })
    });
    Service {
        addresses: parsed(&service.cluster_ips).collect(),
        ports: ports.collect(),
        endpoints: service.endpoints.iter().map(|id| id.as_str().into()).collect(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_its_own_addresses_and_no_loopback() {
        let told = pb::Node {
            name: "n1".into(),
            addresses: vec!["192.0.2.1".into()],
            pod_cidrs: vec!["10.1.0.0/24".into(), "x".into()],
            shared_cidrs: vec!["198.18.0.0/16".into()],
        };
        let own = ["192.0.2.1", "fd00::1", "127.0.0.1"].map(|a| a.parse().unwrap());
        let node = node_of(&told, true, &own);
        let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["192.0.2.1", "fd00::1"]);
        assert_eq!((node.pod_cidrs.len(), node.shared_cidrs.len()), (1, 1));
        assert_eq!(node_of(&told, false, &own).addresses.len(), 1);
    }

    #[test]
    fn a_service_has_the_ports_that_the_kernel_can_balance() {
        let port = |protocol, port| pb::ServicePort {
            port,
            protocol,
            ..Default::default()
        };
        let told = pb::Service {
            cluster_ips: vec!["10.96.0.1".into(), "fd96::1".into()],
            ports: vec![port(6, 80), port(17, 53), port(132, 9), port(6, 0)],
            endpoints: vec!["a".into()],
            ..Default::default()
        };
        let service = service_of(&told, false);
        assert!(service.ports.iter().all(|p| !p.capture));
        // With routes its connections are taken; datagrams are not.
        let routed = service_of(&told, true);
        assert!(
            routed
                .ports
                .iter()
                .all(|p| p.capture == (p.transport == Transport::Tcp))
        );
        assert_eq!(service.addresses.len(), 2);
        let transports: Vec<Transport> = service.ports.iter().map(|p| p.transport).collect();
        assert_eq!(transports, [Transport::Tcp, Transport::Udp]);
    }
}
