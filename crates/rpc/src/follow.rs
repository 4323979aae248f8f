//! Following what another service tells: its stream is opened again for as long as it takes, soon after what
//! went well and ever later otherwise. What was taken stays while the service can not be reached.

use crate::RpcError;
use std::{fmt::Display, time::Duration};
use tonic::{Status, Streaming};
use weft_drain::Watcher;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// It could not be asked for.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// The service refused it or broke it off.
    #[error("{}", .0.message())]
    Status(#[from] Status),
    /// What it told can not be taken.
    #[error("{0}")]
    Told(String),
}

/// Follows `what` (for the log) of the service at `address` until the drain: each message of a stream that
/// `open` opens is handed to `take`.
pub async fn follow<M, E: Display, Opening>(
    (what, address): (&str, &str),
    drain: Watcher,
    open: impl Fn() -> Opening,
    mut take: impl FnMut(M) -> Result<(), E>,
) where
    Opening: Future<Output = Result<Streaming<M>, FollowError>>,
{
    let following = async {
        let mut pause = FIRST_PAUSE;
        loop {
            let mut taken = false;
            let told = async {
                let mut changes = open().await?;
                tracing::info!(address, what, "following");
                while let Some(change) = changes.message().await? {
                    take(change).map_err(|error| FollowError::Told(error.to_string()))?;
                    taken = true;
                }
                Ok::<_, FollowError>(())
            };
            let ended = told.await;
            if taken || ended.is_ok() {
                pause = FIRST_PAUSE;
            }
            // Otherwise the service drained, or its connection reached its age.
            if let Err(error) = ended {
                tracing::warn!(address, what, %error, "can not be followed, trying again");
            }
            // Not all at once, where many follow.
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    };
    drain.until_draining(following).await;
}
