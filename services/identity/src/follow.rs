//! Keeps the copy of the policy service's registry up to date.

use crate::registry::{Registry, RegistryError};
use std::time::Duration;
use tonic::Status;
use weft_drain::Watcher;
use weft_proto::weft::policy::v1::{WatchRequest, registry_client::RegistryClient};
use weft_rpc::RpcError;
use weft_tls::{Expect, SvidCell, Trust};

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The first message holds the whole registry.
const MAX_MESSAGE: usize = 256 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error(transparent)]
    Rpc(#[from] RpcError),
    #[error("{}", .0.message())]
    Status(#[from] Status),
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// Follows the policy service at `address` until the drain. While it can not be reached, the last
/// good copy stays.
pub(crate) async fn follow(
    address: String,
    svid: SvidCell,
    trust: Trust,
    registry: Registry,
    drain: Watcher,
) {
    let watch = async {
        let mut pause = FIRST_PAUSE;
        loop {
            let before = registry.size();
            match once(&address, &svid, &trust, &registry).await {
                // The policy service drained, or its connection reached its age.
                Ok(()) => pause = FIRST_PAUSE,
                Err(error) => {
                    if registry.size() != before {
                        pause = FIRST_PAUSE;
                    }
                    tracing::warn!(address, %error, "workload registry can not be followed, trying again");
                }
            }
            let jitter = rand::random_range(0.5..1.0);
            tokio::time::sleep(pause.mul_f64(jitter)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    };
    drain.until_draining(watch).await;
}

async fn once(address: &str, svid: &SvidCell, trust: &Trust, registry: &Registry) -> Result<(), FollowError> {
    let policy = trust
        .trust_domain()
        .service("policy")
        .map_err(|e| Status::internal(e.to_string()))?;
    let channel = weft_rpc::channel(address, Some(svid), trust, Expect::Id(policy))?;
    let mut client = RegistryClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let mut changes = client.watch(WatchRequest {}).await?.into_inner();
    tracing::info!(address, "following the workload registry");
    while let Some(change) = changes.message().await? {
        registry.apply(change)?;
    }
    Ok(())
}
