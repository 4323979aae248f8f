//! A root and an issuer that the operator brings: PEM files in a folder, named as in Dapr's Secret
//! `dapr-trust-bundle`, or that Secret's manifest itself.

mod check;
mod files;

pub use check::key_name;

use crate::authority::{AuthorityError, Made, validity};
use check::{check, fits};
use files::Files;
use rustls_pki_types::CertificateDer;
use std::{
    io,
    path::{Path, PathBuf},
};
use weft_model::TrustDomain;
use zeroize::Zeroizing;

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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::authority::{KeyType, Maker};
    use base64::{Engine, engine::general_purpose::STANDARD};
    use rcgen::KeyPair;
    use std::{fs, time::Duration};

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
