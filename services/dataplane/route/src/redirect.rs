//! Where a redirect leads.

use crate::spec::Redirect;

/// How a request came in.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    /// `http` or `https`.
    pub scheme: &'a str,
    /// The host that the client asked for, without port.
    pub host: &'a str,
    /// The port of the listener.
    pub port: u16,
    /// The path.
    pub path: &'a str,
    /// The query, without the question mark.
    pub query: Option<&'a str>,
    /// The prefix that the route asked for.
    pub matched: &'a str,
}

impl Redirect {
    /// The value of `Location`. A port that its scheme implies is left out.
    pub fn location(&self, arrival: &Arrival<'_>) -> String {
        let scheme = self.scheme.as_deref().unwrap_or(arrival.scheme);
        let host = self.hostname.as_deref().unwrap_or(arrival.host);
        // Another scheme without a port means that scheme's own port.
        let port = self.port.unwrap_or(match &self.scheme {
            Some(_) => implied(scheme).unwrap_or(arrival.port),
            None => arrival.port,
        });
        let path = match &self.path {
            Some(change) => change.apply(arrival.path, arrival.matched),
            None => arrival.path.to_owned(),
        };
        let port = match implied(scheme) == Some(port) {
            true => String::new(),
            false => format!(":{port}"),
        };
        let query = arrival
            .query
            .map_or_else(String::new, |query| format!("?{query}"));
        format!("{scheme}://{host}{port}{path}{query}")
    }
}

fn implied(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::PathChange;
    use http::StatusCode;

    fn redirect() -> Redirect {
        Redirect {
            scheme: None,
            hostname: None,
            path: None,
            port: None,
            status: StatusCode::FOUND,
        }
    }

    fn at(port: u16) -> Arrival<'static> {
        Arrival {
            scheme: "http",
            host: "shop.example.com",
            port,
            path: "/a/b",
            query: Some("c=d"),
            matched: "/a",
        }
    }

    #[test]
    fn what_is_not_given_stays() {
        assert_eq!(redirect().location(&at(80)), "http://shop.example.com/a/b?c=d");
        assert_eq!(
            redirect().location(&at(8080)),
            "http://shop.example.com:8080/a/b?c=d"
        );
    }

    #[test]
    fn a_scheme_brings_its_port_and_a_port_stays_with_its_scheme() {
        let https = Redirect {
            scheme: Some("https".into()),
            ..redirect()
        };
        assert_eq!(https.location(&at(8080)), "https://shop.example.com/a/b?c=d");
        let odd = Redirect {
            port: Some(8443),
            ..https.clone()
        };
        assert_eq!(odd.location(&at(80)), "https://shop.example.com:8443/a/b?c=d");
        let plain = Redirect {
            port: Some(80),
            ..redirect()
        };
        assert_eq!(plain.location(&at(8080)), "http://shop.example.com/a/b?c=d");
        let crossed = Redirect {
            port: Some(80),
            ..https
        };
        assert_eq!(crossed.location(&at(8080)), "https://shop.example.com:80/a/b?c=d");
    }

    #[test]
    fn host_and_path_are_replaced() {
        let other = Redirect {
            hostname: Some("new.example.com".into()),
            path: Some(PathChange::Prefix("/z".into())),
            ..redirect()
        };
        assert_eq!(other.location(&at(80)), "http://new.example.com/z/b?c=d");
    }
}
