//! Reading who opened a connection, from the accepted socket. Needs the map's descriptor and
//! nothing else: no capability, no bpffs, no path.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::error::Error;
use crate::layout::RawOrigin;
use crate::sys::Map;

/// Who opened a connection, as the kernel saw it in connect(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Kernel id of the workload's cgroup; the caller may have sat in one below it.
    pub cgroup_id: u64,
    /// Cookie of the network namespace of the connection.
    pub netns_cookie: u64,
    /// Cookie of the connecting socket (`SO_COOKIE`).
    pub socket_cookie: u64,
    /// The destination as the caller wrote it; IPv4-mapped addresses as IPv4.
    pub destination: SocketAddr,
    /// [`Workload::index`](crate::Workload::index) at the moment of connect.
    pub workload_index: u32,
}

impl From<RawOrigin> for Origin {
    fn from(raw: RawOrigin) -> Self {
        let address = if raw.family == 4 {
            let [.., a, b, c, d] = raw.daddr;
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        } else {
            IpAddr::V6(Ipv6Addr::from(raw.daddr)).to_canonical()
        };
        Self {
            cgroup_id: raw.cgroup,
            netns_cookie: raw.netns,
            socket_cookie: raw.socket,
            destination: SocketAddr::new(address, raw.dport),
            workload_index: raw.index,
        }
    }
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
    use super::*;

    fn raw(family: u16, address: [u8; 16]) -> RawOrigin {
        RawOrigin {
            cgroup: 1,
            netns: 2,
            socket: 3,
            daddr: address,
            dport: 3500,
            family,
            index: 9,
        }
    }

    #[test]
    fn destinations_are_read_in_their_family() {
        let mapped = Ipv4Addr::new(127, 0, 0, 1).to_ipv6_mapped().octets();
        let v4 = "127.0.0.1:3500".parse().unwrap();
        assert_eq!(Origin::from(raw(4, mapped)).destination, v4);
        assert_eq!(Origin::from(raw(6, mapped)).destination, v4);
        let v6 = Origin::from(raw(6, Ipv6Addr::LOCALHOST.octets())).destination;
        assert_eq!(v6, "[::1]:3500".parse().unwrap());
    }
}
