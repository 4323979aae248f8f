//! Where a server's database is, as a setting.

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use std::fmt;

/// `postgres://user:password@host/database`. Neither `Debug` nor an error shows user and password; what
/// is serialised has them.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct DatabaseUrl(String);

/// Not of that form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must begin with postgres://; without it, the state is in a file")]
pub struct NoDatabaseUrl;

impl DatabaseUrl {
    /// Takes what begins as it should.
    pub fn new(url: impl Into<String>) -> Result<Self, NoDatabaseUrl> {
        let url = url.into();
        let sound = url.starts_with("postgres://") || url.starts_with("postgresql://");
        sound.then_some(Self(url)).ok_or(NoDatabaseUrl)
    }

    /// With its password: for the connection.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for DatabaseUrl {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(d)?).map_err(D::Error::custom)
    }
}

impl fmt::Display for DatabaseUrl {
    /// Without user, password and parameters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::database::shown(&self.0))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}
