//! Operators' methods.

use super::{Api, bundle, svid, timestamp};
use crate::{
    db::{AuditRow, Filter, Replica, State, StoredIssuer, StoredRoot},
    pattern::{HostPattern, MAX_PATTERNS},
    rotation::{Phase, life},
    supplied::key_name,
};
use rustls_pki_types::CertificateDer;
use tonic::{Request, Response, Status};
use weft_proto::weft::identity::v1::{
    AuditEntry, Authority, BackupRequest, BackupResponse, CreateJoinTokenRequest, CreateJoinTokenResponse,
    GetAuthorityRequest, GetAuthorityResponse, ListAuditRequest, ListAuditResponse, ListRevocationsRequest,
    ListRevocationsResponse, ReinstateRequest, ReinstateResponse, Replica as ReplicaMessage, Revocation,
    RevokeRequest, RevokeResponse, RotateRequest, RotateResponse, RotateTarget, SignAdminRequest,
    SignAdminResponse, admin_server::Admin,
};
use weft_rpc::caller;
use weft_tls::root_sha256;
use zeroize::Zeroizing;

const DEFAULT_AUDIT: u32 = 100;
const MAX_AUDIT: u32 = 1000;

fn authority(state: State, cert: &CertificateDer<'_>, needed_until: u64, has_key: bool) -> Authority {
    let (not_before, not_after) = life(cert).unwrap_or_default();
    Authority {
        sha256: hex::encode(root_sha256(cert)),
        state: state.as_str().into(),
        key: key_name(cert).into(),
        not_before: timestamp(not_before),
        not_after: timestamp(not_after),
        needed_until: timestamp(needed_until),
        certificate_der: cert.to_vec(),
        has_key,
        ..Authority::default()
    }
}

fn root(of: &StoredRoot) -> Authority {
    authority(of.state, &of.cert, of.signed_until, of.sealed_key.is_some())
}

/// An issuer, with the roots that it is under.
fn issuer(of: &StoredIssuer, roots: &[StoredRoot]) -> Authority {
    let sha256 = |id: i64| {
        let root = roots.iter().find(|root| root.id == id);
        root.map(|root| hex::encode(root_sha256(&root.cert)))
            .unwrap_or_default()
    };
    Authority {
        root_sha256: sha256(of.root_id),
        // Empty as soon as that root is gone: the certificate under it serves nobody then.
        cross_root_sha256: of.cross.as_ref().map(|c| sha256(c.root_id)).unwrap_or_default(),
        ..authority(of.state, &of.cert, of.signed_until, of.sealed_key.is_some())
    }
}

fn replica(replica: Replica) -> ReplicaMessage {
    ReplicaMessage {
        name: replica.name,
        seen: timestamp(replica.seen_at),
        members: u32::try_from(replica.members).unwrap_or(u32::MAX),
        acked_version: replica.min_acked,
    }
}

fn audit_entry(row: AuditRow) -> AuditEntry {
    AuditEntry {
        id: row.id,
        time: timestamp(row.entry.time),
        outcome: row.outcome,
        action: row.action,
        caller: row.entry.caller,
        spiffe_id: row.entry.spiffe_id,
        serial: row.entry.serial,
        reason: row.entry.reason,
        not_after: Some(row.entry.not_after).filter(|t| *t > 0).and_then(timestamp),
        attested: row.attested,
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

    async fn get_authority(
        &self,
        request: Request<GetAuthorityRequest>,
    ) -> Result<Response<GetAuthorityResponse>, Status> {
        let shown = self.core.show(&caller(&request)?).await?;
        let trust = &shown.live.trust;
        Ok(Response::new(GetAuthorityResponse {
            trust_domain: trust.trust_domain.clone(),
            bundle_version: trust.bundle_version,
            roots: trust.roots.iter().map(root).collect(),
            issuers: trust.issuers.iter().map(|i| issuer(i, &trust.roots)).collect(),
            phase: shown.phase.as_str().into(),
            members: shown
                .replicas
                .first()
                .map_or(0, |r| u32::try_from(r.members).unwrap_or(u32::MAX)),
            waiting_for: match shown.phase {
                Phase::Distributing => shown
                    .replicas
                    .iter()
                    .map(|r| r.lagging.clone())
                    .find(|name| !name.is_empty())
                    .unwrap_or_default(),
                _ => String::new(),
            },
            replicas: shown.replicas.into_iter().map(replica).collect(),
        }))
    }

    async fn rotate(&self, request: Request<RotateRequest>) -> Result<Response<RotateResponse>, Status> {
        let caller = caller(&request)?;
        let target = RotateTarget::try_from(request.into_inner().target).unwrap_or_default();
        let phase = self.core.rotate(&caller, target).await?;
        Ok(Response::new(RotateResponse {
            phase: phase.as_str().into(),
        }))
    }

    async fn revoke(&self, request: Request<RevokeRequest>) -> Result<Response<RevokeResponse>, Status> {
        let caller = caller(&request)?;
        let RevokeRequest { target, reason } = request.into_inner();
        self.core.revoke(&caller, &target, &reason).await?;
        Ok(Response::new(RevokeResponse {}))
    }

    async fn reinstate(
        &self,
        request: Request<ReinstateRequest>,
    ) -> Result<Response<ReinstateResponse>, Status> {
        let caller = caller(&request)?;
        let id = request.into_inner().spiffe_id;
        self.core.reinstate(&caller, &id).await?;
        Ok(Response::new(ReinstateResponse {}))
    }

    async fn list_revocations(
        &self,
        _request: Request<ListRevocationsRequest>,
    ) -> Result<Response<ListRevocationsResponse>, Status> {
        let all = self.core.list_revocations().into_iter();
        let revocations = all.map(|it| Revocation {
            target: it.target.text(),
            valid_from: it.valid_from,
            reason: it.reason,
            time: timestamp(it.created_at),
        });
        Ok(Response::new(ListRevocationsResponse {
            revocations: revocations.collect(),
        }))
    }

    async fn backup(&self, request: Request<BackupRequest>) -> Result<Response<BackupResponse>, Status> {
        let caller = caller(&request)?;
        let passphrase = Zeroizing::new(request.into_inner().passphrase);
        let backup = self.core.backup(&caller, passphrase).await?;
        Ok(Response::new(BackupResponse { backup }))
    }

    async fn list_audit(
        &self,
        request: Request<ListAuditRequest>,
    ) -> Result<Response<ListAuditResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let limit = match request.limit {
            0 => DEFAULT_AUDIT,
            n => n.min(MAX_AUDIT),
        };
        let filter = Filter {
            limit,
            before_id: request.before_id,
            outcome: request.outcome,
            spiffe_id: request.spiffe_id,
            serial: request.serial.to_ascii_lowercase().replace(':', ""),
            alive_at: if request.alive { self.core.now() } else { 0 },
        };
        let rows = self.core.list_audit(&caller, &filter).await?;
        Ok(Response::new(ListAuditResponse {
            entries: rows.into_iter().map(audit_entry).collect(),
        }))
    }
}
