//! Where a PostgreSQL server is, in both forms that its clients read: a URL, or `host=… user=…`.

use sqlx::postgres::PgConnectOptions;
use std::{collections::BTreeMap, str::FromStr};

/// A server, and how to log in.
#[derive(Debug)]
pub(crate) struct Server {
    pub host: String,
    pub port: u16,
    pub options: PgConnectOptions,
}

/// `a=b c='d e'`
fn pairs(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut pairs = BTreeMap::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest
            .split_once('=')
            // Not what stands there: it may be the password.
            .ok_or_else(|| format!("what begins at byte {} is no name=value", text.len() - rest.len()))?;
        let after = after.trim_start();
        let mut value = String::new();
        let quoted = after.starts_with('\'');
        let mut letters = after.char_indices().skip(usize::from(quoted));
        let mut end = after.len();
        let mut closed = !quoted;
        while let Some((at, letter)) = letters.next() {
            match letter {
                '\\' => value.extend(letters.next().map(|(_, escaped)| escaped)),
                '\'' if quoted => {
                    (end, closed) = (at + 1, true);
                    break;
                }
                letter if !quoted && letter.is_whitespace() => {
                    end = at;
                    break;
                }
                letter => value.push(letter),
            }
        }
        if !closed {
            return Err(format!("the quotes of {} are not closed", name.trim()));
        }
        pairs.insert(name.trim().to_ascii_lowercase(), value);
        rest = after[end..].trim_start();
    }
    Ok(pairs)
}

impl Server {
    /// Reads a connection string. Errors do not show it: it has the password in it.
    pub fn read(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            let options = PgConnectOptions::from_str(text).map_err(|e| e.to_string())?;
            let asked = text.split_once('?').map_or("", |(_, query)| query);
            for pair in asked.split('&') {
                if let Some(mode) = pair.strip_prefix("sslmode=") {
                    without_tls(mode)?;
                }
            }
            if options.get_host().is_empty() {
                return Err("host is missing".to_owned());
            }
            return Ok(Self {
                host: options.get_host().to_owned(),
                port: options.get_port(),
                options,
            });
        }
        let mut pairs = pairs(text)?;
        let mut take = |name: &str| pairs.remove(name).filter(|value| !value.is_empty());
        let host = take("host").ok_or("host is missing")?;
        let port = take("port")
            .map_or(Ok(5432), |port| port.parse())
            .map_err(|_| "port is no port")?;
        let mut options = PgConnectOptions::new_without_pgpass();
        if let Some(user) = take("user") {
            options = options.username(&user);
        }
        if let Some(password) = take("password") {
            options = options.password(&password);
        }
        if let Some(database) = take("database").or_else(|| take("dbname")) {
            options = options.database(&database);
        }
        if let Some(name) = take("application_name") {
            options = options.application_name(&name);
        }
        without_tls(&take("sslmode").unwrap_or_default())?;
        // The driver has bounds of its own.
        for known in ["connect_timeout", "pool_max_conns", "pool_min_conns"] {
            take(known);
        }
        if let Some(name) = pairs.keys().next() {
            return Err(format!("{name} is not known"));
        }
        Ok(Self { host, port, options })
    }
}

fn without_tls(mode: &str) -> Result<(), String> {
    match mode {
        "" | "disable" | "allow" | "prefer" => Ok(()),
        mode => Err(format!("sslmode {mode:?} needs TLS, which is not supported yet")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let url = Server::read("postgres://me:p%40ss@db.shop:6000/orders?sslmode=disable").unwrap();
        assert_eq!(
            (url.host.as_str(), url.port, url.options.get_username()),
            ("db.shop", 6000, "me")
        );
        assert_eq!(url.options.get_database(), Some("orders"));
        let text = r"host=db user = me password='it\'s a p' port=6000 connect_timeout=10 database=orders sslmode=disable";
        let text = Server::read(text).unwrap();
        assert_eq!(
            (text.host.as_str(), text.port, text.options.get_username()),
            ("db", 6000, "me")
        );
        assert_eq!(text.options.get_database(), Some("orders"));
        assert_eq!(pairs(r"a='b c\\' d=e").unwrap()["a"], r"b c\");
        assert_eq!(Server::read("host=db").unwrap().port, 5432);
    }

    #[test]
    fn fuzz_connection_string() {
        let seeds = [
            "host=db user = me password='it\\'s' port=6000",
            "postgres://me:p@db:1/x?sslmode=disable",
        ];
        let corpus = weft_fuzz::Corpus::of(seeds).words(["'", "\\", "=", " ", "host=", "é", "sslmode="]);
        weft_fuzz::target!(corpus, |bytes: &[u8]| {
            if let Ok(text) = std::str::from_utf8(bytes)
                && let Ok(server) = Server::read(text)
            {
                assert!(!server.host.is_empty());
            }
        });
    }

    #[test]
    fn what_can_not_be_is_named_without_the_password() {
        for (text, said) in [
            ("user=me password=s3cret", "host is missing"),
            ("host=db port=x", "port is no port"),
            (
                "host=db password='s3cret",
                "the quotes of password are not closed",
            ),
            ("host=db sslmode=require", "TLS"),
            ("postgres://me:s3cret@db/x?sslmode=verify-full", "TLS"),
            ("host=db hostaddr=1", "hostaddr is not known"),
            ("host=db s3cret", "what begins at byte 8 is no name=value"),
            ("postgres:///orders?host=", "host is missing"),
        ] {
            let error = Server::read(text).unwrap_err();
            assert!(error.contains(said) && !error.contains("s3cret"), "{error}");
        }
    }
}
