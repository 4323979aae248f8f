//! `weft dev` and `weft run` as a user without rights meets them: real processes, two apps that call
//! each other, and everything gone at the end.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use rig::{Session, get, weft_exe};
use std::process::Command;

#[test]
fn two_apps_call_each_other_and_are_known_by_their_tokens() {
    let session = Session::start(&["--rootless"]);
    let cart = session.app("cart", &[]);
    let billing = session.app("billing", &[]);

    let reply = get(cart.port, "/call?app=billing&id=one");
    assert!(
        reply.contains("\"caller\":\"cart\"") && reply.contains("\"id\":\"one\""),
        "{reply}"
    );
    let reply = get(billing.port, "/call?app=cart&id=two");
    assert!(
        reply.contains("\"caller\":\"billing\"") && reply.contains("\"id\":\"two\""),
        "{reply}"
    );

    let status = session.weft(&["status", "-o", "json"]);
    assert!(
        status.contains("spiffe://cluster.local/ns/default/cart"),
        "{status}"
    );
    assert!(
        status.contains("\"kernel-policy\""),
        "what is not enforced must be said: {status}"
    );
    assert!(session.weft(&["status", "-o", "yaml"]).contains("kernel-policy"));
    let flows = session.weft(&["observe", "--from-pod", "cart", "-o", "json"]);
    assert!(
        flows.contains("\"port-token\"") && flows.contains("billing"),
        "{flows}"
    );
    assert_eq!(session.weft(&["observe", "--from-pod", "nobody"]), "");

    // An app's own exit code is the command's, and its workload goes with it.
    let mut once = session.command(&["run", "--app-id", "once", "--", "sh", "-c", "exit 7"]);
    assert_eq!(once.status().unwrap().code(), Some(7));
    session.until("once to be gone", || {
        !session
            .weft(&["status", "-o", "json"])
            .contains("ns/default/once")
    });
}

#[test]
fn the_api_port_of_an_app_needs_its_token() {
    let session = Session::start(&["--rootless"]);
    let script = "echo port=$DAPR_HTTP_PORT; curl -s -o /dev/null -w 'without=%{http_code}\\n' \
                  http://127.0.0.1:$DAPR_HTTP_PORT/v1.0/metadata; \
                  curl -s -o /dev/null -w 'with=%{http_code}\\n' -H \"dapr-api-token: $DAPR_API_TOKEN\" \
                  http://127.0.0.1:$DAPR_HTTP_PORT/v1.0/metadata";
    let output = session
        .command(&["run", "--app-id", "probe", "--", "sh", "-c", script])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("with=200") && text.contains("without=401"),
        "{text}"
    );
}

#[test]
fn an_operator_gets_credentials_and_tokens() {
    let session = Session::start(&["--rootless"]);
    let out = session.dir().join("cert");
    let said = session.weft(&["admin", "cert", "--out", out.to_str().unwrap()]);
    assert!(
        said.contains("spiffe://cluster.local/weft/admin/operator") && said.contains("grpcurl"),
        "{said}"
    );
    // The flags, each with its file.
    let file = |name: &str| out.join(name).display().to_string();
    let flags = format!(
        "grpcurl -cacert {} -cert {} -key {} -authority weft-identity 127.0.0.1:7301 list",
        file("ca.pem"),
        file("client.pem"),
        file("client-key.pem")
    );
    assert!(said.contains(&flags), "{said}");
    for (file, secret) in [("client.pem", false), ("client-key.pem", true), ("ca.pem", false)] {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(out.join(file)).unwrap().permissions().mode() & 0o077;
        assert_eq!(mode == 0, secret, "{file} has mode {mode:o}");
    }
    let token = session.weft(&[
        "identity",
        "join-token",
        "create",
        "--kind",
        "node",
        "--name",
        "n9",
        "--may-host",
        "default/*",
    ]);
    assert!(token.starts_with("weft1."), "{token}");
    let audit = session.weft(&["identity", "audit", "-o", "json"]);
    assert!(
        audit.contains("sign-admin") && !audit.contains(token.trim()),
        "{audit}"
    );

    let shown = session.weft(&["identity", "show"]);
    assert!(
        shown.contains("ECDSA P-256") && shown.contains("cluster.local"),
        "{shown}"
    );
    let said = session.weft(&["identity", "rotate", "--issuer"]);
    assert!(said.contains("new issuer"), "{said}");
    let listed = session.weft(&["identity", "list", "spiffe://cluster.local/weft/admin/operator"]);
    assert_eq!(listed.lines().count(), 2, "{listed}");
    let gone = "spiffe://cluster.local/ns/default/gone";
    session.weft(&["identity", "revoke", gone, "--reason", "its key leaked"]);
    let revoked = session.weft(&["identity", "revocations"]);
    assert!(
        revoked.contains(gone) && revoked.contains("its key leaked"),
        "{revoked}"
    );
    session.weft(&["identity", "reinstate", gone]);
    let (passphrase, backup) = (session.dir().join("passphrase"), session.dir().join("backup"));
    std::fs::write(&passphrase, "correct horse battery\n").unwrap();
    let (passphrase, backup) = (passphrase.to_str().unwrap(), backup.to_str().unwrap());
    session.weft(&[
        "identity",
        "backup",
        "--out",
        backup,
        "--passphrase-file",
        passphrase,
    ]);
    let state = session.dir().join("restored");
    let state = state.to_str().unwrap();
    let restore = [
        "identity",
        "restore",
        backup,
        "--passphrase-file",
        passphrase,
        "--state-dir",
        state,
    ];
    let said = session.weft(&restore);
    assert!(said.contains("authority of cluster.local is restored"), "{said}");
    let exported = session.weft(&["identity", "audit", "--all"]);
    assert!(
        exported.lines().count() > 8 && exported.lines().all(|l| l.starts_with('{')),
        "{exported}"
    );
}

/// Every order and question about the authority: for scripts as JSON and YAML, and what it ends with.
#[test]
fn what_identity_is_asked_is_told_in_each_form() {
    let session = Session::start(&["--rootless"]);
    let file = |name: &str| session.dir().join(name).to_str().unwrap().to_owned();
    std::fs::write(file("passphrase"), "correct horse battery\n").unwrap();
    let gone = "spiffe://cluster.local/ns/default/gone";
    let token = ["join-token", "create", "--kind", "node", "--name", "n9"];
    let by_file = ["--passphrase-file", &file("passphrase")];
    for (n, form) in ["json", "yaml"].into_iter().enumerate() {
        let (backup, state) = (file(&format!("backup-{n}")), file(&format!("restored-{n}")));
        let kept = file(&format!("token-{n}"));
        let cases: Vec<(Vec<&str>, &[&str])> = vec![
            (vec!["show"], &["roots", "issuers", "phase"]),
            (vec!["list"], &[]),
            (vec!["audit"], &[]),
            (vec!["rotate", "--issuer"], &["target", "phase"]),
            (vec!["rotate", "--leaves"], &["target", "phase"]),
            (vec!["revoke", gone, "--reason", "test"], &["target", "reason"]),
            (vec!["revocations"], &[]),
            (vec!["reinstate", gone], &["spiffeId"]),
            (token.to_vec(), &["token", "expires", "kind", "name"]),
            ([&token[..], &["--out", &kept]].concat(), &["file", "expires"]),
            (
                [&["backup", "--out", &backup], &by_file[..]].concat(),
                &["file", "bytes"],
            ),
            (
                [&["restore", &backup, "--state-dir", &state], &by_file[..]].concat(),
                &["trustDomain"],
            ),
            (vec!["rotate", "--root"], &["target", "phase"]),
        ];
        for (args, fields) in cases {
            let args = [&["identity"], &args[..], &["-o", form]].concat();
            let text = session.weft(&args);
            let value: serde_json::Value = match form {
                "json" => serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}")),
                _ => serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}")),
            };
            if fields.is_empty() {
                let first = &value.as_array().unwrap_or_else(|| panic!("{args:?}: {text}"))[0];
                assert!(first.is_object(), "{args:?}: {text}");
            }
            for field in fields {
                assert!(!value[*field].is_null(), "{args:?} has no {field}: {text}");
            }
        }
    }
    // Each issuer with the root that it is under, the same in each form. Roots were replaced above.
    let text = session.weft(&["identity", "show", "-o", "json"]);
    let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
    let by_yaml = session.weft(&["identity", "show", "-o", "yaml"]);
    let by_yaml: serde_json::Value = serde_saphyr::from_str(&by_yaml).unwrap();
    let table = session.weft(&["identity", "show"]);
    for column in ["KIND", "STATE", "AGE", "UNTIL", "SHA-256", "UNDER ROOT"] {
        assert!(table.lines().next().unwrap().contains(column), "{table}");
    }
    let all = |shown: &serde_json::Value, kind: &str| shown[kind].as_array().unwrap().clone();
    let is_root = |sha256: &serde_json::Value| all(&shown, "roots").iter().any(|r| r["sha256"] == *sha256);
    let issuers = all(&shown, "issuers");
    assert!(issuers.iter().any(|i| !i["crossRootSha256"].is_null()), "{text}");
    for (issuer, in_yaml) in issuers.iter().zip(all(&by_yaml, "issuers")) {
        assert!(is_root(&issuer["rootSha256"]), "{text}");
        assert_eq!(in_yaml["sha256"], issuer["sha256"]);
        assert_eq!(in_yaml["rootSha256"], issuer["rootSha256"]);
        let short = |field: &str| issuer[field].as_str().map_or("", |sha256| &sha256[..16]);
        let line = table
            .lines()
            .find(|l| l.starts_with("issuer") && l.contains(short("sha256")));
        let under = line
            .unwrap_or_else(|| panic!("{table}"))
            .split(short("sha256"))
            .nth(1)
            .unwrap();
        assert!(
            under.contains(short("rootSha256")) && under.contains(short("crossRootSha256")),
            "{table}"
        );
        assert_eq!(
            under.contains("also"),
            !issuer["crossRootSha256"].is_null(),
            "{table}"
        );
    }
    assert!(
        all(&shown, "roots")
            .iter()
            .all(|root| root["rootSha256"].is_null()),
        "{text}"
    );
    let ends = |args: &[&str]| {
        let output = session.try_weft(args);
        let text = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), text.trim().lines().count())
    };
    // Refused by the service, and not understood at all.
    assert_eq!(
        ends(&["identity", "reinstate", "spiffe://cluster.local/ns/a/b"]),
        (Some(1), 1)
    );
    assert_eq!(
        ends(&["identity", "revoke", "nothing", "--reason", "x"]),
        (Some(1), 1)
    );
    assert_eq!(
        ends(&[
            "identity",
            "backup",
            "--out",
            &file("backup-0"),
            by_file[0],
            by_file[1]
        ])
        .0,
        Some(1)
    );
    for wrong in [
        &["identity", "rotate"][..],
        &["identity", "rotate", "--root", "--issuer"],
        &["identity", "revoke", gone],
        &["identity", "show", "-o", "xml"],
        &["identity", "list", "--last", "0"],
    ] {
        assert_eq!(ends(wrong).0, Some(2), "{wrong:?}");
    }
}

#[test]
fn manifests_are_checked_without_a_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let policy = |peers: &str| {
        format!(
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p}}\nspec:\n  \
             endpointSelector: {{}}\n  ingress:\n  - {peers}\n"
        )
    };
    let (good, bad) = (policy("fromEntities: [world]"), policy("fromEntities: [word]"));
    std::fs::write(folder.path().join("a.yaml"), &good).unwrap();
    let validate = |file: &str, input: &str| {
        let mut child = Command::new(weft_exe())
            .args(["validate", "-f", file])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // It may end before it has read all.
        let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let path = folder.path().to_str().unwrap();
    let (code, said, error) = validate(path, "");
    assert_eq!(
        (code, said.trim()),
        (Some(0), "1 objects in 1 files are valid"),
        "{error}"
    );
    std::fs::write(folder.path().join("b.yaml"), &bad).unwrap();
    let (code, said, _) = validate(path, "");
    assert_eq!(code, Some(1));
    let place = format!("{path}/b.yaml:7: spec.ingress[0].fromEntities[0]: unknown entity \"word\"");
    assert!(said.starts_with(&place), "{said}");
    assert_eq!(validate("-", &good).0, Some(0));
    let (code, said, _) = validate("-", &bad);
    assert!(
        code == Some(1) && said.starts_with("<stdin>:7: spec.ingress[0]"),
        "{said}"
    );
    let (code, _, error) = validate("/nowhere/p.yaml", "");
    assert!(code == Some(1) && error.contains("/nowhere/p.yaml"), "{error}");
}

#[test]
fn explain_answers_by_its_exit_code_as_policy_does() {
    let folder = tempfile::tempdir().unwrap();
    let policy = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: billing}\n\
                  spec:\n  endpointSelector: {matchLabels: {dapr.io/app-id: billing}}\n  ingress:\n  \
                  - fromEndpoints: [{matchLabels: {dapr.io/app-id: cart}}]\n    \
                  toPorts: [{ports: [{port: '50002', protocol: TCP}]}]\n";
    std::fs::write(folder.path().join("policy.yaml"), policy).unwrap();
    let session = Session::start(&["--rootless", "--resources", folder.path().to_str().unwrap()]);
    let cart = session.app("cart", &[]);
    let _billing = session.app("billing", &[]);
    let shop = session.app("shop", &[]);
    let explain = |args: &[&str]| {
        let mut all = vec!["explain"];
        all.extend(args);
        let output = session.command(&all).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, said, error) = explain(&["--from", "cart", "--to", "default/billing", "--port", "50002"]);
    assert_eq!(code, Some(0), "{error}");
    assert!(said.starts_with("ALLOWED: default/cart"), "{said}");
    assert!(
        said.contains("CiliumNetworkPolicy/default/billing: ingress[0].toPorts[0].ports[0]"),
        "{said}"
    );
    assert!(get(cart.port, "/call?app=billing&id=one").contains("\"id\":\"one\""));
    // Who asks differs, then the port.
    let (code, said, _) = explain(&["--from", "shop", "--to", "billing", "--port", "50002/tcp"]);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("denied by default") && said.contains("CiliumNetworkPolicy/default/billing: ingress "),
        "{said}"
    );
    assert!(!get(shop.port, "/call?app=billing&id=two").contains("\"id\":\"two\""));
    let (code, said, _) = explain(&["--from", "cart", "--to", "billing", "--port", "80", "-o", "json"]);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("\"allowed\": false") && said.contains("\"denied by default\""),
        "{said}"
    );
    let (_, said, _) = explain(&["--from", "cart", "--to", "billing", "--port", "80", "-o", "yaml"]);
    assert!(said.contains("allowed: false"), "{said}");

    // No answer is no refusal.
    let ask = ["--from", "cart", "--to", "nobody", "--port", "80"];
    let (code, _, error) = explain(&ask);
    assert!(
        code == Some(2) && error.contains("\"nobody\""),
        "{code:?} {error}"
    );
    let (code, _, error) = explain(&["--from", "cart", "--to", "billing", "--port", "80/tls"]);
    assert!(code == Some(2) && error.contains("tls"), "{code:?} {error}");
    // With a certificate from files, as from elsewhere.
    let cert = session.dir().join("ops");
    session.weft(&["admin", "cert", "--out", cert.to_str().unwrap()]);
    let mut all = vec![
        "--from",
        "cart",
        "--to",
        "billing",
        "--port",
        "50002",
        "--cert-dir",
    ];
    all.push(cert.to_str().unwrap());
    assert_eq!(explain(&all).0, Some(0));
    let (code, _, error) = explain(&[
        "--from",
        "a",
        "--to",
        "b",
        "--port",
        "80",
        "--server",
        "127.0.0.1:1",
    ]);
    assert!(code == Some(2) && error.contains("--server"), "{code:?} {error}");
}

#[test]
fn state_survives_a_restart_and_ctrl_c_ends_in_order() {
    let mut session = Session::start(&["--rootless"]);
    let before = session.weft(&["identity", "audit", "--last", "1000", "-o", "json"]);
    assert_eq!(session.stop(), Some(0));
    session.again(&["--rootless"]);
    let after = session.weft(&["identity", "audit", "--last", "1000", "-o", "json"]);
    let join = |text: &str| text.matches("\"action\": \"join\"").count();
    assert!(
        join(&before) > 0 && join(&after) == join(&before),
        "members joined again:\n{before}\n{after}"
    );
}

#[test]
fn wrong_use_is_said_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let weft = |args: &[&str]| {
        let output = Command::new(weft_exe())
            .args(args)
            .env("WEFT_RUN_DIR", dir.path())
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = weft(&["run", "--app-id", "a", "--", "true"]);
    assert_eq!(code, Some(1));
    assert!(
        text.contains("weft dev") && text.trim().lines().count() == 1,
        "{text}"
    );
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let file = file.to_str().unwrap();
    let long = dir.path().join("x".repeat(120));
    let long = long.to_str().unwrap();
    let state = dir.path().join("state");
    let dev = |args: &[&str]| {
        let mut all = vec!["dev", "--rootless", "--ephemeral-ports"];
        all.extend(args);
        if !args.contains(&"--state-dir") {
            all.extend(["--state-dir", state.to_str().unwrap()]);
        }
        weft(&all)
    };
    for ((code, text), expected, names) in [
        (weft(&["run", "--app-id", "a/b", "--", "true"]), 2, "app-id"),
        (
            weft(&["run", "--app-id", "a", "-n", "A_b", "--", "true"]),
            2,
            "A_b",
        ),
        (weft(&["run", "--app-id", "a"]), 2, "weft run --help"),
        (
            weft(&["identity", "join-token", "create"]),
            2,
            "weft identity join-token create --help",
        ),
        (weft(&["observe", "--since", "soon"]), 2, "soon"),
        (weft(&["frobnicate"]), 2, "weft --help"),
        (dev(&["--node-name", "A b"]), 2, "A b"),
        (dev(&["--resources", "/nowhere/at/all"]), 1, "--resources"),
        (dev(&["--resources", file]), 1, "--resources"),
        (dev(&["--state-dir", file]), 1, "--state-dir"),
        (dev(&["--run-dir", file]), 1, "--run-dir"),
        (dev(&["--run-dir", long]), 1, "--run-dir"),
    ] {
        assert_eq!(code, Some(expected), "{text}");
        assert!(
            text.contains(names) && text.trim().lines().count() == 1,
            "{names}: {text}"
        );
    }
    assert_eq!(weft(&["--help"]).0, Some(0));
}

#[test]
fn a_second_dev_and_a_missing_program_are_named() {
    let session = Session::start(&["--rootless"]);
    // It gives certificates without a proof, and does not hide it.
    let told = session.log("dev");
    assert_eq!(told.matches("INSECURE").count(), 1, "{told}");
    let say = |args: &[&str]| {
        let output = session.command(args).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert_eq!(text.trim().lines().count(), 1, "{text}");
        text
    };
    let text = say(&["run", "--app-id", "a", "--", "no-such-program"]);
    assert!(
        text.contains("no-such-program") && text.contains("PATH"),
        "{text}"
    );
    // Its sockets are in the way, whatever ports and state it is given.
    let state = session.dir().join("other");
    let text = say(&[
        "dev",
        "--rootless",
        "--ephemeral-ports",
        "--state-dir",
        state.to_str().unwrap(),
    ]);
    assert!(
        text.contains("another `weft dev`") && text.contains("--run-dir"),
        "{text}"
    );
}

#[test]
fn a_second_dev_on_the_same_ports_says_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:7301");
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(weft_exe())
        .args(["dev", "--rootless", "--state-dir"])
        .arg(dir.path().join("state"))
        .env("WEFT_RUN_DIR", dir.path().join("run"))
        .env_remove("WEFT_LOG")
        .output()
        .unwrap();
    // Somebody else on this machine may have the port already; that is as good.
    drop(taken);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("7301") && text.contains("--ephemeral-ports") && text.trim().lines().count() == 1,
        "{text}"
    );
}

#[test]
fn an_agent_that_goes_away_leaves_the_app_running() {
    let mut session = Session::start(&["--rootless"]);
    let mut cart = session.app("cart", &[]);
    assert_eq!(session.stop(), Some(0));
    assert!(get(cart.port, "/echo?id=alive").contains("alive"));
    // Without root the app's ports were the old agent's own: the app can not go on with a new one,
    // and is told so instead of calling into the void.
    session.again(&["--rootless"]);
    assert_eq!(cart.ended(), Some(1));
    assert!(
        session.log("cart").contains("start the app again"),
        "{}",
        session.log("cart")
    );
}
