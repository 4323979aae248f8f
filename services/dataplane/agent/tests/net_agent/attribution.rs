//! Who calls is what the kernel says, whatever the caller says; and it stays so when the agent is
//! killed and the control plane is away.

use crate::{
    flows::Verdict,
    rig::{Rig, SOON, ask, ask_until, request_script, signal},
};
use nix::sys::signal::Signal;
use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Instant,
};

const CART_FOR_SHOP: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: cart
  namespace: default
spec:
  endpointSelector:
    matchLabels:
      dapr.io/app-id: cart
  ingress:
  - fromEndpoints:
    - matchExpressions:
      - {key: dapr.io/app-id, operator: In, values: [shop, worker]}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn pods_and_processes_are_who_the_kernel_says() {
    let mut rig = Rig::new(&[("cart.yaml", CART_FOR_SHOP)], &["n1", "n2"]);
    let (near, far) = (&rig.nodes[0], &rig.nodes[1]);
    let [cart, shop, thief] = ["cart", "shop", "thief"].map(|name| near.node.pod(name).unwrap());
    for pod in [&cart, &shop, &thief] {
        near.add_pod(pod).await;
    }
    let (worker, _runs) = near.add_process("worker").await;
    let (loafer, _runs_too) = near.add_process("loafer").await;

    // From a pod: its own listener is the proof, what it claims is overwritten.
    let answer = ask(shop.namespace(), "cart", "from-pod");
    assert!(answer.contains("cart asked by shop of default"), "{answer}");
    let refused = ask(thief.namespace(), "cart", "from-thief");
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    let flows = near.flows("/from-pod").await;
    assert!(
        flows.iter().all(|f| f.caller_proof == "pod-listener"),
        "{flows:?}"
    );

    // From a process: its cgroup, also for a child that has left its session and its parent.
    let answer = near.script(Some(&worker), &request_script("cart", "from-process"));
    assert!(answer.contains("cart asked by worker of default"), "{answer}");
    let hidden = format!(
        "(setsid bash -c \"{}\" &) ; wait",
        request_script("cart", "hidden").replace('$', "\\$")
    );
    let answer = near.script(Some(&worker), &hidden);
    assert!(answer.contains("cart asked by worker of default"), "{answer}");
    let refused = near.script(Some(&loafer), &request_script("cart", "from-loafer"));
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    let flow = near.flows("/from-process").await.pop().unwrap();
    assert_eq!(
        (flow.caller_proof.as_str(), flow.verdict()),
        ("cgroup", Verdict::Forwarded)
    );

    // Who is in no workload's cgroup gets no answer at all, and is written down.
    assert_eq!(near.script(None, &request_script("cart", "from-nobody")), "");
    let flows = near.flows("").await;
    assert!(
        flows.iter().any(|f| f.drop_reason == "UNKNOWN_CALLER"),
        "{flows:?}"
    );

    // To a process, from a pod.
    let answer = ask(shop.namespace(), "worker", "to-process");
    assert!(answer.contains("worker asked by shop of default"), "{answer}");

    // From the other node: by its certificate, both from a pod and from a process.
    let guest = far.node.pod("guest").unwrap();
    far.add_pod(&guest).await;
    ask_until("worker asked by guest of default", || {
        ask(guest.namespace(), "worker", "by-tunnel")
    })
    .await;
    let refused = ask(guest.namespace(), "cart", "guest");
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    let (remote, _runs_there) = far.add_process("shop").await;
    ask_until("cart asked by shop of default", || {
        far.script(Some(&remote), &request_script("cart", "by-tunnel"))
    })
    .await;
    let flow = near.flows("/by-tunnel").await.pop().unwrap();
    assert_eq!(flow.caller_proof, "tunnel-svid");
    assert_eq!(flow.source.unwrap().node, "n2");

    // What is learnt is on the disk a moment later.
    ask_until("kept", || {
        let kept = near.has_kept("n2/default/shop/");
        if kept { "kept".into() } else { String::new() }
    })
    .await;
    // The control plane goes, then the agent is killed: the next one serves what is there.
    rig.control.stop();
    let (near, far) = (&rig.nodes[0], &rig.nodes[1]);
    let killed = near.agent();
    signal(killed, Signal::SIGKILL);
    let answer = ask(shop.namespace(), "cart", "after-kill");
    assert!(answer.contains("cart asked by shop of default"), "{answer}");
    assert_ne!(near.agent(), killed);
    let refused = ask(thief.namespace(), "cart", "after-kill-thief");
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    ask_until("cart asked by worker of default", || {
        near.script(Some(&worker), &request_script("cart", "after-kill-process"))
    })
    .await;
    ask_until("cart asked by shop of default", || {
        far.script(Some(&remote), &request_script("cart", "after-kill-tunnel"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_agent_loses_no_request() {
    let rig = Rig::new(&[], &["n1"]);
    let node = &rig.nodes[0];
    let [cart, shop] = ["cart", "shop"].map(|name| node.node.pod(name).unwrap());
    node.add_pod(&cart).await;
    node.add_pod(&shop).await;
    let first = node.agent();
    let (done, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let load = |n: usize| {
            let (done, count, shop) = (&done, &count, shop.namespace());
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let asked = count.fetch_add(1, Ordering::Relaxed);
                    let answer = ask(shop, "cart", &format!("load-{n}-{asked}"));
                    assert!(answer.contains("cart asked by shop of default"), "{answer}");
                }
            })
        };
        let loads: Vec<_> = (0..4).map(load).collect();
        node.replace_agent();
        let deadline = Instant::now() + SOON;
        let alive = |pid: i32| std::path::Path::new(&format!("/proc/{pid}")).exists();
        // Before, meanwhile and after.
        while node.agent() == first || alive(first) || count.load(Ordering::Relaxed) <= 50 {
            if Instant::now() > deadline || loads.iter().any(|l| l.is_finished()) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        done.store(true, Ordering::Relaxed);
        loads.into_iter().for_each(|load| load.join().unwrap());
    });
    assert_ne!(node.agent(), first, "it was not replaced");
    assert!(count.into_inner() > 50);
}
