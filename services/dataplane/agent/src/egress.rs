//! Connections that components make for an app: carried as if the app itself had opened them, from its
//! namespace, judged by its policy, and told in flows.

use crate::{locals::Remote, view::View};
use futures::future::BoxFuture;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};
use tokio::net::{TcpListener, TcpStream};
use weft_capture::{Asked, Capture};
use weft_drain::{Trigger, Watcher};
use weft_flows::Party;
use weft_proto::weft::policy::v1::WorkloadKind;
use weft_runtime::{AppContext, AppDialer, Channel, Endpoint};

/// The apps of this node, as the runtime reaches them and as their components reach others.
pub struct Apps {
    /// Where everybody is.
    pub view: View,
    /// Carries connections.
    pub capture: Arc<Capture>,
    /// Of these connections alone. They do not hold the agent's drain, and it does not end them: what is
    /// under way in it reaches its stores to the last.
    own: Watcher,
    _held: Trigger,
}

impl Apps {
    /// On the node that `view` is of.
    pub fn new(view: View, capture: Arc<Capture>) -> Self {
        let (held, own) = weft_drain::channel();
        Self {
            view,
            capture,
            own,
            _held: held,
        }
    }
}

impl AppDialer for Apps {
    fn remote(&self, endpoint: &Endpoint, from: &Party) -> Option<Arc<dyn Channel>> {
        self.view.remote(endpoint, from)
    }

    fn connect(&self, endpoint: Arc<Endpoint>) -> BoxFuture<'static, io::Result<TcpStream>> {
        self.view.connect(endpoint)
    }

    fn egress(
        &self,
        app: &Arc<AppContext>,
        host: &str,
        port: u16,
    ) -> BoxFuture<'static, io::Result<TcpStream>> {
        let (view, capture, drain) = (self.view.clone(), self.capture.clone(), self.own.clone());
        let (app, host) = (app.clone(), host.to_owned());
        Box::pin(async move {
            let Some(local) = view.locals.get(app.workload()) else {
                let error = "the app's workload is not on this node any more";
                return Err(io::Error::new(io::ErrorKind::NotConnected, error));
            };
            let to = resolve(&view, &app, &host, port).await?;
            // A pod's loopback is its own: no policy speaks of it.
            if to.ip().is_loopback() && local.kind == WorkloadKind::Pod && !local.is_shared() {
                return view.host.connect_from(app.workload(), local.kind, to).await;
            }
            let (near, far) = pair().await?;
            let asked = Asked {
                destination: to,
                target: None,
            };
            let gone = local.gone.clone();
            tokio::spawn(async move { capture.captured(app, far, asked, gone, drain).await });
            Ok(near)
        })
    }
}

/// What a name means to an app: a Service as its namespace sees it, or whatever the node's resolver says.
async fn resolve(view: &View, app: &AppContext, host: &str, port: u16) -> io::Result<SocketAddr> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, port));
    }
    if let Some(remote) = Remote::read(&format!("http://{host}:{port}"))
        && let Some((namespace, name)) = remote.service(&app.party().namespace)
        && let Some((_, address)) = view.mesh.service_port(namespace, name, Some(port))
        && !address.is_unspecified()
    {
        return Ok(SocketAddr::new(address, port));
    }
    let mut found = tokio::net::lookup_host((host, port)).await?;
    let nothing = || io::Error::new(io::ErrorKind::NotFound, format!("{host} means no address"));
    found.next().ok_or_else(nothing)
}

/// Two ends of one connection within this process.
async fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let near = TcpStream::connect(listener.local_addr()?).await?;
    let own = near.local_addr()?;
    loop {
        // Others on the node can connect here too; only one of them is the other end.
        let (far, peer) = listener.accept().await?;
        if peer == own {
            near.set_nodelay(true)?;
            return Ok((near, far));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_pair_is_two_ends_of_one_connection() {
        let (mut near, mut far) = pair().await.unwrap();
        near.write_all(b"ping").await.unwrap();
        let mut got = [0; 4];
        far.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"ping");
        drop(far);
        assert_eq!(near.read(&mut got).await.unwrap(), 0);
    }
}
