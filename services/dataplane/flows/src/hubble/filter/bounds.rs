//! How much one filter may ask for.

use super::FilterError;
use weft_proto::hubble::flow::FlowFilter;

/// Values of one filter, all fields together.
pub(super) const MAX_VALUES: usize = 1024;
/// Longest value.
pub(super) const MAX_VALUE_BYTES: usize = 4096;
/// Regular expressions of one list of filters.
pub(super) const MAX_EXPRESSIONS: usize = 64;

pub(super) fn check_bounds(filter: &FlowFilter, expressions: &mut usize) -> Result<(), FilterError> {
    let f = filter;
    let texts = [
        &f.source_ip,
        &f.source_pod,
        &f.source_fqdn,
        &f.source_label,
        &f.source_service,
        &f.source_port,
        &f.source_ip_xlated,
        &f.source_cluster_name,
        &f.destination_ip,
        &f.destination_pod,
        &f.destination_fqdn,
        &f.destination_label,
        &f.destination_service,
        &f.destination_port,
        &f.destination_cluster_name,
        &f.http_status_code,
        &f.http_method,
        &f.http_path,
        &f.http_url,
        &f.protocol,
        &f.dns_query,
        &f.node_name,
        &f.node_labels,
        &f.trace_id,
        &f.uuid,
    ];
    let numbers = [
        f.verdict.len(),
        f.event_type.len(),
        f.reply.len(),
        f.source_identity.len(),
        f.destination_identity.len(),
        f.tcp_flags.len(),
        f.ip_version.len(),
        f.source_workload.len(),
        f.destination_workload.len(),
        f.traffic_direction.len(),
        f.http_header.len(),
        f.drop_reason_desc.len(),
        f.interface.len(),
        f.ip_trace_id.len(),
        f.encrypted.len(),
    ];
    let values = texts.iter().map(|t| t.len()).sum::<usize>() + numbers.iter().sum::<usize>();
    if values > MAX_VALUES {
        return Err(FilterError::TooMuch(format!(
            "at most {MAX_VALUES} values of a filter"
        )));
    }
    let words = f.source_workload.iter().chain(&f.destination_workload);
    let words = words.flat_map(|w| [&w.name, &w.kind]);
    let headers = f.http_header.iter().flat_map(|h| [&h.key, &h.value]);
    if texts
        .into_iter()
        .flatten()
        .chain(words)
        .chain(headers)
        .any(|t| t.len() > MAX_VALUE_BYTES)
    {
        return Err(FilterError::TooMuch(format!(
            "a value is longer than {MAX_VALUE_BYTES} bytes"
        )));
    }
    *expressions += f.http_path.len() + f.http_url.len() + f.dns_query.len();
    if *expressions > MAX_EXPRESSIONS {
        return Err(FilterError::TooMuch(format!(
            "at most {MAX_EXPRESSIONS} regular expressions of a list"
        )));
    }
    Ok(())
}
