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
