//! What the programs tell of packets: each that is refused, and each new connection.
//!
//! The reader needs the map's descriptor, opened for writing (its position is shared with the
//! kernel), and no capability. The descriptor becomes readable when there is something new, so it
//! fits an event loop. What finds no room in the buffer is counted in `events_lost`.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::addresses::address;
use crate::error::Error;
use crate::layout::packet::RawEvent;
use crate::policy::Direction;
use crate::ring::Ring;
use crate::sys;

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It went on: the first of a new connection.
    Forwarded,
    /// It was refused.
    Dropped,
    /// It would have been refused, but the endpoint is under audit.
    Audit,
}

/// One packet. Its numbers are Hubble's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// Hubble's type: drop 1, trace 4, policy verdict 5.
    pub kind: u8,
    /// What became of it.
    pub verdict: Verdict,
    /// Hubble's drop reason; 0 for what was forwarded.
    pub reason: u8,
    /// Which way it went, as seen from the endpoint.
    pub direction: Direction,
    /// The endpoint that it was judged for.
    pub endpoint: u32,
    /// The other end's endpoint number if it is of this node and known, else 0.
    pub peer: u32,
    /// The sender's identity, 0 if it was not asked for.
    pub source_identity: u32,
    /// The receiver's identity.
    pub destination_identity: u32,
    /// What the rule is called that decided; 0 for none.
    pub rule: u32,
    /// The packet's length in bytes.
    pub length: u32,
    /// The interface.
    pub ifindex: u32,
    /// From where.
    pub source: IpAddr,
    /// To where.
    pub destination: IpAddr,
    /// The sender's port; ICMP's type.
    pub source_port: u16,
    /// The receiver's port; ICMP's code.
    pub destination_port: u16,
    /// The protocol's number in IP.
    pub protocol: u8,
    /// TCP's flags as in its header.
    pub tcp_flags: u8,
    /// It answers a connection that the other end opened.
    pub reply: bool,
}

impl Event {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let raw: RawEvent = sys::read(bytes)?;
        Some(Self {
            time: raw.time,
            kind: raw.kind,
            verdict: match raw.verdict {
                1 => Verdict::Forwarded,
                2 => Verdict::Dropped,
                4 => Verdict::Audit,
                _ => return None,
            },
            reason: raw.reason,
            direction: Direction::from_number(raw.dir)?,
            endpoint: raw.endpoint,
            peer: raw.peer,
            source_identity: raw.src_identity,
            destination_identity: raw.dst_identity,
            rule: raw.rule,
            length: raw.len,
            ifindex: raw.ifindex,
            source: address(raw.saddr),
            destination: address(raw.daddr),
            source_port: raw.sport,
            destination_port: raw.dport,
            protocol: raw.proto,
            tcp_flags: raw.tcp_flags,
            reply: raw.is_reply != 0,
        })
    }
}

/// The reading end of the buffer. There must be one at a time.
#[derive(Debug)]
pub struct Events {
    ring: Ring,
}

impl Events {
    /// Takes the descriptor of the map `events`.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Error> {
        let ring = Ring::new(fd).map_err(|source| Error::Map {
            map: "events",
            action: "map",
            source,
        })?;
        Ok(Self { ring })
    }

    /// Goes on where the reader before this one ended.
    pub fn resume(&mut self) {
        self.ring.resume();
    }

    /// Takes the next event, if there is one. Call it until there is none before waiting again.
    pub fn read(&mut self) -> Option<Event> {
        loop {
            // What cannot be read is of a program of another version, for the moment of an upgrade.
            if let Some(event) = self.ring.next(Event::parse)? {
                return Some(event);
            }
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let event = Event::parse(&bytes);
            prop_assert!(bytes.len() >= 80 || event.is_none());
        }
    }
}
