//! The agent's own metrics, `weft_dataplane_*`.

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
    },
};
use weft_flows::FlowLog;
use weft_telemetry::Metrics;

/// Which listener.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Listener {
    /// `http`, `grpc`, `capture`.
    pub listener: &'static str,
}

/// Why a connection was not served.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// `no_record`, `unknown_cgroup`, `not_ready`, `too_many`, `read_failed`.
    pub reason: &'static str,
}

/// Which control service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Service {
    service: &'static str,
}

/// What is counted. Clones share.
#[derive(Debug, Clone)]
pub struct Counters {
    /// Connections accepted.
    pub accepted: Family<Listener, Counter>,
    /// Connections being served.
    pub open: Family<Listener, Gauge>,
    /// Connections closed without an answer.
    pub refused: Family<Reason, Counter>,
    /// Questions to resolvers.
    pub queries: Family<Outcome, Counter>,
}

/// What became of a question to a resolver.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// `answered`, `refused`, `failed`, `malformed`, `too_many`, `unknown`.
    pub outcome: &'static str,
}

impl Counters {
    /// Registers all of them.
    pub fn register(metrics: &Metrics) -> Self {
        Self {
            accepted: metrics.family("connections", "Connections accepted from apps"),
            open: metrics.family("connections_open", "Connections from apps being served"),
            refused: metrics.family(
                "connections_refused",
                "Connections closed because their caller is not known, or not served now",
            ),
            queries: metrics.family(
                "dns_queries",
                "Questions to resolvers that policy judges name by name, by what became of them",
            ),
        }
    }
}

/// What is read when somebody asks. The registry puts its prefix before the names.
pub struct Gauges {
    /// The flows, counted by verdict.
    pub flows: FlowLog,
    /// The control services.
    pub upstreams: Vec<crate::upstream::Upstream>,
    /// The workloads.
    pub locals: crate::locals::Locals,
    /// The tunnels to other nodes.
    pub tunnels: weft_tunnel::Client,
    /// Captured connections.
    pub capture: std::sync::Arc<weft_capture::Capture>,
    /// The kernel's policy tables.
    pub kernel: Option<crate::kernel::KernelTables>,
    /// Which addresses names have.
    pub names: std::sync::Arc<weft_dns::Names>,
}

impl std::fmt::Debug for Gauges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gauges")
    }
}

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let counts = self.flows.counts();
        let verdicts = [
            ("forwarded", counts.forwarded),
            ("dropped", counts.dropped),
            ("error", counts.error),
            ("audit", counts.audit),
        ];
        let mut family = encoder.encode_descriptor(
            "flows",
            "Decisions by verdict",
            None,
            prometheus_client::metrics::MetricType::Counter,
        )?;
        for (verdict, count) in verdicts {
            let labels = [("verdict", verdict)];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "upstream_connected",
            "1 while the control service answers",
            None,
            prometheus_client::metrics::MetricType::Gauge,
        )?;
        for upstream in &self.upstreams {
            let labels = Service {
                service: upstream.name(),
            };
            let connected = ConstGauge::new(i64::from(upstream.is_connected()));
            connected.encode(family.encode_family(&labels)?)?;
        }
        let lost = ConstCounter::new(self.flows.lost());
        lost.encode(encoder.encode_descriptor(
            "events_lost",
            "Packets' events that were lost before they could be read",
            None,
            lost.metric_type(),
        )?)?;
        if let Some(kernel) = &self.kernel {
            tables(&mut encoder, &kernel.shown())?;
        }
        let count = |n: usize| ConstGauge::new(i64::try_from(n).unwrap_or(i64::MAX));
        let locals = self.locals.all();
        let captured = count(locals.iter().filter(|l| self.locals.captures(l)).count());
        captured.encode(encoder.encode_descriptor(
            "workloads_captured",
            "Workloads whose connections the kernel may redirect to this agent",
            None,
            captured.metric_type(),
        )?)?;
        let workloads = count(locals.len());
        workloads.encode(encoder.encode_descriptor(
            "workloads",
            "Workloads of this node",
            None,
            workloads.metric_type(),
        )?)?;
        let carried = count(self.capture.open());
        carried.encode(encoder.encode_descriptor(
            "carried_open",
            "TCP connections being carried, from this node's workloads and to them",
            None,
            carried.metric_type(),
        )?)?;
        let refused = self.capture.refused();
        let mut family = encoder.encode_descriptor(
            "carried_refused",
            "TCP connections that were not carried, by reason; `closed`: policy allows them no more",
            None,
            prometheus_client::metrics::MetricType::Counter,
        )?;
        for (reason, counter) in [
            ("denied", &refused.denied),
            ("too_many", &refused.too_many),
            ("unreachable", &refused.unreachable),
            ("closed", &refused.closed),
        ] {
            let labels = Reason { reason };
            let counter = ConstCounter::new(counter.load(std::sync::atomic::Ordering::Relaxed));
            counter.encode(family.encode_family(&labels)?)?;
        }
        let addresses = count(self.names.len().1);
        addresses.encode(encoder.encode_descriptor(
            "dns_addresses",
            "Addresses of names that resolvers answered, at most 8192",
            None,
            addresses.metric_type(),
        )?)?;
        let tunnels = count(self.tunnels.connections());
        tunnels.encode(encoder.encode_descriptor(
            "tunnels",
            "Tunnels open to other nodes",
            None,
            tunnels.metric_type(),
        )?)?;
        let opened = self.tunnels.opened();
        let mut family = encoder.encode_descriptor(
            "tunnels_opened",
            "Tunnels to other nodes, by whether they came about",
            None,
            prometheus_client::metrics::MetricType::Counter,
        )?;
        for (outcome, count) in [("done", opened.done), ("failed", opened.failed)] {
            ConstCounter::new(count).encode(family.encode_family(&[("outcome", outcome)])?)?;
        }
        Ok(())
    }
}

/// What the kernel's policy tables hold.
fn tables(encoder: &mut DescriptorEncoder<'_>, shown: &crate::kernel::Shown) -> Result<(), std::fmt::Error> {
    let counts = &shown.counts;
    let mut family = encoder.encode_descriptor(
        "kernel_entries",
        "Entries of the kernel's policy tables",
        None,
        prometheus_client::metrics::MetricType::Gauge,
    )?;
    for (table, entries) in [
        ("endpoints", counts.endpoints),
        ("addresses", counts.addresses),
        ("sets", counts.sets),
        ("policy", counts.entries),
    ] {
        let entries = ConstGauge::new(i64::try_from(entries).unwrap_or(i64::MAX));
        entries.encode(family.encode_family(&[("table", table)])?)?;
    }
    let writes = ConstCounter::new(counts.writes);
    writes.encode(encoder.encode_descriptor(
        "kernel_writes",
        "Writes to the kernel's policy tables",
        None,
        writes.metric_type(),
    )?)?;
    let problems = ConstGauge::new(i64::try_from(shown.problems.len()).unwrap_or(i64::MAX));
    problems.encode(encoder.encode_descriptor(
        "kernel_problems",
        "What the kernel's tables should hold and do not: it is closed",
        None,
        problems.metric_type(),
    )?)
}
