//! What a workload calls its ports.

use weft_policy_engine::NamedPorts;
use weft_proto::weft::policy::v1 as pb;

/// Where a workload has no other way to say so: `http=8080,dns=53/UDP`.
pub(super) const ANNOTATION: &str = "weft.dev/named-ports";
const MAX: usize = 64;

/// Names as Kubernetes allows them, in lower case, with protocol and number.
pub(super) fn named_ports(message: &pb::Workload) -> Result<NamedPorts, String> {
    let mut ports = NamedPorts::new();
    for port in &message.named_ports {
        // As in Kubernetes, TCP is meant where nothing is said.
        let protocol = if port.protocol == 0 { 6 } else { port.protocol };
        add(&mut ports, &port.name, protocol, port.port)?;
    }
    let annotated = message.annotations.get(ANNOTATION).map(String::as_str);
    for text in annotated.unwrap_or_default().split(',').map(str::trim) {
        if text.is_empty() {
            continue;
        }
        let problem = || format!("{text:?} in annotation {ANNOTATION} is no <name>=<port>[/TCP|UDP|SCTP]");
        let (name, rest) = text.split_once('=').ok_or_else(problem)?;
        let (port, protocol) = rest.split_once('/').unwrap_or((rest, "TCP"));
        let protocol = match protocol {
            "TCP" => 6,
            "UDP" => 17,
            "SCTP" => 132,
            _ => return Err(problem()),
        };
        add(&mut ports, name, protocol, port.parse().map_err(|_| problem())?)?;
    }
    Ok(ports)
}

/// The same for the wire: whoever gets the workload need not read annotations.
pub(super) fn to_wire(ports: &NamedPorts) -> Vec<pb::NamedPort> {
    let one = |name: &String, (protocol, port): (u8, u16)| pb::NamedPort {
        name: name.clone(),
        port: port.into(),
        protocol: protocol.into(),
    };
    let all = ports
        .iter()
        .flat_map(|(name, all)| all.iter().map(move |port| (name, *port)));
    all.map(|(name, port)| one(name, port)).collect()
}

fn add(ports: &mut NamedPorts, name: &str, protocol: u32, port: u32) -> Result<(), String> {
    let name = name.to_ascii_lowercase();
    let sound = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if name.is_empty() || name.len() > 15 || !name.bytes().all(sound) {
        return Err(format!(
            "{name:?} is no name of a port: at most 15 of a-z, 0-9 and -"
        ));
    }
    let protocol = u8::try_from(protocol).ok().filter(|p| [6, 17, 132].contains(p));
    let protocol = protocol.ok_or_else(|| format!("port {name}: protocol must be TCP, UDP or SCTP"))?;
    let port = u16::try_from(port).ok().filter(|p| *p > 0);
    let port = port.ok_or_else(|| format!("port {name}: must be from 1 to 65535"))?;
    ports.entry(name).or_default().insert((protocol, port));
    if ports.values().map(std::collections::BTreeSet::len).sum::<usize>() > MAX {
        return Err(format!("more than {MAX} ports have names"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_named_by_field_and_by_annotation() {
        let named = |annotation: &str, port: u32| {
            let field = pb::NamedPort {
                name: "Metrics".into(),
                port,
                protocol: 0,
            };
            named_ports(&pb::Workload {
                named_ports: vec![field],
                annotations: [(ANNOTATION.to_owned(), annotation.to_owned())].into(),
                ..Default::default()
            })
        };
        let ports = named("http=8080, dns=53/UDP,dns=53", 9090).unwrap_or_default();
        let of = |name: &str| ports.get(name).map(|p| p.iter().copied().collect::<Vec<_>>());
        assert_eq!(of("metrics"), Some(vec![(6, 9090)]));
        assert_eq!(of("http"), Some(vec![(6, 8080)]));
        assert_eq!(of("dns"), Some(vec![(6, 53), (17, 53)]));
        for (annotation, port) in [
            ("http", 9090),
            ("http=0", 9090),
            ("http=80/ICMP", 9090),
            ("http_x=80", 9090),
            ("", 65_536),
        ] {
            assert!(named(annotation, port).is_err(), "{annotation} {port}");
        }
    }
}
