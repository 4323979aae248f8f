//! Opens streams to other nodes with the caller's own certificate.

use crate::{AppContext, Endpoint, INVOKE_PORT, Place, TunnelDialer};
use futures::{FutureExt, future::BoxFuture};
use http::{HeaderMap, HeaderValue};
use std::{io, sync::Arc};
use weft_model::SpiffeId;
use weft_tunnel::{Client, DESTINATION_HEADER, Destination, SOURCE_HEADER, Source, TunnelStream};

/// [`TunnelDialer`] over a [`Client`].
#[derive(Debug, Clone)]
pub struct Tunnels(Client);

impl Tunnels {
    /// Over `client`.
    pub fn new(client: Client) -> Self {
        Self(client)
    }
}

impl TunnelDialer for Tunnels {
    fn connect(
        &self,
        caller: Arc<AppContext>,
        endpoint: Arc<Endpoint>,
    ) -> BoxFuture<'static, io::Result<TunnelStream>> {
        let client = self.0.clone();
        async move {
            let Place::Remote { tunnel } = *endpoint.place() else {
                return Err(io::Error::other("an app of this node needs no tunnel"));
            };
            let svid = caller.svid().cloned().ok_or_else(|| {
                io::Error::other(format!("{} has no certificate for tunnels", caller.workload()))
            })?;
            let party = endpoint.party();
            let id: SpiffeId = party.spiffe_id.parse().map_err(io::Error::other)?;
            let source = Source {
                workload: caller.workload().clone(),
                svid,
            };
            let destination = Destination {
                address: tunnel,
                id,
                node: party.node.clone(),
            };
            let mut headers = HeaderMap::with_capacity(2);
            for (name, workload) in [
                (SOURCE_HEADER, caller.workload()),
                (DESTINATION_HEADER, endpoint.workload()),
            ] {
                headers.insert(name, HeaderValue::from_str(workload).map_err(io::Error::other)?);
            }
            let authority = format!("{}.{}:{INVOKE_PORT}", party.app_id, party.namespace);
            Ok(client.open(&source, &destination, &authority, headers).await?)
        }
        .boxed()
    }
}
