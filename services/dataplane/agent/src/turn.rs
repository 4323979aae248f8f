//! Whose turn it is to write the kernel's tables and to read its events: while an agent is replaced there
//! are two, and what either knows of the tables is right only as long as nobody else writes.
//!
//! The turn is a lock on a file in the agents' folder: it ends with the process that has it, however that
//! ends.

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use std::{fs::File, path::Path, time::Duration};

/// The file's name.
pub const FILE: &str = "tables.lock";
/// So often the lock is tried: a replaced agent gives it back at the beginning of its drain.
const AGAIN: Duration = Duration::from_millis(20);
/// The same where it can not be tried at all.
const LATER: Duration = Duration::from_secs(1);

/// Held until it is dropped.
pub type Turn = Flock<File>;

/// Waits for the turn. Cancellation-safe.
pub async fn wait(path: &Path) -> Turn {
    let mut told = false;
    loop {
        match File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
        {
            Ok(file) => match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(turn) => return turn,
                Err((_, Errno::EWOULDBLOCK)) => {
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
                Err((_, error)) => tell(path, &error, &mut told),
            },
            Err(error) => tell(path, &error, &mut told),
        }
        tokio::time::sleep(LATER).await;
    }
}

fn tell(path: &Path, error: &dyn std::fmt::Display, told: &mut bool) {
    if !std::mem::replace(told, true) {
        tracing::error!(path = %path.display(), %error, "the kernel's tables are not written: they can not be locked");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn there_is_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let first = wait(&path).await;
        let second = tokio::spawn({
            let path = path.clone();
            async move { wait(&path).await }
        });
        for _ in 0..5 {
            tokio::time::sleep(AGAIN).await;
            assert!(!second.is_finished(), "two have it");
        }
        drop(first);
        drop(second.await.unwrap());
        drop(wait(&path).await);
    }
}
