//! The manifests of `examples/` and what the charts of `deploy/` render, in the eyes of Helm and of
//! Kubernetes' own schemas.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use weft_process_tests::binary;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn tool(name: &str) -> Command {
    let target = binary("weft").ancestors().nth(2).unwrap().to_owned();
    let tool = target.join("venv/bin").join(name);
    assert!(tool.exists(), "{} is missing: cargo xtask setup", tool.display());
    Command::new(tool)
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn render(app: &str, more: &[&str]) -> Output {
    let mut helm = tool("helm");
    helm.args(["template", app, "--namespace", "default"])
        .arg(repository("deploy/charts/dapr-shared"))
        .arg("-f")
        .arg(repository(&format!("examples/whoami/{app}-values.yaml")))
        .args(more);
    helm.output().unwrap()
}

/// Documents without comments: Helm adds one with the template's name.
fn plain(yaml: &str) -> Vec<&str> {
    let said = |line: &&str| !line.starts_with('#') && !line.trim().is_empty();
    yaml.lines().filter(said).collect()
}

#[test]
fn shared_endpoints_are_what_the_chart_renders() {
    for app in ["ingress", "whoami"] {
        let rendered = render(app, &[]);
        assert!(rendered.status.success(), "{}", text(&rendered));
        let kept = fs::read_to_string(repository(&format!("examples/whoami/shared-{app}.yaml"))).unwrap();
        let rendered = String::from_utf8(rendered.stdout).unwrap();
        assert_eq!(
            plain(&rendered),
            plain(&kept),
            "shared-{app}.yaml is not up to date"
        );
    }
}

#[test]
fn the_chart_refuses_what_it_can_not_render() {
    for (wrong, named) in [
        ("shared.appId=", "shared.appId"),
        ("shared.strategy=statefulset", "shared.strategy"),
        ("shared.remotePort=0", "shared.remotePort"),
    ] {
        let rendered = render("whoami", &["--set", wrong]);
        let said = text(&rendered);
        assert!(
            !rendered.status.success() && said.contains(named),
            "{wrong}: {said}"
        );
    }
    let rendered = render("whoami", &["--set", "shared.strategy=daemonset"]);
    assert!(rendered.status.success(), "{}", text(&rendered));
}

#[test]
fn what_kubernetes_itself_reads_fits_its_schemas() {
    for file in ["whoami", "services", "shared-ingress", "shared-whoami"] {
        let path = repository(&format!("examples/whoami/{file}.yaml"));
        let checked = tool("kubernetes-validate")
            .args(["-k", "1.36", "--strict"])
            .arg(&path)
            .output()
            .unwrap();
        let said = text(&checked);
        assert!(
            checked.status.success() && said.contains("passed"),
            "{file}: {said}"
        );
    }
    // The same with one field that there is not.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("services.yaml");
    let good = fs::read_to_string(repository("examples/whoami/services.yaml")).unwrap();
    fs::write(&path, good.replacen("targetPort:", "targetDoor:", 1)).unwrap();
    let checked = tool("kubernetes-validate")
        .args(["-k", "1.36", "--strict"])
        .arg(&path)
        .output()
        .unwrap();
    assert!(!checked.status.success(), "{}", text(&checked));
}

#[test]
fn what_weft_reads_of_the_examples_is_valid() {
    let folder = repository("examples/whoami");
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        // A cluster makes pods of Deployments; Helm reads values.
        if !name.ends_with(".yaml") || name.ends_with("-values.yaml") || name == "whoami.yaml" {
            continue;
        }
        seen += 1;
        let mut weft = Command::new(binary("weft"));
        let checked = weft.args(["validate", "-f"]).arg(&path).output().unwrap();
        assert!(checked.status.success(), "{name}: {}", text(&checked));
    }
    assert!(seen >= 10, "only {seen} manifests");
    // The same with one field that there is not.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.yaml");
    let good = fs::read_to_string(repository("examples/whoami/gateway.yaml")).unwrap();
    fs::write(&path, good.replacen("protocol:", "protokol:", 1)).unwrap();
    let mut weft = Command::new(binary("weft"));
    let checked = weft.args(["validate", "-f"]).arg(&path).output().unwrap();
    assert!(!checked.status.success(), "{}", text(&checked));
}
