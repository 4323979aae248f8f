//! `weft apply`, `weft delete` and `weft diff` as an operator uses them, against a running `weft dev`.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use rig::Session;
use serde_json::Value;
use std::{
    fs,
    io::Write,
    path::Path,
    process::{Output, Stdio},
};

const SERVICE: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: cart}\nspec:\n  ports:\n    - port: 80\n";
const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: cart}
spec: {parentRefs: [{group: '', kind: Service, name: cart}]}
---
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: all}
spec: {endpointSelector: {}, ingress: [{fromEntities: [cluster]}]}
";

struct Shell<'s> {
    session: &'s Session,
    folder: &'s Path,
}

impl Shell<'_> {
    /// Exit code, output and errors.
    fn run(&self, args: &[&str], input: &str) -> (Option<i32>, String, String) {
        let mut command = self.session.command(args);
        command.current_dir(self.folder);
        command.env_remove("KUBECTL_EXTERNAL_DIFF");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let Output {
            status,
            stdout,
            stderr,
        } = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap().trim_end().to_owned();
        (status.code(), text(stdout), text(stderr))
    }

    /// The output of what must succeed without a word of complaint.
    fn ok(&self, args: &[&str]) -> String {
        let (code, out, error) = self.run(args, "");
        assert_eq!((code, error.as_str()), (Some(0), ""), "weft {args:?}: {out}");
        out
    }
}

#[test]
fn objects_are_applied_compared_and_deleted() {
    let resources = tempfile::tempdir().unwrap();
    fs::write(
        resources.path().join("fixed.yaml"),
        SERVICE.replace("cart", "fixed"),
    )
    .unwrap();
    let session = Session::start(&["--rootless", "--resources", resources.path().to_str().unwrap()]);
    let folder = tempfile::tempdir().unwrap();
    let shell = Shell {
        session: &session,
        folder: folder.path(),
    };
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("shop/1.yaml", SERVICE);
    write("shop/2.yml", ROUTE);
    write(
        "shop/deep/3.json",
        r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "deep"}, "spec": {}}"#,
    );
    write("shop/notes.txt", "not a manifest");

    // Created, unchanged, configured, with and without folders in the folder.
    let dry = shell.ok(&["apply", "-f", "shop", "--dry-run=server"]);
    assert_eq!(
        dry,
        "service/cart created (server dry run)\n\
         httproute.gateway.networking.k8s.io/cart created (server dry run)\n\
         ciliumclusterwidenetworkpolicy.cilium.io/all created (server dry run)"
    );
    assert!(!shell.ok(&["get", "svc"]).contains("cart"));
    let (code, out, _) = shell.run(&["diff", "-f", "shop"], "");
    assert_eq!(code, Some(1));
    let taken_away = |out: &str| out.lines().any(|l| l.starts_with('-') && !l.starts_with("---"));
    assert!(out.contains("+  name: cart") && !taken_away(&out), "{out}");
    let done = shell.ok(&["apply", "-f", "shop"]);
    assert_eq!(done, dry.replace(" (server dry run)", ""));
    assert!(shell.ok(&["get", "svc"]).contains("cart"));
    assert_eq!(
        shell.ok(&["apply", "-R", "-f", "shop"]),
        "service/cart unchanged\n\
         httproute.gateway.networking.k8s.io/cart unchanged\n\
         ciliumclusterwidenetworkpolicy.cilium.io/all unchanged\n\
         service/deep created"
    );
    assert_eq!(shell.ok(&["diff", "-f", "shop"]), "");
    write("shop/1.yaml", &SERVICE.replace("80", "81"));
    let (code, out, error) = shell.run(&["diff", "-f", "shop"], "");
    assert_eq!((code, error.as_str()), (Some(1), ""));
    let lines: Vec<&str> = out.lines().collect();
    assert!(
        lines
            .iter()
            .any(|l| l.starts_with("--- ") && l.contains("/v1.Service.default.cart")),
        "{out}"
    );
    assert!(
        lines
            .iter()
            .any(|l| l.starts_with('-') && l.ends_with("port: 80"))
            && lines
                .iter()
                .any(|l| l.starts_with('+') && l.ends_with("port: 81")),
        "{out}"
    );
    assert_eq!(
        shell.ok(&["apply", "-f", "shop/1.yaml"]),
        "service/cart configured"
    );

    // From standard input, into a namespace, in other forms.
    let (code, out, _) = shell.run(&["apply", "-n", "shop", "-f", "-", "-o", "name"], SERVICE);
    assert_eq!((code, out.as_str()), (Some(0), "service/cart"));
    let (code, out, _) = shell.run(&["apply", "-n", "shop", "-f", "-", "-o", "json"], SERVICE);
    let object: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &object["metadata"]["namespace"]),
        (Some(0), &"shop".into())
    );
    let out = shell.ok(&["apply", "-f", "shop", "-o", "yaml"]);
    assert!(
        out.contains("kind: List") && out.contains("kind: HTTPRoute"),
        "{out}"
    );
    // What is shown can be applied as it is, and is no change.
    let shown = shell.ok(&["get", "svc", "cart", "-n", "shop", "-o", "yaml"]);
    let (code, out, error) = shell.run(&["apply", "-f", "-", "--dry-run=server"], &shown);
    assert_eq!(code, Some(0), "{error}");
    assert_eq!(out.split(' ').next(), Some("service/cart"));

    // All mistakes of a file, and the other files all the same.
    write(
        "bad/1.yaml",
        &SERVICE.replace("port: 80", "port: 0\n      targetport: 1"),
    );
    write("bad/2.yaml", &SERVICE.replace("cart", "other"));
    let (code, out, error) = shell.run(&["apply", "-f", "bad"], "");
    assert_eq!((code, out.as_str()), (Some(1), "service/other created"));
    assert_eq!(
        error,
        "weft: bad/1.yaml:6: spec.ports[0].port: must be a port number from 1 to 65535\n\
         weft: bad/1.yaml:7: spec.ports[0].targetport: unknown field"
    );
    let (code, _, error) = shell.run(&["diff", "-f", "bad"], "");
    assert_eq!((code, error.lines().count()), (Some(2), 2), "{error}");
    // What a file of the service has is not for orders, but can be compared.
    let fixed = SERVICE.replace("cart", "fixed");
    let (code, out, error) = shell.run(&["apply", "-f", "-"], &fixed);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(
        error.starts_with("weft: <stdin>:1: metadata.name: Service default/fixed is in ")
            && error.contains("fixed.yaml, a file of the policy service's folder"),
        "{error}"
    );
    assert_eq!(shell.run(&["diff", "-f", "-"], &fixed).0, Some(0));
    assert_eq!(
        shell.run(&["diff", "-f", "-"], &fixed.replace("80", "81")).0,
        Some(1)
    );
    let (code, _, error) = shell.run(&["delete", "svc", "fixed"], "");
    assert_eq!(code, Some(1));
    assert!(
        error.contains("fixed.yaml, a file of the policy service's folder: remove it there"),
        "{error}"
    );
    // Mistakes in the command.
    let (code, _, error) = shell.run(&["apply", "-f", "-"], "");
    assert_eq!(
        (code, error.as_str()),
        (Some(1), "weft: no objects passed to apply")
    );
    assert_eq!(shell.run(&["diff", "-f", "-"], "").0, Some(2));
    assert_eq!(shell.run(&["apply", "-f", "nowhere.yaml"], "").0, Some(1));
    for wrong in [
        &["apply"][..],
        &["delete"],
        &["diff"],
        &["apply", "-f", "x", "--dry-run=maybe"],
        &["delete", "-f", "x", "svc"],
    ] {
        assert_eq!(shell.run(wrong, "").0, Some(2), "{wrong:?}");
    }

    // Gone by name, by file, and over a restart.
    assert_eq!(
        shell.ok(&["delete", "svc", "cart", "-n", "shop"]),
        "service \"cart\" deleted from shop namespace"
    );
    assert_eq!(
        shell.ok(&["delete", "--dry-run=server", "service/other", "ccnp/all"]),
        "service \"other\" deleted from default namespace (server dry run)\n\
         ciliumclusterwidenetworkpolicy.cilium.io \"all\" deleted (server dry run)"
    );
    let (code, out, error) = shell.run(&["delete", "svc", "nobody", "other"], "");
    assert_eq!(
        (code, out.as_str(), error.as_str()),
        (
            Some(1),
            "service \"other\" deleted from default namespace",
            "weft: services \"nobody\" not found"
        )
    );
    assert_eq!(shell.ok(&["delete", "svc", "nobody", "--ignore-not-found"]), "");
    // A file names its objects whatever else is wrong in it.
    let (code, out, error) = shell.run(&["delete", "-o", "name", "-f", "-"], &SERVICE.replace("80", "0"));
    assert_eq!(
        (code, out.as_str(), error.as_str()),
        (Some(0), "service/cart", "")
    );
    let mut session = session;
    assert_eq!(session.stop(), Some(0));
    session.again(&["--rootless", "--resources", resources.path().to_str().unwrap()]);
    let names = session.weft(&["get", "svc", "-o", "json"]);
    let names: Value = serde_json::from_str(&names).unwrap();
    let names: Vec<&str> = names["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| o["metadata"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["deep", "fixed"]);
}
