//! In a container that shares the machine's processes: seeing the machine's cgroups.
//!
//! Where there is only cgroup v2, an engine gives each container, also a privileged one, a cgroup namespace of
//! its own, in which the kernel lets it move processes within its own part only. The node's part is another.

use nix::sched::{CloneFlags, setns};
use std::{
    fs::{self, File},
    io,
    path::Path,
};

/// Joins the cgroup namespace of the first process that this one sees, and says whether that was another.
/// Without `pid: host` that is the container's own, and nothing changes; so it does where that process may not
/// be looked at. To be called before there are threads.
pub fn join_machine_cgroups() -> io::Result<bool> {
    let (first, own) = (
        Path::new("/proc/1/ns/cgroup"),
        Path::new("/proc/thread-self/ns/cgroup"),
    );
    let (Ok(theirs), Ok(ours)) = (fs::read_link(first), fs::read_link(own)) else {
        return Ok(false);
    };
    if theirs == ours {
        return Ok(false);
    }
    setns(File::open(first)?, CloneFlags::CLONE_NEWCGROUP)?;
    Ok(true)
}
