//! The programs that judge the packets of processes, at the node's cgroup. They are loaded with the
//! others and attached when the node says so: from then on a process without an endpoint is closed.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use crate::error::Error;
use crate::kernel::Kernel;
use crate::links::{self, PROCESS_PROGRAMS};

/// The two programs, loaded and ready.
#[derive(Debug)]
pub(crate) struct Processes {
    /// In the order of [`PROCESS_PROGRAMS`].
    pub(crate) programs: [OwnedFd; 2],
    /// The node's folder of links.
    pub(crate) links: PathBuf,
    pub(crate) cgroup: File,
    pub(crate) cgroup_id: u64,
}

impl Processes {
    /// Puts these programs behind the links of an earlier process, if it had attached them.
    pub(crate) fn adopt(&self) -> Result<(), Error> {
        for (at, (name, _)) in PROCESS_PROGRAMS.iter().enumerate() {
            if links::is_installed(&self.links, name) {
                self.install(at)?;
            }
        }
        Ok(())
    }

    fn install(&self, at: usize) -> Result<bool, Error> {
        let program = self.programs[at].as_fd();
        links::install(
            &self.links,
            PROCESS_PROGRAMS[at],
            program,
            &self.cgroup,
            self.cgroup_id,
        )
    }
}

impl Kernel {
    /// From now on the packets of processes are judged, in and below the node's cgroup. Returns
    /// whether they were already. A registered cgroup whose endpoint is not in the table of endpoints
    /// is closed.
    pub fn attach_processes(&self) -> Result<bool, Error> {
        let mut adopted = true;
        for at in 0..PROCESS_PROGRAMS.len() {
            adopted &= self.judged.install(at)?;
        }
        Ok(adopted)
    }

    /// The packets of processes are judged no more.
    pub fn detach_processes(&self) -> Result<(), Error> {
        for (name, _) in PROCESS_PROGRAMS.iter().rev() {
            links::remove(&self.judged.links, name)?;
        }
        Ok(())
    }
}
