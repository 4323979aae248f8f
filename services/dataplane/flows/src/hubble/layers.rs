//! What of a flow stands below HTTP: addresses, ports, flags, and how they read.

use crate::Flow;
use std::net::IpAddr;
use weft_proto::hubble::flow as pb;

pub fn ip(source: Option<IpAddr>, destination: Option<IpAddr>, encrypted: bool) -> pb::Ip {
    let text = |a: Option<IpAddr>| a.map(|a| a.to_canonical().to_string()).unwrap_or_default();
    let version = match destination.or(source).map(|a| a.to_canonical()) {
        Some(IpAddr::V4(_)) => pb::IpVersion::IPv4,
        Some(IpAddr::V6(_)) => pb::IpVersion::IPv6,
        None => pb::IpVersion::IpNotUsed,
    };
    pb::Ip {
        source: text(source),
        destination: text(destination),
        ip_version: version.into(),
        encrypted,
        source_xlated: String::new(),
    }
}

pub fn layer4(flow: &Flow) -> pb::Layer4 {
    let to = u32::from(flow.destination_port);
    if let Some(17) = flow.dns.as_ref().map(|dns| dns.protocol) {
        return udp(flow.source_port.into(), to);
    }
    let Some(packet) = &flow.packet else {
        return tcp(flow.source_port.into(), to, None);
    };
    let from = u32::from(packet.source_port);
    let protocol = match packet.protocol {
        6 => return tcp(from, to, Some(tcp_flags(packet.tcp_flags))),
        17 => return udp(from, to),
        132 => Some(pb::layer4::Protocol::Sctp(pb::Sctp {
            source_port: from,
            destination_port: to,
        })),
        // The message's type is where others have the sender's port.
        1 => Some(pb::layer4::Protocol::IcmPv4(pb::IcmPv4 {
            r#type: from,
            code: 0,
        })),
        58 => Some(pb::layer4::Protocol::IcmPv6(pb::IcmPv6 {
            r#type: from,
            code: 0,
        })),
        _ => None,
    };
    pb::Layer4 { protocol }
}

pub fn tcp(source_port: u32, destination_port: u32, flags: Option<pb::TcpFlags>) -> pb::Layer4 {
    pb::Layer4 {
        protocol: Some(pb::layer4::Protocol::Tcp(pb::Tcp {
            source_port,
            destination_port,
            flags,
        })),
    }
}

fn udp(source_port: u32, destination_port: u32) -> pb::Layer4 {
    pb::Layer4 {
        protocol: Some(pb::layer4::Protocol::Udp(pb::Udp {
            source_port,
            destination_port,
        })),
    }
}

pub fn tcp_flags(bits: u8) -> pb::TcpFlags {
    pb::TcpFlags {
        fin: bits & 0x01 != 0,
        syn: bits & 0x02 != 0,
        rst: bits & 0x04 != 0,
        psh: bits & 0x08 != 0,
        ack: bits & 0x10 != 0,
        urg: bits & 0x20 != 0,
        ece: bits & 0x40 != 0,
        cwr: bits & 0x80 != 0,
        ns: false,
    }
}

fn flags_text(flags: &pb::TcpFlags) -> String {
    let all = [
        (flags.syn, "SYN"),
        (flags.ack, "ACK"),
        (flags.rst, "RST"),
        (flags.fin, "FIN"),
        (flags.psh, "PSH"),
        (flags.urg, "URG"),
        (flags.ece, "ECE"),
        (flags.cwr, "CWR"),
        (flags.ns, "NS"),
    ];
    let set: Vec<&str> = all
        .into_iter()
        .filter_map(|(set, name)| set.then_some(name))
        .collect();
    format!("TCP Flags: {}", set.join(", "))
}

/// What stands in parentheses of what passed below HTTP.
pub fn summary(l4: Option<&pb::Layer4>) -> String {
    use pb::layer4::Protocol as P;
    match l4.and_then(|l| l.protocol.as_ref()) {
        Some(P::Tcp(tcp)) => flags_text(&tcp.flags.unwrap_or_default()),
        Some(P::Udp(_)) => "UDP".into(),
        Some(P::Sctp(_)) => "SCTP".into(),
        Some(P::IcmPv4(icmp)) => format!("ICMPv4 {}", icmp_name(false, icmp.r#type)),
        Some(P::IcmPv6(icmp)) => format!("ICMPv6 {}", icmp_name(true, icmp.r#type)),
        None => String::new(),
    }
}

fn icmp_name(six: bool, number: u32) -> String {
    let name = match (six, number) {
        (false, 0) | (true, 129) => "EchoReply",
        (false, 8) | (true, 128) => "EchoRequest",
        (false, 3) | (true, 1) => "DestinationUnreachable",
        (false, 11) | (true, 3) => "TimeExceeded",
        (false, 12) | (true, 4) => "ParameterProblem",
        (false, 5) | (true, 137) => "Redirect",
        (true, 2) => "PacketTooBig",
        (true, 133) => "RouterSolicitation",
        (true, 134) => "RouterAdvertisement",
        (true, 135) => "NeighborSolicitation",
        (true, 136) => "NeighborAdvertisement",
        _ => return number.to_string(),
    };
    name.to_owned()
}
