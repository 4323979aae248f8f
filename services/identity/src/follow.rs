//! Keeps the copy of the policy service's registry up to date.

use crate::registry::Registry;
use weft_drain::Watcher;
use weft_proto::weft::policy::v1::{WatchRequest, registry_client::RegistryClient};
use weft_rpc::FollowError;
use weft_tls::{Expect, SvidCell, Trust};

/// The first message holds the whole registry.
const MAX_MESSAGE: usize = 256 * 1024 * 1024;

/// Follows the policy service at `address` until the drain. While it can not be reached, the last
/// good copy stays.
pub(crate) async fn follow(
    address: String,
    svid: SvidCell,
    trust: Trust,
    registry: Registry,
    drain: Watcher,
) {
    let open = || async {
        let policy = trust.trust_domain().service("policy");
        let policy = policy.map_err(|e| FollowError::Told(e.to_string()))?;
        let channel = weft_rpc::channel(&address, Some(&svid), &trust, Expect::Id(policy))?;
        let mut client = RegistryClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        Ok(client.watch(WatchRequest {}).await?.into_inner())
    };
    let what = ("the workload registry", &*address);
    weft_rpc::follow(what, drain, open, |change| registry.apply(change)).await;
}
