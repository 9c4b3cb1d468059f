//! A node: everything put together, run, and shut down.

use crate::admin::{self, Shown};
use crate::control::{self, Control, Inputs, Outputs};
use crate::dataplane::{Dataplane, Settings, Start};
use crate::health::scheduler;
use crate::health::{self, probe::Prober};
use crate::metrics::{self, ControlMetrics};
use crate::nexthop::sources::{self, Sources};
use crate::nexthop::{self, pmtu};
use crate::probe_route::ProbeRoute;
use crate::standalone::FileStore;
use anyhow::{Context as _, Result, bail};
use coordination::Snapshot;
use rustix::thread::CapabilitySet;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tracing::{debug, error, info, warn};
use zk_schema::Node;

/// How often the probes' route is looked after.
const PROBE_ROUTE_EVERY: Duration = Duration::from_secs(15);

/// Runs a node from a cluster file until SIGTERM or SIGINT. Forwarding goes on when this returns.
///
/// # Errors
/// If the node cannot start; each says what to mend. Once it runs, nothing that can be tried again ends it.
pub async fn run_standalone(file: &Path, bpffs: &Path) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot wait for SIGHUP")?;
    check_capabilities()?;

    let store = FileStore::open(file)?;
    let node = store.node().clone();
    // Before anything in the kernel is touched: a second daemon ends here.
    let listener = admin::bind(node.admin).await?;
    let interface = sources::interface(&node.interface).await.context("the front interface is not usable")?;
    let outer =
        Sources { v4: node.source_v4.or(interface.sources.v4), v6: node.source_v6.or(interface.sources.v6) };

    let snapshots = store.snapshots();
    let first = Arc::clone(&snapshots.borrow());
    let (dataplane, start) = open(&node, outer, &first, bpffs)?;
    let in_force = control::inherited(&dataplane, start, &first.desired);
    let dataplane = Arc::new(Mutex::new(dataplane));

    let (wanted, wanted_receiver) = watch::channel(control::wanted(&first.desired));
    let path_mtus = pmtu::spawn(outer, node.gue_port, wanted_receiver.clone())
        .context("path MTUs towards reals cannot be learnt")?;
    let follower = nexthop::spawn(interface.index, wanted_receiver, path_mtus)
        .await
        .context("next hops of reals cannot be learnt")?;

    let (targets, targets_receiver) = watch::channel(Arc::default());
    let settings = scheduler::Settings {
        probes_in_flight: usize::try_from(node.probes_in_flight).unwrap_or(usize::MAX),
        seed: seed(&node),
        initially_up: in_force.clone(),
    };
    let scheduler = health::scheduler::spawn(Prober::new(node.name.clone()), targets_receiver, settings);

    let (status, status_receiver) = watch::channel(Arc::default());
    let control_metrics = ControlMetrics::default();
    let sources = metrics::Sources {
        dataplane: Arc::clone(&dataplane),
        status: status_receiver.clone(),
        file: store.status(),
    };
    let shown = Shown {
        node: node.name.clone(),
        status: status_receiver,
        file: store.status(),
        registry: Arc::new(metrics::registry(sources, &control_metrics, scheduler.metrics())),
    };
    let inputs = Inputs {
        snapshots: snapshots.clone(),
        verdicts: scheduler.verdicts(),
        next_hops: follower.next_hops,
    };
    let outputs = Outputs { targets, wanted, status };
    let control = Control::new(dataplane, start, in_force, outputs, control_metrics);

    info!(
        node = %node.name,
        interface = node.interface,
        admin = %node.admin,
        vips = first.desired.vips.len(),
        predecessor = ?start,
        "lb-node {} starts",
        env!("CARGO_PKG_VERSION")
    );
    let _tasks = [
        Task::spawn(async move {
            if let Err(error) = admin::serve(listener, shown).await {
                error!("{error:#}");
            }
        }),
        Task::spawn(store.follow(async move || {
            if hangup.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
        })),
        Task::spawn(keep_probe_route(node.interface.clone(), outer, snapshots)),
    ];
    control
        .run(inputs, async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await;
    info!("stopping; forwarding goes on as it is until the next lb-node, or `lb-node detach`");
    Ok(())
}

fn open(node: &Node, outer: Sources, first: &Snapshot, bpffs: &Path) -> Result<(Dataplane, Start)> {
    let settings = Settings {
        interface: node.interface.clone(),
        xdp_mode: node.xdp_mode,
        source_v4: outer.v4,
        source_v6: outer.v6,
        gue_port: node.gue_port,
        capacity: node.capacity,
        table_size: first.desired.cluster.table_size,
        bpffs: bpffs.to_owned(),
    };
    Dataplane::open(&settings).with_context(|| format!("cannot take up forwarding on {}", node.interface))
}

/// Loading programs, attaching them and opening raw sockets are privileged.
fn check_capabilities() -> Result<()> {
    let effective = rustix::thread::capabilities(None).context("cannot tell this process' rights")?.effective;
    let mut needed =
        vec![(CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"), (CapabilitySet::NET_RAW, "CAP_NET_RAW")];
    // The kernel takes CAP_SYS_ADMIN for these two.
    if !effective.contains(CapabilitySet::SYS_ADMIN) {
        needed.extend([(CapabilitySet::BPF, "CAP_BPF"), (CapabilitySet::PERFMON, "CAP_PERFMON")]);
    }
    needed.retain(|(capability, _)| !effective.contains(*capability));
    let missing: Vec<&str> = needed.iter().map(|(_, name)| *name).collect();
    if !missing.is_empty() {
        bail!(
            "this process lacks {}: run it as root, or grant them to its service or container",
            missing.join(", ")
        );
    }
    Ok(())
}

/// Looks after the way of probes through the tunnel, and tells once of what is in it.
async fn keep_probe_route(interface: String, outer: Sources, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
    let route = match ProbeRoute::new(&interface, outer) {
        Ok(route) => route,
        Err(error) => return error!(%error, "probes through the tunnel have no route of their own"),
    };
    let mut ticks = tokio::time::interval(PROBE_ROUTE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = BTreeSet::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            Ok(()) = snapshots.changed() => {}
        }
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        let obstacles: BTreeSet<String> = match route.ensure(&snapshot.desired).await {
            Ok(obstacles) => obstacles.iter().map(ToString::to_string).collect(),
            Err(error) => [error.to_string()].into(),
        };
        for obstacle in obstacles.difference(&told) {
            warn!("{obstacle}");
        }
        for obstacle in told.difference(&obstacles) {
            debug!(obstacle, "no longer in the way of probes");
        }
        told = obstacles;
    }
}

/// Differs between nodes and starts, so that probes of many nodes drift apart.
fn seed(node: &Node) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let name = node.name.as_str().bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    name ^ u64::from(now.subsec_nanos()) ^ now.as_secs().rotate_left(32)
}

/// A task that ends with its owner.
struct Task(JoinHandle<()>);

impl Task {
    fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(task))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
