//! Packets, written byte by byte.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;

pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;
pub const RST: u8 = 0x04;
pub const FIN: u8 = 0x01;

/// An IP packet to be.
#[derive(Debug, Clone)]
pub struct Packet {
    pub from: IpAddr,
    pub to: IpAddr,
    pub protocol: u8,
    pub payload: Vec<u8>,
    /// IPv4: flags and offset.
    pub fragment: u16,
    pub id: u16,
    pub hop_limit: u8,
}

impl Packet {
    pub fn new(from: IpAddr, to: IpAddr, protocol: u8, payload: Vec<u8>) -> Self {
        Self {
            from,
            to,
            protocol,
            payload,
            fragment: 0,
            id: 7,
            hop_limit: 64,
        }
    }

    pub fn tcp(from: (IpAddr, u16), to: (IpAddr, u16), flags: u8) -> Self {
        let mut segment = vec![0; 20];
        segment[0..2].copy_from_slice(&from.1.to_be_bytes());
        segment[2..4].copy_from_slice(&to.1.to_be_bytes());
        segment[12] = 5 << 4;
        segment[13] = flags;
        Self::new(from.0, to.0, TCP, segment)
    }

    pub fn udp(from: (IpAddr, u16), to: (IpAddr, u16)) -> Self {
        let mut datagram = vec![0; 12];
        datagram[0..2].copy_from_slice(&from.1.to_be_bytes());
        datagram[2..4].copy_from_slice(&to.1.to_be_bytes());
        datagram[4..6].copy_from_slice(&12u16.to_be_bytes());
        Self::new(from.0, to.0, UDP, datagram)
    }

    /// The protocol is that of the addresses' family.
    pub fn icmp(from: IpAddr, to: IpAddr, kind: u8, id: u16, rest: &[u8]) -> Self {
        let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        message[4..6].copy_from_slice(&id.to_be_bytes());
        message.extend_from_slice(rest);
        let protocol = if from.is_ipv4() { ICMP } else { ICMPV6 };
        Self::new(from, to, protocol, message)
    }

    /// The other end's answer, with ports and addresses exchanged.
    pub fn answer(&self, flags: u8) -> Self {
        let mut other = self.clone();
        (other.from, other.to) = (self.to, self.from);
        if matches!(self.protocol, TCP | UDP) {
            let (sport, dport) = (self.payload[0..2].to_vec(), self.payload[2..4].to_vec());
            other.payload[0..2].copy_from_slice(&dport);
            other.payload[2..4].copy_from_slice(&sport);
        }
        match self.protocol {
            TCP => other.payload[13] = flags,
            ICMP => other.payload[0] = 0,
            ICMPV6 => other.payload[0] = 129,
            _ => {}
        }
        other
    }

    /// Without the link's header.
    pub fn ip(&self) -> Vec<u8> {
        let mut bytes = match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => self.v4(from, to),
            (IpAddr::V6(from), IpAddr::V6(to)) => self.v6(from, to),
            _ => panic!("two families"),
        };
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    fn v4(&self, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
        let mut head = vec![0; 20];
        head[0] = 0x45;
        let length = u16::try_from(20 + self.payload.len()).unwrap();
        head[2..4].copy_from_slice(&length.to_be_bytes());
        head[4..6].copy_from_slice(&self.id.to_be_bytes());
        head[6..8].copy_from_slice(&self.fragment.to_be_bytes());
        head[8] = self.hop_limit;
        head[9] = self.protocol;
        head[12..16].copy_from_slice(&from.octets());
        head[16..20].copy_from_slice(&to.octets());
        head
    }

    fn v6(&self, from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
        let mut head = vec![0; 40];
        head[0] = 0x60;
        let length = u16::try_from(self.payload.len()).unwrap();
        head[4..6].copy_from_slice(&length.to_be_bytes());
        head[6] = self.protocol;
        head[7] = self.hop_limit;
        head[8..24].copy_from_slice(&from.octets());
        head[24..40].copy_from_slice(&to.octets());
        head
    }

    /// With an Ethernet header.
    pub fn frame(&self) -> Vec<u8> {
        let kind = if self.from.is_ipv4() { 0x0800 } else { 0x86dd };
        frame(kind, &self.ip())
    }
}

pub fn frame(kind: u16, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(content);
    bytes
}

pub fn arp(operation: u16, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4];
    bytes.extend_from_slice(&operation.to_be_bytes());
    bytes.extend_from_slice(&[2, 0, 0, 0, 0, 2]);
    bytes.extend_from_slice(&sender.octets());
    bytes.extend_from_slice(&[0; 6]);
    bytes.extend_from_slice(&target.octets());
    frame(0x0806, &bytes)
}
