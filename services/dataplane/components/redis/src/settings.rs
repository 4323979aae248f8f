//! What metadata say of a server and of how to speak to it.

use redis::RedisConnectionInfo;
use std::time::Duration;
use weft_components_api::{Field, Metadata, MetadataError};

/// Where Redis listens when nothing is said.
const PORT: u16 = 6379;
const DIAL_WITHIN: Duration = Duration::from_secs(5);
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What all of them know. Bounds of pools are taken and have no effect: one connection carries all.
pub(crate) const COMMON: [Field; 21] = [
    Field::required("redisHost"),
    Field::optional("redisPort"),
    Field::optional("redisPassword"),
    Field::optional("redisUsername"),
    Field::optional("redisDB"),
    Field::optional("redisType"),
    Field::optional("enableTLS"),
    Field::optional("failover"),
    Field::optional("dialTimeout"),
    Field::optional("readTimeout"),
    Field::optional("writeTimeout"),
    Field::optional("maxRetries"),
    Field::optional("maxRetryBackoff"),
    Field::optional("redisMaxRetries"),
    Field::optional("redisMinRetryInterval"),
    Field::optional("redisMaxRetryInterval"),
    Field::optional("poolSize"),
    Field::optional("minIdleConns"),
    Field::optional("poolTimeout"),
    Field::optional("maxConnAge"),
    Field::optional("idleTimeout"),
];

/// `COMMON`, and a driver's own.
pub(crate) const fn with<const OWN: usize, const ALL: usize>(own: [&'static str; OWN]) -> [Field; ALL] {
    let mut all = [Field::optional(""); ALL];
    let mut i = 0;
    while i < COMMON.len() {
        all[i] = COMMON[i];
        i += 1;
    }
    while i < ALL {
        all[i] = Field::optional(own[i - COMMON.len()]);
        i += 1;
    }
    all
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub host: String,
    pub port: u16,
    pub info: RedisConnectionInfo,
    pub dial_within: Duration,
    pub answer_within: Duration,
    pub database: i64,
}

fn number(metadata: &Metadata, key: &str, most: u64) -> Result<Option<u64>, MetadataError> {
    let given = metadata.get(key).filter(|text| !text.trim().is_empty());
    let Some(number) = given.map(|_| metadata.number(key)).transpose()?.flatten() else {
        return Ok(None);
    };
    match number > most {
        true => Err(Metadata::wrong(key, format!("{number} is more than {most}"))),
        false => Ok(Some(number)),
    }
}

/// A duration that is set.
pub(crate) fn duration(metadata: &Metadata, key: &str, default: Duration) -> Result<Duration, MetadataError> {
    let given = metadata.get(key).filter(|text| !text.trim().is_empty());
    let read = given.map(|_| metadata.duration(key)).transpose()?.flatten();
    Ok(read.filter(|d| !d.is_zero()).unwrap_or(default))
}

impl Settings {
    pub fn read(metadata: &Metadata) -> Result<Self, MetadataError> {
        for (key, alone) in [("enableTLS", "TLS"), ("failover", "failover by Sentinel")] {
            if metadata.truth(key)? {
                return Err(Metadata::wrong(key, format!("{alone} is not supported yet")));
            }
        }
        let kind = metadata.get("redisType").unwrap_or_default();
        if !matches!(kind, "" | "node") {
            return Err(Metadata::wrong(
                "redisType",
                format!("{kind:?} is not supported yet, only \"node\""),
            ));
        }
        let given = metadata.get("redisHost").unwrap_or_default().trim();
        if given.contains(',') {
            return Err(Metadata::wrong(
                "redisHost",
                "more than one server is not supported yet",
            ));
        }
        let port = number(metadata, "redisPort", u16::MAX.into())?;
        let port = port.and_then(|port| u16::try_from(port).ok());
        let (host, port) = match address(given) {
            Some((host, own)) => {
                if port.is_some_and(|port| port != own) {
                    return Err(Metadata::wrong("redisPort", "redisHost has another port"));
                }
                (host, own)
            }
            None if given.starts_with('[') || given.matches(':').count() == 1 => {
                return Err(Metadata::wrong(
                    "redisHost",
                    format!("{given:?} is no host and port"),
                ));
            }
            None => (given, port.unwrap_or(PORT)),
        };
        let database = number(metadata, "redisDB", 1 << 20)?.unwrap_or(0);
        let database = i64::try_from(database).unwrap_or(0);
        let mut info = RedisConnectionInfo::default()
            .set_db(database)
            .set_skip_set_lib_name();
        let text = |key| metadata.get(key).filter(|text| !text.is_empty());
        if let Some(name) = text("redisUsername") {
            info = info.set_username(name);
        }
        if let Some(password) = text("redisPassword") {
            info = info.set_password(password);
        }
        Ok(Self {
            host: host.to_owned(),
            port,
            info,
            dial_within: duration(metadata, "dialTimeout", DIAL_WITHIN)?,
            answer_within: duration(metadata, "readTimeout", ANSWER_WITHIN)?,
            database,
        })
    }
}

/// `host:port`, `1.2.3.4:port` or `[::1]:port`.
fn address(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(host) => host.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    Some((host, port.parse().ok()?)).filter(|(host, _)| !host.is_empty())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Settings, MetadataError> {
        let pairs = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Settings::read(&Metadata::new(pairs.collect()).unwrap())
    }

    #[test]
    fn a_server_is_named_in_each_form() {
        for (host, port, wanted) in [
            ("redis:7000", "", ("redis", 7000)),
            ("redis", "", ("redis", 6379)),
            ("redis", "7001", ("redis", 7001)),
            ("10.0.0.1:7000", "7000", ("10.0.0.1", 7000)),
            ("[::1]:7000", "", ("::1", 7000)),
            ("::1", "", ("::1", 6379)),
        ] {
            let read = read(&[("redisHost", host), ("redisPort", port)]).unwrap();
            assert_eq!((read.host.as_str(), read.port), wanted, "{host}");
        }
    }

    #[test]
    fn what_can_not_be_is_named() {
        for (pairs, said) in [
            (
                &[("redisHost", "a:b")][..],
                "\"redisHost\": \"a:b\" is no host and port",
            ),
            (&[("redisHost", "a,b")], "\"redisHost\": more than one server"),
            (
                &[("redisHost", "a:1"), ("redisPort", "2")],
                "\"redisPort\": redisHost has another port",
            ),
            (
                &[("redisHost", "a"), ("redisPort", "70000")],
                "\"redisPort\": 70000 is more than",
            ),
            (
                &[("redisHost", "a"), ("enableTLS", "true")],
                "\"enableTLS\": TLS is not supported yet",
            ),
            (
                &[("redisHost", "a"), ("redisType", "cluster")],
                "\"redisType\": \"cluster\"",
            ),
            (&[("redisHost", "a"), ("redisDB", "x")], "\"redisDB\""),
            (&[("redisHost", "a"), ("dialTimeout", "x")], "\"dialTimeout\""),
        ] {
            let error = read(pairs).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        let fine = [
            ("redisHost", "a"),
            ("enableTLS", "false"),
            ("redisType", "node"),
            ("readTimeout", "2s"),
        ];
        assert_eq!(read(&fine).unwrap().answer_within, Duration::from_secs(2));
    }
}
