//! Framing: a message and its descriptors as packets, and back.
//!
//! A packet is an eight-byte header, then (first packet only) the encoded message:
//!
//! | bytes | meaning |
//! |---|---|
//! | 0 | `0x57` |
//! | 1 | version, 1 |
//! | 2 | 0: first packet of a message, 1: more descriptors |
//! | 3 | 0 |
//! | 4..8 | little endian: descriptors of the whole message (first packet), or those still due, this packet's included (others) |
//!
//! The kernel takes at most 253 descriptors per packet; [`DESCRIPTORS_PER_PACKET`] are sent.

use crate::HandoffError;
use std::os::fd::OwnedFd;

/// Largest encoded message in bytes.
pub const MAX_MESSAGE: usize = 256 * 1024;
/// Most descriptors with one message.
pub const MAX_DESCRIPTORS: usize = 1000;
/// Most descriptors beside one packet.
pub const DESCRIPTORS_PER_PACKET: usize = 200;
/// Length of the header before each packet's content.
pub const HEADER: usize = 8;
/// Largest packet.
pub const MAX_PACKET: usize = HEADER + MAX_MESSAGE;

const MAGIC: u8 = 0x57;
const VERSION: u8 = 1;
const FIRST: u8 = 0;
const MORE: u8 = 1;

/// One packet to send: its header, whether the message goes with it, and which descriptors.
#[derive(Debug, PartialEq, Eq)]
pub struct Packet {
    /// The first bytes.
    pub header: [u8; HEADER],
    /// The message follows the header.
    pub with_message: bool,
    /// Range of the message's descriptors.
    pub descriptors: std::ops::Range<usize>,
}

/// Plans the packets for a message of `size` bytes with `descriptors` descriptors.
pub fn plan(size: usize, descriptors: usize) -> Result<Vec<Packet>, HandoffError> {
    if size > MAX_MESSAGE || descriptors > MAX_DESCRIPTORS {
        return Err(HandoffError::TooLarge { size, descriptors });
    }
    let mut packets = Vec::with_capacity(1 + descriptors / DESCRIPTORS_PER_PACKET);
    let mut sent = 0;
    loop {
        let end = descriptors.min(sent + DESCRIPTORS_PER_PACKET);
        let kind = if packets.is_empty() { FIRST } else { MORE };
        packets.push(Packet {
            header: header(kind, descriptors - sent),
            with_message: kind == FIRST,
            descriptors: sent..end,
        });
        sent = end;
        if sent == descriptors {
            return Ok(packets);
        }
    }
}

fn header(kind: u8, descriptors: usize) -> [u8; HEADER] {
    // Bounded by MAX_DESCRIPTORS, which `plan` has checked.
    let count = u32::try_from(descriptors).unwrap_or(u32::MAX).to_le_bytes();
    [MAGIC, VERSION, kind, 0, count[0], count[1], count[2], count[3]]
}

/// A whole message as it arrived.
#[derive(Debug)]
pub struct Received {
    /// The encoded message.
    pub message: Vec<u8>,
    /// Its descriptors, in order.
    pub descriptors: Vec<OwnedFd>,
}

/// Puts packets together. After an error it must not be used again: the link is lost.
#[derive(Debug, Default)]
pub struct Assembler {
    partial: Option<(Received, usize)>,
}

impl Assembler {
    /// Takes a packet; answers with a message when it is whole.
    pub fn push(&mut self, packet: &[u8], mut fds: Vec<OwnedFd>) -> Result<Option<Received>, HandoffError> {
        let Some((header, content)) = packet.split_first_chunk::<HEADER>() else {
            return Err(HandoffError::protocol(format!(
                "a packet of {} bytes has no header",
                packet.len()
            )));
        };
        let [magic, version, kind, zero, count @ ..] = *header;
        if magic != MAGIC || zero != 0 {
            return Err(HandoffError::protocol("a packet does not start with the header"));
        }
        if version != VERSION {
            return Err(HandoffError::protocol(format!(
                "the other side speaks version {version}, this one {VERSION}"
            )));
        }
        let due = usize::try_from(u32::from_le_bytes(count)).unwrap_or(usize::MAX);
        if due > MAX_DESCRIPTORS {
            return Err(HandoffError::protocol(format!("{due} descriptors announced")));
        }
        if fds.len() != due.min(DESCRIPTORS_PER_PACKET) {
            return Err(HandoffError::protocol(format!(
                "{} descriptors came with a packet that announces {due}",
                fds.len()
            )));
        }
        let (mut received, expected) = match (kind, self.partial.take()) {
            (FIRST, None) if content.len() <= MAX_MESSAGE => (
                Received {
                    message: content.to_vec(),
                    descriptors: Vec::with_capacity(due),
                },
                due,
            ),
            (MORE, Some(partial)) if content.is_empty() => partial,
            _ => return Err(HandoffError::protocol("packets out of order")),
        };
        if due == 0 && kind == MORE || received.descriptors.len() + due != expected {
            return Err(HandoffError::protocol("descriptors are missing"));
        }
        received.descriptors.append(&mut fds);
        if received.descriptors.len() < expected {
            self.partial = Some((received, expected));
            return Ok(None);
        }
        Ok(Some(received))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fds(n: usize) -> Vec<OwnedFd> {
        let null = std::fs::File::open("/dev/null").unwrap();
        (0..n).map(|_| null.try_clone().unwrap().into()).collect()
    }

    #[test]
    fn many_descriptors_take_several_packets() {
        let plan = plan(10, 450).unwrap();
        let ranges: Vec<_> = plan.iter().map(|p| p.descriptors.clone()).collect();
        assert_eq!(ranges, [0..200, 200..400, 400..450]);
        assert_eq!(
            plan.iter().map(|p| p.with_message).collect::<Vec<_>>(),
            [true, false, false]
        );
    }

    #[test]
    fn what_is_too_large_is_not_sent() {
        assert!(plan(MAX_MESSAGE, MAX_DESCRIPTORS).is_ok());
        assert!(matches!(
            plan(MAX_MESSAGE + 1, 0),
            Err(HandoffError::TooLarge { .. })
        ));
        assert!(matches!(
            plan(0, MAX_DESCRIPTORS + 1),
            Err(HandoffError::TooLarge { .. })
        ));
    }

    #[test]
    fn a_missing_continuation_is_noticed() {
        let plan = plan(0, 201).unwrap();
        let mut assembler = Assembler::default();
        assert!(assembler.push(&plan[0].header, fds(200)).unwrap().is_none());
        // The next message starts although one descriptor is due.
        let error = assembler.push(&header(FIRST, 0), Vec::new()).unwrap_err();
        assert!(error.to_string().contains("out of order"), "{error}");
    }

    #[test]
    fn another_version_is_named() {
        let error = Assembler::default()
            .push(&[MAGIC, 2, 0, 0, 0, 0, 0, 0], Vec::new())
            .unwrap_err();
        assert!(error.to_string().contains("version 2"), "{error}");
    }

    proptest! {
        /// Whatever is planned arrives whole.
        #[test]
        fn plan_and_assemble_agree(message in prop::collection::vec(any::<u8>(), 0..2000), n in 0usize..450) {
            let mut assembler = Assembler::default();
            let mut whole = None;
            for packet in plan(message.len(), n).unwrap() {
                prop_assert!(whole.is_none());
                let mut bytes = packet.header.to_vec();
                if packet.with_message {
                    bytes.extend_from_slice(&message);
                }
                whole = assembler.push(&bytes, fds(packet.descriptors.len())).unwrap();
            }
            let whole = whole.unwrap();
            prop_assert_eq!(whole.message, message);
            prop_assert_eq!(whole.descriptors.len(), n);
        }

        /// Any bytes, any number of descriptors: an answer, never a panic, never unbounded memory.
        #[test]
        fn garbage_is_refused(
            packets in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..64), 0usize..4), 1..6),
            headed in any::<bool>(),
        ) {
            let mut assembler = Assembler::default();
            for (mut bytes, n) in packets {
                if headed && bytes.len() >= 4 {
                    bytes[0] = MAGIC;
                    bytes[1] = VERSION;
                    bytes[2] &= 1;
                    bytes[3] = 0;
                }
                if assembler.push(&bytes, fds(n)).is_err() {
                    break;
                }
            }
        }
    }
}
