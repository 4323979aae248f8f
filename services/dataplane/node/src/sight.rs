//! What a pod's namespace has: the other ends of its interfaces, its addresses, its cookie.
//!
//! Policy is enforced at the node's end of each veth. What leaves the pod by anything else would
//! go around it, so such an interface is named and the pod refused.

use crate::netlink::{Link, Route};
use std::{collections::BTreeSet, io, net::IpAddr, os::fd::BorrowedFd};

/// What was seen in a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sight {
    /// The kernel's number of the namespace.
    pub(crate) cookie: u64,
    /// Numbers, in the node's namespace, of the other ends of its veths.
    pub(crate) interfaces: BTreeSet<u32>,
    /// By which others reach it.
    pub(crate) addresses: Vec<IpAddr>,
    /// Those that hold on one link only.
    pub(crate) link_local: Vec<IpAddr>,
    /// An interface whose traffic does not pass the node, and why.
    pub(crate) around: Option<String>,
}

/// Looks at the calling thread's namespace from a node in namespace `node`.
pub(crate) fn look(node: BorrowedFd<'_>) -> io::Result<Sight> {
    let route = Route::open()?;
    let links = route.links()?;
    // Listing the links has given the namespaces of their peers an id, if they had none.
    let node = route.namespace_id(node)?;
    let (interfaces, around) = judge(&links, node);
    let mut sight = Sight {
        cookie: weft_bpf::netns_cookie()?,
        interfaces,
        around,
        ..Sight::default()
    };
    for (_, address) in route.addresses()? {
        let list = match address {
            IpAddr::V4(v4) if v4.is_loopback() => continue,
            IpAddr::V6(v6) if v6.is_loopback() => continue,
            IpAddr::V4(v4) if v4.is_link_local() => &mut sight.link_local,
            IpAddr::V6(v6) if v6.is_unicast_link_local() => &mut sight.link_local,
            _ => &mut sight.addresses,
        };
        if !list.contains(&address) {
            list.push(address);
        }
    }
    Ok(sight)
}

/// The node's ends of the veths, and the first interface that leads elsewhere.
fn judge(links: &[Link], node: Option<i32>) -> (BTreeSet<u32>, Option<String>) {
    let mut interfaces = BTreeSet::new();
    let mut around = None;
    for link in links.iter().filter(|link| !link.loopback) {
        match (&*link.kind, link.peer, link.peer_namespace) {
            ("veth", Some(peer), Some(namespace)) if Some(namespace) == node => {
                interfaces.insert(peer);
            }
            // Nothing passes it.
            _ if !link.up => {}
            (kind, _, Some(_)) => {
                around.get_or_insert_with(|| {
                    format!(
                        "its interface {} ({kind}) leads to another namespace than this node's",
                        link.name
                    )
                });
            }
            ("", _, None) => {
                around.get_or_insert_with(|| {
                    format!(
                        "its interface {} is hardware, whose traffic does not pass the node",
                        link.name
                    )
                });
            }
            // Bridges, tunnels, dummies: what they carry leaves by one of the others.
            _ => {}
        }
    }
    (interfaces, around)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn link(kind: &str, peer: Option<u32>, peer_namespace: Option<i32>) -> Link {
        Link {
            index: 2,
            name: "eth0".into(),
            kind: kind.into(),
            up: true,
            peer,
            peer_namespace,
            ..Link::default()
        }
    }

    #[test]
    fn only_veths_to_the_node_are_its_own() {
        let own = link("veth", Some(7), Some(0));
        assert_eq!(
            judge(std::slice::from_ref(&own), Some(0)),
            (BTreeSet::from([7]), None)
        );
        for (other, words) in [
            (link("veth", Some(7), Some(1)), "another namespace"),
            (link("macvlan", Some(3), Some(0)), "another namespace"),
            (link("", None, None), "hardware"),
        ] {
            let (interfaces, around) = judge(&[own.clone(), other.clone()], Some(0));
            assert_eq!(interfaces, BTreeSet::from([7]));
            assert!(around.unwrap().contains(words));
            // The twin: down, nothing passes it.
            let down = Link { up: false, ..other };
            assert_eq!(judge(&[down], Some(0)).1, None);
        }
        // A node that no interface leads to has no id here.
        assert!(judge(std::slice::from_ref(&own), None).1.is_some());
        let inner = [link("bridge", None, None), link("veth", Some(9), None)];
        assert_eq!(judge(&inner, Some(0)), (BTreeSet::new(), None));
    }
}
