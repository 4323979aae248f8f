//! What a pod's namespace has: the other ends of its interfaces, its addresses, its cookie.
//!
//! Policy is enforced at the node's end of each veth. What leaves the pod by anything else would
//! go around it, so such an interface is named and the pod refused.

use crate::netlink::{Link, Route};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

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
        cookie: cookie()?,
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

/// `SO_NETNS_COOKIE` of the calling thread's namespace.
fn cookie() -> io::Result<u64> {
    let fd = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut cookie = 0u64;
    let mut length = libc::socklen_t::try_from(size_of_val(&cookie)).map_err(io::Error::other)?;
    // SAFETY: the option writes at most `length` bytes into a u64 that is alive for the call.
    let answer = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if answer == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
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

    #[test]
    fn a_namespace_has_a_cookie() {
        assert!(cookie().unwrap() > 0);
    }
}
