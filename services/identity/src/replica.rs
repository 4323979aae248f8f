//! This process among those that share the database: it says that it lives and what its members
//! hold, and one at a time has the right to rotate. With a file there is one process, and nothing of
//! this is written.

use crate::{core::Core, db::Replica, error::StartError};

/// Seconds after which a replica that says nothing is taken for dead.
const SILENCE: u64 = 10;
/// Seconds for which the right to rotate is taken.
const LEASE: u64 = 10;

impl Core {
    /// This process, with what its members hold.
    pub fn replica(&self) -> Replica {
        let standing = self.acks.standing(self.live.load().trust.bundle_version);
        Replica {
            name: self.name.clone(),
            seen_at: self.now(),
            members: standing.members as u64,
            min_acked: standing.min_acked,
            lagging: standing.lagging.unwrap_or_default(),
        }
    }

    /// This one, and the others that live.
    pub async fn replicas(&self) -> Result<Vec<Replica>, StartError> {
        let mut all = vec![self.replica()];
        if self.db.is_shared() {
            let others = self.db.replicas(self.now().saturating_sub(SILENCE)).await?;
            all.extend(others.into_iter().filter(|r| r.name != self.name));
        }
        Ok(all)
    }

    /// The oldest bundle that a member of any replica verifies by.
    pub async fn min_acked(&self) -> Result<u64, StartError> {
        let all = self.replicas().await?;
        Ok(all.iter().map(|r| r.min_acked).min().unwrap_or(0))
    }

    /// Tells who follows the nodes here of those that joined at another replica. Who joined lately is
    /// told again: replicas' clocks differ, and being told twice changes nothing.
    pub async fn tell_joins(&self) -> Result<(), StartError> {
        if !self.db.is_shared() || self.joins.receiver_count() == 0 {
            return Ok(());
        }
        for name in self.db.joined_since(self.now().saturating_sub(SILENCE)).await? {
            // Nobody follows any more.
            let _ = self.joins.send(name);
        }
        Ok(())
    }

    /// Says that this replica lives, and whether it is the one that rotates.
    pub async fn may_rotate(&self) -> Result<bool, StartError> {
        if !self.db.is_shared() {
            return Ok(true);
        }
        self.db.heartbeat(&self.replica()).await?;
        let now = self.now();
        Ok(self.db.take_lease(&self.name, now, now + LEASE).await?)
    }

    /// The others need not wait for this one.
    pub async fn leave(&self) {
        if self.db.is_shared()
            && let Err(error) = self.db.leave(&self.name).await
        {
            tracing::warn!(%error, "the other replicas will notice by themselves that this one ended");
        }
    }
}
