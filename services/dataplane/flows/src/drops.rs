//! Hubble's names of the kernel's drop reasons, by number.

/// The name; `DROP_REASON_UNKNOWN` for a number that the programs here do not use.
pub(crate) fn name(number: u8) -> &'static str {
    match number {
        132 => "INVALID_SOURCE_IP",
        133 => "POLICY_DENIED",
        134 => "INVALID_PACKET_DROPPED",
        139 => "UNSUPPORTED_L3_PROTOCOL",
        150 => "UNKNOWN_L3_TARGET_ADDRESS",
        155 => "CT_MAP_INSERTION_FAILED",
        156 => "INVALID_IPV6_EXTENSION_HEADER",
        165 => "NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION",
        166 => "UNSUPPORTED_L2_PROTOCOL",
        170 => "ENCAPSULATION_TRAFFIC_IS_PROHIBITED",
        175 => "FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND",
        176 => "FORBIDDEN_ICMPV6_MESSAGE",
        180 => "PROXY_REDIRECTION_NOT_SUPPORTED_FOR_PROTOCOL",
        181 => "POLICY_DENY",
        182 => "VLAN_FILTERED",
        189 => "AUTH_REQUIRED",
        195 => "UNENCRYPTED_TRAFFIC",
        _ => "DROP_REASON_UNKNOWN",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use weft_proto::hubble::flow::DropReason;

    /// All numbers that the programs use, as their source has them.
    #[test]
    fn numbers_and_names_are_hubbles() {
        let source = include_str!("../../bpf/src/packet_types.bpf.h");
        let reasons = source.lines().filter_map(|line| {
            let (_, number) = line.trim().strip_prefix("WEFT_DROP_")?.split_once(" = ")?;
            number.trim_end_matches(',').parse::<u8>().ok()
        });
        let mut known = 0;
        for number in reasons.filter(|number| *number != 0) {
            let hubbles = DropReason::try_from(i32::from(number)).unwrap();
            assert_eq!(name(number), hubbles.as_str_name());
            known += 1;
        }
        assert_eq!(known, 17);
        assert_eq!(name(1), "DROP_REASON_UNKNOWN");
    }
}
