//! First packets of connections, in Ethernet.

use std::net::IpAddr;

/// From one address to another. `own` is the sender's port, or an echo's number.
pub fn frame(from: IpAddr, to: IpAddr, protocol: u8, own: u16, number: u16) -> Vec<u8> {
    let mut payload = vec![0u8; 20];
    match protocol {
        1 | 58 => {
            payload[0] = number as u8;
            payload[4..6].copy_from_slice(&own.to_be_bytes());
        }
        6 | 17 | 132 => {
            payload[0..2].copy_from_slice(&own.to_be_bytes());
            payload[2..4].copy_from_slice(&number.to_be_bytes());
            // TCP: header length and SYN.
            if protocol == 6 {
                payload[12] = 5 << 4;
                payload[13] = 2;
            }
            if protocol == 17 {
                payload[4..6].copy_from_slice(&20u16.to_be_bytes());
            }
        }
        _ => {}
    }
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    let length = payload.len() as u16;
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut head = [0u8; 20];
            head[0] = 0x45;
            head[2..4].copy_from_slice(&(length + 20).to_be_bytes());
            (head[8], head[9]) = (64, protocol);
            head[12..16].copy_from_slice(&from.octets());
            head[16..20].copy_from_slice(&to.octets());
            bytes.extend(0x0800u16.to_be_bytes());
            bytes.extend(head);
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut head = [0u8; 40];
            head[0] = 0x60;
            head[4..6].copy_from_slice(&length.to_be_bytes());
            (head[6], head[7]) = (protocol, 64);
            head[8..24].copy_from_slice(&from.octets());
            head[24..40].copy_from_slice(&to.octets());
            bytes.extend(0x86ddu16.to_be_bytes());
            bytes.extend(head);
        }
        _ => panic!("addresses of two families"),
    }
    bytes.extend(payload);
    bytes
}
