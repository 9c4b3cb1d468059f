//! The registration as a task of the agent's process.

use super::super::{Options, network::Network};
use super::{Identity, Registrar, Standing, TreeView};
use anyhow::{Context as _, Result};
use coordination::zookeeper::ZooKeeper;
use host::identity::{self, boot_id, network_namespace};
use host::supervisor::{Supervisor, Task};
use std::collections::BTreeSet;
use std::net::IpAddr;
use tokio::sync::{oneshot, watch};
use zk_schema::Real;
use zk_schema::tree::Registrant;

/// A registration that can begin.
#[derive(Debug)]
pub(crate) struct Prepared {
    store: ZooKeeper,
    settings: Identity,
}

/// A registration that is being kept.
pub(crate) struct Registration {
    learnt: watch::Receiver<Option<TreeView>>,
    standing: watch::Receiver<Standing>,
    stop: oneshot::Sender<()>,
    task: Task<()>,
}

impl Registration {
    /// Finds out where and as what this host is to be registered. Connects to nothing, changes nothing.
    pub(crate) async fn prepare(options: &Options, network: &Network) -> Result<Prepared> {
        let interface = &options.interface;
        let wanted = &options.registration;
        let store = coordination::zookeeper::store(&wanted.zookeeper()?)?;
        let boot = boot_id().context("cannot read this machine's boot id")?;
        let namespace = network_namespace().context("cannot tell the network namespace")?;
        let this_host = identity::host_id(&boot, namespace);
        let served: BTreeSet<IpAddr> = options.vips.iter().copied().collect();
        let addresses = &network.primary_addresses(interface).await? - &served;
        let mut real = Real::new(wanted.real_address(interface, &addresses)?);
        real.weight = wanted.weight;
        let settings = Identity {
            vips: wanted.vips(),
            name: wanted.real_name()?,
            real,
            registrant: Registrant::new(format!("{this_host}/{interface}")),
            served: (!served.is_empty()).then_some(served),
        };
        Ok(Prepared { store, settings })
    }

    /// Waits for the next addresses; `None` when there will be none any more.
    pub(crate) async fn learnt(&mut self) -> Option<TreeView> {
        loop {
            self.learnt.changed().await.ok()?;
            let learnt = self.learnt.borrow_and_update().clone();
            if learnt.is_some() {
                return learnt;
            }
        }
    }

    /// Follows its state.
    pub(crate) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Takes the host out of the tree.
    pub(crate) async fn stop(self) {
        drop(self.stop);
        if self.task.ended().await.is_none() {
            tracing::error!("the registration has panicked");
        }
    }
}

impl Prepared {
    /// Registers the host for the VIPs whose addresses are `in_place`. Until the tree has been seen it goes by what it
    /// went by `before`.
    pub(crate) fn start(
        self,
        supervisor: &Supervisor,
        in_place: watch::Receiver<BTreeSet<IpAddr>>,
        before: TreeView,
    ) -> Registration {
        let registrar = Registrar::new(self.store, self.settings, in_place);
        let (learnt, standing) = (registrar.learnt(), registrar.standing());
        let (stop, stopped) = oneshot::channel::<()>();
        let task = supervisor.spawn("registration", registrar.run(before, async { drop(stopped.await) }));
        Registration { learnt, standing, stop, task }
    }
}
