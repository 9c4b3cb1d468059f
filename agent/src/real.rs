//! A host that is being kept a real, and its one loop of reconciling.

use crate::journal::Journal;
use crate::network::Network;
use crate::options::Options;
use crate::pins::Pins;
use crate::prefix::Prefix;
use crate::program::{Counters, Program};
use crate::registration::{Standing, TreeView};
use crate::status::Status;
use anyhow::Result;
use host::attached;
use lb_ebpf::real::LAYOUT;
use std::collections::BTreeSet;
use std::net::IpAddr;
use tokio::sync::watch;

/// A host that is being kept a real.
#[derive(Debug)]
pub(crate) struct Real {
    pub(crate) options: Options,
    /// The VIPs to take packets for.
    vips: watch::Sender<BTreeSet<IpAddr>>,
    from: BTreeSet<Prefix>,
    /// VIPs and nodes that it goes by until it has learnt better.
    pub(crate) before: TreeView,
    has_learnt: bool,
    network: Network,
    pins: Pins,
    program: Program,
    journal: Journal,
    /// The obstacle that keeps VIPs from the loopback, if any.
    pub(crate) obstacle: watch::Sender<Option<String>>,
}

impl Real {
    pub(crate) async fn start(options: Options, network: Network) -> Result<(Self, Counters)> {
        network.interface_index(&options.interface).await?;
        let pins = Pins::open(&options.bpffs, &options.interface, LAYOUT)?;
        let (program, counters) = Program::load(&pins, options.gue_port)?;
        let journal = Journal::open(&pins)?;
        // What is to be learnt is as a predecessor had it, until then.
        let vips = match options.vips.is_empty() {
            true => &program.vips()? | &journal.vips()?,
            false => options.vips.iter().copied().collect(),
        };
        let sources = if options.from.is_empty() { program.single_sources()? } else { BTreeSet::new() };
        let from = match options.from.is_empty() {
            true => sources.iter().copied().map(Prefix::from).collect(),
            false => options.from.iter().copied().collect(),
        };
        let before = TreeView { vips: vips.clone(), sources };
        let vips = watch::Sender::new(vips);
        let has_learnt = false;
        let obstacle = watch::Sender::new(None);
        let mut real =
            Self { options, vips, from, before, has_learnt, network, pins, program, journal, obstacle };
        match real.reconcile().await {
            Err(error) if real.obstacle.borrow().is_some() => {
                // Somebody else has to fix it; a process that ended would be started again and again meanwhile.
                tracing::error!("this host cannot serve its VIPs, trying again later: {error:#}");
            }
            outcome => outcome?,
        }
        real.pins.remove_other_layouts()?;
        tracing::info!(
            interface = real.options.interface,
            vips = real.vips.borrow().len(),
            from = real.from.len(),
            gue_port = real.options.gue_port,
            "this host is a real"
        );
        if !real.is_complete() {
            tracing::info!("waiting for ZooKeeper to tell of VIPs and nodes; as before until then");
        }
        Ok((real, counters))
    }

    /// Returns whether VIPs and nodes are known, by the command line or from the tree.
    fn is_complete(&self) -> bool {
        self.has_learnt || !(self.options.vips.is_empty() || self.options.from.is_empty())
    }

    /// The VIPs that it takes packets for as it should, given that the host is in the wanted state.
    pub(crate) fn in_place(&self) -> BTreeSet<IpAddr> {
        let is_in_place = self.is_complete() && self.obstacle.borrow().is_none();
        if is_in_place { self.vips.borrow().clone() } else { BTreeSet::new() }
    }

    /// Takes over what was not told on the command line.
    pub(crate) fn learn(&mut self, learnt: TreeView) {
        self.has_learnt = true;
        if self.options.vips.is_empty() {
            self.vips.send_replace(learnt.vips);
        }
        if self.options.from.is_empty() {
            self.from = learnt.sources.into_iter().map(Prefix::from).collect();
        }
    }

    /// Brings the program's sets, its place on the interface, and the loopback to the wanted state.
    pub(crate) async fn reconcile(&mut self) -> Result<()> {
        // Any address of the host may be the tunnel's end, for instance one of a VLAN on the interface,
        // or a routed one on the loopback; a VIP never is.
        let vips = self.vips.borrow().clone();
        let local = &self.network.addresses().await? - &vips;
        self.program.set_local(&local)?;
        self.program.set_sources(&self.from)?;
        self.program.set_vips(&vips)?;
        let interface = &self.options.interface;
        let index = self.network.interface_index(interface).await?;
        if let Err(why) = attached::check(&self.pins.link(), self.program.id(), index) {
            tracing::debug!(interface, "attaching the program: {why}");
            self.program.attach(&self.network, interface, self.options.xdp_mode, &self.pins).await?;
        }
        let applied = self.journal.apply(&self.network, interface, &vips).await;
        self.obstacle.send_replace(applied.as_ref().err().map(|error| format!("{error:#}")));
        applied
    }

    /// Sums up the state in one line.
    pub(crate) fn summary(&self, standing: Option<&watch::Receiver<Standing>>) -> String {
        let mut problems: Vec<String> = self.obstacle.borrow().iter().cloned().collect();
        problems.extend(standing.into_iter().flat_map(|standing| standing.borrow().problems()));
        let vips = self.vips.borrow().len();
        let problems = problems.iter().map(|problem| format!("; {problem}")).collect::<String>();
        format!("decapsulating on {} for {vips} VIPs{problems}", self.options.interface)
    }

    pub(crate) fn status(&self, registration: Option<watch::Receiver<Standing>>) -> Status {
        Status {
            network: self.network.clone(),
            interface: self.options.interface.clone(),
            program: self.program.id(),
            link: self.pins.link(),
            obstacle: self.obstacle.subscribe(),
            vips: self.vips.subscribe(),
            registration,
        }
    }
}
