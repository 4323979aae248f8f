//! Services in the kernel: from a Service and the workloads that serve it to frontends with backends.

use crate::{
    facts::{Facts, Port, Service},
    tables::Tables,
    writer::{Subject, Writer},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};
use weft_bpf::{Backend, Frontend, Transport};

/// A backend that new connections must not reach any more; sockets to it are to be closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// The service.
    pub frontend: Frontend,
    /// Where its connections went.
    pub backend: SocketAddr,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Services {
    of: HashMap<Arc<str>, BTreeSet<Frontend>>,
    /// A frontend that two Services claim is the first one's.
    holders: BTreeMap<Frontend, Arc<str>>,
}

fn frontends(service: &Service) -> impl Iterator<Item = (Frontend, Port)> + use<'_> {
    service.addresses.iter().flat_map(|ip| {
        service.ports.iter().map(|port| {
            let frontend = Frontend {
                address: SocketAddr::new(*ip, port.port),
                transport: port.transport,
            };
            (frontend, *port)
        })
    })
}

/// Where a port of a Service leads, as far as it can be reached by an address of this family; and
/// whether connections must go to the proxy.
fn backends(facts: &Facts, service: &Service, port: Port, v4: bool) -> (Vec<Backend>, bool) {
    let mut capture = port.capture;
    let mut found = Vec::new();
    for id in &service.endpoints {
        let (addresses, app_port, endpoint): (&[IpAddr], u16, u32) =
            match (facts.here.get(id), facts.there.get(id)) {
                // One that is not governed yet takes no connections.
                (Some(here), _) if here.governed.is_some() => (&here.addresses, here.app_port, here.number),
                (None, Some(there)) => {
                    // A process of another node has the node's address: which of its workloads is
                    // meant only the tunnel can say.
                    capture |= !there.pod && port.transport == Transport::Tcp;
                    (&there.addresses, there.app_port, 0)
                }
                _ => continue,
            };
        let target = if port.target == 0 { app_port } else { port.target };
        let address = addresses
            .iter()
            .map(IpAddr::to_canonical)
            .find(|a| a.is_ipv4() == v4);
        if let (Some(address), 1..) = (address, target) {
            found.push(Backend {
                address: SocketAddr::new(address, target),
                endpoint,
            });
        }
    }
    (found, capture)
}

impl Services {
    /// Brings touched Services up to date; answers the backends that are none any more.
    pub(crate) fn sync<T: Tables>(
        &mut self,
        facts: &Facts,
        touched: &BTreeSet<Arc<str>>,
        writer: &mut Writer<T>,
    ) -> Vec<Removed> {
        let mut removed = Vec::new();
        for name in touched {
            let wanted: BTreeMap<Frontend, Port> =
                facts.services.get(name).into_iter().flat_map(frontends).collect();
            let subject = Subject::Service(name.to_string());
            let mut trouble = None;
            let old = self.of.remove(name).unwrap_or_default();
            for frontend in old.iter().filter(|f| !wanted.contains_key(*f)) {
                self.holders.remove(frontend);
                self.remove(*frontend, &mut removed, &mut trouble, writer);
            }
            let mut mine = BTreeSet::new();
            for (frontend, port) in wanted {
                let holder = self.holders.entry(frontend).or_insert_with(|| name.clone());
                if holder != name {
                    trouble = Some(format!("{} is the address of Service {holder}", frontend.address));
                    continue;
                }
                mine.insert(frontend);
                let Some(service) = facts.services.get(name) else {
                    continue;
                };
                let v4 = frontend.address.is_ipv4();
                let (backends, capture) = backends(facts, service, port, v4);
                match writer.tables.set_service(frontend, capture, &backends) {
                    Ok(gone) => removed.extend(gone.into_iter().map(|backend| Removed { frontend, backend })),
                    Err(error) => trouble = Some(error.to_string()),
                }
            }
            if !mine.is_empty() {
                self.of.insert(name.clone(), mine);
            }
            match trouble {
                Some(text) => writer.problem(subject, format!("Service {name}: {text}")),
                None => writer.solved(&subject),
            }
        }
        removed
    }

    /// Takes away what the kernel has from before the start and nobody wants.
    pub(crate) fn sweep<T: Tables>(&mut self, writer: &mut Writer<T>) -> Vec<Removed> {
        let mut removed = Vec::new();
        for frontend in writer.tables.services() {
            if !self.holders.contains_key(&frontend) {
                let mut trouble = None;
                self.remove(frontend, &mut removed, &mut trouble, writer);
                if let Some(text) = trouble {
                    writer.problem(Subject::Removal, format!("service {}: {text}", frontend.address));
                }
            }
        }
        removed
    }

    fn remove<T: Tables>(
        &mut self,
        frontend: Frontend,
        removed: &mut Vec<Removed>,
        trouble: &mut Option<String>,
        writer: &mut Writer<T>,
    ) {
        match writer.tables.remove_service(frontend) {
            Ok(gone) => removed.extend(gone.into_iter().map(|backend| Removed { frontend, backend })),
            Err(error) => *trouble = Some(error.to_string()),
        }
    }
}
