//! What a leaf calls its holder: the SPIFFE ID, a name for DNS, and the node of a tunnel certificate.

use super::AuthorityError;
use rcgen::{CustomExtension, SanType};
use weft_model::{Principal, SpiffeId, check_dns_label, check_name};
use weft_tls::NODE_EXTENSION_OID;

/// The name by which tools that know nothing of SPIFFE, such as grpcurl, check whom they call: the
/// binary's, or a workload's as clients of Dapr's sentry know it. Nothing of Weft reads it.
pub(super) fn dns_name(id: &SpiffeId) -> Result<Option<SanType>, AuthorityError> {
    let name = match id.principal() {
        Principal::Service(name) => format!("weft-{name}"),
        Principal::Node(_) => "weft-agent".to_owned(),
        // An app-id may have characters that no DNS name has.
        Principal::Workload { namespace, name } | Principal::ServiceAccount { namespace, name }
            if check_dns_label(&name).is_ok() =>
        {
            let name = format!("{name}.{namespace}.svc.{}", id.trust_domain());
            match check_name(&name) {
                Ok(()) => name,
                Err(_) => return Ok(None),
            }
        }
        _ => return Ok(None),
    };
    Ok(Some(SanType::DnsName(name.try_into()?)))
}

pub(super) fn uri(text: &str) -> Result<SanType, AuthorityError> {
    Ok(SanType::URI(text.to_owned().try_into()?))
}

/// The node's name as a DER UTF8String with a one-byte length, as `weft_tls` reads it.
pub(super) fn node_extension(node: &str) -> Result<CustomExtension, AuthorityError> {
    let length = u8::try_from(node.len()).ok().filter(|l| *l < 0x80);
    let length =
        length.ok_or_else(|| AuthorityError::Stored(format!("node name of {} bytes", node.len())))?;
    let mut der = vec![0x0c, length];
    der.extend_from_slice(node.as_bytes());
    Ok(CustomExtension::from_oid_content(NODE_EXTENSION_OID, der))
}
