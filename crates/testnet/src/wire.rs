//! Reading what was recorded: frames, TCP streams put together again, TLS records counted.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A finished recording.
#[derive(Debug)]
pub struct Captured {
    frames: Vec<Vec<u8>>,
    streams: Vec<Stream>,
    dropped: u32,
    overflow: bool,
}

/// What one end of a TCP connection sent, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Who sent.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
    /// The bytes, up to the first gap.
    pub bytes: Vec<u8>,
    /// Bytes were missed; what came after the gap is not in `bytes`, but is in the frames.
    pub gap: bool,
}

/// What was found when streams were read as TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tls {
    /// Whole records.
    pub records: usize,
    /// Their bytes, headers included.
    pub bytes: usize,
    /// Those of type `application_data`, which in TLS 1.3 hold everything after the greeting.
    pub application_records: usize,
    /// Bytes of streams from where they could no longer be read as TLS.
    pub other_bytes: usize,
}

impl Captured {
    pub(crate) fn new(frames: Vec<Vec<u8>>, dropped: u32, overflow: bool) -> Self {
        let streams = assemble(frames.iter().filter_map(|frame| segment(frame)));
        Self {
            frames,
            streams,
            dropped,
            overflow,
        }
    }

    /// Nothing was lost: neither by the kernel nor to the recording's limit. An "is not there"
    /// proves something only if this holds.
    pub fn complete(&self) -> bool {
        self.dropped == 0 && !self.overflow
    }

    /// The frames as they passed, with their Ethernet header.
    pub fn frames(&self) -> &[Vec<u8>] {
        &self.frames
    }

    /// The TCP streams, one for each direction of each connection.
    pub fn streams(&self) -> &[Stream] {
        &self.streams
    }

    /// The streams from or to a port.
    pub fn streams_on(&self, port: u16) -> impl Iterator<Item = &Stream> {
        self.streams
            .iter()
            .filter(move |s| s.source.port() == port || s.destination.port() == port)
    }

    /// Whether these bytes passed in clear: within a frame, or in a TCP stream over several.
    pub fn contains(&self, what: &[u8]) -> bool {
        self.frames.iter().any(|frame| contains(frame, what))
            || self.streams.iter().any(|stream| contains(&stream.bytes, what))
    }

    /// Reads the streams from and to a port as TLS.
    pub fn tls_on(&self, port: u16) -> Tls {
        let mut sum = Tls::default();
        for stream in self.streams_on(port) {
            let found = tls(&stream.bytes);
            sum.records += found.records;
            sum.bytes += found.bytes;
            sum.application_records += found.application_records;
            sum.other_bytes += found.other_bytes;
        }
        sum
    }
}

/// Whether `what`, which isn't empty, is in `bytes`.
pub(crate) fn contains(bytes: &[u8], what: &[u8]) -> bool {
    !what.is_empty() && bytes.windows(what.len()).any(|window| window == what)
}

/// Counts the records of a stream from its beginning. A record cut off at the end counts nowhere.
fn tls(mut bytes: &[u8]) -> Tls {
    const APPLICATION_DATA: u8 = 23;
    let mut found = Tls::default();
    while let [kind, major, minor, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        // 20 to 23: change_cipher_spec, alert, handshake, application_data. At most 2^14 + 256.
        if !(20..=23).contains(kind) || *major != 3 || *minor > 4 || length > 16640 {
            found.other_bytes = bytes.len();
            break;
        }
        let Some(next) = rest.get(length..) else { break };
        found.records += 1;
        found.bytes += length + 5;
        found.application_records += usize::from(*kind == APPLICATION_DATA);
        bytes = next;
    }
    found
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment<'a> {
    source: SocketAddr,
    destination: SocketAddr,
    sequence: u32,
    syn: bool,
    payload: &'a [u8],
}

/// The TCP segment in an Ethernet frame, if there is one.
fn segment(frame: &[u8]) -> Option<Segment<'_>> {
    const TCP: u8 = 6;
    let packet = frame.get(14..)?;
    let (source, destination, tcp): (IpAddr, IpAddr, &[u8]) = match frame.get(12..14)? {
        [0x08, 0x00] => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            // A fragment that isn't the first has no ports.
            let offset = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff;
            if *packet.get(9)? != TCP || offset != 0 || header < 20 {
                return None;
            }
            let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
            let address = |at: usize| -> Option<IpAddr> {
                let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
                Some(Ipv4Addr::from(octets).into())
            };
            // Short frames are padded; a length of 0 is a packet too large to say.
            let end = if total == 0 {
                packet.len()
            } else {
                total.min(packet.len())
            };
            (address(12)?, address(16)?, packet.get(header..end)?)
        }
        [0x86, 0xdd] => {
            if *packet.get(6)? != TCP {
                return None;
            }
            let total = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
            let address = |at: usize| -> Option<IpAddr> {
                let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
                Some(Ipv6Addr::from(octets).into())
            };
            let end = if total == 0 {
                packet.len()
            } else {
                (40 + total).min(packet.len())
            };
            (address(8)?, address(24)?, packet.get(40..end)?)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
    let header = usize::from(tcp.get(12)? >> 4) * 4;
    Some(Segment {
        source: SocketAddr::new(source, port(0)?),
        destination: SocketAddr::new(destination, port(2)?),
        sequence: u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?),
        syn: tcp.get(13)? & 0x02 != 0,
        payload: tcp.get(header.max(20)..)?,
    })
}

/// One direction of one connection, while it is put together.
struct Assembly<'a> {
    source: SocketAddr,
    destination: SocketAddr,
    /// The sequence number of the first byte.
    first: u32,
    parts: BTreeMap<u32, &'a [u8]>,
}

/// Puts streams together, whatever the order and the repetitions of their segments.
fn assemble<'a>(segments: impl Iterator<Item = Segment<'a>>) -> Vec<Stream> {
    let mut all: Vec<Assembly<'a>> = Vec::new();
    // The connection that now has these two addresses.
    let mut current: BTreeMap<(SocketAddr, SocketAddr), usize> = BTreeMap::new();
    for segment in segments {
        let ends = (segment.source, segment.destination);
        let first = segment.sequence.wrapping_add(u32::from(segment.syn));
        let known = current.get(&ends).copied();
        // A SYN that isn't a repetition begins another connection between the same ends.
        let known = known.filter(|at| !segment.syn || all.get(*at).is_some_and(|known| known.first == first));
        let at = known.unwrap_or_else(|| {
            all.push(Assembly {
                source: ends.0,
                destination: ends.1,
                first,
                parts: BTreeMap::new(),
            });
            current.insert(ends, all.len() - 1);
            all.len() - 1
        });
        let Some(assembly) = all.get_mut(at) else { continue };
        let offset = first.wrapping_sub(assembly.first);
        // What lies before the first byte seen is a repetition, or a keep-alive's old byte.
        if segment.payload.is_empty() || offset > u32::MAX / 2 {
            continue;
        }
        let part = assembly.parts.entry(offset).or_insert(segment.payload);
        if part.len() < segment.payload.len() {
            *part = segment.payload;
        }
    }
    all.into_iter().map(finish).collect()
}

fn finish(assembly: Assembly<'_>) -> Stream {
    let mut bytes: Vec<u8> = Vec::new();
    let mut gap = false;
    for (offset, part) in assembly.parts {
        let Some(overlap) = bytes.len().checked_sub(offset as usize) else {
            gap = true;
            break;
        };
        bytes.extend_from_slice(part.get(overlap..).unwrap_or_default());
    }
    Stream {
        source: assembly.source,
        destination: assembly.destination,
        bytes,
        gap,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ends() -> (SocketAddr, SocketAddr) {
        ("10.0.0.1:1000".parse().unwrap(), "10.0.0.2:443".parse().unwrap())
    }

    fn part(sequence: u32, syn: bool, payload: &[u8]) -> Segment<'_> {
        let (source, destination) = ends();
        Segment {
            source,
            destination,
            sequence,
            syn,
            payload,
        }
    }

    #[test]
    fn a_frame_is_taken_apart() {
        let mut frame = vec![0; 12];
        frame.extend([
            0x08, 0x00, 0x45, 0, 0, 42, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ]);
        frame.extend([
            0x03, 0xe8, 0x01, 0xbb, 0, 0, 0, 7, 0, 0, 0, 0, 0x50, 0x02, 0, 0, 0, 0, 0, 0,
        ]);
        frame.extend(b"hi----padding");
        assert_eq!(segment(&frame), Some(part(7, true, b"hi")));
        frame[23] = 17;
        assert_eq!(segment(&frame), None);
    }

    #[test]
    fn a_gap_ends_a_stream_and_a_new_syn_begins_one() {
        let seen = assemble([part(9, true, b""), part(10, false, b"ab"), part(14, false, b"z")].into_iter());
        assert_eq!(
            (seen.len(), seen[0].bytes.as_slice(), seen[0].gap),
            (1, b"ab".as_slice(), true)
        );
        let again = [
            part(9, true, b""),
            part(10, false, b"ab"),
            part(50, true, b""),
            part(51, false, b"c"),
        ];
        let seen = assemble(again.into_iter());
        assert_eq!(
            (seen[0].bytes.as_slice(), seen[1].bytes.as_slice()),
            (b"ab".as_slice(), b"c".as_slice())
        );
    }

    #[test]
    fn what_is_not_tls_is_not_counted() {
        let record = [23, 3, 3, 0, 2, 1, 2];
        let mut stream = [record, record].concat();
        assert_eq!(
            tls(&stream),
            Tls {
                records: 2,
                bytes: 14,
                application_records: 2,
                other_bytes: 0
            }
        );
        stream.extend(b"GET / HTTP/1.1");
        assert_eq!(tls(&stream).other_bytes, 14);
        assert_eq!(tls(b"GET / HTTP/1.1").records, 0);
    }

    proptest! {
        #[test]
        fn any_frame_is_read_without_panic(frame in proptest::collection::vec(any::<u8>(), 0..120), v6: bool) {
            let mut frame = frame;
            if frame.len() > 24 {
                frame[12..14].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[0x08, 0x00] });
                frame[if v6 { 20 } else { 23 }] = 6;
            }
            let _ = segment(&frame);
            let _ = tls(&frame);
        }

        #[test]
        fn order_and_repetition_do_not_matter(
            data in proptest::collection::vec(any::<u8>(), 1..400),
            first: u32,
            cuts in proptest::collection::vec((0usize..400, 1usize..100), 0..20),
            seed: u64,
        ) {
            let at = |offset: usize| first.wrapping_add(1).wrapping_add(u32::try_from(offset).unwrap());
            let mut parts: Vec<Segment<'_>> = data
                .chunks(37)
                .enumerate()
                .map(|(index, chunk)| part(at(index * 37), false, chunk))
                .collect();
            for (from, length) in cuts {
                let from = from % data.len();
                parts.push(part(at(from), false, &data[from..data.len().min(from + length)]));
            }
            let turn = usize::try_from(seed % 1000).unwrap() % parts.len();
            parts.rotate_left(turn);
            let seen = assemble(std::iter::once(part(first, true, b"")).chain(parts));
            prop_assert_eq!(seen.len(), 1);
            prop_assert_eq!(&seen[0].bytes, &data);
        }
    }
}
