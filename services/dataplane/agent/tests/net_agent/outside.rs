//! Rules about requests that go out of the mesh: each is judged on its way, from pods and from processes;
//! what does not come by the agent gets nowhere.

use crate::{
    flows::{Flow, Verdict},
    requests::{once, pod, serve},
    rig::{Rig, SOON, ask_until},
};
use std::{
    io::{Read, Write},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use weft_testnet::{Namespace, Spawn};

/// By CIDR at one port, by entity at the next; at the third no rule speaks of requests.
fn rules(v4: &str, v6: &str) -> String {
    format!(
        r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: out, namespace: default}}
spec:
  endpointSelector:
    matchExpressions: [{{key: dapr.io/app-id, operator: In, values: [shop, worker]}}]
  egress:
  - toCIDR: ["{v4}/32", "{v6}/128"]
    toPorts:
    - ports: [{{port: "8080", protocol: TCP}}]
      rules: {{http: [{{method: GET, path: "/public/.*"}}]}}
  - toEntities: [world]
    toPorts:
    - ports: [{{port: "8081", protocol: TCP}}]
      rules: {{http: [{{method: GET, path: "/open"}}]}}
  - toEntities: [world]
    toPorts:
    - ports: [{{port: "8083", protocol: TCP}}]
      rules: {{http: [{{}}]}}
  - toEntities: [world]
    toPorts: [{{ports: [{{port: "8082", protocol: TCP}}, {{port: "8084", protocol: TCP}}]}}]
"#
    )
}

/// All that the node tells.
#[tokio::test(flavor = "multi_thread")]
async fn rules_of_requests_hold_towards_the_outside() {
    // The network comes first: the rules name an address of it.
    let rig = Rig::new(&[], &["n1"]);
    let near = &rig.nodes[0];
    let outside = rig.net.node("outside").unwrap();
    let (v4, v6) = (outside.v4().to_string(), outside.v6().to_string());
    rig.write("out.yaml", &rules(&v4, &v6));
    for port in [8080, 8081, 8082] {
        for any in ["0.0.0.0".to_owned(), format!("[{v6}]")] {
            serve(
                "far",
                outside.namespace().listen(format!("{any}:{port}")).unwrap(),
            );
        }
    }
    let (shop, shop_cgroup) = pod(near, "shop").await;
    let (worker_cgroup, _worker) = near.add_process("worker").await;
    let callers: [(&str, &Namespace, &Path); 2] = [
        ("shop", shop.namespace(), &shop_cgroup),
        ("worker", near.node.namespace(), &worker_cgroup),
    ];
    for (name, place, cgroup) in callers {
        for address in [v4.clone(), format!("[{v6}]")] {
            let ask = |port: u16, method: &str, path: &str| {
                once(place, cgroup, &format!("{address}:{port}"), method, path)
            };
            let denied = |port, method, path| {
                let answer = ask(port, method, path);
                let is = answer.starts_with("HTTP/1.1 403 ") && answer.ends_with("Access denied\r\n");
                assert!(is, "{name} {address}:{port} {method} {path}: {answer:?}");
            };
            // Both rules hold once one does that lets something pass.
            ask_until("far /public/a", || ask(8080, "GET", "/public/a")).await;
            denied(8080, "GET", "/secret/a");
            denied(8080, "PUT", "/public/a");
            assert!(
                ask(8081, "GET", "/open").ends_with("far /open"),
                "{name} {address}"
            );
            denied(8081, "GET", "/public/a");
            // Its twin, where no rule speaks of requests.
            assert!(
                ask(8082, "PUT", "/secret/a").ends_with("far /secret/a"),
                "{name} {address}"
            );
        }
    }

    // Each is told, with the rule.
    let all = near.all_flows().await;
    for (name, ..) in callers {
        for address in [&v4, &v6] {
            let of = |f: &&Flow| {
                f.kind == "http"
                    && f.direction == "egress"
                    && f.source.as_ref().is_some_and(|s| s.app_id == name)
                    && f.destination
                        .as_ref()
                        .is_some_and(|d| &d.address == address && d.port == 8080)
            };
            let told = |path: &str| {
                all.iter()
                    .filter(of)
                    .find(|f| f.path == path && f.method == "GET")
            };
            let passed = told("/public/a").expect("the request that passed is not told");
            assert_eq!((passed.verdict(), passed.status), (Verdict::Forwarded, 200));
            let dropped = told("/secret/a").expect("the request that was refused is not told");
            let reason = (dropped.verdict(), &*dropped.drop_reason);
            assert_eq!(reason, (Verdict::Dropped, "POLICY_DENIED"));
            for flow in [passed, dropped] {
                let rule = "CiliumNetworkPolicy/default/out: ";
                assert!(flow.rule.starts_with(rule), "{}", flow.rule);
            }
        }
    }
    // The agent's own packets for the pod are told as what they are: let through by the rule.
    let packets = |verdict| {
        let of = move |f: &&Flow| {
            f.kind == "packet"
                && f.verdict() == verdict
                && f.direction == "egress"
                && f.source.as_ref().is_some_and(|s| s.app_id == "shop")
                && f.destination.as_ref().is_some_and(|d| d.port == 8080)
        };
        all.iter().filter(of).count()
    };
    assert!(packets(Verdict::Forwarded) > 0);
    assert_eq!(
        packets(Verdict::Dropped),
        0,
        "of the agent's own packets some were refused"
    );

    // What can not be read goes nowhere, whatever requests are allowed; its twin is where no rule asks.
    for port in [8083, 8084] {
        let listener = outside.namespace().listen(format!("{v4}:{port}")).unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let _ = stream.write_all(b"greetings");
            }
        });
    }
    let greeted = |port: u16| {
        let hello = r"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03";
        let script = format!("exec 3<>/dev/tcp/{v4}/{port}; printf '{hello}' >&3; head -c 9 <&3");
        let mut command = Command::new("timeout");
        command.args(["20", "bash", "-c", &script]).stdout(Stdio::piped());
        let spawn = Spawn::nobody().cgroup(&shop_cgroup);
        let mut process = shop.namespace().spawn(command, &spawn).unwrap();
        let mut said = Vec::new();
        process.stdout.take().unwrap().read_to_end(&mut said).unwrap();
        String::from_utf8_lossy(&said).into_owned()
    };
    assert_eq!(greeted(8084), "greetings");
    let refused = greeted(8083);
    assert!(!refused.contains("greetings"), "{refused}");
    assert!(once(shop.namespace(), &shop_cgroup, &format!("{v4}:8083"), "GET", "/").contains("HTTP/1.1 5"));

    // Who is in the pod's network and not redirected sends packets himself: none of them goes there.
    let beside = |port: u16| {
        let script = format!("timeout 2 bash -c 'exec 3<>/dev/tcp/{v4}/{port} && echo connected'; true");
        let mut command = Command::new("bash");
        command.args(["-c", &script]).stdout(Stdio::piped());
        let mut process = shop.namespace().spawn(command, &Spawn::nobody()).unwrap();
        let mut said = String::new();
        process.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        said
    };
    assert_eq!(beside(8080), "");
    assert_eq!(
        beside(8082).trim(),
        "connected",
        "no rule speaks of requests there"
    );
    let deadline = Instant::now() + SOON;
    loop {
        let all = near.all_flows().await;
        let dropped = all.iter().find(|f| {
            f.kind == "packet"
                && f.verdict() == Verdict::Dropped
                && f.source.as_ref().is_some_and(|s| s.app_id == "shop")
                && f.destination.as_ref().is_some_and(|d| d.port == 8080)
        });
        if let Some(dropped) = dropped {
            assert_eq!(
                dropped.drop_reason,
                "PROXY_REDIRECTION_NOT_SUPPORTED_FOR_PROTOCOL"
            );
            assert!(dropped.rule.contains("default/out"), "{}", dropped.rule);
            break;
        }
        assert!(Instant::now() < deadline, "not told");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
