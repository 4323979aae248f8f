//! A root and an issuer that the operator brings: PEM files in a folder, named as in Dapr's Secret
//! `dapr-trust-bundle`, or that Secret's manifest itself.

use crate::authority::{AuthorityError, Made, validity};
use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::KeyPair;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};
use weft_model::TrustDomain;
use x509_parser::prelude::{GeneralName, X509Certificate};
use zeroize::Zeroizing;

/// Roots, an issuer, two keys.
const MAX_FILE: u64 = 256 * 1024;
/// One that signs and those before it.
const MAX_ROOTS: usize = 8;

/// Why what the operator brought can not be used.
#[derive(Debug, thiserror::Error)]
pub enum SuppliedError {
    /// Not readable.
    #[error("{} can not be read: {source}; ca.supplied needs ca.crt, issuer.crt and issuer.key", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Readable and wrong.
    #[error("{}: {problem}", path.display())]
    Wrong {
        /// The file or the manifest's field.
        path: PathBuf,
        /// What is wrong and what should be.
        problem: String,
    },
}

/// A checked authority of the operator.
#[derive(Debug)]
pub struct Supplied {
    /// The root that the issuer is under.
    pub root: CertificateDer<'static>,
    /// Its key, when it was brought along.
    pub root_key: Option<Zeroizing<Vec<u8>>>,
    /// The issuer and its key.
    pub issuer: Made,
    /// Other roots that are to be trusted, from before.
    pub others: Vec<CertificateDer<'static>>,
}

#[derive(Deserialize)]
struct Secret {
    kind: String,
    #[serde(default)]
    data: BTreeMap<String, String>,
    #[serde(default, rename = "stringData")]
    string_data: BTreeMap<String, String>,
}

/// The four files, wherever they come from.
struct Files {
    place: PathBuf,
    manifest: Option<Secret>,
}

impl Files {
    fn open(place: &Path) -> Result<Self, SuppliedError> {
        let error = |source| SuppliedError::Io {
            path: place.into(),
            source,
        };
        let manifest = if fs::metadata(place).map_err(error)?.is_dir() {
            None
        } else {
            let text = Zeroizing::new(read(place).map_err(error)?.unwrap_or_default());
            let text = std::str::from_utf8(&text).unwrap_or_default();
            let wrong = |problem: String| SuppliedError::Wrong {
                path: place.into(),
                problem,
            };
            let secret: Secret = serde_saphyr::from_str(text)
                .map_err(|e| wrong(e.to_string().split_whitespace().collect::<Vec<_>>().join(" ")))?;
            if secret.kind != "Secret" {
                return Err(wrong(format!("kind is {:?}, must be Secret", secret.kind)));
            }
            Some(secret)
        };
        Ok(Self {
            place: place.into(),
            manifest,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }

    fn get(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, SuppliedError> {
        let Some(secret) = &self.manifest else {
            let path = self.path(name);
            let read = read(&path).map_err(|source| SuppliedError::Io { path, source })?;
            return Ok(read.map(Zeroizing::new));
        };
        if let Some(text) = secret.string_data.get(name) {
            return Ok(Some(Zeroizing::new(text.clone().into_bytes())));
        }
        let decode = |text: &String| STANDARD.decode(text.split_whitespace().collect::<String>());
        let decoded = secret.data.get(name).map(decode).transpose();
        decoded
            .map(|d| d.map(Zeroizing::new))
            .map_err(|e| self.wrong(name, format!("it is not base64: {e}")))
    }

    fn need(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, SuppliedError> {
        self.get(name)?.ok_or_else(|| SuppliedError::Io {
            path: self.path(name),
            source: io::Error::new(io::ErrorKind::NotFound, "it is not there"),
        })
    }

    fn wrong(&self, name: &str, problem: String) -> SuppliedError {
        SuppliedError::Wrong {
            path: self.path(name),
            problem,
        }
    }

    fn certificates(&self, name: &str) -> Result<Vec<CertificateDer<'static>>, SuppliedError> {
        let text = self.need(name)?;
        let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        let read = read.map_err(|e| self.wrong(name, format!("it is not PEM: {e}")))?;
        if read.is_empty() {
            return Err(self.wrong(name, "it holds no certificate in PEM".into()));
        }
        Ok(read)
    }

    fn key(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, SuppliedError> {
        let Some(text) = self.get(name)? else {
            return Ok(None);
        };
        let key = PrivateKeyDer::from_pem_slice(&text)
            .map_err(|e| self.wrong(name, format!("it holds no private key in PEM: {e}")))?;
        let pair = KeyPair::try_from(&key).map_err(|e| self.wrong(name, e.to_string()))?;
        Ok(Some(Zeroizing::new(pair.serialize_der())))
    }
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    use io::Read;
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut content = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut content)?;
    Ok(Some(content))
}

impl Supplied {
    /// Reads and checks what is at `place`.
    pub fn read(place: &Path, trust_domain: &TrustDomain, now: u64) -> Result<Self, SuppliedError> {
        let files = Files::open(place)?;
        let roots = files.certificates("ca.crt")?;
        let issuers = files.certificates("issuer.crt")?;
        let [issuer] = &issuers[..] else {
            let problem = format!(
                "{} certificates, must be one, signed by a root in ca.crt",
                issuers.len()
            );
            return Err(files.wrong("issuer.crt", problem));
        };
        if roots.len() > MAX_ROOTS {
            return Err(files.wrong("ca.crt", format!("{} roots, at most {MAX_ROOTS}", roots.len())));
        }
        for root in &roots {
            check(root, None, trust_domain).map_err(|p| files.wrong("ca.crt", p))?;
        }
        let signer = roots
            .iter()
            .find(|root| check(issuer, Some(root), trust_domain).is_ok());
        let signer = match signer {
            Some(root) => root.clone(),
            None => {
                let problem = check(issuer, roots.first(), trust_domain)
                    .err()
                    .unwrap_or_default();
                return Err(files.wrong("issuer.crt", problem));
            }
        };
        let alive = |name: &str, e: AuthorityError| files.wrong(name, e.to_string());
        validity("root", &signer, now).map_err(|e| alive("ca.crt", e))?;
        let key = files
            .key("issuer.key")?
            .ok_or_else(|| files.wrong("issuer.key", "it is not there".into()))?;
        validity("issuer", issuer, now).map_err(|e| alive("issuer.crt", e))?;
        fits(issuer, &key).map_err(|p| files.wrong("issuer.key", p))?;
        let root_key = files.key("ca.key")?;
        if let Some(key) = &root_key {
            fits(&signer, key).map_err(|p| files.wrong("ca.key", p))?;
        }
        let others = roots.iter().filter(|r| **r != signer).cloned().collect();
        Ok(Self {
            root: signer,
            root_key,
            issuer: Made {
                cert: issuer.clone(),
                key,
            },
            others,
        })
    }
}

fn parse<'a>(cert: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    x509_parser::parse_x509_certificate(cert)
        .map(|(_, parsed)| parsed)
        .map_err(|e| format!("a certificate can not be read: {e}"))
}

/// Whether it is an authority of this trust domain, signed by `by` or by itself.
fn check(
    cert: &CertificateDer<'_>,
    by: Option<&CertificateDer<'_>>,
    trust_domain: &TrustDomain,
) -> Result<(), String> {
    let parsed = parse(cert)?;
    let name = parsed.subject().to_string();
    if !parsed.is_ca() {
        return Err(format!(
            "{name:?} is no authority: its basic constraints do not say CA:TRUE"
        ));
    }
    let usage = parsed.key_usage().map_err(|e| e.to_string())?;
    if usage.is_some_and(|u| !u.value.key_cert_sign()) {
        return Err(format!(
            "{name:?} may not sign certificates: its key usage lacks keyCertSign"
        ));
    }
    let names = parsed.subject_alternative_name().map_err(|e| e.to_string())?;
    for name in names.iter().flat_map(|n| &n.value.general_names) {
        if let GeneralName::URI(uri) = name
            && uri.starts_with("spiffe://")
            && *uri != format!("spiffe://{trust_domain}")
        {
            return Err(format!("it is of {uri}, the trust domain is {trust_domain}"));
        }
    }
    let signer = by.map(|root| parse(root)).transpose()?;
    let signer_key = signer.as_ref().map_or(parsed.public_key(), |s| s.public_key());
    let issuer_name = signer.as_ref().map_or(parsed.subject(), |s| s.subject());
    if parsed.issuer().as_raw() != issuer_name.as_raw() || parsed.verify_signature(Some(signer_key)).is_err()
    {
        let by = if by.is_some() {
            "a root in ca.crt"
        } else {
            "itself"
        };
        return Err(format!("{name:?} is not signed by {by}"));
    }
    Ok(())
}

/// Whether the key is the certificate's, and of a kind that members verify.
fn fits(cert: &CertificateDer<'_>, key: &[u8]) -> Result<(), String> {
    use rcgen::PublicKeyData;
    let pair = KeyPair::try_from(key).map_err(|e| e.to_string())?;
    let known = [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
    ];
    if !known.contains(&pair.algorithm()) {
        return Err("the key must be ECDSA P-256, ECDSA P-384 or Ed25519".into());
    }
    let (_, parsed) = x509_parser::parse_x509_certificate(cert).map_err(|e| e.to_string())?;
    if parsed.public_key().subject_public_key.data.as_ref() != pair.der_bytes() {
        return Err("it is not the certificate's key".into());
    }
    Ok(())
}

/// The kind of key that a certificate speaks for, for people.
pub fn key_name(cert: &CertificateDer<'_>) -> &'static str {
    use x509_parser::oid_registry::{OID_EC_P256, OID_NIST_EC_P384, OID_SIG_ED25519};
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(cert) else {
        return "unreadable";
    };
    let algorithm = &parsed.public_key().algorithm;
    let curve = algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
    if algorithm.algorithm == OID_SIG_ED25519 {
        "Ed25519"
    } else if curve == Some(OID_EC_P256) {
        "ECDSA P-256"
    } else if curve == Some(OID_NIST_EC_P384) {
        "ECDSA P-384"
    } else {
        "other"
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::authority::{KeyType, Maker};
    use std::time::Duration;

    const NOW: u64 = 1_800_000_000;

    fn maker(trust_domain: &str) -> Maker {
        Maker {
            trust_domain: TrustDomain::new(trust_domain).unwrap(),
            key_type: KeyType::P256,
            root_lifetime: Duration::from_secs(1_000_000),
            issuer_lifetime: Duration::from_secs(100_000),
        }
    }

    fn pem(tag: &str, der: &[u8]) -> String {
        pem::encode(&pem::Pem::new(tag, der))
    }

    fn write(dir: &Path, root: &Made, issuer: &Made) {
        fs::write(dir.join("ca.crt"), pem("CERTIFICATE", &root.cert)).unwrap();
        fs::write(dir.join("issuer.crt"), pem("CERTIFICATE", &issuer.cert)).unwrap();
        fs::write(dir.join("issuer.key"), pem("PRIVATE KEY", &issuer.key)).unwrap();
    }

    fn made(maker: &Maker) -> (Made, Made) {
        let root = maker.root(NOW).unwrap();
        let issuer = maker.issuer(&root.cert, &root.key, NOW).unwrap();
        (root, issuer)
    }

    #[test]
    fn a_folder_and_a_secret_say_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let td = TrustDomain::default();
        let (root, issuer) = made(&maker("cluster.local"));
        write(dir.path(), &root, &issuer);
        let folder = Supplied::read(dir.path(), &td, NOW).unwrap();
        assert_eq!((&folder.root, &folder.issuer.cert), (&root.cert, &issuer.cert));
        assert!(folder.root_key.is_none());

        let encode = |name: &str| STANDARD.encode(fs::read(dir.path().join(name)).unwrap());
        let manifest = format!(
            "apiVersion: v1\nkind: Secret\nmetadata:\n  name: dapr-trust-bundle\ndata:\n  ca.crt: {}\n  \
             issuer.crt: {}\n  issuer.key: {}\n",
            encode("ca.crt"),
            encode("issuer.crt"),
            encode("issuer.key")
        );
        let file = dir.path().join("secret.yaml");
        fs::write(&file, &manifest).unwrap();
        let secret = Supplied::read(&file, &td, NOW).unwrap();
        assert_eq!(secret.issuer.key, folder.issuer.key);
        fs::write(&file, manifest.replace("kind: Secret", "kind: ConfigMap")).unwrap();
        assert!(
            Supplied::read(&file, &td, NOW)
                .unwrap_err()
                .to_string()
                .contains("must be Secret")
        );
    }

    #[test]
    fn what_does_not_fit_together_is_told_by_file() {
        let td = TrustDomain::default();
        let (root, issuer) = made(&maker("cluster.local"));
        let (other_root, other_issuer) = made(&maker("cluster.local"));
        let (foreign_root, foreign_issuer) = made(&maker("elsewhere"));
        let key = KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::default()
            .self_signed(&key)
            .unwrap()
            .der()
            .clone();
        let read = |change: &dyn Fn(&Path), now| {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), &root, &issuer);
            change(dir.path());
            Supplied::read(dir.path(), &td, now)
                .map(|s| s.others.len())
                .map_err(|e| e.to_string())
        };
        assert_eq!(read(&|_| (), NOW), Ok(0));
        let both = format!(
            "{}{}",
            pem("CERTIFICATE", &other_root.cert),
            pem("CERTIFICATE", &root.cert)
        );
        assert_eq!(read(&|d| fs::write(d.join("ca.crt"), &both).unwrap(), NOW), Ok(1));
        type Change<'a> = Box<dyn Fn(&Path) + 'a>;
        let cases: Vec<(Change<'_>, u64, &str, &str)> = vec![
            (
                Box::new(|d| fs::remove_file(d.join("ca.crt")).unwrap()),
                NOW,
                "ca.crt",
                "not there",
            ),
            (
                Box::new(|d| fs::write(d.join("ca.crt"), "x").unwrap()),
                NOW,
                "ca.crt",
                "no certificate",
            ),
            (
                Box::new(|d| write(d, &other_root, &issuer)),
                NOW,
                "issuer.crt",
                "not signed by a root",
            ),
            (
                Box::new(|d| write(d, &foreign_root, &foreign_issuer)),
                NOW,
                "ca.crt",
                "spiffe://elsewhere",
            ),
            (
                Box::new(|d| fs::write(d.join("ca.crt"), pem("CERTIFICATE", &leaf)).unwrap()),
                NOW,
                "ca.crt",
                "is no authority",
            ),
            (
                Box::new(|d| fs::write(d.join("issuer.key"), pem("PRIVATE KEY", &other_issuer.key)).unwrap()),
                NOW,
                "issuer",
                "",
            ),
            (
                Box::new(|d| fs::write(d.join("ca.key"), pem("PRIVATE KEY", &issuer.key)).unwrap()),
                NOW,
                "ca.key",
                "not the certificate's key",
            ),
            (Box::new(|_| ()), NOW + 200_000, "issuer.crt", "was valid until"),
        ];
        for (change, now, file, problem) in cases {
            let error = read(&change, now).unwrap_err();
            assert!(
                error.contains(file) && error.contains(problem),
                "{file} {problem}: {error}"
            );
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
