//! What a Service's annotations say of a shared endpoint: the Dapr runtime of an app that is no workload
//! of the mesh itself, answered by the nodes' agents.

use crate::{
    fields::{Field, Problems, join},
    tree::Value,
};
use std::fmt;
use weft_model::{check_app_id, check_dns_label};

const APP: &str = "weft.dev/shared-app";
const STRATEGY: &str = "weft.dev/strategy";
const REMOTE: &str = "weft.dev/remote";
const ACT_AS: &str = "weft.dev/act-as";
const HTTP_PORT: u16 = 80;
/// The longest name that DNS has.
const MAX_HOST: usize = 253;

/// A shared endpoint, as its Service asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedApp {
    /// As which app it speaks.
    pub app_id: String,
    /// How many there are.
    pub strategy: Strategy,
    /// The app behind it.
    pub remote: Remote,
}

/// How many endpoints there are, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// One on each node.
    Daemonset,
    /// One for the cluster.
    Deployment,
}

/// `http://<host>[:<port>]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// A Service's name, any other name, or an address; without brackets.
    pub host: String,
    /// 80 where none is written.
    pub port: u16,
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "http://[{}]:{}", self.host, self.port),
            false => write!(f, "http://{}:{}", self.host, self.port),
        }
    }
}

impl std::str::FromStr for Remote {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix("http://").ok_or_else(|| {
            let https = text.starts_with("https://");
            let why = if https { "; https is not supported yet" } else { "" };
            format!("{text:?} must begin with http://{why}")
        })?;
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest
                    .split_once(']')
                    .ok_or_else(|| format!("{text:?}: a bracket is not closed"))?;
                if host.parse::<std::net::Ipv6Addr>().is_err() {
                    return Err(format!("{host:?} is no IPv6 address"));
                }
                (host, rest)
            }
            None => match authority.find(':') {
                Some(at) => authority.split_at(at),
                None => (authority, ""),
            },
        };
        let port = match port {
            "" => HTTP_PORT,
            text => {
                let digits = text
                    .strip_prefix(':')
                    .filter(|p| p.bytes().all(|b| b.is_ascii_digit()));
                let port = digits.and_then(|p| p.parse().ok()).filter(|p| *p != 0);
                port.ok_or_else(|| format!("{text:?} must be a colon and a port from 1 to 65535"))?
            }
        };
        let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        let named = authority.starts_with('[') || host.bytes().all(sound);
        if host.is_empty() || host.len() > MAX_HOST || !named {
            return Err(format!(
                "{text:?} must be http://<host>:<port>, with neither path nor user"
            ));
        }
        Ok(Self {
            host: host.to_ascii_lowercase(),
            port,
        })
    }
}

/// Reads them out of `metadata`; `None` where there is no shared endpoint, or a wrong one, which was told.
pub(crate) fn read(metadata: &Field<'_>, problems: &mut Problems) -> Option<SharedApp> {
    let annotation = |name: &str| find(metadata, "annotations").and_then(|all| find(&all, name));
    let Some(app) = annotation(APP) else {
        for name in [STRATEGY, REMOTE, ACT_AS] {
            if let Some(field) = annotation(name) {
                field.fail(problems, format_args!("means nothing without {APP}"));
            }
        }
        return None;
    };
    let before = problems.count();
    let app_id = app.checked(problems, |id| {
        check_app_id(id).map_err(|e| e.to_string())?;
        // It is a part of its Service's name.
        check_dns_label(&format!("{id}-dapr")).map_err(|e| e.to_string())
    });
    if let (Some(app_id), Some(name)) = (&app_id, find(metadata, "name")) {
        let wanted = format!("{app_id}-dapr");
        if !matches!(&name.node.value, Value::Text(name) if *name == wanted) {
            name.fail(
                problems,
                format_args!("must be {wanted}, by which the runtime of shared app {app_id} is reached"),
            );
        }
    }
    let mut need = |name: &str, what: &str| {
        let field = annotation(name);
        if field.is_none() {
            app.fail(
                problems,
                format_args!("needs annotation {name} beside it: {what}"),
            );
        }
        field
    };
    let strategy = need(STRATEGY, "daemonset or deployment");
    let remote = need(REMOTE, "the URL of the app, as http://<host>:<port>");
    if let Some(field) = annotation(ACT_AS) {
        field.fail(problems, "is not supported yet");
    }
    let strategy = strategy.and_then(|field| match field.text(problems)?.as_str() {
        "daemonset" => Some(Strategy::Daemonset),
        "deployment" => Some(Strategy::Deployment),
        other => {
            field.fail(
                problems,
                format_args!("{other:?} is none of daemonset, deployment"),
            );
            None
        }
    });
    let remote = remote.and_then(|field| {
        let text = field.text(problems)?;
        let read = text.parse::<Remote>();
        read.map_err(|problem| field.fail(problems, problem)).ok()
    });
    let (app_id, strategy, remote) = (app_id?, strategy?, remote?);
    (problems.count() == before).then_some(SharedApp {
        app_id,
        strategy,
        remote,
    })
}

fn find<'n>(field: &Field<'n>, name: &str) -> Option<Field<'n>> {
    let Value::Map(entries) = &field.node.value else {
        return None;
    };
    let (_, _, node) = entries.iter().find(|(key, ..)| key == name)?;
    (!matches!(node.value, Value::Null)).then(|| Field {
        node,
        path: join(&field.path, name),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{Body, Service, parse};
    use proptest::prelude::{prop_assert_eq, proptest};

    fn service(metadata: &str, spec: &str) -> Result<Service, Vec<String>> {
        let text = format!("apiVersion: v1\nkind: Service\nmetadata:\n{metadata}spec:\n{spec}");
        let read = parse("f.yaml", text.as_bytes());
        match read
            .map_err(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>())?
            .remove(0)
            .body
        {
            Body::Service(service) => Ok(service),
            other => panic!("{other:?}"),
        }
    }

    const PORTS: &str = "  ports: [{port: 3500}]\n";

    fn metadata(name: &str, annotations: &[(&str, &str)]) -> String {
        let mut text = format!("  name: {name}\n  annotations:\n    a: b\n");
        for (key, value) in annotations {
            text += &format!("    {key}: {value}\n");
        }
        text
    }

    #[test]
    fn a_service_asks_for_shared_endpoints() {
        let annotations = [
            (APP, "ingress"),
            (STRATEGY, "daemonset"),
            (REMOTE, "http://Gateway.default.svc.cluster.local"),
        ];
        let shared = service(&metadata("ingress-dapr", &annotations), PORTS)
            .unwrap()
            .shared
            .unwrap();
        assert_eq!(shared.app_id, "ingress");
        assert_eq!(shared.strategy, Strategy::Daemonset);
        assert_eq!(
            shared.remote.to_string(),
            "http://gateway.default.svc.cluster.local:80"
        );
        let plain = service(&metadata("ingress-dapr", &[]), PORTS).unwrap();
        assert_eq!(plain.shared, None);
    }

    #[test]
    fn mistakes_are_told_where_they_stand() {
        let good = [(APP, "x"), (STRATEGY, "deployment"), (REMOTE, "http://a:8080")];
        assert!(service(&metadata("x-dapr", &good), PORTS).is_ok());
        // One thing differs each time.
        let with = |at: usize, value: &'static str| {
            let mut all = good;
            all[at].1 = value;
            service(&metadata("x-dapr", &all), PORTS).unwrap_err().remove(0)
        };
        assert_eq!(
            with(1, "statefulset"),
            "f.yaml:8: metadata.annotations.weft.dev/strategy: \"statefulset\" is none of daemonset, deployment"
        );
        assert!(with(2, "https://a").starts_with("f.yaml:9: metadata.annotations.weft.dev/remote: "));
        assert!(with(2, "https://a").ends_with("https is not supported yet"));
        assert!(with(0, "a/b").starts_with("f.yaml:7: metadata.annotations.weft.dev/shared-app: "));
        assert_eq!(
            with(0, "z"),
            "f.yaml:4: metadata.name: must be z-dapr, by which the runtime of shared app z is reached"
        );
        let problems = service(&metadata("x-dapr", &good[..1]), PORTS).unwrap_err();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(
            problems
                .iter()
                .all(|p| p.starts_with("f.yaml:7: metadata.annotations.weft.dev/shared-app: needs"))
        );
        let problems = service(&metadata("x-dapr", &good[1..]), PORTS).unwrap_err();
        assert!(
            problems
                .iter()
                .all(|p| p.ends_with("means nothing without weft.dev/shared-app"))
        );
        assert_eq!(problems.len(), 2, "{problems:?}");
        let selector = "  selector: {app: x}\n  ports: [{port: 3500}]\n";
        let problems = service(&metadata("x-dapr", &good), selector).unwrap_err();
        assert!(
            problems[0].starts_with("f.yaml:11: spec.selector: must not be given"),
            "{problems:?}"
        );
    }

    #[test]
    fn a_remote_is_a_host_and_a_port_and_nothing_else() {
        for (text, wanted) in [
            ("http://a", "http://a:80"),
            ("http://a:8080/", "http://a:8080"),
            ("http://10.0.0.1:81", "http://10.0.0.1:81"),
            ("http://[fd00::1]", "http://[fd00::1]:80"),
        ] {
            assert_eq!(text.parse::<Remote>().unwrap().to_string(), wanted);
        }
        for text in [
            "",
            "a",
            "http://",
            "http:///",
            "http://:80",
            "http://a:0",
            "http://a:65536",
            "http://a:+1",
            "http://a/b",
            "http://u@a",
            "http://a b",
            "http://[fd00::1",
            "http://[x]",
            "http://[fd00::1]x",
            "http://a?b",
            "ftp://a",
            "http://a:80:80",
        ] {
            assert!(text.parse::<Remote>().is_err(), "{text} was taken");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_the_same(text in "(http://)?[a-z\\[\\]:./@0-9 -]{0,20}") {
            if let Ok(remote) = text.parse::<Remote>() {
                prop_assert_eq!(remote.to_string().parse::<Remote>(), Ok(remote));
            }
        }
    }
}
