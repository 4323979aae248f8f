//! Staying a member: renewal at half of the certificate's life, and the trust bundle's stream.

use crate::{
    EnrollError, Member,
    files::Folder,
    join::{explain, read_bundle, read_chain},
    revoked::RevocationList,
};
use std::time::Duration;
use tonic::{Code, transport::Channel};
use weft_drain::Watcher;
use weft_proto::weft::identity::v1::{
    AckBundleRequest, RenewRequest, WatchBundleRequest, certificates_client::CertificatesClient,
    trust_client::TrustClient,
};
use weft_tls::{Clock, Expect, Svid, new_key_and_csr};

/// A renewal that takes longer has failed.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Within this time after an order to renew, members come at any moment.
const ORDERED: Duration = Duration::from_secs(5);

/// The task behind a [`Member`].
pub(crate) struct Keeper {
    pub member: Member,
    pub folder: Folder,
    pub address: String,
    pub clock: Clock,
    pub look_every: Duration,
}

impl Keeper {
    /// Runs until the drain. Whatever fails is tried again: the last good certificate and bundle
    /// stay in use.
    pub async fn run(self, drain: Watcher) {
        let expect = match self.member.trust.trust_domain().service("identity") {
            Ok(id) => Expect::Id(id),
            Err(error) => return tracing::error!(%error, "identity service can not be named"),
        };
        // Connects when used, with the certificate that is present then.
        let channel =
            match weft_rpc::channel(&self.address, Some(&self.member.svid), &self.member.trust, expect) {
                Ok(channel) => channel,
                Err(error) => return tracing::error!(%error, "identity service can not be called"),
            };
        let both = async {
            tokio::join!(self.renew_always(&channel), self.follow_bundle(&channel));
        };
        drain.until_draining(both).await;
    }

    async fn renew_always(&self, channel: &Channel) {
        let mut due = self.due();
        let mut pause = FIRST_PAUSE;
        let mut renewal = self.member.trust.renewal();
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.look_every) => {}
                Ok(()) = renewal.changed() => {
                    // All members are told at once; they need not all come at once.
                    tokio::time::sleep(ORDERED.mul_f64(rand::random())).await;
                }
            }
            if self.is_ordered(*renewal.borrow()) {
                due = 0;
            }
            if self.clock.unix_seconds() < due {
                continue;
            }
            match self.renew(channel).await {
                Ok(()) => {
                    due = self.due();
                    pause = FIRST_PAUSE;
                }
                Err(reason) => {
                    let (now, until) = (self.clock.unix_seconds(), self.not_after());
                    let left = until.saturating_sub(now);
                    if now > until {
                        let error = EnrollError::Expired {
                            id: self.member.id.clone(),
                            folder: self.folder.path().to_path_buf(),
                            seconds_ago: now - until,
                        };
                        tracing::error!(reason, "{error}");
                    } else {
                        tracing::warn!(id = %self.member.id, reason, seconds_left = left, "renewal failed, trying again");
                    }
                    tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
                    // A short life leaves less time to wait.
                    let longest = Duration::from_secs(left / 8).clamp(FIRST_PAUSE, LONGEST_PAUSE);
                    pause = (pause * 2).min(longest);
                }
            }
        }
    }

    /// Whether the authority wants everything renewed that begins before.
    fn is_ordered(&self, before: u64) -> bool {
        let held = self.member.svid.get();
        held.is_some_and(|svid| svid.identity().not_before < before)
    }

    fn due(&self) -> u64 {
        self.member
            .svid
            .get()
            .map_or(0, |svid| svid.renew_at_spread(rand::random()))
    }

    fn not_after(&self) -> u64 {
        self.member.svid.get().map_or(0, |svid| svid.identity().not_after)
    }

    async fn renew(&self, channel: &Channel) -> Result<(), String> {
        // A new key each time: the old one is of no use to whoever copied it.
        let made = new_key_and_csr().map_err(|e| e.to_string())?;
        let mut client = CertificatesClient::new(channel.clone());
        let call = client.renew(RenewRequest {
            csr_der: made.csr_der,
        });
        let reply = tokio::time::timeout(CALL_TIMEOUT, call)
            .await
            .map_err(|_| format!("{} did not answer", self.address))?
            .map_err(|status| explain(&status))?;
        let chain = read_chain(reply.into_inner().svid)?;
        let svid = Svid::new(chain.clone(), &made.key).map_err(|e| e.to_string())?;
        if *svid.id() != self.member.id {
            return Err(format!(
                "the identity service answered with a certificate of {}",
                svid.id()
            ));
        }
        if let Err(error) = self.folder.store_svid(&made.key, &chain) {
            // Valid all the same until this process ends; the next renewal may be stored again.
            tracing::error!(%error, "the renewed certificate could not be stored");
        }
        tracing::info!(id = %self.member.id, serial = svid.identity().serial, "certificate renewed");
        self.member.svid.set(svid);
        Ok(())
    }

    async fn follow_bundle(&self, channel: &Channel) {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.follow_once(channel).await {
                Ok(()) => pause = FIRST_PAUSE,
                Err(reason) => tracing::warn!(reason, "trust bundle can not be followed, trying again"),
            }
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn follow_once(&self, channel: &Channel) -> Result<(), String> {
        let mut client = TrustClient::new(channel.clone());
        let request = WatchBundleRequest {
            held_version: self.member.trust.version(),
        };
        let mut stream = client
            .watch_bundle(request)
            .await
            .map_err(|s| explain(&s))?
            .into_inner();
        let mut list = RevocationList::default();
        while let Some(change) = stream.message().await.map_err(|s| explain(&s))? {
            let before = change
                .renew_before
                .map_or(0, |t| u64::try_from(t.seconds).unwrap_or(0));
            let bundle = read_bundle(change.bundle, &self.member.trust.trust_domain())?;
            let version = bundle.version;
            // A restored database may be behind; going back would drop roots that are in use.
            if version > self.member.trust.version() {
                self.member.trust.set(bundle.clone()).map_err(|e| e.to_string())?;
                self.folder.store_bundle(&bundle).map_err(|e| e.to_string())?;
                tracing::info!(version, roots = bundle.roots.len(), "trust bundle changed");
            }
            if let Some(change) = change.revocations {
                list.apply(change)?;
                self.member.trust.set_revoked_if_changed(list.revoked());
                self.folder.store_revoked(&list).map_err(|e| e.to_string())?;
            }
            self.member.trust.set_renewal(before);
            let ack = AckBundleRequest {
                watch_id: change.watch_id,
                version: self.member.trust.version(),
            };
            match client.ack_bundle(ack).await {
                // An identity service of a version that does not ask for it.
                Err(status) if status.code() == Code::Unimplemented => {}
                acked => drop(acked.map_err(|s| explain(&s))?),
            }
        }
        Ok(())
    }
}
