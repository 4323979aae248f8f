//! From a container to a workload.

use super::engine::Inspected;
use std::collections::HashMap;
use weft_model::{check_app_id, check_dns_label, check_name};
use weft_proto::weft::dataplane::v1::{WorkloadSpec, workload_spec::Place};

/// Makes a container a workload, beside its app-id.
const WORKLOAD: &str = "weft.dev/workload";
const NAMESPACE: &str = "weft.dev/namespace";
const APP_ID: &str = "dapr.io/app-id";
const APP_PORT: &str = "dapr.io/app-port";
const APP_PROTOCOL: &str = "dapr.io/app-protocol";
/// Which run of which container a workload is: an id alone would take a restarted one for itself.
pub const RUN: &str = "weft.dev/container";
/// Labels of tools, which say nothing about the app.
const OF_TOOLS: [&str; 4] = [
    "com.docker.",
    "desktop.docker.",
    "org.opencontainers.",
    "io.buildah.",
];

/// Whether its labels ask for it.
pub fn is_workload<'a>(label: impl Fn(&str) -> Option<&'a str>) -> bool {
    label(APP_ID).is_some() || label(WORKLOAD) == Some("true")
}

/// The run of a container.
pub fn run_of(container: &Inspected) -> String {
    format!("{}/{}", container.id, container.state.started_at)
}

/// What the agent is told of it, or why it can be no workload.
pub fn spec(container: &Inspected) -> Result<WorkloadSpec, String> {
    let empty = Default::default();
    let all = container.config.labels.as_ref().unwrap_or(&empty);
    let label = |key: &str| all.get(key).map(String::as_str);
    let mode = &container.host_config.network_mode;
    if mode == "host" || mode == "none" || mode.starts_with("container:") {
        return Err(format!("network mode {mode}: it has no network of its own"));
    }
    let name = container.name.trim_start_matches('/').replace('_', "-");
    let name = name.to_ascii_lowercase();
    check_name(&name).map_err(|e| format!("name {name:?}: {e}"))?;
    let namespace = label(NAMESPACE).unwrap_or("default");
    check_dns_label(namespace).map_err(|e| format!("label {NAMESPACE}: {e}"))?;
    let app_id = label(APP_ID).unwrap_or_default();
    if !app_id.is_empty() {
        check_app_id(app_id).map_err(|e| format!("label {APP_ID}: {e}"))?;
    }
    let app_port = match label(APP_PORT) {
        None => 0,
        Some(text) => match text.parse::<u16>() {
            Ok(port) if port > 0 => port.into(),
            _ => return Err(format!("label {APP_PORT}: {text:?} is no port")),
        },
    };
    let annotation = |key: &str| key.starts_with("dapr.io/") || key.starts_with("weft.dev/");
    let mut annotations: HashMap<String, String> = all
        .iter()
        .filter(|(key, _)| annotation(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    annotations.insert(RUN.to_owned(), run_of(container));
    let labels = all.iter().filter(|(key, value)| {
        !annotation(key) && !OF_TOOLS.iter().any(|tool| key.starts_with(tool)) && is_label(key, value)
    });
    let networks = container.network_settings.networks.iter().flatten();
    let addresses = networks
        .flat_map(|(_, n)| [&n.ip_address, &n.global_ipv6_address])
        .filter(|a| !a.is_empty());
    Ok(WorkloadSpec {
        namespace: namespace.to_owned(),
        name,
        labels: labels.map(|(k, v)| (k.clone(), v.clone())).collect(),
        annotations,
        app_id: app_id.to_owned(),
        service_account: String::new(),
        app_port,
        app_protocol: label(APP_PROTOCOL).unwrap_or_default().to_owned(),
        addresses: addresses.cloned().collect(),
        // By annotation, where somebody says them.
        named_ports: Vec::new(),
        place: Some(Place::NetnsPid(container.state.pid)),
    })
}

/// Docker allows any text; what is no label of Kubernetes can be selected by no policy.
fn is_label(key: &str, value: &str) -> bool {
    let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let key_sound = !key.is_empty() && key.len() <= 317 && key.bytes().all(|b| sound(b) || b == b'/');
    key_sound && value.len() <= 63 && value.bytes().all(sound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn container(labels: &[(&str, &str)], mode: &str) -> Inspected {
        let labels: HashMap<_, _> = labels.iter().copied().collect();
        serde_json::from_value(json!({
            "Id": "ab12",
            "Name": "/shop_whoami_1",
            "State": {"Running": true, "Pid": 42, "StartedAt": "2026-01-01T00:00:00Z"},
            "Config": {"Labels": labels},
            "HostConfig": {"NetworkMode": mode},
            "NetworkSettings": {"Networks": {"shop_default": {"IPAddress": "172.18.0.3", "GlobalIPv6Address": ""}}},
        }))
        .expect("a container")
    }

    #[test]
    fn labels_say_what_a_container_is() {
        let container = container(
            &[
                (APP_ID, "whoami"),
                (APP_PORT, "80"),
                (NAMESPACE, "shop"),
                ("app", "whoami"),
                ("version", "v1"),
                ("com.docker.compose.project", "shop"),
                ("description", "has spaces"),
            ],
            "shop_default",
        );
        let spec = spec(&container).expect("a workload");
        assert_eq!(
            (&*spec.namespace, &*spec.name, &*spec.app_id),
            ("shop", "shop-whoami-1", "whoami")
        );
        assert_eq!(spec.app_port, 80);
        assert_eq!(spec.place, Some(Place::NetnsPid(42)));
        assert_eq!(spec.addresses, ["172.18.0.3"]);
        let labels: HashMap<_, _> = [("app", "whoami"), ("version", "v1")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into();
        assert_eq!(spec.labels, labels);
        assert_eq!(spec.annotations[RUN], "ab12/2026-01-01T00:00:00Z");
        assert_eq!(spec.annotations[APP_ID], "whoami");
    }

    #[test]
    fn what_can_be_no_workload_says_why() {
        for (labels, mode, says) in [
            (&[(APP_ID, "a")][..], "host", "network mode host"),
            (&[(APP_ID, "a")], "container:ab", "network mode container:ab"),
            (&[(APP_ID, "no such/id")], "bridge", "dapr.io/app-id"),
            (&[(APP_PORT, "0")], "bridge", "dapr.io/app-port"),
            (&[(NAMESPACE, "No")], "bridge", "weft.dev/namespace"),
        ] {
            let refused = spec(&container(labels, mode)).expect_err("no workload");
            assert!(refused.contains(says), "{refused}");
        }
        assert!(spec(&container(&[(APP_ID, "a"), (APP_PORT, "1")], "bridge")).is_ok());
    }

    #[test]
    fn only_labelled_ones_are_meant() {
        let asks = |key: &'static str, value: &'static str| is_workload(|k| (k == key).then_some(value));
        assert!(asks(APP_ID, "a"));
        assert!(asks(WORKLOAD, "true"));
        assert!(!asks(WORKLOAD, "false"));
        assert!(!asks("app", "whoami"));
    }
}
