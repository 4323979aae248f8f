//! Reading who opened a connection, from the accepted socket. Needs the map's descriptor and
//! nothing else: no capability, no bpffs, no path.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::error::Error;
use crate::layout::{ORIGIN_CAPTURED, ORIGIN_POD, ORIGIN_SERVICE, RawOrigin};
use crate::sys::Map;

/// Who opened a connection, as the kernel saw it in connect(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Kernel id of the workload's cgroup; the caller may have sat in one below it. 0 for pods,
    /// which are told by their namespace.
    pub cgroup_id: u64,
    /// Cookie of the network namespace of the connection.
    pub netns_cookie: u64,
    /// Cookie of the connecting socket (`SO_COOKIE`).
    pub socket_cookie: u64,
    /// The destination as the caller wrote it; IPv4-mapped addresses as IPv4.
    pub destination: SocketAddr,
    /// What the kernel chose in its place: a service's backend, or the same address if it only has
    /// to go through the agent. `None`: nothing, or the agent chooses.
    pub target: Option<SocketAddr>,
    /// The connection was sent to the agent's capture listener. One that wasn't, yet is there, came
    /// of its own accord and is refused.
    pub captured: bool,
    /// The destination is a service.
    pub service: bool,
    /// The caller is a pod.
    pub pod: bool,
    /// The endpoint's number: [`Workload::index`](crate::Workload::index) or the pod's, at the
    /// moment of connect.
    pub workload_index: u32,
}

impl From<RawOrigin> for Origin {
    fn from(raw: RawOrigin) -> Self {
        Self {
            cgroup_id: raw.cgroup,
            netns_cookie: raw.netns,
            socket_cookie: raw.socket,
            destination: place(raw.daddr, raw.dport),
            target: (raw.tport != 0).then(|| place(raw.target, raw.tport)),
            captured: raw.flags & ORIGIN_CAPTURED != 0,
            service: raw.flags & ORIGIN_SERVICE != 0,
            pod: raw.flags & ORIGIN_POD != 0,
            workload_index: raw.index,
        }
    }
}

/// An address as the maps write it.
pub(crate) fn place(octets: [u8; 16], port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::from(octets)).to_canonical(), port)
}

/// The table of origins, as handed to the process that accepts connections.
///
/// The descriptor from [`Kernel::origins_map_fd`](crate::Kernel::origins_map_fd) is read-only and
/// may be passed to a process without capabilities: `kernel.unprivileged_bpf_disabled` forbids
/// making maps and loading programs, not lookups through a descriptor one holds (since Linux 5.19).
/// A seccomp filter has to let bpf(2) through with the commands `BPF_MAP_LOOKUP_ELEM` (1) and,
/// for [`Origins::from_fd`], `BPF_OBJ_GET_INFO_BY_FD` (15).
#[derive(Debug)]
pub struct Origins {
    map: Map<i32, RawOrigin>,
}

impl Origins {
    /// Takes the descriptor of the map and checks that its layout is the one known here.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Error> {
        let map = Map::new(fd).map_err(|source| {
            if source.kind() == io::ErrorKind::InvalidData {
                Error::Layout {
                    map: "origins".into(),
                    detail: source.to_string(),
                }
            } else {
                Error::Map {
                    map: "origins",
                    action: "inspect",
                    source,
                }
            }
        })?;
        Ok(Self { map })
    }

    /// Who opened the connection behind an accepted socket. `None`: the kernel has no record, so
    /// the connection must be refused.
    pub fn read(&self, accepted: impl AsFd) -> Result<Option<Origin>, Error> {
        let socket = accepted.as_fd().as_raw_fd();
        self.map
            .lookup(&socket)
            .map(|raw| raw.map(Origin::from))
            .map_err(|source| Error::Map {
                map: "origins",
                action: "read",
                source,
            })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn addresses_are_read_in_their_family() {
        let octets = Ipv4Addr::new(127, 0, 0, 1).to_ipv6_mapped().octets();
        let raw = RawOrigin {
            daddr: octets,
            dport: 3500,
            ..RawOrigin::default()
        };
        let origin = Origin::from(raw);
        assert_eq!(origin.destination, "127.0.0.1:3500".parse().unwrap());
        assert_eq!(
            (origin.target, origin.captured, origin.service),
            (None, false, false)
        );
        let raw = RawOrigin {
            target: Ipv6Addr::LOCALHOST.octets(),
            tport: 80,
            flags: ORIGIN_CAPTURED | ORIGIN_SERVICE,
            ..raw
        };
        let origin = Origin::from(raw);
        assert_eq!(origin.target, Some("[::1]:80".parse().unwrap()));
        assert!(origin.captured && origin.service);
    }
}
