//! The four files, wherever they come from.

use super::SuppliedError;
use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::KeyPair;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// Roots, an issuer, two keys.
const MAX_FILE: u64 = 256 * 1024;

#[derive(Deserialize)]
struct Secret {
    kind: String,
    #[serde(default)]
    data: BTreeMap<String, String>,
    #[serde(default, rename = "stringData")]
    string_data: BTreeMap<String, String>,
}

/// A folder, or a Secret's manifest.
pub struct Files {
    place: PathBuf,
    manifest: Option<Secret>,
}

impl Files {
    /// Looks what is at the place.
    pub fn open(place: &Path) -> Result<Self, SuppliedError> {
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

    /// What is wrong with one of them.
    pub fn wrong(&self, name: &str, problem: String) -> SuppliedError {
        SuppliedError::Wrong {
            path: self.path(name),
            problem,
        }
    }

    /// At least one.
    pub fn certificates(&self, name: &str) -> Result<Vec<CertificateDer<'static>>, SuppliedError> {
        let text = self.need(name)?;
        let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        let read = read.map_err(|e| self.wrong(name, format!("it is not PEM: {e}")))?;
        if read.is_empty() {
            return Err(self.wrong(name, "it holds no certificate in PEM".into()));
        }
        Ok(read)
    }

    /// PKCS#8; none where the file is not there.
    pub fn key(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, SuppliedError> {
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
