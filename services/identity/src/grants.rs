//! Certificates for callers that hold one: renewals, workloads of a node, operators.

use crate::{
    authority::Issued,
    core::{Core, Decision, ttl},
    csr,
    db::Audit,
    reason::Reason,
    refused::Refused,
    registry::{Known, Lookup},
    tokens::Kind,
};
use rcgen::SubjectPublicKeyInfo;
use std::time::Duration;
use weft_model::{Principal, SpiffeId, check_name};
use weft_proto::weft::identity::v1::SvidUse;
use weft_rpc::Caller;
use weft_tls::Bundle;

const DEFAULT_ADMIN_TTL: u32 = 3600;

impl Core {
    /// A new certificate for the caller's own ID.
    pub async fn renew(&self, caller: &Caller, csr: &[u8]) -> Decision<Issued> {
        let own = caller.spiffe_id().map(ToString::to_string).unwrap_or_default();
        let asked = self.asked("renew", caller, &own);
        let checked = self.check_renewal(caller, csr).await;
        let (id, lifetime, key) = self.or_record(&asked, checked).await?;
        self.give(&asked, &id, None, lifetime, &key).await
    }

    async fn check_renewal(
        &self,
        caller: &Caller,
        csr: &[u8],
    ) -> Decision<(SpiffeId, Duration, SubjectPublicKeyInfo)> {
        let id = caller
            .spiffe_id()
            .ok_or_else(|| Refused::denied(Reason::NotAMember, "only members renew their certificates"))?;
        self.check_caller(caller)?;
        let key = csr::public_key(csr).map_err(|e| Refused::csr("csr_der", &e))?;
        let (kind, name) = match id.principal() {
            Principal::Service(name) => (Kind::Service, name),
            Principal::Node(name) => (Kind::Node, name),
            _ => {
                let text = format!("{id} is no member: its holder does not renew it");
                return Err(Refused::denied(Reason::NotAMember, text));
            }
        };
        if self.member(kind, &name).await?.is_none() {
            let text = format!("{id} is no member: it has to join with a token");
            return Err(Refused::denied(Reason::NotAMember, text).about("member", id.as_str()));
        }
        Ok((id.clone(), self.member_ttl(kind), key))
    }

    /// A certificate for a workload of the calling node.
    pub async fn sign_workload(
        &self,
        caller: &Caller,
        workload_id: &str,
        csr: &[u8],
        purpose: SvidUse,
    ) -> Decision<Issued> {
        // Names the workload until its SPIFFE ID is known.
        let mut asked = self.asked(
            "sign-workload",
            caller,
            &workload_id.chars().take(512).collect::<String>(),
        );
        let checked = self
            .check_workload(caller, &mut asked, workload_id, csr, purpose)
            .await;
        let (id, node, key) = self.or_record(&asked, checked).await?;
        let node = (purpose == SvidUse::Tunnel).then_some(node.as_str());
        self.give(&asked, &id, node, self.settings.workload_ttl(), &key)
            .await
    }

    async fn check_workload(
        &self,
        caller: &Caller,
        asked: &mut Audit,
        workload_id: &str,
        csr: &[u8],
        purpose: SvidUse,
    ) -> Decision<(SpiffeId, String, SubjectPublicKeyInfo)> {
        if purpose == SvidUse::Unspecified {
            return Err(Refused::field(
                "use",
                "use must be SVID_USE_TUNNEL or SVID_USE_WORKLOAD",
            ));
        }
        let key = csr::public_key(csr).map_err(|e| Refused::csr("csr_der", &e))?;
        let (id, node) = self.check_hosted(caller, asked, workload_id).await?;
        Ok((id, node, key))
    }

    /// A tunnel certificate for the gateways of the calling node, whichever there are: what enters by
    /// them is known to other nodes as `ingress`, and by which node it came.
    pub async fn sign_ingress(&self, caller: &Caller, csr: &[u8]) -> Decision<Issued> {
        let own = caller.spiffe_id().map(ToString::to_string).unwrap_or_default();
        let mut asked = self.asked("sign-ingress", caller, &own);
        let checked = self.check_ingress(caller, &mut asked, csr).await;
        let (id, node, key) = self.or_record(&asked, checked).await?;
        self.give(&asked, &id, Some(&node), self.settings.workload_ttl(), &key)
            .await
    }

    async fn check_ingress(
        &self,
        caller: &Caller,
        asked: &mut Audit,
        csr: &[u8],
    ) -> Decision<(SpiffeId, String, SubjectPublicKeyInfo)> {
        let node = caller
            .node()
            .ok_or_else(|| Refused::denied(Reason::NotAMember, "only nodes have gateways"))?;
        self.check_caller(caller)?;
        let key = csr::public_key(csr).map_err(|e| Refused::csr("csr_der", &e))?;
        let id = self
            .trust_domain
            .ingress(&node)
            .map_err(|e| Refused::denied(Reason::NotNameable, e.to_string()))?;
        asked.spiffe_id = id.to_string();
        if self.member(Kind::Node, &node).await?.is_none() {
            let text = format!("node {node:?} is no member");
            return Err(Refused::denied(Reason::NotAMember, text).about("member", &node));
        }
        Ok((id, node, key))
    }

    /// The name of a workload that the calling node hosts and may host, and the node's.
    pub(crate) async fn check_hosted(
        &self,
        caller: &Caller,
        asked: &mut Audit,
        workload_id: &str,
    ) -> Decision<(SpiffeId, String)> {
        let node = caller
            .node()
            .ok_or_else(|| Refused::denied(Reason::NotAMember, "only nodes ask for workloads"))?;
        self.check_caller(caller)?;
        let workload = match self.registry.find(workload_id).await {
            Lookup::Found(workload) => workload,
            Lookup::Unknown => {
                let text = format!("workload {workload_id:?} is not registered");
                return Err(Refused::missing(Reason::WorkloadUnknown, text).about("workload", workload_id));
            }
            Lookup::NotReady => {
                return Err(Refused::unavailable(
                    Reason::RegistryNotReady,
                    "the policy service has not been reached yet, so it is not known which workloads run \
                     where; see policy_addr and the identity service's log",
                ));
            }
        };
        if *workload.node != *node {
            let text = format!(
                "workload {workload_id:?} runs on node {:?}, not on {node:?}",
                workload.node
            );
            return Err(Refused::denied(Reason::WorkloadElsewhere, text).about("workload", workload_id));
        }
        let (id, name) = self.workload_id(&workload)?;
        asked.spiffe_id = id.to_string();
        let member = self.member(Kind::Node, &node).await?;
        let member = member.ok_or_else(|| {
            Refused::denied(Reason::NotAMember, format!("node {node:?} is no member")).about("member", &node)
        })?;
        let may_host = &member.may_host;
        if !may_host.iter().any(|p| p.matches(&workload.namespace, &name)) {
            let text = format!(
                "node {node:?} may not host {}/{name}: none of its {} host patterns matches; join it with a \
                 token that permits it (weft identity join-token create --kind node --name {node} --may-host \
                 {}/{name})",
                workload.namespace,
                may_host.len(),
                workload.namespace,
            );
            return Err(Refused::denied(Reason::HostingNotPermitted, text).about("identity", id.as_str()));
        }
        if member.by_kubernetes {
            // The registry has it from the node; Kubernetes has it from nobody on the node.
            Box::pin(self.attestor.hosts(&node, &workload.namespace, &name)).await?;
        }
        Ok((id, node))
    }

    /// The ID follows from namespace and name. What the registry derived must agree with it, so
    /// that a mistake there can not name something else.
    fn workload_id(&self, workload: &Known) -> Decision<(SpiffeId, String)> {
        let form = self.settings.svid_form;
        let name = form.name(&workload.app_id, &workload.service_account);
        let id = form
            .id(&self.trust_domain, &workload.namespace, name)
            .map_err(|e| Refused::denied(Reason::NotNameable, e.to_string()))?;
        if form.read(&id).is_none() {
            let text = format!("{}/{name} can not be named in a SPIFFE ID", workload.namespace);
            return Err(Refused::denied(Reason::NotNameable, text));
        }
        if !workload.spiffe_id.is_empty() && *workload.spiffe_id != *id.as_str() {
            let text = format!(
                "the registry names {:?}, its namespace and name make {id}; svid_form must be the same for \
                 the identity and the policy service",
                workload.spiffe_id
            );
            return Err(Refused::denied(Reason::RegistryContradicts, text));
        }
        Ok((id, name.to_owned()))
    }

    /// An operator's certificate. One that is asked for with an operator's certificate ends no later than
    /// that one: whoever copied it does not hold it for ever. The local socket begins anew.
    pub async fn sign_admin(
        &self,
        caller: &Caller,
        name: &str,
        csr: &[u8],
        ttl_seconds: u32,
    ) -> Decision<(Issued, Bundle)> {
        let asked = self.asked("sign-admin", caller, &format!("/weft/admin/{name}"));
        let checked = || -> Decision<(SpiffeId, u64, SubjectPublicKeyInfo)> {
            check_name(name).map_err(|e| Refused::field("name", e.to_string()))?;
            let id = self
                .trust_domain
                .admin(name)
                .map_err(|e| Refused::field("name", e.to_string()))?;
            let key = csr::public_key(csr).map_err(|e| Refused::csr("csr_der", &e))?;
            let ttl = ttl(ttl_seconds, DEFAULT_ADMIN_TTL)?;
            let left = match caller {
                Caller::Tls(peer) => peer.not_after.saturating_sub(self.now()),
                Caller::Local { .. } | Caller::Anonymous | Caller::Loopback => ttl,
            };
            Ok((id, ttl.min(left), key))
        };
        let (id, ttl, key) = self.or_record(&asked, checked()).await?;
        let issued = self
            .give(&asked, &id, None, Duration::from_secs(ttl), &key)
            .await?;
        Ok((issued, self.bundle()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{config::Config, counts::Counts};
    use weft_tls::ManualClock;

    /// Hundreds of these are there at once when nodes start: what each may take.
    const MOST: usize = 2560;

    #[tokio::test]
    async fn a_call_takes_little_memory() {
        let dir = tempfile::TempDir::new().unwrap();
        let config = Config {
            state_dir: dir.path().join("state"),
            run_dir: None,
            ..Config::default()
        };
        let clock = ManualClock::at(1_800_000_000).shared();
        let core = Core::open(&config, clock, Counts::default(), false)
            .await
            .unwrap();
        let caller = Caller::Local { uid: 0 };
        let call = core.sign_workload(&caller, "w", &[], SvidUse::Tunnel);
        let size = size_of_val(&call);
        assert!(size <= MOST, "{size} bytes");
        assert!(call.await.is_err());
    }
}
