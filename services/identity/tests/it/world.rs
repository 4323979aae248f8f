//! A mesh with two nodes, what tests ask of it, and what refusals say.

use crate::{
    rig::{Rig, cell, pattern, td},
    workloads::{registered, workload},
};
use tonic::{Code, Status, transport::Channel};
use weft_drain::Trigger;
use weft_enroll::Member;
use weft_identity::{DOMAIN, Kind, Reason};
use weft_proto::{
    dapr::sentry::v1::{SignCertificateRequest, ca_client::CaClient},
    weft::identity::v1::{
        AttestRequest, CreateJoinTokenRequest, HostPattern, JoinRequest, ReinstateRequest, RenewRequest,
        RevokeRequest, SignAdminRequest, SignJwtRequest, SignWorkloadRequest, SvidUse,
        admin_client::AdminClient, bootstrap_client::BootstrapClient,
        certificates_client::CertificatesClient,
    },
};
use weft_rpc::{ErrorDetails, StatusExt as _};
use weft_tls::{SvidCell, new_key_and_csr};

pub const CART: &str = "n1/shop/cart/1";

/// The mesh.
pub struct World {
    pub rig: Rig,
    pub n1: Member,
    _drains: [Trigger; 3],
    pub policy: Member,
}

/// What a refusal is about.
#[derive(Debug, PartialEq)]
pub enum About<'a> {
    Field(&'a str),
    Resource(&'a str, &'a str),
    Precondition(&'a str, &'a str),
    Retry,
    Nothing,
}

pub fn details<T: std::fmt::Debug>(
    outcome: Result<T, Status>,
    code: Code,
    reason: &str,
    domain: &str,
) -> ErrorDetails {
    let status = outcome.expect_err(reason);
    assert_eq!(status.code(), code, "{reason}: {status}");
    let details = status.check_error_details().unwrap();
    let info = details
        .error_info()
        .unwrap_or_else(|| panic!("{reason}: no ErrorInfo in {status}"));
    assert_eq!((&*info.reason, &*info.domain), (reason, domain), "{status}");
    details
}

pub fn about(details: &ErrorDetails) -> About<'_> {
    if let Some(bad) = details.bad_request() {
        return About::Field(&bad.field_violations[0].field);
    }
    if let Some(it) = details.resource_info() {
        return About::Resource(&it.resource_type, &it.resource_name);
    }
    if let Some(it) = details.precondition_failure() {
        return About::Precondition(&it.violations[0].r#type, &it.violations[0].subject);
    }
    if details.retry_info().is_some_and(|r| r.retry_delay.is_some()) {
        return About::Retry;
    }
    About::Nothing
}

/// Refused so, about that.
pub fn refused<T: std::fmt::Debug>(outcome: Result<T, Status>, code: Code, reason: Reason, what: About<'_>) {
    let details = details(outcome, code, reason.as_str(), DOMAIN);
    assert_eq!(about(&details), what, "{reason:?}");
}

pub fn field<T: std::fmt::Debug>(outcome: Result<T, Status>, name: &str) {
    refused(
        outcome,
        Code::InvalidArgument,
        Reason::FieldInvalid,
        About::Field(name),
    );
}

pub fn csr() -> Vec<u8> {
    new_key_and_csr().unwrap().csr_der
}

impl World {
    pub async fn new() -> Self {
        let rig = Rig::insecure().await;
        let (n1, d1) = rig.join(Kind::Node, "n1", &[pattern("shop", "*")]).await;
        let (_n2, d2) = rig.join(Kind::Node, "n2", &[]).await;
        let (policy, d3) = rig.join(Kind::Service, "policy", &[]).await;
        let _drains = [d1, d2, d3];
        Self {
            rig,
            n1,
            _drains,
            policy,
        }
    }

    pub fn register(&self) {
        let mut nameless = workload("n1", "shop", "cart");
        nameless.id = "nameless".into();
        nameless.app_id = "a.b".into();
        nameless.spiffe_id = String::new();
        let mut lie = workload("n1", "shop", "cart");
        lie.id = "lie".into();
        lie.spiffe_id = "spiffe://cluster.local/weft/admin/ops".into();
        let all = vec![
            workload("n1", "shop", "cart"),
            workload("n1", "bank", "vault"),
            workload("n2", "shop", "pay"),
            nameless,
            lie,
        ];
        registered(&self.rig, all);
    }

    pub fn node(&self) -> Channel {
        self.rig.channel(Some(&self.n1.svid))
    }

    pub async fn sign(&self, id: &str, csr_der: Vec<u8>, r#use: SvidUse) -> Result<(), Status> {
        let request = SignWorkloadRequest {
            workload_id: id.into(),
            csr_der,
            r#use: r#use.into(),
        };
        CertificatesClient::new(self.node())
            .sign_workload(request)
            .await
            .map(drop)
    }

    /// The certificate of a workload, as its node is given it.
    pub async fn workload_cell(&self) -> SvidCell {
        let made = new_key_and_csr().unwrap();
        let request = SignWorkloadRequest {
            workload_id: CART.into(),
            csr_der: made.csr_der,
            r#use: SvidUse::Workload.into(),
        };
        let mut client = CertificatesClient::new(self.node());
        let svid = client.sign_workload(request).await.unwrap().into_inner().svid;
        cell(svid.unwrap().chain_der, &made.key)
    }

    pub async fn ask(&self, id: &str) -> Result<(), Status> {
        self.sign(id, csr(), SvidUse::Workload).await
    }

    pub async fn jwt(&self, id: &str, audience: &[&str]) -> Result<(), Status> {
        let request = SignJwtRequest {
            workload_id: id.into(),
            audience: audience.iter().map(ToString::to_string).collect(),
        };
        CertificatesClient::new(self.node())
            .sign_jwt(request)
            .await
            .map(drop)
    }

    pub async fn join(&self, token: &str, csr_der: Vec<u8>) -> Result<(), Status> {
        let token = token.to_owned();
        BootstrapClient::new(self.rig.channel(None))
            .join(JoinRequest { token, csr_der })
            .await
            .map(drop)
    }

    pub async fn token(
        &self,
        kind: &str,
        name: &str,
        hosts: &[(&str, &str)],
        ttl_seconds: u32,
    ) -> Result<String, Status> {
        let may_host = hosts.iter().map(|(namespace, app_id)| HostPattern {
            namespace: (*namespace).into(),
            app_id: (*app_id).into(),
        });
        let request = CreateJoinTokenRequest {
            kind: kind.into(),
            name: name.into(),
            may_host: may_host.collect(),
            ttl_seconds,
        };
        let made = AdminClient::new(self.rig.local())
            .create_join_token(request)
            .await?;
        Ok(made.into_inner().token)
    }

    pub async fn revoke(&self, target: &str, reason: &str) -> Result<(), Status> {
        let request = RevokeRequest {
            target: target.into(),
            reason: reason.into(),
        };
        AdminClient::new(self.rig.local()).revoke(request).await.map(drop)
    }

    pub async fn reinstate(&self, id: &str) -> Result<(), Status> {
        let request = ReinstateRequest { spiffe_id: id.into() };
        AdminClient::new(self.rig.local())
            .reinstate(request)
            .await
            .map(drop)
    }

    /// Shows a certificate request to each method that takes one.
    pub async fn show(&self, method: &str, csr_der: Vec<u8>) -> Result<(), Status> {
        match method {
            "Renew" => CertificatesClient::new(self.node())
                .renew(RenewRequest { csr_der })
                .await
                .map(drop),
            "SignWorkload" => self.sign(CART, csr_der, SvidUse::Tunnel).await,
            "Join" => {
                let token = self.token("node", "n3", &[], 0).await?;
                let shown = self.join(&token, csr_der).await;
                if shown.is_err() {
                    // It is not used up.
                    self.join(&token, csr()).await.unwrap();
                }
                shown
            }
            "SignAdmin" => {
                let request = SignAdminRequest {
                    name: "ops".into(),
                    csr_der,
                    ttl_seconds: 0,
                };
                AdminClient::new(self.rig.local())
                    .sign_admin(request)
                    .await
                    .map(drop)
            }
            "Attest" => {
                let request = AttestRequest {
                    evidence: None,
                    spiffe_id: td().workload("shop", "cart").unwrap().to_string(),
                    csr_der,
                };
                BootstrapClient::new(self.rig.channel(None))
                    .attest(request)
                    .await
                    .map(drop)
            }
            _ => {
                let block = pem::Pem::new("CERTIFICATE REQUEST", csr_der);
                let request = SignCertificateRequest {
                    id: "cart".into(),
                    namespace: "shop".into(),
                    certificate_signing_request: pem::encode(&block).into(),
                    ..Default::default()
                };
                CaClient::new(self.rig.channel(None))
                    .sign_certificate(request)
                    .await
                    .map(drop)
            }
        }
    }
}
