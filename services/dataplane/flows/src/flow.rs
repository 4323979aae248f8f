//! One decision, in the form in which the request path makes it: shared texts are reference
//! counted, nothing is formatted.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};
use weft_model::NumericIdentity;

/// Longer paths are cut in flows, so that a caller can not fill the log's memory.
pub const MAX_PATH_BYTES: usize = 256;
/// Of a host with its port: the longest name there is.
pub const MAX_AUTHORITY_BYTES: usize = 261;

/// One side of a flow. Made once per workload and shared by all its flows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Party {
    /// Namespace of the workload.
    pub namespace: Arc<str>,
    /// Name of the workload (pod or process).
    pub workload: Arc<str>,
    /// Dapr app-id; empty when it has none.
    pub app_id: Arc<str>,
    /// Numeric security identity.
    pub identity: NumericIdentity,
    /// SPIFFE ID; empty when it has none.
    pub spiffe_id: Arc<str>,
    /// Its own address, or its node's.
    pub address: Option<IpAddr>,
    /// The node it runs on; empty outside the cluster.
    pub node: Arc<str>,
}

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Let through.
    Forwarded,
    /// Let through only because policy is under audit; the drop reason says why it would not be else.
    Audit,
    /// Refused.
    Dropped,
    /// Let through, and failed on the way.
    Error,
}

/// Whose policy was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The source's.
    Egress,
    /// The destination's.
    Ingress,
}

impl Direction {
    /// As the protobuf form has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Dapr service invocation.
    Invoke,
    /// An HTTP request, by the proxy.
    Http,
    /// An app at its state store.
    State,
    /// An app publishes.
    Publish,
    /// A broker's message for an app.
    Deliver,
    /// An app calls by a binding, or gets an event of one.
    Binding,
    /// An app asks for secrets.
    Secret,
    /// An app asks for configuration.
    Configuration,
    /// An app locks or unlocks.
    Lock,
    /// A connection.
    Connection,
    /// The end of a connection.
    Closed,
    /// A packet: the first of a connection, or one that was refused.
    Packet,
    /// A question to a resolver.
    Dns,
}

impl Kind {
    /// As the protobuf form has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invoke => "invoke",
            Self::Http => "http",
            Self::State => "state",
            Self::Publish => "publish",
            Self::Deliver => "deliver",
            Self::Binding => "binding",
            Self::Secret => "secret",
            Self::Configuration => "configuration",
            Self::Lock => "lock",
            Self::Connection => "connection",
            Self::Closed => "closed",
            Self::Packet => "packet",
            Self::Dns => "dns",
        }
    }
}

/// Why something was not forwarded. Names follow Hubble's drop reasons where one fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// No rule allows it, or a rule denies it.
    PolicyDenied,
    /// The policy demands authentication that this connection does not have.
    AuthRequired,
    /// Nobody serves the destination.
    NoEndpoint,
    /// No route wants the request, or the one that does names no backend that may be used.
    NoRoute,
    /// The destination could not be reached.
    Unreachable,
    /// The destination answered with something that is no HTTP, or broke off.
    UpstreamFailed,
    /// More requests than the bound are under way.
    Overloaded,
    /// Who called is not known.
    UnknownCaller,
    /// The other side's certificate does not fit what it asks for.
    PeerMismatch,
    /// The kernel's, by Hubble's number.
    Kernel(u8),
}

impl DropReason {
    /// As the protobuf form has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PolicyDenied => "POLICY_DENIED",
            Self::AuthRequired => "AUTH_REQUIRED",
            Self::NoEndpoint => "NO_ENDPOINT",
            Self::NoRoute => "NO_ROUTE",
            Self::Unreachable => "UNREACHABLE",
            Self::UpstreamFailed => "UPSTREAM_FAILED",
            Self::Overloaded => "OVERLOADED",
            Self::UnknownCaller => "UNKNOWN_CALLER",
            Self::PeerMismatch => "PEER_MISMATCH",
            Self::Kernel(number) => crate::drops::name(number),
        }
    }
}

/// How it travelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// Both ends are on this node.
    SameNode,
    /// By an mTLS tunnel between nodes.
    Tunnel,
}

impl Via {
    /// As the protobuf form has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SameNode => "same-node",
            Self::Tunnel => "tunnel",
        }
    }
}

/// How the caller was known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// The listener inside its network namespace accepted.
    PodListener,
    /// The kernel recorded the cgroup that connected.
    Cgroup,
    /// Its SVID was verified by a tunnel's handshake.
    TunnelSvid,
    /// Its own port together with its token (without root).
    PortToken,
    /// None: it came in by a gateway.
    Gateway,
    /// The agent itself calls, in the place of a shared endpoint.
    Agent,
}

impl Proof {
    /// As the protobuf form has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PodListener => "pod-listener",
            Self::Cgroup => "cgroup",
            Self::TunnelSvid => "tunnel-svid",
            Self::PortToken => "port-token",
            Self::Gateway => "gateway",
            Self::Agent => "agent",
        }
    }
}

/// A Service as flows name it. Made once and shared by its flows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceName {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// By which HTTP a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HttpVersion {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
    /// HTTP/2.
    Http2,
}

impl HttpVersion {
    /// As HTTP writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }
}

/// One decision. [`Flow::new`] makes one that says the least; whoever knows more sets it.
#[derive(Debug, Clone)]
pub struct Flow {
    /// When it was made.
    pub time: SystemTime,
    /// What was decided.
    pub verdict: Verdict,
    /// Whose policy was asked.
    pub direction: Direction,
    /// What was asked for.
    pub kind: Kind,
    /// Who asked.
    pub source: Arc<Party>,
    /// Whom it is for.
    pub destination: Arc<Party>,
    /// The port that policy judged.
    pub destination_port: u16,
    /// Why it was not forwarded.
    pub drop_reason: Option<DropReason>,
    /// The rule that spoke.
    pub rule: Option<Arc<str>>,
    /// It is a rule of the callee's policy, which its own node has told.
    pub rule_of_callee: bool,
    /// The route that a request took: `HTTPRoute/default/whoami`.
    pub route: Option<Arc<str>>,
    /// HTTP method; empty for connections.
    pub method: MethodText,
    /// Path without query, at most [`MAX_PATH_BYTES`].
    pub path: Arc<str>,
    /// HTTP status of the answer; 0 when there is none.
    pub status: u16,
    /// Until the head of the answer; of a connection that has ended, its duration.
    pub latency: Duration,
    /// How it travelled.
    pub via: Option<Via>,
    /// How the caller was known.
    pub caller_proof: Option<Proof>,
    /// W3C trace id; all zero when there is none.
    pub trace_id: [u8; 16],
    /// What was carried, of a connection that has ended.
    pub traffic: Option<Traffic>,
    /// Of what the kernel judged: the packet.
    pub packet: Option<Packet>,
    /// The port it came from; 0 when it is not known. A packet has its own.
    pub source_port: u16,
    /// The Service by which the destination was asked for.
    pub service: Option<Arc<ServiceName>>,
    /// By which HTTP the request came.
    pub version: HttpVersion,
    /// Host and port that the request is for, at most [`MAX_AUTHORITY_BYTES`]; empty when it names none.
    pub authority: Arc<str>,
    /// Headers that claimed what was not so, and were overwritten.
    pub forged: Box<[&'static str]>,
    /// Policy lets it pass with both ends proven only.
    pub auth: bool,
    /// Of a question to a resolver: what was asked, and answered.
    pub dns: Option<Box<Dns>>,
}

impl Flow {
    /// Forwarded, now, and nothing else known.
    pub fn new(
        kind: Kind,
        direction: Direction,
        source: Arc<Party>,
        destination: Arc<Party>,
        destination_port: u16,
    ) -> Self {
        let now = SystemTime::now();
        Self::at(now, kind, direction, source, destination, destination_port)
    }

    /// The same at another time, for whoever knows it already.
    pub fn at(
        time: SystemTime,
        kind: Kind,
        direction: Direction,
        source: Arc<Party>,
        destination: Arc<Party>,
        destination_port: u16,
    ) -> Self {
        Self {
            time,
            verdict: Verdict::Forwarded,
            direction,
            kind,
            source,
            destination,
            destination_port,
            drop_reason: None,
            rule: None,
            rule_of_callee: false,
            route: None,
            method: MethodText::default(),
            path: Arc::default(),
            status: 0,
            latency: Duration::ZERO,
            via: None,
            caller_proof: None,
            trace_id: [0; 16],
            traffic: None,
            packet: None,
            source_port: 0,
            service: None,
            version: HttpVersion::default(),
            authority: Arc::default(),
            forged: Box::default(),
            auth: false,
            dns: None,
        }
    }
}

/// A question to a resolver, and its answer where there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// IANA number of the protocol it came by.
    pub protocol: u8,
    /// The name, without the dot at the end.
    pub query: Arc<str>,
    /// What of it was asked for: `A`.
    pub kind: String,
    /// Whether the resolver was asked and answered.
    pub answered: bool,
    /// The response code: of the resolver, or of the agent in its place.
    pub code: u16,
    /// The addresses in the answer.
    pub addresses: Vec<IpAddr>,
    /// For how many seconds it holds.
    pub ttl: u32,
    /// The names that the query stands for.
    pub aliases: Vec<String>,
    /// Types of the records in the answer.
    pub kinds: Vec<String>,
}

/// A packet that the kernel judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// IANA number.
    pub protocol: u8,
    /// The sender's port; ICMP's type.
    pub source_port: u16,
    /// As in TCP's header.
    pub tcp_flags: u8,
    /// It answers a connection that the other end opened.
    pub reply: bool,
    /// Its source address.
    pub source: IpAddr,
    /// Its destination address.
    pub destination: IpAddr,
}

/// Bytes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// From the source.
    pub sent: u64,
    /// To the source.
    pub received: u64,
}

/// A method name kept in place: standard methods fit, longer ones are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MethodText {
    len: u8,
    bytes: [u8; 15],
}

impl MethodText {
    /// Keeps the first 15 bytes of a method token (ASCII by HTTP's grammar; else empty).
    pub fn new(method: &str) -> Self {
        if !method.is_ascii() {
            return Self::default();
        }
        let mut text = Self::default();
        let taken = method.len().min(text.bytes.len());
        text.bytes[..taken].copy_from_slice(&method.as_bytes()[..taken]);
        text.len = taken as u8;
        text
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

/// The part of a path that a flow keeps.
pub fn bounded_path(path: &str) -> Arc<str> {
    bounded(path, MAX_PATH_BYTES)
}

/// The part of an authority that a flow keeps.
pub fn bounded_authority(authority: &str) -> Arc<str> {
    bounded(authority, MAX_AUTHORITY_BYTES)
}

fn bounded(text: &str, most: usize) -> Arc<str> {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].into()
}
