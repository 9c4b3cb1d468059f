//! Somebody who looks at a site all the time and notes whatever changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::lb_node;
use crate::site::Site;
use testbed::Station;

/// Pause between two looks at the same thing.
const PAUSE: Duration = Duration::from_millis(25);
/// The pause after a look at a node is so many times as long as the look took, if that is more: what many VIPs are on a
/// node is much to read, and looks are not to take the machine.
const REST: u32 = 3;

/// Notes what the nodes of a site say is in their maps, and which nodes the router sends packets to, until it is told to
/// stop. A node that does not answer is passed over.
#[derive(Debug)]
pub struct Observer {
    seen: Arc<Mutex<Observed>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// What each node, by its name, said at first and whenever that changed.
    pub nodes: BTreeMap<String, Vec<Sight>>,
    /// The nodes that the router sent each VIP's packets to, at first and whenever they changed.
    pub carriers: BTreeMap<IpAddr, Vec<(Instant, BTreeSet<String>)>>,
    /// Looks at nodes that were answered.
    pub looks: usize,
}

/// What a node said at one moment.
#[derive(Clone, Debug)]
pub struct Sight {
    /// When.
    pub at: Instant,
    /// How what is in force came to be: `live`, `static` or `autonomous`.
    pub mode: String,
    /// The term of the node's leadership, while it leads.
    pub leading: Option<u64>,
    /// Tables by VIP.
    pub tables: BTreeMap<String, Table>,
}

/// A VIP's table on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The epoch of the assignment that it was made from.
    pub epoch: u64,
    /// Digest of what is in the maps; `None` while there is no table.
    pub digest: Option<String>,
    /// The reals in it.
    pub reals: BTreeSet<String>,
}

impl Observer {
    /// Begins to look.
    ///
    /// # Errors
    ///
    /// When the site has no front, or threads cannot be started.
    pub fn start<S>(site: &Site<S>) -> Result<Observer> {
        let seen = Arc::new(Mutex::new(Observed::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let mut observer = Observer { seen, stop, threads: Vec::new() };
        for station in &site.net.nodes {
            let station = station.clone();
            // One thread for each, since a node that hangs must not keep others from being looked at.
            observer
                .spawn(format!("observer {}", station.host.name()), REST, move |seen| look(&station, seen))?;
        }
        let routes = site.net.front.as_ref().context("the network has a front")?.routes().clone();
        let vips = site.cluster.addresses();
        observer.spawn("observer of routes".to_owned(), 0, move |seen| {
            for vip in &vips {
                let Ok(carriers) = routes.carriers(*vip) else { continue };
                let mut seen = locked(seen);
                let history = seen.carriers.entry(*vip).or_default();
                if history.last().is_none_or(|(_, last)| *last != carriers) {
                    history.push((Instant::now(), carriers));
                }
            }
        })?;
        Ok(observer)
    }

    fn spawn(
        &mut self,
        name: String,
        rest: u32,
        look: impl Fn(&Mutex<Observed>) + Send + 'static,
    ) -> Result<()> {
        let (seen, stop) = (self.seen.clone(), self.stop.clone());
        let thread = thread::Builder::new().name(name).spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                look(&seen);
                thread::sleep(PAUSE.max(begun.elapsed() * rest));
            }
        });
        self.threads.push(thread?);
        Ok(())
    }

    /// What has been seen so far.
    #[must_use]
    pub fn so_far(&self) -> Observed {
        locked(&self.seen).clone()
    }

    /// Ends looking; what was seen.
    #[must_use]
    pub fn stop(self) -> Observed {
        self.stop.store(true, Ordering::Relaxed);
        self.so_far()
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Sight {
    /// Whether both say the same, whenever they were had.
    fn says_as(&self, other: &Sight) -> bool {
        self.mode == other.mode && self.leading == other.leading && self.tables == other.tables
    }
}

impl Observed {
    /// How many tables, by VIP and epoch, more than one node has had. Nodes that decided themselves are left out.
    ///
    /// # Panics
    ///
    /// When two nodes, or one node at two times, had different tables for one VIP and epoch.
    #[must_use]
    pub fn agreed(&self) -> usize {
        let mut tables: BTreeMap<(&str, u64), BTreeMap<&str, BTreeSet<&str>>> = BTreeMap::new();
        for (node, sights) in &self.nodes {
            for sight in sights.iter().filter(|sight| sight.mode != "autonomous") {
                for (vip, table) in &sight.tables {
                    let Some(digest) = &table.digest else { continue };
                    let holders = tables.entry((vip, table.epoch)).or_default();
                    holders.entry(digest).or_default().insert(node);
                }
            }
        }
        for (key, digests) in &tables {
            assert!(digests.len() == 1, "{key:?}: nodes have had different tables: {digests:?}");
        }
        tables.values().flat_map(BTreeMap::values).filter(|holders| holders.len() > 1).count()
    }

    /// The tables that a node has had of a VIP, without repetitions: the reals in them, and the digests.
    #[must_use]
    pub fn tables(&self, node: &str, vip: &str) -> Vec<(BTreeSet<String>, String)> {
        let sights = self.nodes.get(node).into_iter().flatten();
        let mut tables: Vec<(BTreeSet<String>, String)> = sights
            .filter_map(|sight| {
                let table = sight.tables.get(vip)?;
                Some((table.reals.clone(), table.digest.clone().unwrap_or_default()))
            })
            .collect();
        tables.dedup();
        tables
    }

    /// Panics if a node had a VIP without a table, or a table without reals.
    ///
    /// # Panics
    ///
    /// As it says.
    pub fn assert_no_table_was_empty(&self) {
        for (node, sights) in &self.nodes {
            for (sight, (vip, table)) in sights.iter().flat_map(|s| s.tables.iter().map(move |t| (s, t))) {
                assert!(
                    table.digest.is_some() && !table.reals.is_empty(),
                    "{node} had no table of {vip} for a while: {sight:?}"
                );
            }
        }
    }

    /// Panics unless the router has sent every VIP's packets to these nodes, among others, all the time.
    ///
    /// # Panics
    ///
    /// As it says.
    pub fn assert_never_withdrawn<'n>(&self, nodes: impl IntoIterator<Item = &'n str>) {
        for node in nodes {
            for (vip, history) in &self.carriers {
                let carried = history.iter().all(|(_, carriers)| carriers.contains(node));
                assert!(carried, "{vip} was withdrawn from {node}: {history:?}");
            }
        }
    }
}

fn look(station: &Station, seen: &Mutex<Observed>) {
    let at = Instant::now();
    let Ok(status) = lb_node::status(&station.host) else { return };
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mut tables = BTreeMap::new();
    for (vip, state) in status["vips"].as_object().into_iter().flatten() {
        let reals = state["reals"].as_object().into_iter().flatten();
        let reals = reals.filter(|(_, real)| real["weight"].as_u64().is_some_and(|weight| weight > 0));
        let table = Table {
            epoch: state["epoch"].as_u64().unwrap_or_default(),
            digest: text(&state["table_digest"]),
            reals: reals.map(|(real, _)| real.clone()).collect(),
        };
        tables.insert(vip.clone(), table);
    }
    let leading = status["cluster"]["leading"].as_u64();
    let sight = Sight { at, mode: text(&status["mode"]).unwrap_or_default(), leading, tables };
    let mut seen = locked(seen);
    seen.looks += 1;
    let history = seen.nodes.entry(station.host.name().to_owned()).or_default();
    // Before anything is in force, there is nothing to note.
    let is_new = !sight.tables.is_empty() && history.last().is_none_or(|last| !last.says_as(&sight));
    if is_new {
        history.push(sight);
    }
}

fn locked(seen: &Mutex<Observed>) -> MutexGuard<'_, Observed> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
