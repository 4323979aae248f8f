//! The gRPC face: messages in, [`Core`]'s decisions, messages out.

use crate::{
    attest::Evidence,
    authority::Issued,
    core::{Core, Published},
    db::{AuditRow, Filter, Replica, State},
    nodes::NodeWatch,
    pattern::{HostPattern, MAX_PATTERNS},
    reason::Reason,
    refused::Refused,
    revocation::{self, Revocations},
    rotation::{Phase, life},
    sentry::Signed,
    supplied::key_name,
};
use futures::{StreamExt, stream::BoxStream};
use pem::{EncodeConfig, LineEnding, Pem};
use prost_types::Timestamp;
use rustls_pki_types::CertificateDer;
use std::sync::Arc;
use tonic::{Request, Response, Status};
use weft_drain::Watcher;
use weft_model::Principal;
use weft_proto::dapr::sentry::v1::{SignCertificateRequest, SignCertificateResponse, ca_server::Ca};
use weft_proto::weft::identity::v1::attest_request::Evidence as Proof;
use weft_proto::weft::identity::v1::{
    AckBundleRequest, AckBundleResponse, AttestRequest, AttestResponse, AuditEntry, Authority, BackupRequest,
    BackupResponse, CreateJoinTokenRequest, CreateJoinTokenResponse, GetAuthorityRequest,
    GetAuthorityResponse, JoinRequest, JoinResponse, ListAuditRequest, ListAuditResponse,
    ListRevocationsRequest, ListRevocationsResponse, ReinstateRequest, ReinstateResponse, RenewRequest,
    RenewResponse, Replica as ReplicaMessage, Revocation, RevokeRequest, RevokeResponse, RotateRequest,
    RotateResponse, RotateTarget, SignAdminRequest, SignAdminResponse, SignIngressRequest,
    SignIngressResponse, SignJwtRequest, SignJwtResponse, SignWorkloadRequest, SignWorkloadResponse, Svid,
    SvidUse, TrustBundle, WatchBundleRequest, WatchBundleResponse, WatchNodesRequest, WatchNodesResponse,
    admin_server::Admin, bootstrap_server::Bootstrap, certificates_server::Certificates,
    members_server::Members, trust_server::Trust,
};
use weft_rpc::caller;
use weft_tls::{Bundle, root_sha256};
use zeroize::Zeroizing;

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
        jwks_json: bundle.jwks.clone(),
        roots_der: bundle.roots.iter().map(|r| r.to_vec()).collect(),
    })
}

fn bundle_response(published: &Published, told: Option<&Revocations>, watch_id: u64) -> WatchBundleResponse {
    WatchBundleResponse {
        bundle: bundle(&published.bundle),
        watch_id,
        renew_before: timestamp(published.renew_before),
        revocations: revocation::change(told, &published.revocations),
    }
}

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

    async fn attest(&self, request: Request<AttestRequest>) -> Result<Response<AttestResponse>, Status> {
        let caller = caller(&request)?;
        let AttestRequest {
            evidence,
            csr_der,
            spiffe_id,
        } = request.into_inner();
        let evidence = match &evidence {
            Some(Proof::KubernetesToken(token)) => Evidence::Kubernetes { token },
            Some(Proof::Jwt(token)) => Evidence::Jwt { token },
            None => Evidence::Insecure,
        };
        let wanted = Some(spiffe_id.as_str()).filter(|id| !id.is_empty());
        let (issued, roots) = self.core.attest(&caller, &evidence, wanted, &csr_der).await?;
        Ok(Response::new(AttestResponse {
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

    async fn sign_ingress(
        &self,
        request: Request<SignIngressRequest>,
    ) -> Result<Response<SignIngressResponse>, Status> {
        let caller = caller(&request)?;
        let csr = request.into_inner().csr_der;
        let issued = self.core.sign_ingress(&caller, &csr).await?;
        Ok(Response::new(SignIngressResponse { svid: svid(issued) }))
    }

    async fn sign_jwt(&self, request: Request<SignJwtRequest>) -> Result<Response<SignJwtResponse>, Status> {
        let caller = caller(&request)?;
        let SignJwtRequest {
            workload_id,
            audience,
        } = request.into_inner();
        let token = self.core.sign_jwt(&caller, &workload_id, &audience).await?;
        Ok(Response::new(SignJwtResponse {
            token: token.text,
            spiffe_id: token.id.to_string(),
            not_after: timestamp(token.not_after),
        }))
    }
}

/// As Dapr's sidecars read it.
fn for_dapr(signed: Signed) -> SignCertificateResponse {
    let text = |certs: &[CertificateDer<'static>]| {
        let blocks = certs.iter().map(|c| Pem::new("CERTIFICATE", c.as_ref()));
        let blocks: Vec<Pem> = blocks.collect();
        let lines = EncodeConfig::new().set_line_ending(LineEnding::LF);
        pem::encode_many_config(&blocks, lines).into_bytes()
    };
    SignCertificateResponse {
        workload_certificate: text(&signed.issued.chain),
        trust_chain_certificates: vec![text(&signed.roots)],
        valid_until: timestamp(signed.issued.not_after),
        jwt: signed.jwt.map(|token| token.text),
        per_audience_jwts: signed
            .per_audience
            .into_iter()
            .map(|(audience, token)| (audience, token.text))
            .collect(),
    }
}

#[tonic::async_trait]
impl Ca for Api {
    async fn sign_certificate(
        &self,
        request: Request<SignCertificateRequest>,
    ) -> Result<Response<SignCertificateResponse>, Status> {
        let caller = caller(&request)?;
        let signed = self.core.sign_certificate(&caller, request.get_ref()).await?;
        Ok(Response::new(for_dapr(signed)))
    }
}

#[tonic::async_trait]
impl Trust for Api {
    type WatchBundleStream = BoxStream<'static, Result<WatchBundleResponse, Status>>;

    async fn watch_bundle(
        &self,
        request: Request<WatchBundleRequest>,
    ) -> Result<Response<Self::WatchBundleStream>, Status> {
        let caller = caller(&request)?;
        let held = request.into_inner().held_version;
        // Operators look; only members verify by it.
        let member = caller
            .spiffe_id()
            .filter(|id| matches!(id.principal(), Principal::Service(_) | Principal::Node(_)));
        let following = member.map(|id| self.core.acks.follow(id.to_string(), held));
        let watch_id = following.as_ref().map_or(0, |f| f.id);
        let mut changes = self.core.published();
        // What is there counts as the first change.
        changes.mark_changed();
        let stream = futures::stream::unfold(
            (changes, self.drain.clone(), following, None::<Revocations>),
            move |(mut changes, mut drain, following, told)| async move {
                tokio::select! {
                    () = drain.draining() => return None,
                    changed = changes.changed() => changed.ok()?,
                }
                let now = changes.borrow_and_update().clone();
                let message = bundle_response(&now, told.as_ref(), watch_id);
                Some((Ok(message), (changes, drain, following, Some(now.revocations))))
            },
        );
        Ok(Response::new(stream.boxed()))
    }

    async fn ack_bundle(
        &self,
        request: Request<AckBundleRequest>,
    ) -> Result<Response<AckBundleResponse>, Status> {
        let caller = caller(&request)?;
        let name = caller.spiffe_id().map(ToString::to_string).unwrap_or_default();
        let AckBundleRequest { watch_id, version } = request.into_inner();
        if !self.core.acks.ack(watch_id, &name, version) {
            let text = "you have no such stream of the bundle here; it may have ended";
            let refused = Refused::missing(Reason::StreamUnknown, text);
            return Err(refused.about("stream", &watch_id.to_string()).into());
        }
        Ok(Response::new(AckBundleResponse {}))
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

    async fn get_authority(
        &self,
        _request: Request<GetAuthorityRequest>,
    ) -> Result<Response<GetAuthorityResponse>, Status> {
        let shown = self.core.show().await?;
        let trust = &shown.live.trust;
        let roots = trust.roots.iter();
        let issuers = trust.issuers.iter();
        Ok(Response::new(GetAuthorityResponse {
            trust_domain: trust.trust_domain.clone(),
            bundle_version: trust.bundle_version,
            roots: roots
                .map(|r| authority(r.state, &r.cert, r.signed_until, r.sealed_key.is_some()))
                .collect(),
            issuers: issuers
                .map(|i| authority(i.state, &i.cert, i.signed_until, i.sealed_key.is_some()))
                .collect(),
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
        let rows = self.core.list_audit(&filter).await?;
        Ok(Response::new(ListAuditResponse {
            entries: rows.into_iter().map(audit_entry).collect(),
        }))
    }
}
