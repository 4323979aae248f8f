//! Accepting what the kernel sends to the capture listeners, and finding out whose it is and where
//! it was meant to go. What comes there of its own accord is refused.

use crate::{agent::Shared, dns, listen, locals::Local, metrics::Listener};
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use weft_capture::Asked;

/// Accepts on the listener in a pod's namespace, until the drain or until the pod is gone.
pub async fn own(shared: Arc<Shared>, local: Arc<Local>, listener: TcpListener) {
    let gone = local.gone.clone();
    accept(&shared, listener, gone, Some(&local)).await;
}

/// Accepts on one of the node's, for its processes, until the drain or until `replaced`.
pub async fn attributed(shared: Arc<Shared>, listener: TcpListener, replaced: CancellationToken) {
    accept(&shared, listener, replaced, None).await;
}

async fn accept(
    shared: &Arc<Shared>,
    listener: TcpListener,
    ended: CancellationToken,
    owner: Option<&Arc<Local>>,
) {
    let mut drain = shared.drain.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ended.cancelled() => return,
            () = drain.draining() => return,
        };
        match accepted {
            // Reading the record is one system call that does not wait.
            Ok((stream, _)) => {
                if let Err((stream, refusal)) = take(shared, stream, owner) {
                    refuse(shared, &stream, refusal);
                }
            }
            Err(error) => listen::pause(&error).await,
        }
    }
}

struct Refusal {
    /// For the counter.
    reason: &'static str,
    /// For the flow; none where the workload is known and only not ready.
    text: Option<&'static str>,
}

const NOT_READY: Refusal = Refusal {
    reason: "not_ready",
    text: None,
};

fn take(
    shared: &Arc<Shared>,
    stream: TcpStream,
    owner: Option<&Arc<Local>>,
) -> Result<(), (TcpStream, Refusal)> {
    let refusal = |reason, text| Refusal {
        reason,
        text: Some(text),
    };
    let origin = shared.origins.load_full();
    let origin = match origin.as_ref().map(|origins| origins.read(&stream)) {
        Some(Ok(origin)) => origin,
        Some(Err(error)) => {
            tracing::warn!(%error, "captured connection refused");
            let text = "the kernel's record of who connected can not be read";
            return Err((stream, refusal("read_failed", text)));
        }
        None => None,
    };
    // One that the kernel did not send here names no other destination than this port.
    let Some(origin) = origin.filter(|origin| origin.captured) else {
        let text = "the kernel has no record of where it was meant to go";
        return Err((stream, refusal("no_record", text)));
    };
    let found = match owner {
        Some(owner) => Some(owner.clone()),
        None => shared.view.locals.of_cgroup(origin.cgroup_id),
    };
    let Some(local) = found else {
        let text = "its cgroup is no workload's of this node";
        return Err((stream, refusal("unknown_cgroup", text)));
    };
    let Some(member) = local.member() else {
        return Err((stream, NOT_READY));
    };
    let asked = Asked {
        destination: origin.destination,
        target: origin.target,
    };
    if dns::is_for(shared, &local, &asked) {
        tokio::spawn(dns::connection(shared.clone(), local, stream, asked));
        return Ok(());
    }
    let open = listen::count(shared, &Listener { listener: "capture" });
    let (capture, drain, gone) = (shared.capture.clone(), shared.drain.clone(), local.gone.clone());
    tokio::spawn(async move {
        let caller = member.context.clone();
        capture.captured(caller, stream, asked, gone, drain).await;
        open.dec();
    });
    Ok(())
}

fn refuse(shared: &Shared, stream: &TcpStream, refusal: Refusal) {
    if let Some(text) = refusal.text {
        listen::nobody(shared, stream, text);
    }
    listen::refuse(shared, refusal.reason);
    // Its end must not look like an answer.
    let _ = stream.set_zero_linger();
}
