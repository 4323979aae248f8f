//! What this machine and this process can do for the node, and how to get what is missing.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;

use crate::diag::NamespaceSockets;
use crate::fs as filesystems;
use crate::sys::{self, AttachType};

/// One thing the node can or cannot do here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// A short stable name.
    pub name: &'static str,
    /// Whether it is there.
    pub active: bool,
    /// Where it was found; or why it is missing and how to get it.
    pub reason: String,
}

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;

/// Looks at the machine without changing it. `bpffs` is where the node's pins are to go.
pub fn probe(bpffs: &Path) -> Vec<Capability> {
    vec![
        privileges(),
        kernel(),
        btf(),
        cgroup2(),
        cgroup_programs(),
        socket_destroy(),
        bpf_filesystem(bpffs),
    ]
}

fn capability(name: &'static str, result: Result<String, String>) -> Capability {
    let active = result.is_ok();
    Capability {
        name,
        active,
        reason: result.unwrap_or_else(|reason| reason),
    }
}

fn privileges() -> Capability {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    capability(
        "bpf-privileges",
        match effective(&status) {
            Some(set) if allows(set) => Ok("CAP_BPF and CAP_NET_ADMIN".into()),
            Some(_) => Err(
                "loading programs needs root, or CAP_BPF and CAP_NET_ADMIN: start weft-node as root".into(),
            ),
            None => Err("cannot read this process's capabilities: mount /proc".into()),
        },
    )
}

/// The effective capabilities in `/proc/<pid>/status`.
fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn allows(set: u64) -> bool {
    let has = |capability: u32| set & (1 << capability) != 0;
    has(CAP_SYS_ADMIN) || (has(CAP_BPF) && has(CAP_NET_ADMIN))
}

fn kernel() -> Capability {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    capability(
        "kernel",
        match version(release) {
            Some(version) if version >= (5, 19) => Ok(format!("Linux {release}")),
            Some(_) => Err(format!("Linux {release} is too old: 5.19 or newer is needed")),
            None => Err(format!(
                "cannot tell the kernel's version from {release:?}: 5.19 or newer is needed"
            )),
        },
    )
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn btf() -> Capability {
    const PATH: &str = "/sys/kernel/btf/vmlinux";
    capability(
        "btf",
        if Path::new(PATH).exists() {
            Ok(PATH.into())
        } else {
            Err(format!(
                "{PATH} is missing: use a kernel built with CONFIG_DEBUG_INFO_BTF"
            ))
        },
    )
}

fn cgroup2() -> Capability {
    capability(
        "cgroup2",
        filesystems::find_cgroup2()
            .map(|path| path.display().to_string())
            .map_err(|error| error.to_string()),
    )
}

/// Asks the kernel what is attached at the root: it answers only if it has such programs.
fn cgroup_programs() -> Capability {
    let found = filesystems::find_cgroup2()
        .map_err(|error| error.to_string())
        .and_then(|root| {
            let folder =
                File::open(&root).map_err(|error| format!("cannot open {}: {error}", root.display()))?;
            [
                AttachType::Inet4Connect,
                AttachType::Inet6Connect,
                AttachType::Inet4PostBind,
                AttachType::Inet6PostBind,
                AttachType::Udp4Sendmsg,
                AttachType::Udp6Sendmsg,
                AttachType::Udp4Recvmsg,
                AttachType::Udp6Recvmsg,
                AttachType::Inet4GetPeername,
                AttachType::Inet6GetPeername,
                AttachType::SockOps,
            ]
            .into_iter()
            .try_for_each(|kind| sys::attached(folder.as_fd(), kind).map(drop))
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EPERM) => {
                    "cannot be asked without CAP_NET_ADMIN: start weft-node as root".to_string()
                }
                _ => format!("the kernel answers {error}: use one built with CONFIG_CGROUP_BPF"),
            })
        });
    capability(
        "cgroup-programs",
        found.map(|()| "connect, post_bind, sendmsg, recvmsg, getpeername, sockops".into()),
    )
}

/// Asks for the end of a socket that nobody has: rights are looked at only when there is one.
fn socket_destroy() -> Capability {
    let found = NamespaceSockets::open().and_then(|mut sockets| sockets.can_close());
    capability(
        "socket-destroy",
        match found {
            Ok(()) => Ok("sockets to removed backends are closed".into()),
            Err(error) => Err(format!(
                "sockets to removed backends stay open until their peers are silent too long; the kernel answers {error}: use one built with CONFIG_INET_DIAG_DESTROY"
            )),
        },
    )
}

fn bpf_filesystem(path: &Path) -> Capability {
    capability(
        "bpffs",
        if filesystems::is_bpffs(path) {
            Ok(path.display().to_string())
        } else {
            Err(format!(
                "{} is not on a bpf file system: `mount -t bpf bpf {}`",
                path.display(),
                path.display()
            ))
        },
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(version("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(version("5.4"), Some((5, 4)));
        assert!(version("5.4").unwrap() < (5, 19));
        assert_eq!(version("next"), None);
    }

    #[test]
    fn either_set_of_capabilities_will_do() {
        let line = |set: u64| effective(&format!("Name:\tx\nCapEff:\t{set:016x}\n")).unwrap();
        assert!(allows(line(1 << CAP_SYS_ADMIN)));
        assert!(allows(line(1 << CAP_BPF | 1 << CAP_NET_ADMIN)));
        assert!(!allows(line(1 << CAP_BPF)));
        assert!(!allows(line(0)));
    }

    #[test]
    fn what_is_missing_comes_with_a_remedy() {
        let found = probe(Path::new("/proc"));
        let bpffs = found
            .iter()
            .find(|capability| capability.name == "bpffs")
            .unwrap();
        assert!(!bpffs.active);
        assert!(bpffs.reason.contains("mount -t bpf"), "{}", bpffs.reason);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,64}") {
            let _ = version(&text);
            let _ = effective(&format!("CapEff:{text}"));
        }
    }
}
