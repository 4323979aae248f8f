//! Dapr's way to a certificate: `dapr.proto.sentry.v1.CA/SignCertificate`, with the fields and codes
//! of Dapr's Sentry. What proves whom is decided in [`crate::attest`].
//!
//! One thing is Weft's own: there is one trust domain, and Dapr's default for "none in particular",
//! `public`, means it too. As there, the token is judged before the certificate request is read.

use crate::{
    attest::{Evidence, Wanted},
    authority::Issued,
    core::{Core, Decision},
    csr::{self, MAX_CSR_BYTES},
    db::Audit,
    jwt::{Token, check_audience},
    reason::Reason,
    refused::Refused,
};
use rcgen::SubjectPublicKeyInfo;
use rustls_pki_types::CertificateDer;
use tonic::Code;
use weft_model::{SpiffeId, TrustDomain};
use weft_proto::dapr::sentry::v1::{SignCertificateRequest, sign_certificate_request::TokenValidator};
use weft_rpc::Caller;

/// Dapr's longest app-id.
const MAX_APP_ID: usize = 64;
/// What Dapr calls the trust domain of those that name none.
const NO_DOMAIN: &str = "public";
/// As the field is called.
const CSR: &str = "certificate_signing_request";
/// As the record calls the method.
const ACTION: &str = "sign-certificate";

/// What is asked, read and found to make sense.
#[derive(Debug)]
pub struct Ask<'a> {
    evidence: Evidence<'a>,
    namespace: &'a str,
    app_id: &'a str,
    /// Not read yet.
    csr: &'a [u8],
    audiences: &'a [String],
}

/// What is given.
#[derive(Debug)]
pub struct Signed {
    /// The certificate and its chain.
    pub issued: Issued,
    /// What verifiers hold.
    pub roots: Vec<CertificateDer<'static>>,
    /// For the trust domain and every audience that was asked for; none when none was.
    pub jwt: Option<Token>,
    /// One for each.
    pub per_audience: Vec<(String, Token)>,
}

/// Reads a request. `takes` says which evidence is taken here.
pub fn read<'a>(
    request: &'a SignCertificateRequest,
    trust_domain: &TrustDomain,
    takes: impl Fn(&Evidence<'_>) -> bool,
) -> Decision<Ask<'a>> {
    let evidence = evidence(request, &takes)?;
    if !takes(&evidence) {
        let text = format!("the requested validator, {}, is not enabled", evidence.how());
        return Err(Refused::field("token_validator", text).because(Reason::AttestationOff));
    }
    check_form(request)?;
    // Kubernetes knows the pod's namespace and the mesh its trust domain.
    let named = request.trust_domain.as_str();
    if !matches!(evidence, Evidence::Kubernetes { .. })
        && !named.is_empty()
        && named != NO_DOMAIN
        && named != trust_domain.as_str()
    {
        let shown: String = named.chars().take(80).collect();
        let text = format!("certificates are for trust domain {trust_domain}, not for {shown:?}");
        return Err(invalid("trust_domain", text).because(Reason::OtherTrustDomain));
    }
    if !request.jwt_audiences.is_empty() {
        check_audience("jwt_audiences", &request.jwt_audiences)?;
    }
    Ok(Ask {
        evidence,
        namespace: &request.namespace,
        app_id: &request.id,
        csr: &request.certificate_signing_request,
        audiences: &request.jwt_audiences,
    })
}

fn evidence<'a>(
    request: &'a SignCertificateRequest,
    takes: &impl Fn(&Evidence<'_>) -> bool,
) -> Decision<Evidence<'a>> {
    let token = request.token.as_str();
    let kubernetes = Evidence::Kubernetes { token };
    match request.token_validator() {
        TokenValidator::Kubernetes => Ok(kubernetes),
        TokenValidator::Jwks => Ok(Evidence::Jwt { token }),
        TokenValidator::Insecure => Ok(Evidence::Insecure),
        // What Sentry chooses by the mode that it runs in.
        TokenValidator::Unknown if takes(&kubernetes) => Ok(kubernetes),
        TokenValidator::Unknown if takes(&Evidence::Insecure) => Ok(Evidence::Insecure),
        TokenValidator::Unknown => Err(Refused::field(
            "token_validator",
            "a validator name must be specified in this environment: KUBERNETES or JWKS",
        )),
    }
}

/// Sentry answers these as it answers a wrong token.
fn invalid(field: &'static str, text: impl std::fmt::Display) -> Refused {
    Refused::field(field, format!("invalid request: {text}")).with_code(Code::PermissionDenied)
}

fn check_form(request: &SignCertificateRequest) -> Decision<()> {
    let id = request.id.as_str();
    if id.is_empty() {
        return Err(invalid("id", "parameter app-id cannot be empty"));
    }
    if id.contains('.') {
        return Err(invalid("id", "parameter app-id cannot contain dots"));
    }
    if id.len() > MAX_APP_ID {
        return Err(invalid(
            "id",
            format!("app ID must be {MAX_APP_ID} characters or less"),
        ));
    }
    if request.certificate_signing_request.is_empty() {
        return Err(invalid(CSR, "CSR is required"));
    }
    if request.namespace.is_empty() {
        return Err(invalid("namespace", "namespace is required"));
    }
    Ok(())
}

fn public_key(text: &[u8]) -> Decision<SubjectPublicKeyInfo> {
    csr::public_key(&der(text)?).map_err(|e| Refused::csr(CSR, &e))
}

/// The first block. Older sidecars call theirs a certificate.
fn der(text: &[u8]) -> Decision<Vec<u8>> {
    // Base64 and its lines take less than half more.
    if text.len() > MAX_CSR_BYTES * 3 / 2 {
        return Err(Refused::csr(CSR, &csr::CsrError::TooLarge(text.len())));
    }
    let block = pem::parse(text).ok();
    let block = block.filter(|b| matches!(b.tag(), "CERTIFICATE REQUEST" | "CERTIFICATE"));
    block.map(pem::Pem::into_contents).ok_or_else(|| {
        let text = "invalid certificate signing request: it is no PEM block of type CERTIFICATE REQUEST";
        Refused::field(CSR, text).because(Reason::CsrMalformed)
    })
}

impl Core {
    /// A certificate, and tokens where they are asked for, for an app of Dapr.
    pub async fn sign_certificate(
        &self,
        caller: &Caller,
        request: &SignCertificateRequest,
    ) -> Decision<Signed> {
        let start = |text: &str| text.chars().take(128).collect::<String>();
        let name = format!("/ns/{}/{}", start(&request.namespace), start(&request.id));
        let asked = self.asked(ACTION, caller, &name);
        let ask = read(request, self.trust_domain(), |e| self.attestor.takes(e));
        let ask = self.or_record(&asked, ask).await?;
        let wanted = Wanted::App {
            namespace: ask.namespace,
            app_id: ask.app_id,
        };
        let key = || public_key(ask.csr);
        let granted = self.grant(ACTION, caller, &ask.evidence, wanted, key).await;
        let (granted, issued) = granted.map_err(as_sentry)?;
        let asked = Audit {
            caller: granted.who,
            attested: granted.how,
            spiffe_id: granted.id.to_string(),
            ..asked
        };
        let (jwt, per_audience) = self.tokens_for(&asked, &granted.id, ask.audiences).await?;
        Ok(Signed {
            issued,
            roots: self.bundle().roots,
            jwt,
            per_audience,
        })
    }

    async fn tokens_for(
        &self,
        asked: &Audit,
        id: &SpiffeId,
        audiences: &[String],
    ) -> Decision<(Option<Token>, Vec<(String, Token)>)> {
        if audiences.is_empty() {
            return Ok((None, Vec::new()));
        }
        let mut all = vec![self.trust_domain().as_str().to_owned()];
        for audience in audiences {
            if !all.contains(audience) {
                all.push(audience.clone());
            }
        }
        let mut each = Vec::with_capacity(all.len());
        for audience in &all {
            let token = self.give_token(asked, id, std::slice::from_ref(audience)).await?;
            each.push((audience.clone(), token));
        }
        Ok((Some(self.give_token(asked, id, &all).await?), each))
    }
}

/// Sentry knows one code for everything that a validator finds wrong, and another for the certificate
/// request.
fn as_sentry(refused: Refused) -> Refused {
    if refused.code() == Code::InvalidArgument && refused.in_field() != Some(CSR) {
        refused.with_code(Code::PermissionDenied)
    } else {
        refused
    }
}

#[cfg(test)]
mod fuzz;
