//! An agent of just enough behaviour: this test program itself, started by the node. It places
//! the pods it is told to, answers `<pid> <question>` on every HTTP listener, and drains at SIGTERM.

use std::time::Duration;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};
use weft_handoff::{AgentLink, Listener, ListenerKind};
use weft_proto::weft::dataplane::v1::{WorkloadSpec, workload_spec::Place};

/// Path of the pod's namespace to place when there is no workload yet.
pub const PLACE: &str = "WEFT_STUB_PLACE";
/// End at once, as a broken release would: a file that says so when it exists.
pub const BROKEN: &str = "WEFT_STUB_BROKEN";
/// How the node starts it.
pub const ARGS: [&str; 4] = ["--exact", "stub::agent", "--nocapture", "--test-threads=1"];

async fn answer(stream: TcpStream) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    // Long enough that a drain finds requests under way.
    tokio::time::sleep(Duration::from_millis(2)).await;
    stream
        .write_all(format!("{} {line}", std::process::id()).as_bytes())
        .await?;
    stream.shutdown().await
}

async fn accept(listener: TcpListener, mut drain: watch::Receiver<bool>) {
    let mut requests = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => { requests.spawn(answer(stream)); }
            _ = drain.wait_for(|drain| *drain) => break,
        }
    }
    drop(listener);
    requests.join_all().await;
}

/// Does nothing unless a node started it.
#[test]
fn agent() {
    let Some(fd) = AgentLink::inherited().unwrap() else {
        return;
    };
    if std::env::var_os(BROKEN).is_some_and(|path| std::path::Path::new(&path).exists()) {
        std::process::exit(3);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).unwrap();
        let mut connected = AgentLink::start(fd).await.unwrap();
        if let Ok(path) = std::env::var(PLACE)
            && connected.workloads.is_empty()
        {
            let spec = WorkloadSpec {
                namespace: "default".into(),
                name: "shop".into(),
                app_id: "shop".into(),
                place: Some(Place::NetnsPath(path)),
                ..Default::default()
            };
            connected
                .workloads
                .push(connected.link.place(spec).await.unwrap());
        }
        let (drain, draining) = watch::channel(false);
        let mut serving = JoinSet::new();
        let listeners = connected
            .workloads
            .into_iter()
            .flat_map(|w| w.listeners)
            .chain(connected.hello.listeners);
        for listener in listeners.filter(|l: &Listener| l.kind == ListenerKind::RuntimeHttp) {
            let listener = TcpListener::from_std(listener.into_tcp().unwrap()).unwrap();
            serving.spawn(accept(listener, draining.clone()));
        }
        connected.link.ready().await.unwrap();
        terminate.recv().await;
        drain.send_replace(true);
        serving.join_all().await;
    });
    std::process::exit(0);
}
