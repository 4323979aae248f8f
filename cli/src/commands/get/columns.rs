//! The columns of each kind, as `kubectl get` prints them.

use crate::output::duration;
use serde_json::Value;
use weft_resources::Kind;

/// Column names; the first is the object's name.
pub(super) fn header(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Service => &["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"],
        Kind::Gateway => &["NAME", "CLASS", "ADDRESS", "PROGRAMMED", "AGE"],
        Kind::GatewayClass => &["NAME", "CONTROLLER", "ACCEPTED", "AGE"],
        Kind::HttpRoute | Kind::GrpcRoute => &["NAME", "HOSTNAMES", "AGE"],
        Kind::NetworkPolicy => &["NAME", "POD-SELECTOR", "AGE"],
        Kind::Ingress => &["NAME", "CLASS", "HOSTS", "ADDRESS", "PORTS", "AGE"],
        Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy => &["NAME", "AGE", "VALID"],
        Kind::Namespace => &["NAME", "STATUS", "AGE"],
        _ => &["NAME", "AGE"],
    }
}

/// One object's cells.
pub(super) fn row(kind: Kind, object: &Value, now: u64) -> Vec<String> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let name = text(&object["metadata"]["name"]);
    let age = age(&object["metadata"]["creationTimestamp"], now);
    match kind {
        Kind::Service => {
            let kind = or(text(&spec["type"]), "ClusterIP");
            let address = or(text(&spec["clusterIP"]), "<none>");
            let ports = spec["ports"].as_array().into_iter().flatten();
            let ports: Vec<String> = ports.map(port).collect();
            vec![
                name,
                kind,
                address,
                "<none>".into(),
                or(ports.join(","), "<none>"),
                age,
            ]
        }
        Kind::Gateway => {
            let addresses = status["addresses"].as_array().into_iter().flatten();
            let addresses: Vec<String> = addresses.map(|a| text(&a["value"])).collect();
            let class = text(&spec["gatewayClassName"]);
            vec![
                name,
                class,
                addresses.join(","),
                condition(status, "Programmed"),
                age,
            ]
        }
        Kind::GatewayClass => {
            vec![
                name,
                text(&spec["controllerName"]),
                condition(status, "Accepted"),
                age,
            ]
        }
        Kind::HttpRoute | Kind::GrpcRoute => {
            let names = &spec["hostnames"];
            vec![
                name,
                if names.is_array() {
                    names.to_string()
                } else {
                    String::new()
                },
                age,
            ]
        }
        Kind::NetworkPolicy => {
            let labels = spec["podSelector"]["matchLabels"]
                .as_object()
                .into_iter()
                .flatten();
            let labels: Vec<String> = labels.map(|(k, v)| format!("{k}={}", text(v))).collect();
            vec![name, or(labels.join(","), "<none>"), age]
        }
        Kind::Ingress => {
            let mut hosts: Vec<String> = Vec::new();
            for rule in spec["rules"].as_array().into_iter().flatten() {
                let host = or(text(&rule["host"]), "*");
                if !hosts.contains(&host) {
                    hosts.push(host);
                }
            }
            let all = status["loadBalancer"]["ingress"].as_array().into_iter().flatten();
            let addresses: Vec<String> = all.map(|a| text(&a["ip"])).collect();
            let secure = spec["tls"].as_array().is_some_and(|tls| !tls.is_empty());
            vec![
                name,
                or(text(&spec["ingressClassName"]), "<none>"),
                or(hosts.join(","), "*"),
                addresses.join(","),
                if secure { "80, 443" } else { "80" }.to_owned(),
                age,
            ]
        }
        Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy => {
            vec![name, age, condition(status, "Valid")]
        }
        Kind::Namespace => vec![name, text(&status["phase"]), age],
        _ => vec![name, age],
    }
}

/// A text as it is, a number in digits, nothing for everything else.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    }
}

fn or(text: String, instead: &str) -> String {
    if text.is_empty() { instead.to_owned() } else { text }
}

fn port(port: &Value) -> String {
    format!("{}/{}", text(&port["port"]), or(text(&port["protocol"]), "TCP"))
}

fn condition(status: &Value, kind: &str) -> String {
    let mut all = status["conditions"].as_array().into_iter().flatten();
    all.find(|c| c["type"] == kind)
        .map_or_else(String::new, |c| text(&c["status"]))
}

fn age(created: &Value, now: u64) -> String {
    let created = time::OffsetDateTime::parse(&text(created), &time::format_description::well_known::Rfc3339);
    let seconds = created.ok().and_then(|t| u64::try_from(t.unix_timestamp()).ok());
    seconds.map_or_else(|| "<unknown>".into(), |at| duration(now.saturating_sub(at)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ages_are_told() {
        assert_eq!(age(&json!("1970-01-01T00:01:40Z"), 105), "5s");
        assert_eq!(age(&json!(null), 105), "<unknown>");
    }

    #[test]
    fn every_kind_has_a_cell_for_each_column() {
        for kind in Kind::ALL {
            assert_eq!(row(kind, &json!({}), 0).len(), header(kind).len(), "{kind}");
        }
    }

    #[test]
    fn an_ingress_is_shown_with_its_hosts_and_address() {
        let mut ingress = json!({
            "metadata": {"name": "web"},
            "spec": {"ingressClassName": "cilium", "rules": [{"host": "a.test"}, {"host": "b.test"}, {"host": "a.test"}, {}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}},
        });
        let cells = [
            "web",
            "cilium",
            "a.test,b.test,*",
            "10.0.0.1,fd00::1",
            "80",
            "<unknown>",
        ];
        assert_eq!(row(Kind::Ingress, &ingress, 5), cells);
        ingress["spec"] = json!({"tls": [{}]});
        assert_eq!(
            row(Kind::Ingress, &ingress, 5)[1..5],
            ["<none>", "*", "10.0.0.1,fd00::1", "80, 443"]
        );
    }

    #[test]
    fn services_and_gateways_are_shown_with_their_addresses() {
        let service = json!({
            "metadata": {"name": "a", "creationTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]},
        });
        assert_eq!(
            row(Kind::Service, &service, 5),
            ["a", "ClusterIP", "10.0.0.1", "<none>", "80/TCP,53/UDP", "5s"]
        );
        let gateway = json!({
            "metadata": {"name": "g"},
            "spec": {"gatewayClassName": "cilium"},
            "status": {
                "addresses": [{"value": "10.0.0.1"}, {"value": "fd00::1"}],
                "conditions": [{"type": "Accepted", "status": "True"}, {"type": "Programmed", "status": "False"}],
            },
        });
        assert_eq!(
            row(Kind::Gateway, &gateway, 5),
            ["g", "cilium", "10.0.0.1,fd00::1", "False", "<unknown>"]
        );
    }
}
