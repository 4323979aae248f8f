//! An upgrade to a `weft-node` whose maps have another layout, under load: nothing of the old ones can be
//! read, so all is closed, and told, until it is written again; no connection is broken and nobody comes
//! through who may not.

use crate::{
    compile::compile,
    lifecycle::{PORT, Pods, REFUSED_AFTER, connects, conversation, echo, write_policy},
    rig::{Rig, eventually},
};
use std::{
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
};
use weft_bpf::{Build, Datapath};
use weft_handoff::Connected;
use weft_node::Config;
use weft_service::Context;
use weft_telemetry::{Health, Metrics};
use weft_testnet::Pod;

/// The folder with what the next release's process is told.
const TOLD: &str = "WEFT_TEST_NEXT_RELEASE";
const KEPT: [&str; 2] = ["--no-agent", "--keep-state"];

fn next_layout() -> u32 {
    Build::own().layout + 1
}

/// Not a test by itself: the process of the next release, started by the test below.
#[test]
#[ignore = "started by another_layout_is_closed_and_told_until_it_is_written_and_breaks_nothing"]
fn next_release() {
    let Ok(folder) = std::env::var(TOLD) else { return };
    let folder = PathBuf::from(folder);
    let text = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let object: &'static [u8] = Box::leak(std::fs::read(folder.join("object")).unwrap().into_boxed_slice());
    let config = Config {
        node_name: "n1".into(),
        netns: Some(text("netns").into()),
        cgroup_root: Some(text("cgroup").into()),
        bpffs: text("bpffs").into(),
        run_dir: text("run").into(),
        agent_user: Some(crate::rig::AGENT_UID.to_string()),
        no_agent: true,
        keep_state: true,
        programs: Some(Build {
            object,
            layout: next_layout(),
        }),
        ..Config::default()
    };
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let _telemetry = weft_telemetry::init("node", &config.telemetry).unwrap();
        let (trigger, drain) = weft_drain::channel();
        let context = Context {
            drain,
            metrics: Metrics::new("node"),
            health: Health::default(),
        };
        let mut ended = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        let (_replace, asked) = tokio::sync::mpsc::channel(1);
        let serving = tokio::spawn(weft_node::serve(config, context, asked));
        ended.recv().await;
        trigger.drain(std::time::Duration::from_secs(5)).await;
        serving.await.unwrap().unwrap();
    });
}

/// Writes down what the next release is told.
fn tell(rig: &Rig) -> PathBuf {
    let folder = rig.net.dir().join("next");
    std::fs::create_dir_all(&folder).unwrap();
    let text = |name: &str, path: &Path| std::fs::write(folder.join(name), path.to_str().unwrap()).unwrap();
    text("netns", rig.node.namespace().path());
    text("cgroup", rig.node.cgroup());
    text("bpffs", &rig.net.bpffs().unwrap());
    text("run", &rig.run_dir);
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bpf/src");
    let ports = "struct weft_ports {\n";
    let changed = format!("{ports}\t__u64 since;\n");
    let object = compile(&sources, &[("packet_types.bpf.h", ports, &changed)]);
    std::fs::write(folder.join("object"), object).unwrap();
    folder
}

fn enforced(agent: &Connected) -> &str {
    let mut all = agent.hello.capabilities.iter();
    &all.find(|c| c.name == "kernel-policy").unwrap().reason
}

fn reaches(pod: &Pod, to: SocketAddr) -> bool {
    let connected = pod
        .namespace()
        .run(|| TcpStream::connect_timeout(&to, REFUSED_AFTER));
    connected.unwrap().is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_layout_is_closed_and_told_until_it_is_written_and_breaks_nothing() {
    let mut rig = Rig::without_agent();
    let told = tell(&rig);
    let pods = Pods::new(&rig);
    echo(pods.shop.namespace());
    rig.stop();
    rig.start(&KEPT, &[]);
    let mut agent = rig.connect().await;
    assert!(!enforced(&agent).contains("layout"), "{}", enforced(&agent));
    let datapath = Datapath::from_fds(&mut agent.hello.maps).unwrap();
    let placed = pods.place(&agent).await;
    let numbers: Vec<u32> = placed.iter().map(|p| p.endpoint).collect();
    write_policy(&datapath, &pods, &placed);
    let to = SocketAddr::new(pods.shop.v4().into(), PORT);
    let direct = conversation(pods.friend.namespace(), to);
    let new = connects(pods.friend.namespace(), to, true);
    let refused = connects(pods.stranger.namespace(), to, false);
    direct.goes_on(200).await;
    new.goes_on(20).await;
    refused.goes_on(2).await;

    let before = Build::own().layout;
    for first in [true, false] {
        drop(agent);
        assert!(rig.stop().success());
        let _ = std::fs::remove_file(rig.run_dir.join("node.sock"));
        // Between the two the old programs and tables are at work.
        direct.goes_on(200).await;
        rig.start_next_release("layout::next_release", (TOLD, &told));
        agent = rig.connect().await;
        let reason = enforced(&agent).to_owned();
        assert_eq!(
            reason.contains(&format!("earlier release's tables (layout {before})")),
            first,
            "{reason}"
        );
        if first {
            // Nobody is known, and it stays so when they are placed: nobody said what they may do.
            assert!(!reaches(&pods.friend, to));
            let placed = pods.place(&agent).await;
            assert_eq!(placed.iter().map(|p| p.endpoint).collect::<Vec<_>>(), numbers);
            let (asked, opened) = (direct.count(), new.count());
            assert!(!reaches(&pods.friend, to) && !reaches(&pods.stranger, to));
            assert_eq!(
                (direct.count(), new.count()),
                (asked, opened),
                "it is open too early"
            );
            let datapath = Datapath::from_fds(&mut agent.hello.maps).unwrap();
            write_policy(&datapath, &pods, &placed);
        }
        // The second time all of it is adopted, and goes on unwritten.
        direct.goes_on(200).await;
        new.goes_on(20).await;
        refused.goes_on(2).await;
        let pins = weft_bpf::pin_dir(&rig.net.bpffs().unwrap(), "n1");
        assert!(pins.join(format!("maps-v{}", next_layout())).exists());
        assert!(
            !pins.join(format!("maps-v{before}")).exists(),
            "the old tables stay"
        );
    }
    eventually("the friend reaches the shop", || reaches(&pods.friend, to)).await;
    assert!(!reaches(&pods.stranger, to));
    let counts = [direct.stop(), new.stop(), refused.stop()];
    println!("exchanges on one connection, connects, refused connects: {counts:?}");
}
