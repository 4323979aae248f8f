//! An issuer of JWTs: keys of every permitted kind, and an HTTPS server that publishes them.

use crate::{cluster::server_tls, rig::NOW};
use http_body_util::Full;
use hyper::{Response, body::Bytes, service::service_fn};
use hyper_util::rt::TokioIo;
use jsonwebtoken::{
    Algorithm, EncodingKey, Header, encode,
    jwk::{Jwk, JwkSet},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{convert::Infallible, sync::Arc};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_rustls::TlsAcceptor;

/// A key pair for one algorithm.
pub struct Key {
    pub kid: String,
    pub algorithm: Algorithm,
    private: EncodingKey,
    jwk: Jwk,
}

impl Key {
    pub fn new(kid: &str, algorithm: Algorithm) -> Self {
        use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256};
        let (made_for, read): (_, fn(&[u8]) -> EncodingKey) = match algorithm {
            Algorithm::ES256 => (&PKCS_ECDSA_P256_SHA256, EncodingKey::from_ec_der),
            Algorithm::ES384 => (&PKCS_ECDSA_P384_SHA384, EncodingKey::from_ec_der),
            Algorithm::EdDSA => (&PKCS_ED25519, EncodingKey::from_ed_der),
            _ => (&PKCS_RSA_SHA256, EncodingKey::from_rsa_der),
        };
        let pair = rcgen::KeyPair::generate_for(made_for).unwrap();
        let mut der = pair.serialize_der();
        if *made_for == PKCS_RSA_SHA256 {
            der = pkcs1(&der);
        } else if algorithm == Algorithm::EdDSA {
            der = ed25519_v1(&der);
        }
        let private = read(&der);
        let mut jwk = Jwk::from_encoding_key(&private, algorithm).unwrap();
        jwk.common.key_id = Some(kid.into());
        Self {
            kid: kid.into(),
            algorithm,
            private,
            jwk,
        }
    }

    pub fn sign(&self, claims: &Value) -> String {
        let header = Header {
            kid: Some(self.kid.clone()),
            ..Header::new(self.algorithm)
        };
        encode(&header, claims, &self.private).unwrap()
    }

    /// Without the key's name.
    pub fn unnamed(&self, claims: &Value) -> String {
        encode(&Header::new(self.algorithm), claims, &self.private).unwrap()
    }

    pub fn public(&self) -> Value {
        serde_json::to_value(&self.jwk).unwrap()
    }
}

/// The RSAPrivateKey inside of a PKCS#8 PrivateKeyInfo: its last field, an OCTET STRING of four-byte
/// header for any key of 2048 bits or more.
fn pkcs1(pkcs8: &[u8]) -> Vec<u8> {
    let at = pkcs8.windows(2).position(|w| w == [0x04, 0x82]).unwrap();
    pkcs8[at + 4..].to_vec()
}

/// Without the public half, which the first version of PKCS#8 does not have (RFC 8410, section 10.3).
fn ed25519_v1(pkcs8: &[u8]) -> Vec<u8> {
    let head = hex::decode("302e020100300506032b657004220420").unwrap();
    let seed = pkcs8
        .windows(4)
        .position(|w| w == [0x04, 0x22, 0x04, 0x20])
        .unwrap()
        + 4;
    [head.as_slice(), &pkcs8[seed..seed + 32]].concat()
}

pub fn set(keys: &[&Key]) -> Vec<u8> {
    let keys = keys.iter().map(|key| key.jwk.clone()).collect();
    serde_json::to_vec(&JwkSet { keys }).unwrap()
}

/// Claims that nothing is wrong with.
pub fn claims(subject: &str) -> Value {
    json!({"sub": subject, "aud": "weft", "exp": NOW + 300, "nbf": NOW, "iat": NOW, "iss": "https://issuer.example"})
}

/// The keys' server.
pub struct Publisher {
    pub url: String,
    /// The authority that it is known by, PEM.
    pub ca: String,
    state: Arc<Mutex<(u16, Vec<u8>, usize)>>,
    server: JoinHandle<()>,
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Publisher {
    pub async fn start(document: Vec<u8>) -> Self {
        let (tls, ca) = server_tls();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/keys.json", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new((200, document, 0)));
        let shared = state.clone();
        let server = tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(tls);
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, state) = (acceptor.clone(), shared.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                        assert_eq!(request.uri().path(), "/keys.json");
                        let (status, document) = {
                            let mut state = state.lock();
                            state.2 += 1;
                            (state.0, state.1.clone())
                        };
                        async move {
                            let response = Response::builder().status(status);
                            Ok::<_, Infallible>(response.body(Full::new(Bytes::from(document))).unwrap())
                        }
                    });
                    let server = hyper::server::conn::http1::Builder::new();
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self {
            url,
            ca,
            state,
            server,
        }
    }

    pub fn answer(&self, status: u16, document: Vec<u8>) {
        let mut state = self.state.lock();
        (state.0, state.1) = (status, document);
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.state.lock().2
    }
}
