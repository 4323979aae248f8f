//! Operators' questions and orders about the authority itself.

use crate::{
    core::{Core, Decision},
    db::{Audit, Replica},
    hierarchy::Live,
    reason::Reason,
    refused::Refused,
    rotation::Phase,
};
use std::sync::Arc;
use weft_proto::weft::identity::v1::RotateTarget;
use weft_rpc::Caller;

/// The authority as an operator sees it.
#[derive(Debug)]
pub struct Shown {
    /// Roots and issuers.
    pub live: Arc<Live>,
    /// Where the rotation of the root stands.
    pub phase: Phase,
    /// This replica first.
    pub replicas: Vec<Replica>,
}

impl Core {
    /// Roots, issuers, and where a rotation stands.
    pub async fn show(&self, caller: &Caller) -> Decision<Shown> {
        let live = self.live.load_full();
        let replicas = self.replicas().await.map_err(Refused::from);
        let asked = self.asked("get-authority", caller, "");
        Ok(Shown {
            phase: Phase::of(&live.trust),
            replicas: self.or_record(&asked, replicas).await?,
            live,
        })
    }

    /// Begins a rotation.
    pub async fn rotate(&self, caller: &Caller, target: RotateTarget) -> Decision<Phase> {
        let action = match target {
            RotateTarget::Root => "rotate-root",
            RotateTarget::Issuer => "rotate-issuer",
            RotateTarget::Leaves => "rotate-leaves",
            RotateTarget::Unspecified => "rotate",
        };
        let asked = self.asked(action, caller, "");
        let done = self.try_rotate(&asked, target).await;
        self.or_record(&asked, done).await
    }

    async fn try_rotate(&self, asked: &Audit, target: RotateTarget) -> Decision<Phase> {
        self.may_make(target)?;
        match target {
            RotateTarget::Leaves => self.renew_all().await?,
            RotateTarget::Issuer => self.reissue().await?,
            _ => {
                self.prepare_root().await?;
            }
        }
        self.record_order(asked.clone()).await?;
        // As far as it goes at once: with nobody connected, to its end.
        self.wake.notify_one();
        Ok(Phase::of(&self.live.load().trust))
    }

    fn may_make(&self, target: RotateTarget) -> Decision<()> {
        let live = self.live.load();
        let has_key = live.trust.active_root().is_some_and(|r| r.sealed_key.is_some());
        match target {
            RotateTarget::Unspecified => Err(Refused::field(
                "target",
                "target must be ROTATE_TARGET_ROOT, ROTATE_TARGET_ISSUER or ROTATE_TARGET_LEAVES",
            )),
            RotateTarget::Root if self.supplied => Err(Refused::precondition(
                Reason::AuthoritySupplied,
                "root and issuer are supplied by the operator: put the new ones into the place that \
                 ca.supplied names, they are taken over without a restart",
            )
            .about("authority", "root")),
            RotateTarget::Issuer if !has_key => Err(Refused::precondition(
                Reason::AuthoritySupplied,
                "the operator keeps the root's key: put a new issuer into the place that ca.supplied names, \
                 or ca.key beside it",
            )
            .about("authority", "issuer")),
            RotateTarget::Issuer if Phase::of(&live.trust) == Phase::Distributing => {
                Err(Refused::precondition(
                    Reason::RotationUnderWay,
                    "a new root is on its way to the members, and a new issuer comes with it; `weft identity \
                     show` says whom it waits for",
                )
                .about("rotation", "root"))
            }
            _ => Ok(()),
        }
    }
}
