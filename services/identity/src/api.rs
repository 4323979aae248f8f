//! The gRPC face: messages in, [`Core`]'s decisions, messages out.

use crate::{
    authority::Issued,
    core::Core,
    db::AuditRow,
    nodes::NodeWatch,
    pattern::{HostPattern, MAX_PATTERNS},
};
use futures::{StreamExt, stream::BoxStream};
use prost_types::Timestamp;
use std::sync::Arc;
use tonic::{Request, Response, Status};
use weft_drain::Watcher;
use weft_proto::weft::identity::v1::{
    AuditEntry, CreateJoinTokenRequest, CreateJoinTokenResponse, JoinRequest, JoinResponse, ListAuditRequest,
    ListAuditResponse, RenewRequest, RenewResponse, SignAdminRequest, SignAdminResponse, SignWorkloadRequest,
    SignWorkloadResponse, Svid, SvidUse, TrustBundle, WatchBundleRequest, WatchBundleResponse,
    WatchNodesRequest, WatchNodesResponse, admin_server::Admin, bootstrap_server::Bootstrap,
    certificates_server::Certificates, members_server::Members, trust_server::Trust,
};
use weft_rpc::caller;
use weft_tls::Bundle;

const DEFAULT_AUDIT: u32 = 100;
const MAX_AUDIT: u32 = 1000;

/// All services of `weft.identity.v1`. Clones share.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    pub core: Arc<Core>,
    pub drain: Watcher,
}

fn timestamp(unix_seconds: u64) -> Option<Timestamp> {
    Some(Timestamp {
        seconds: i64::try_from(unix_seconds).unwrap_or(i64::MAX),
        nanos: 0,
    })
}

fn svid(issued: Issued) -> Option<Svid> {
    Some(Svid {
        spiffe_id: issued.id.to_string(),
        chain_der: issued.chain.iter().map(|c| c.to_vec()).collect(),
        not_before: timestamp(issued.not_before),
        not_after: timestamp(issued.not_after),
        serial: issued.serial,
    })
}

fn bundle(bundle: &Bundle) -> Option<TrustBundle> {
    Some(TrustBundle {
        trust_domain: bundle.trust_domain.to_string(),
        version: bundle.version,
        roots_der: bundle.roots.iter().map(|r| r.to_vec()).collect(),
    })
}

fn audit_entry(row: AuditRow) -> AuditEntry {
    AuditEntry {
        id: row.entry.id,
        time: timestamp(row.entry.time),
        outcome: row.outcome,
        action: row.action,
        caller: row.entry.caller,
        spiffe_id: row.entry.spiffe_id,
        serial: row.entry.serial,
        reason: row.entry.reason,
    }
}

#[tonic::async_trait]
impl Bootstrap for Api {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let caller = caller(&request)?;
        let JoinRequest { token, csr_der } = request.into_inner();
        let (issued, roots) = self.core.join(&caller, &token, &csr_der).await?;
        Ok(Response::new(JoinResponse {
            svid: svid(issued),
            bundle: bundle(&roots),
        }))
    }
}

#[tonic::async_trait]
impl Certificates for Api {
    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        let caller = caller(&request)?;
        let issued = self.core.renew(&caller, &request.into_inner().csr_der).await?;
        Ok(Response::new(RenewResponse { svid: svid(issued) }))
    }

    async fn sign_workload(
        &self,
        request: Request<SignWorkloadRequest>,
    ) -> Result<Response<SignWorkloadResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let purpose = SvidUse::try_from(request.r#use).unwrap_or(SvidUse::Unspecified);
        let issued = self
            .core
            .sign_workload(&caller, &request.workload_id, &request.csr_der, purpose)
            .await?;
        Ok(Response::new(SignWorkloadResponse { svid: svid(issued) }))
    }
}

#[tonic::async_trait]
impl Trust for Api {
    type WatchBundleStream = BoxStream<'static, Result<WatchBundleResponse, Status>>;

    async fn watch_bundle(
        &self,
        _request: Request<WatchBundleRequest>,
    ) -> Result<Response<Self::WatchBundleStream>, Status> {
        let mut changes = self.core.bundle();
        // What is there counts as the first change.
        changes.mark_changed();
        let stream =
            futures::stream::unfold((changes, self.drain.clone()), |(mut changes, mut drain)| async {
                tokio::select! {
                    () = drain.draining() => return None,
                    changed = changes.changed() => changed.ok()?,
                }
                let present = bundle(&changes.borrow_and_update());
                Some((Ok(WatchBundleResponse { bundle: present }), (changes, drain)))
            });
        Ok(Response::new(stream.boxed()))
    }
}

#[tonic::async_trait]
impl Members for Api {
    type WatchNodesStream = BoxStream<'static, Result<WatchNodesResponse, Status>>;

    async fn watch_nodes(
        &self,
        _request: Request<WatchNodesRequest>,
    ) -> Result<Response<Self::WatchNodesStream>, Status> {
        let watch = NodeWatch::new(self.core.clone());
        let stream = futures::stream::unfold((watch, self.drain.clone()), |(mut watch, mut drain)| async {
            let next = tokio::select! {
                () = drain.draining() => return None,
                next = watch.next() => next?,
            };
            Some((next.map_err(Status::from), (watch, drain)))
        });
        Ok(Response::new(stream.boxed()))
    }
}

#[tonic::async_trait]
impl Admin for Api {
    async fn create_join_token(
        &self,
        request: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<CreateJoinTokenResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let may_host = request
            .may_host
            .into_iter()
            // One more than allowed, so that too many are still seen as too many.
            .take(MAX_PATTERNS + 1)
            .map(|p| HostPattern {
                namespace: p.namespace,
                app_id: p.app_id,
            })
            .collect();
        let (token, expires_at) = self
            .core
            .create_join_token(
                &caller,
                &request.kind,
                &request.name,
                may_host,
                request.ttl_seconds,
            )
            .await?;
        Ok(Response::new(CreateJoinTokenResponse {
            token: token.reveal().to_string(),
            expires_at: timestamp(expires_at),
        }))
    }

    async fn sign_admin(
        &self,
        request: Request<SignAdminRequest>,
    ) -> Result<Response<SignAdminResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let (issued, roots) = self
            .core
            .sign_admin(&caller, &request.name, &request.csr_der, request.ttl_seconds)
            .await?;
        Ok(Response::new(SignAdminResponse {
            svid: svid(issued),
            bundle: bundle(&roots),
        }))
    }

    async fn list_audit(
        &self,
        request: Request<ListAuditRequest>,
    ) -> Result<Response<ListAuditResponse>, Status> {
        let request = request.into_inner();
        let limit = match request.limit {
            0 => DEFAULT_AUDIT,
            n => n.min(MAX_AUDIT),
        };
        let rows = self.core.list_audit(limit, request.before_id).await?;
        Ok(Response::new(ListAuditResponse {
            entries: rows.into_iter().map(audit_entry).collect(),
        }))
    }
}
