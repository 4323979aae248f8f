//! Opens streams to other nodes with the caller's own certificate.

use crate::{AppContext, Endpoint, INVOKE_PORT, Place, TunnelDialer};
use futures::{FutureExt, future::BoxFuture};
use http::{HeaderMap, HeaderValue};
use std::{io, sync::Arc};
use weft_model::SpiffeId;
use weft_tunnel::{Client, DESTINATION_HEADER, Destination, OpenError, SOURCE_HEADER, Source, TunnelStream};

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
        let tunnels = self.clone();
        async move {
            let party = endpoint.party();
            let authority = format!("{}.{}:{INVOKE_PORT}", party.app_id, party.namespace);
            Ok(tunnels.open(&caller, &endpoint, &authority).await?)
        }
        .boxed()
    }
}

impl Tunnels {
    /// Opens a stream as `caller` that `endpoint` answers and nobody else, and asks it for
    /// `authority`: the app, or an address of its own.
    pub async fn open(
        &self,
        caller: &AppContext,
        endpoint: &Endpoint,
        authority: &str,
    ) -> Result<TunnelStream, OpenError> {
        let bad = |e: &dyn std::fmt::Display| OpenError::Request(authority.to_owned(), e.to_string().into());
        let Place::Remote { tunnel } = *endpoint.place() else {
            return Err(bad(&"a workload of this node needs no tunnel"));
        };
        let svid = caller.svid().cloned();
        let svid = svid.ok_or_else(|| OpenError::NoCertificate(caller.workload().clone()))?;
        let party = endpoint.party();
        let id: SpiffeId = party.spiffe_id.parse().map_err(|e| bad(&e))?;
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
            headers.insert(name, HeaderValue::from_str(workload).map_err(|e| bad(&e))?);
        }
        self.0.open(&source, &destination, authority, headers).await
    }
}
