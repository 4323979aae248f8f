//! Trying out, and not guessing, what the node asks of a kernel: a tiny program of each kind is
//! loaded and attached, a map of each kind made, in a namespace and a cgroup of their own that are
//! gone afterwards. Nothing of the machine is touched.

mod calls;
mod destroy;

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::sched::{CloneFlags, unshare};

use calls::{Hook, MapKind, ProgramKind, attached_names};

/// Something that was tried.
#[derive(Debug)]
pub struct Trial {
    /// What, as `program cgroup/connect4` or `map ring buffer`.
    pub name: String,
    /// What the node needs it for.
    pub purpose: &'static str,
    /// The kernel's answer.
    pub result: io::Result<()>,
}

/// The loopback interface of every namespace.
const LOOPBACK: u32 = 1;

/// Each kind of program at its hook.
const PROGRAMS: [(&str, ProgramKind, Hook, &str); 15] = {
    use ProgramKind as P;
    const CONNECT: &str = "service addresses and captured connections of apps";
    const DATAGRAM: &str = "UDP to service addresses";
    const PACKET: &str = "policy on packets of processes";
    const LISTENS: &str = "who of the node's processes a pod calls";
    const POD: &str = "policy on packets of pods";
    [
        ("tcx ingress", P::Classifier, Hook::TcxIngress, POD),
        ("tcx egress", P::Classifier, Hook::TcxEgress, POD),
        ("cgroup_skb ingress", P::CgroupSkb, Hook::SkbIngress, PACKET),
        ("cgroup_skb egress", P::CgroupSkb, Hook::SkbEgress, PACKET),
        ("cgroup/connect4", P::SockAddr, Hook::Connect4, CONNECT),
        ("cgroup/connect6", P::SockAddr, Hook::Connect6, CONNECT),
        ("cgroup/sendmsg4", P::SockAddr, Hook::Sendmsg4, DATAGRAM),
        ("cgroup/sendmsg6", P::SockAddr, Hook::Sendmsg6, DATAGRAM),
        ("cgroup/recvmsg4", P::SockAddr, Hook::Recvmsg4, DATAGRAM),
        ("cgroup/recvmsg6", P::SockAddr, Hook::Recvmsg6, DATAGRAM),
        ("cgroup/getpeername4", P::SockAddr, Hook::Getpeername4, CONNECT),
        ("cgroup/getpeername6", P::SockAddr, Hook::Getpeername6, CONNECT),
        ("cgroup/post_bind4", P::Sock, Hook::PostBind4, LISTENS),
        ("cgroup/post_bind6", P::Sock, Hook::PostBind6, LISTENS),
        ("sockops", P::SockOps, Hook::SockOps, "who opened a connection"),
    ]
};

const MAPS: [(&str, MapKind, &str); 7] = [
    ("hash", MapKind::Hash, "endpoints and policy"),
    ("array", MapKind::Array, "the programs' constants"),
    ("per-CPU array", MapKind::PerCpuArray, "counters"),
    ("LRU hash", MapKind::LruHash, "connections"),
    ("LPM trie", MapKind::LpmTrie, "addresses and port ranges"),
    (
        "socket storage",
        MapKind::SocketStorage,
        "what a socket was opened for",
    ),
    ("ring buffer", MapKind::RingBuffer, "events"),
];

/// Tries all of it. Needs root; takes some milliseconds.
pub fn trials() -> Vec<Trial> {
    let mut done: Vec<Trial> = MAPS
        .iter()
        .map(|(name, kind, purpose)| Trial {
            name: format!("map {name}"),
            purpose,
            result: calls::make_map(*kind).map(drop),
        })
        .collect();
    // A namespace belongs to a thread, and so goes with it.
    let inside = std::thread::spawn(|| {
        let own = unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
        let made = own.is_ok();
        let mut done = vec![Trial {
            name: "network namespace".into(),
            purpose: "trying out; entering pods",
            result: own,
        }];
        if made {
            done.extend(programs());
            done.push(Trial {
                name: "sock_diag destroy".into(),
                purpose: "closing connections to backends that are gone",
                result: destroy::attempt(),
            });
        }
        done
    });
    match inside.join() {
        Ok(more) => done.extend(more),
        Err(_) => done.push(Trial {
            name: "network namespace".into(),
            purpose: "trying out; entering pods",
            result: Err(io::Error::other("the thread that tried ended early")),
        }),
    }
    done
}

fn programs() -> Vec<Trial> {
    let cgroup = Cgroup::make();
    PROGRAMS
        .iter()
        .map(|(name, kind, hook, purpose)| Trial {
            name: format!("program {name}"),
            purpose,
            result: calls::load(*kind, *hook).and_then(|program| attach(&program, *hook, cgroup.as_ref())),
        })
        .collect()
}

/// The link, and with it the attachment, ends with the descriptor.
fn attach(program: &OwnedFd, hook: Hook, cgroup: Result<&Cgroup, &io::Error>) -> io::Result<()> {
    if hook.is_tcx() {
        return calls::link_interface(program.as_fd(), LOOPBACK, hook).map(drop);
    }
    let cgroup = cgroup.map_err(|e| io::Error::new(e.kind(), format!("no cgroup to try it in: {e}")))?;
    calls::link_cgroup(program.as_fd(), cgroup.folder.as_fd(), hook).map(drop)
}

/// An empty cgroup, removed when dropped.
struct Cgroup {
    path: PathBuf,
    folder: fs::File,
}

impl Cgroup {
    fn make() -> io::Result<Self> {
        let root = crate::find_cgroup2().map_err(io::Error::other)?;
        let path = root.join(format!("weft-doctor-{}", std::process::id()));
        match fs::create_dir(&path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let folder = fs::File::open(&path)?;
        Ok(Self { path, folder })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}

/// Programs at a hook that are not this node's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Others {
    /// Where, as `eth0 tcx ingress` or `/sys/fs/cgroup connect4`.
    pub place: String,
    /// The programs' names as their makers gave them.
    pub programs: Vec<String>,
}

/// Who else is attached: at the interfaces of the calling thread's namespace, and at a cgroup or
/// above it, where it sees the same processes.
pub fn others(interfaces: &[(u32, String)], cgroup: &Path, cgroup2: &Path) -> io::Result<Vec<Others>> {
    let mut found = Vec::new();
    for (index, name) in interfaces {
        for hook in [Hook::TcxIngress, Hook::TcxEgress] {
            let programs = attached_names(calls::Target::Interface(*index), hook)?;
            push(&mut found, format!("{name} {hook}"), programs);
        }
    }
    for folder in cgroup.ancestors().take_while(|path| path.starts_with(cgroup2)) {
        let Ok(file) = fs::File::open(folder) else {
            continue;
        };
        for (_, _, hook, _) in PROGRAMS.iter().filter(|(_, _, hook, _)| !hook.is_tcx()) {
            let programs = attached_names(calls::Target::Cgroup(file.as_fd()), *hook)?;
            push(&mut found, format!("{} {hook}", folder.display()), programs);
        }
    }
    Ok(found)
}

fn push(found: &mut Vec<Others>, place: String, programs: Vec<String>) {
    let programs: Vec<String> = programs.into_iter().filter(|name| !is_ours(name)).collect();
    if !programs.is_empty() {
        found.push(Others { place, programs });
    }
}

/// The kernel keeps 15 characters of a program's name.
fn is_ours(name: &str) -> bool {
    use crate::links::{PROCESS_PROGRAMS, PROGRAMS};
    let at_cgroups = PROGRAMS.iter().chain(&PROCESS_PROGRAMS).map(|(own, _)| *own);
    let at_interfaces = crate::tcx::PROGRAMS.iter().map(|(own, _)| *own);
    at_cgroups
        .chain(at_interfaces)
        .any(|own| own.chars().take(15).eq(name.chars()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_programs_are_known_by_the_names_that_the_kernel_keeps() {
        assert!(is_ours("connect4") && is_ours("process_ingress") && is_ours("from_endpoint"));
        assert!(!is_ours("cil_from_contai") && !is_ours(""));
    }
}
