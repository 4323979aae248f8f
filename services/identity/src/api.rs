//! The gRPC face: messages in, [`Core`]'s decisions, messages out. Operators' methods are in `admin`.

mod admin;

use crate::{
    attest::Evidence,
    authority::Issued,
    core::{Core, Published},
    nodes::NodeWatch,
    revocation::{self, Revocations},
    sentry::Signed,
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
    AckBundleRequest, AckBundleResponse, AttestRequest, AttestResponse, JoinRequest, JoinResponse,
    RenewRequest, RenewResponse, SignIngressRequest, SignIngressResponse, SignJwtRequest, SignJwtResponse,
    SignWorkloadRequest, SignWorkloadResponse, Svid, SvidUse, TrustBundle, WatchBundleRequest,
    WatchBundleResponse, WatchNodesRequest, WatchNodesResponse, bootstrap_server::Bootstrap,
    certificates_server::Certificates, members_server::Members, trust_server::Trust,
};
use weft_rpc::caller;
use weft_tls::Bundle;

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
        let AckBundleRequest { watch_id, version } = request.into_inner();
        self.core.acknowledge(&caller, watch_id, version).await?;
        Ok(Response::new(AckBundleResponse {}))
    }
}

#[tonic::async_trait]
impl Members for Api {
    type WatchNodesStream = BoxStream<'static, Result<WatchNodesResponse, Status>>;

    async fn watch_nodes(
        &self,
        request: Request<WatchNodesRequest>,
    ) -> Result<Response<Self::WatchNodesStream>, Status> {
        let watch = NodeWatch::new(self.core.clone(), &caller(&request)?);
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
