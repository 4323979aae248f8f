//! What a tunnel may take, and how long it may live.

use std::time::Duration;

/// Windows, counts and times of tunnels, the same for both sides.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes that may be on their way to a reader of one stream that does not read.
    pub stream_window: u32,
    /// The same for a whole connection. Four times the stream's: with equal windows one stream
    /// that is not read would stop all others.
    pub connection_window: u32,
    /// Largest DATA frame.
    pub max_frame: u32,
    /// Bytes buffered for sending per stream.
    pub send_buffer: usize,
    /// Streams that the accepting side allows on a connection.
    pub max_streams: u32,
    /// Streams at which the opening side makes another connection.
    pub streams_per_connection: usize,
    /// Connections to one destination for one source.
    pub max_connections_per_destination: usize,
    /// Connections that one listener serves at once.
    pub max_accepted: usize,
    /// Of these, from one address while nothing else is known of who is there.
    pub max_handshakes_per_address: usize,
    /// Of these, of one node.
    pub max_accepted_per_node: usize,
    /// TCP connect, TLS and HTTP/2 handshakes together; also waiting for the answer to CONNECT.
    pub handshake_timeout: Duration,
    /// A PING goes out after this much silence, and before a stream is put on a connection that
    /// was silent for [`Limits::fresh`].
    pub ping_interval: Duration,
    /// No answer to a PING for this long: the peer is dead.
    pub ping_timeout: Duration,
    /// A connection heard from within this time is used without asking.
    pub fresh: Duration,
    /// A connection without streams is closed after this time.
    pub idle: Duration,
    /// After the root of the other side's certificate was taken out of the bundle, streams may go
    /// on this long. So long before its certificate ends, a connection takes no new ones.
    pub retire_grace: Duration,
    /// How often certificates' expiry and the times above are looked at.
    pub tick: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            stream_window: 4 << 20,
            connection_window: 16 << 20,
            max_frame: 1 << 20,
            send_buffer: 1 << 20,
            max_streams: 200,
            streams_per_connection: 100,
            max_connections_per_destination: 16,
            max_accepted: 4096,
            max_handshakes_per_address: 256,
            max_accepted_per_node: 1024,
            handshake_timeout: Duration::from_secs(10),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(5),
            fresh: Duration::from_secs(2),
            idle: Duration::from_secs(300),
            retire_grace: Duration::from_secs(30),
            tick: Duration::from_secs(1),
        }
    }
}
