//! The programs at the interfaces towards pods. Their links are pinned under `links/`, one for each
//! interface and hook, and replaced in place. They come before other programs of the hook, which go
//! on running for what passes; whoever they are is told.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::kernel::Kernel;
use crate::policy::Direction;
use crate::sys::tcx::{self, Hook};
use crate::sys::{self};

/// The programs by function name, and where they go. What a pod gets comes before what it sends:
/// an answer without its opening is refused, not the other way round.
pub(crate) const PROGRAMS: [(&str, Hook); 2] =
    [("to_endpoint", Hook::Egress), ("from_endpoint", Hook::Ingress)];

/// The node's programs for interfaces, loaded and ready.
#[derive(Debug)]
pub(crate) struct Classifiers {
    pub(crate) programs: [OwnedFd; 2],
    /// The node's folder of links.
    pub(crate) links: PathBuf,
}

/// Another program at an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// At what the pod gets, or at what it sends.
    pub direction: Direction,
    /// Its id.
    pub id: u32,
    /// Its name, as far as the kernel keeps it.
    pub name: String,
    /// It runs before ours, so it can take packets past them.
    pub before: bool,
}

/// What attaching found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attached {
    /// Whether links of an earlier process were replaced rather than made.
    pub adopted: bool,
    /// Who else is there. None of them is touched.
    pub neighbours: Vec<Neighbour>,
}

/// What became of a packet that nobody sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TestRun {
    /// What the program returned: -1 (go on) or 2 (drop) at interfaces, 1 or 0 at sockets.
    pub action: i32,
    /// How long one run took on average.
    pub nanoseconds: u32,
}

/// One of the programs at packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hooked {
    /// At the interface of a pod: what it gets, or sends.
    Interface(Direction),
    /// At the sockets of processes.
    Process(Direction),
}

impl Classifiers {
    /// Puts these programs behind all links of an earlier process. Links of interfaces that are gone
    /// are removed.
    pub(crate) fn adopt(&self) -> Result<(), Error> {
        for (ifindex, _) in self.pins()? {
            self.adopt_at(ifindex)?;
        }
        Ok(())
    }

    fn adopt_at(&self, ifindex: u32) -> Result<(), Error> {
        for (at, (name, hook)) in PROGRAMS.into_iter().enumerate() {
            let pin = self.pin(name, ifindex);
            let Some(link) = open(&pin)? else { continue };
            if is_at(&link, ifindex, hook, name)? {
                sys::link_update(link.as_fd(), self.programs[at].as_fd()).map_err(failed(name, "replace"))?;
            } else {
                remove_pin(&pin)?;
            }
        }
        Ok(())
    }

    fn attach(&self, ifindex: u32) -> Result<Attached, Error> {
        let mut attached = Attached {
            adopted: true,
            ..Attached::default()
        };
        for (at, (name, hook)) in PROGRAMS.into_iter().enumerate() {
            let pin = self.pin(name, ifindex);
            let program = self.programs[at].as_fd();
            let existing = match open(&pin)? {
                Some(link) if is_at(&link, ifindex, hook, name)? => Some(link),
                // The interface it was for is gone, and this one has its number.
                Some(_) => {
                    remove_pin(&pin)?;
                    None
                }
                None => None,
            };
            let link = match existing {
                Some(link) => {
                    sys::link_update(link.as_fd(), program).map_err(failed(name, "replace"))?;
                    link
                }
                None => {
                    attached.adopted = false;
                    let link = tcx::link_create(program, ifindex, hook).map_err(failed(name, "attach"))?;
                    sys::pin(link.as_fd(), &pin).map_err(|source| Error::Pin {
                        path: pin.clone(),
                        action: "pin",
                        source,
                    })?;
                    link
                }
            };
            let own = tcx::link_program(link.as_fd()).map_err(failed(name, "inspect"))?;
            attached.neighbours.extend(neighbours(ifindex, hook, own, name)?);
        }
        Ok(attached)
    }

    fn pin(&self, program: &str, ifindex: u32) -> PathBuf {
        self.links.join(format!("{program}-{ifindex}"))
    }

    fn pins(&self) -> Result<Vec<(u32, PathBuf)>, Error> {
        pins(&self.links)
    }
}

/// Takes all links at interfaces away, also those of processes that are gone.
pub(crate) fn remove_all(links: &Path) -> Result<(), Error> {
    for (_, pin) in pins(links)? {
        detach(&pin)?;
    }
    Ok(())
}

fn pins(links: &Path) -> Result<Vec<(u32, PathBuf)>, Error> {
    let entries = match fs::read_dir(links) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(Error::Pin {
                path: links.to_path_buf(),
                action: "read",
                source,
            });
        }
    };
    let index = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        let (program, ifindex) = name.rsplit_once('-')?;
        PROGRAMS.iter().find(|(known, _)| *known == program)?;
        ifindex.parse().ok()
    };
    Ok(entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((index(&path)?, path))
        })
        .collect())
}

fn neighbours(ifindex: u32, hook: Hook, own: u32, name: &'static str) -> Result<Vec<Neighbour>, Error> {
    let ids = tcx::programs(ifindex, hook).map_err(failed(name, "list programs beside"))?;
    let place = ids.iter().position(|id| *id == own).unwrap_or(ids.len());
    let direction = match hook {
        Hook::Egress => Direction::In,
        Hook::Ingress => Direction::Out,
    };
    let others = ids.iter().enumerate().filter(|(_, id)| **id != own);
    Ok(others
        .map(|(at, id)| Neighbour {
            direction,
            id: *id,
            // It may be gone since.
            name: tcx::program_name(*id).unwrap_or_default(),
            before: at < place,
        })
        .collect())
}

fn is_at(link: &OwnedFd, ifindex: u32, hook: Hook, name: &'static str) -> Result<bool, Error> {
    let target = tcx::link_target(link.as_fd()).map_err(failed(name, "inspect"))?;
    Ok(target == (ifindex, hook as u32))
}

fn open(pin: &Path) -> Result<Option<OwnedFd>, Error> {
    match sys::open_pin(pin, false) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Pin {
            path: pin.to_path_buf(),
            action: "open",
            source,
        }),
    }
}

fn detach(pin: &Path) -> Result<bool, Error> {
    let Some(link) = open(pin)? else {
        return Ok(false);
    };
    match sys::link_detach(link.as_fd()) {
        Ok(()) => {}
        // The interface is gone, and the attachment with it.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOLINK | libc::ENOENT)) => {}
        Err(source) => {
            return Err(Error::Pin {
                path: pin.to_path_buf(),
                action: "detach",
                source,
            });
        }
    }
    remove_pin(pin)?;
    Ok(true)
}

fn remove_pin(pin: &Path) -> Result<(), Error> {
    match fs::remove_file(pin) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::Pin {
            path: pin.to_path_buf(),
            action: "remove",
            source,
        }),
        _ => Ok(()),
    }
}

fn failed(program: &'static str, action: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Interface {
        program,
        action,
        source,
    }
}

impl Kernel {
    /// From now on what goes through this interface of the caller's network namespace is judged.
    /// Until `interfaces` says whose it is, nothing passes. Calling it again puts the programs
    /// in place anew and moves nobody.
    pub fn attach_interface(&self, ifindex: u32) -> Result<Attached, Error> {
        self.classifiers.attach(ifindex)
    }

    /// What goes through the interface is judged no more. Returns whether it was.
    pub fn detach_interface(&self, ifindex: u32) -> Result<bool, Error> {
        let mut there = false;
        // Sending ends first.
        for (name, _) in PROGRAMS.iter().rev() {
            there |= detach(&self.classifiers.pin(name, ifindex))?;
        }
        Ok(there)
    }

    /// The interfaces that have the programs, by an earlier process too. Those that are gone are left
    /// out.
    pub fn attached_interfaces(&self) -> Result<BTreeSet<u32>, Error> {
        let mut found = BTreeSet::new();
        for (ifindex, pin) in self.classifiers.pins()? {
            let Some(link) = open(&pin)? else { continue };
            let target = tcx::link_target(link.as_fd()).map_err(failed("to_endpoint", "inspect"))?;
            if target.0 == ifindex {
                found.insert(ifindex);
            }
        }
        Ok(found)
    }

    /// Runs a program with a packet that nobody sent, as if it had come in by `ingress` (0: by
    /// none) and were now at `ifindex`, which must exist here. At interfaces the packet begins with
    /// its Ethernet header, at sockets too, where it is not looked at. Tables and counters change as
    /// for any packet.
    #[doc(hidden)]
    pub fn test_run(
        &self,
        hook: Hooked,
        (ifindex, ingress): (u32, u32),
        packet: &[u8],
        repeat: u32,
    ) -> Result<TestRun, Error> {
        let program: BorrowedFd<'_> = match hook {
            Hooked::Interface(Direction::In) => self.classifiers.programs[0].as_fd(),
            Hooked::Interface(Direction::Out) => self.classifiers.programs[1].as_fd(),
            Hooked::Process(Direction::In) => self.judged.programs[0].as_fd(),
            Hooked::Process(Direction::Out) => self.judged.programs[1].as_fd(),
        };
        let (action, nanoseconds) = tcx::test_run(program, packet, (ifindex, ingress), repeat)
            .map_err(failed("to_endpoint", "run"))?;
        Ok(TestRun { action, nanoseconds })
    }
}
