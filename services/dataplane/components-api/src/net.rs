//! How a component reaches its server: as the app that it is opened for.

use futures::{FutureExt, future::BoxFuture};
use std::{fmt, io, sync::Arc};
use tokio::net::TcpStream;

/// Makes an app's connections: from where the app is, if its policy allows them.
pub trait Dialer: Send + Sync + 'static {
    /// Connects to a port of a host, by name or address.
    fn connect(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<TcpStream>>;
}

/// An app's [`Dialer`]. Clones share.
#[derive(Clone)]
pub struct Net(Arc<dyn Dialer>);

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Net")
    }
}

impl Net {
    /// By this dialer.
    pub fn new(dialer: impl Dialer) -> Self {
        Self(Arc::new(dialer))
    }

    /// Of this process, without a policy: for tests of drivers.
    pub fn direct() -> Self {
        Self::new(Direct)
    }

    /// Connects to a port of a host, by name or address.
    pub fn connect(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<TcpStream>> {
        self.0.connect(host, port)
    }
}

struct Direct;

impl Dialer for Direct {
    fn connect(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<TcpStream>> {
        let host = host.to_owned();
        async move { TcpStream::connect((host.as_str(), port)).await }.boxed()
    }
}
