//! The maps that the agent gets: by descriptor, each with just the access that it needs.

use std::io;
use std::os::fd::OwnedFd;

use crate::error::Error;
use crate::kernel::Kernel;
use crate::sys;

/// What the agent writes: what is desired, and how far it has read the events (a ring buffer's reader
/// writes its position).
const WRITTEN: [&str; 11] = [
    "epoch",
    "endpoints",
    "addresses",
    "sets",
    "policy",
    "range_allow",
    "range_deny",
    "services",
    "backends",
    "members",
    "events",
];
/// What it only reads. A program that could write its callers' records could make up callers.
const READ: [&str; 4] = ["origins", "counters", "asked", "conntrack"];

impl Kernel {
    /// Descriptors of the shared maps by name; a map that the programs do not have is left out.
    /// Nobody needs a capability to use them.
    pub fn shared_maps(&self) -> Result<Vec<(&'static str, OwnedFd)>, Error> {
        let written = WRITTEN.iter().map(|name| (*name, false));
        let read = READ.iter().map(|name| (*name, true));
        let mut maps = Vec::new();
        for (name, read_only) in written.chain(read) {
            let path = self.maps.join(name);
            match sys::open_pin(&path, read_only) {
                Ok(map) => maps.push((name, map)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(Error::Pin {
                        path,
                        action: "open",
                        source,
                    });
                }
            }
        }
        Ok(maps)
    }
}
