//! A TCP socket whose end says what happened: closed in order, or reset.

use std::{
    io,
    ops::{Deref, DerefMut},
};
use tokio::net::TcpStream;

/// Resets its connection when dropped before [`Socket::close`]: its other end must not take what
/// was broken off for all there was.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
    abort: bool,
}

impl Socket {
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        // The app's own socket gathers what should travel together.
        stream.set_nodelay(true)?;
        Ok(Self { stream, abort: true })
    }

    /// In order: both directions have ended.
    pub fn close(mut self) {
        self.abort = false;
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.abort {
            // It fails only on a socket that is gone already.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl Deref for Socket {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.stream
    }
}

impl DerefMut for Socket {
    fn deref_mut(&mut self) -> &mut TcpStream {
        &mut self.stream
    }
}
