//! What is changed in the cluster, and when every node concerned had confirmed it.

use super::{Again, START, Stand};
use crate::policy::{
    layout::{OWN, TOGETHER, address, namespace, peer, policy},
    nodes::{Change, Seen},
};
use anyhow::{Result, bail};
use std::time::{Duration, Instant};
use weft_proto::weft::policy::v1::{
    ApplyRequest, DeregisterRequest, ExplainRequest, ListRequest, NodeStatus, RegisterRequest, Workload,
    explain_client::ExplainClient, registry_client::RegistryClient, resources_client::ResourcesClient,
};

impl Stand {
    /// Another policy about a Service.
    pub async fn change_policy(&mut self, service: usize, round: usize) -> Result<Change> {
        let from = peer(service, 3, self.scale.services);
        let text = policy(&format!("bench-{service}"), service, from, 7_000 + round);
        let request = ApplyRequest {
            file: "bench.yaml".into(),
            content: text.into_bytes(),
            ..Default::default()
        };
        let nodes = self.nodes_of(service);
        let mut resources = ResourcesClient::new(self.local()?);
        let begun = Instant::now();
        let answer = resources.apply(request).await?.into_inner();
        if !answer.problems.is_empty() {
            bail!("{:?}", answer.problems);
        }
        let is = |seen: &Seen| seen.keys.iter().any(|(kind, _)| kind == "policy-set");
        self.nodes.reached(begun, &nodes, is).await
    }

    /// One more pod of a Service, where its first one is.
    fn extra(&self, service: usize) -> Workload {
        let mut workload = self.workload(service, 0);
        workload.name = format!("extra-{service}");
        workload.id = format!("{}/{}/{}/1", workload.node, workload.namespace, workload.name);
        workload.addresses = vec![address(self.node_of(service, 0), 1 + OWN + service % TOGETHER)];
        workload
    }

    async fn registered(&mut self, service: usize, workload: Workload) -> Result<Change> {
        let (id, node) = (workload.id.clone(), self.node_of(service, 0));
        let mut nodes = self.near(service);
        nodes.insert(node);
        let channel = self.channels[node].clone();
        let request = RegisterRequest {
            workload: Some(workload),
            ..Default::default()
        };
        let begun = Instant::now();
        // Its answer waits for nodes, which are looked at here.
        let asked = tokio::spawn(async move { RegistryClient::new(channel).register(request).await });
        let is = |seen: &Seen| {
            seen.keys
                .iter()
                .any(|(kind, name)| kind == "endpoint" && *name == id)
        };
        let change = self.nodes.reached(begun, &nodes, is).await;
        asked.await??;
        change
    }

    pub async fn add_pod(&mut self, service: usize) -> Result<Change> {
        let workload = self.extra(service);
        self.registered(service, workload).await
    }

    /// The pod that was added becomes one of the next Service.
    pub async fn change_label(&mut self, service: usize) -> Result<Change> {
        let mut workload = self.extra(service);
        let next = peer(service, 1, self.scale.services);
        workload.labels = [("app".to_owned(), format!("s-{next}"))].into();
        let strangers = self.strangers(next);
        let mut change = self.registered(service, workload).await?;
        // Who names the next Service is concerned as well.
        if !strangers.is_empty() {
            change.strays = 0;
        }
        Ok(change)
    }

    pub async fn remove_pod(&mut self, service: usize) -> Result<()> {
        let id = self.extra(service).id;
        let channel = self.channels[self.node_of(service, 0)].clone();
        RegistryClient::new(channel)
            .deregister(DeregisterRequest { id })
            .await?;
        self.nodes.settle().await;
        Ok(())
    }

    /// Milliseconds of a question.
    pub async fn explain(&self, service: usize) -> Result<f64> {
        let name = |service: usize| format!("{}/w-{service}", namespace(service));
        let request = ExplainRequest {
            from: name(peer(service, 1, self.scale.services)),
            to: name(service),
            port: 8_080,
            ..Default::default()
        };
        let mut client = ExplainClient::new(self.local()?);
        // The connection is not the question.
        client.explain(request.clone()).await?;
        let begun = Instant::now();
        client.explain(request).await?;
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }

    /// So many pods a second come and go. How many did, and how long after the last of them the service had
    /// answered all and the nodes had confirmed what they got of it, in milliseconds.
    pub async fn load(&mut self, rate: u32, time: Duration) -> Result<(f64, f64)> {
        let total = rate as usize * usize::try_from(time.as_secs())?;
        let mut tick = tokio::time::interval(Duration::from_secs(1) / rate);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
        let mut calls = tokio::task::JoinSet::new();
        let begun = Instant::now();
        for at in 0..total {
            tick.tick().await;
            // Each comes, then goes half a second later.
            let half = rate as usize / 2;
            let (pair, comes) = (at / rate as usize * half + at % half, at % (rate as usize) < half);
            let service = pair * 7 % self.scale.services;
            let mut workload = self.extra(service);
            workload.name = format!("load-{}", pair % (self.scale.services * 4));
            workload.id = format!("{}/{}/{}/1", workload.node, workload.namespace, workload.name);
            workload.addresses = vec![format!(
                "100.{}.{}.{}",
                64 + (pair >> 16),
                pair >> 8 & 255,
                pair & 255
            )];
            let mut client = RegistryClient::new(self.channels[self.node_of(service, 0)].clone());
            calls.spawn(async move {
                match comes {
                    true => {
                        let request = RegisterRequest {
                            workload: Some(workload),
                            ..Default::default()
                        };
                        client.register(request).await.map(drop)
                    }
                    false => client
                        .deregister(DeregisterRequest { id: workload.id })
                        .await
                        .map(drop),
                }
            });
        }
        let sent = Instant::now();
        while let Some(call) = calls.join_next().await {
            call??;
        }
        let answered = Instant::now();
        let (_, seen) = self.nodes.settle().await;
        let behind = seen.map_or(answered, |seen| seen.max(answered)) - sent;
        Ok((
            total as f64 / (sent - begun).as_secs_f64(),
            behind.as_secs_f64() * 1e3,
        ))
    }

    /// Ends the service and starts it again while all nodes are connected.
    pub async fn restart(&mut self) -> Result<Again> {
        self.nodes.settle().await;
        self.stop_service().await?;
        let begun = Instant::now();
        self.start_service().await?;
        let up = begun.elapsed();
        let mut resources = ResourcesClient::new(self.local()?);
        let mut snapshots = 0;
        loop {
            snapshots += self.nodes.settle().await.0;
            let list = resources.list(ListRequest {
                kind: "Gateway".into(),
                ..Default::default()
            });
            let list = list.await?.into_inner();
            let there = |n: &&NodeStatus| n.connected_at.is_some() && n.sent_version == n.acked_version;
            if list.nodes.iter().filter(there).count() == self.scale.nodes {
                break;
            }
            if begun.elapsed() > START {
                bail!(
                    "{:.1} s after the start nodes are not all back",
                    begun.elapsed().as_secs_f64()
                );
            }
        }
        Ok(Again {
            seconds: begun.elapsed().max(up).as_secs_f64(),
            snapshots,
        })
    }
}
