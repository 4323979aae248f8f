//! Which programs are really at work: as the kernel says of the pinned links.

use std::fs;
use std::io;
use std::os::fd::AsFd;

use crate::error::Error;
use crate::kernel::Kernel;
use crate::sys::{self, tcx};

/// A program at its hook.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Running {
    /// The pin's name: that of the program, with the interface's index if it is at one.
    pub pin: String,
    /// The kernel's number for it: another one with each load.
    pub id: u32,
    /// A digest of its instructions.
    pub tag: u64,
}

impl Kernel {
    /// All programs of this node that are attached, by their pins.
    pub fn running(&self) -> Result<Vec<Running>, Error> {
        let folder = &self.classifiers.links;
        let read = || -> io::Result<Vec<Running>> {
            let mut all = Vec::new();
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                let link = sys::open_pin(&entry.path(), false)?;
                let id = tcx::link_program(link.as_fd())?;
                all.push(Running {
                    pin: entry.file_name().to_string_lossy().into_owned(),
                    id,
                    tag: tcx::program_tag(id)?,
                });
            }
            all.sort();
            Ok(all)
        };
        read().map_err(|source| Error::Pin {
            path: folder.clone(),
            action: "read",
            source,
        })
    }
}
