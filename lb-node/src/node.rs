//! A node: everything put together, run, and shut down.
//!
//! There are two kinds. A standalone node goes by a file and decides itself; a node of a cluster goes by what the
//! leader decided, which an [`Agent`] learns. From the snapshot on they are the same.

use crate::admin::{self, Shown};
use crate::bpffs;
use crate::cluster::agent::{self, Agent, Learnt, Link, Name};
use crate::cluster::cache::Cache;
use crate::cluster::{leader, vote};
use crate::control::{self, Control, Inputs, Outputs, Report};
use crate::dataplane::{Dataplane, Settings, Start};
use crate::front::{Driver, Front, FrontStatus, boot_id};
use crate::health::scheduler;
use crate::health::{self, probe::Prober};
use crate::metrics::{self, ControlMetrics};
use crate::nexthop::sources::{self, Sources};
use crate::nexthop::{self, pmtu};
use crate::notify::Notifier;
use crate::probe_route::ProbeRoute;
use crate::standalone::{FileStatus, FileStore, read_text};
use crate::status::Status;
use crate::tree_metrics::TreeMetrics;
use anyhow::{Context as _, Result, bail};
use coordination::follow::{Decided, Followed};
use coordination::{Snapshot, Snapshots};
use rustix::thread::CapabilitySet;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, error, info, warn};
use zk_schema::tree::{Member, Mode};
use zk_schema::{Node, NodeFile, NodeOverrides};

/// How often the probes' route is looked after.
const PROBE_ROUTE_EVERY: Duration = Duration::from_secs(15);

/// How long a node that starts prefers what the tree says to what it kept on disk.
const TREE_FIRST: Duration = Duration::from_secs(3);

/// How often a node that waits for its first decision tells the service manager so.
const WAITING_TOLD_EVERY: Duration = Duration::from_secs(10);

/// How often everything in the tree is read again, since a lost notification is never announced.
const REREAD: Duration = Duration::from_secs(45);

/// Runs a node from a cluster file until SIGTERM or SIGINT. Forwarding goes on when this returns.
///
/// # Errors
/// If the node cannot start; each says what to mend. Once it runs, nothing that can be tried again ends it.
pub async fn run_standalone(file: &Path, bpffs: &Path) -> Result<()> {
    let signals = Signals::new()?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot wait for SIGHUP")?;
    check_capabilities()?;

    let notifier = Notifier::from_env(control::SELF_TEST_EVERY);
    let store = FileStore::open(file)?;
    let base = Base::prepare(store.node().clone()).await?;
    let snapshots = store.snapshots();
    let (report, _) = watch::channel(Arc::default());
    let running = base.start(Plan {
        bpffs,
        snapshots,
        mode: watch::channel(Mode::Live).1,
        in_cluster: None,
        file: store.status(),
        announced: watch::channel(FrontStatus::default()).1,
        report,
        tree: TreeMetrics::default(),
    });
    let running = running.await?;
    let teller = Task::spawn(running.tell(notifier, None));
    let _file = Task::spawn(store.follow(async move || {
        if hangup.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }));
    signals.wait().await;
    drop(teller);
    Notifier::from_env(control::SELF_TEST_EVERY).stopping(Duration::ZERO, "stopping; forwarding goes on");
    running.stop().await;
    info!("stopping; forwarding goes on as it is until the next lb-node, or `lb-node detach`");
    Ok(())
}

/// Runs a node of a cluster from its node file, of which some settings may come from elsewhere, until SIGTERM or SIGINT: then it withdraws its VIPs, waits for
/// packets to find other ways, leaves the tree, and ends. Forwarding goes on when this returns.
///
/// # Errors
/// If the node cannot start; each says what to mend. Once it runs, nothing that can be tried again ends it.
pub async fn run_in_cluster(file: &Path, instead: &NodeOverrides, bpffs: &Path) -> Result<()> {
    let signals = Signals::new()?;
    let mut stop = std::pin::pin!(signals.wait());
    check_capabilities()?;

    let mut notifier = Notifier::from_env(control::SELF_TEST_EVERY);
    let NodeFile { node, zookeeper, front, cluster } = read_node_file(file, instead)?;
    let tree_metrics = TreeMetrics::default();
    let store = coordination::zookeeper::store(&zookeeper)?.with_observer(Arc::new(tree_metrics.clone()));
    let boot = boot_id().context("cannot read this machine's boot id")?;
    let announcer = Driver::open(&front, &boot)?;
    let base = Base::prepare(node).await?;
    let cache = Cache::new(&cluster.state_dir, &base.node.name);
    let cached = match cache.load() {
        Ok(cached) => cached.map(Arc::new),
        Err(error) => {
            warn!("{error}");
            None
        }
    };

    let (report, report_receiver) = watch::channel(Arc::<Report>::default());
    let (vote_sender, vote_receiver) = watch::channel(None);
    let settings = agent::Settings {
        node: base.node.name.clone(),
        member: base.member(&boot)?,
        leader: leader::Settings {
            session_timeout: zookeeper.session_timeout(),
            ack_timeout: cluster.ack_timeout(),
        },
        autonomy_after: cluster.autonomy_after(),
        reread: REREAD,
    };
    let (agent, learnt) = Agent::new(store, settings, cached, report_receiver.clone(), vote_receiver);
    let (announcing, announcing_receiver) = watch::channel(None);
    let agent = agent.announcing(announcing_receiver);
    let (leave, left) = oneshot::channel::<()>();
    let agent = tokio::spawn(agent.run(async move {
        let _ = left.await;
    }));

    info!(node = %base.node.name, zookeeper = zookeeper.servers, "waiting for the first decision");
    let first = tokio::select! {
        first = first_decision(learnt.followed.clone()) => first,
        never = tell_of_waiting(&mut notifier, learnt.link.clone()) => match never {},
        () = &mut stop => {
            notifier.stopping(Duration::ZERO, "stopping before the first decision");
            drop(leave);
            let _ = agent.await;
            return Ok(());
        }
    };
    let snapshots = Snapshots::of_cluster(first);
    let node = base.node.clone();
    let front_task = Front::new(announcer, front.announce_hold());
    let announced = front_task.status();
    let running = base
        .start(Plan {
            bpffs,
            snapshots: snapshots.subscribe(),
            mode: learnt.mode.clone(),
            in_cluster: Some(&learnt),
            file: watch::channel(FileStatus::default()).1,
            announced: announced.clone(),
            report,
            tree: tree_metrics.clone(),
        })
        .await?;
    let teller = Task::spawn(running.tell(notifier, Some(announced.clone())));
    let _tasks = [
        Task::spawn(follow_decisions(learnt.followed.clone(), snapshots, cache)),
        Task::spawn(vote::follow(
            report_receiver.clone(),
            running.targets.clone(),
            running.verdicts.clone(),
            vote_sender,
        )),
    ];

    let _told = Task::spawn(tell_announced(announced.clone(), announcing));
    let inherited = announced.borrow().announced.clone();
    let (wanted, wanted_receiver) = watch::channel(inherited);
    let (withdraw, withdrawn) = oneshot::channel::<()>();
    let front_task = tokio::spawn(front_task.run(wanted_receiver, async move {
        let _ = withdrawn.await;
    }));
    let _wanted = Task::spawn(keep_wanted(node, cluster.ack_timeout(), report_receiver, learnt, wanted));

    stop.await;
    drop(teller);
    Notifier::from_env(control::SELF_TEST_EVERY)
        .stopping(cluster.drain_wait(), "withdrawing the VIPs, and waiting for packets to find other ways");
    // Routers have to stop sending packets here before this node may stop answering for what it serves.
    let served = !announced.borrow().announced.is_empty();
    drop(withdraw);
    match front_task.await {
        Ok(Ok(())) => info!("withdrawn from the front"),
        Ok(Err(error)) => error!("{error}"),
        Err(panic) => error!("the front is at fault itself: {panic}"),
    }
    if served {
        info!(wait = ?cluster.drain_wait(), "waiting for packets to find other ways");
        tokio::time::sleep(cluster.drain_wait()).await;
    }
    drop(leave);
    let _ = agent.await;
    running.stop().await;
    info!("stopping; forwarding goes on as it is until the next lb-node, or `lb-node detach`");
    Ok(())
}

/// What both kinds of node have before they know what to serve.
struct Base {
    node: Node,
    listener: TcpListener,
    ifindex: u32,
    outer: Sources,
}

/// What a node is to run by.
struct Plan<'a> {
    bpffs: &'a Path,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    mode: watch::Receiver<Mode>,
    in_cluster: Option<&'a Learnt>,
    file: watch::Receiver<FileStatus>,
    announced: watch::Receiver<FrontStatus>,
    report: watch::Sender<Arc<Report>>,
    tree: TreeMetrics,
}

/// A node that forwards.
struct Running {
    targets: watch::Receiver<Arc<Vec<health::Target>>>,
    verdicts: watch::Receiver<Arc<health::Verdicts>>,
    status: watch::Receiver<Arc<Status>>,
    turned: watch::Receiver<Instant>,
    stop: oneshot::Sender<()>,
    control: JoinHandle<()>,
    _tasks: [Task; 2],
}

impl Base {
    async fn prepare(node: Node) -> Result<Self> {
        // Before anything in the kernel is touched: a second daemon ends here.
        let listener = admin::bind(node.admin).await?;
        let interface =
            sources::interface(&node.interface).await.context("the front interface is not usable")?;
        let outer = Sources {
            v4: node.source_v4.or(interface.sources.v4),
            v6: node.source_v6.or(interface.sources.v6),
        };
        Ok(Self { node, listener, ifindex: interface.index, outer })
    }

    /// What others are told of this node.
    fn member(&self, boot: &str) -> Result<Member> {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .context("cannot get random bytes")?;
        // One network namespace is one node, even where several share a kernel.
        let namespace =
            std::fs::metadata("/proc/self/ns/net").context("cannot tell the network namespace")?;
        Ok(Member {
            instance: random.map(|byte| format!("{byte:02x}")).concat(),
            boot: format!("{boot}/{}", namespace.ino()),
            source_v4: self.outer.v4,
            source_v6: self.outer.v6,
            admin: self.node.admin,
            software: env!("CARGO_PKG_VERSION").to_owned(),
            started: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            extra: Default::default(),
        })
    }

    /// Takes up forwarding by what the snapshots say.
    async fn start(self, plan: Plan<'_>) -> Result<Running> {
        let Self { node, listener, ifindex, outer } = self;
        let Plan { bpffs, snapshots, mode, in_cluster, file, announced, report, tree } = plan;
        let first = Arc::clone(&snapshots.borrow());
        let (dataplane, start) = open(&node, outer, &first, bpffs)?;
        let in_force = control::inherited(&dataplane, start, &first.desired);
        let dataplane = Arc::new(Mutex::new(dataplane));

        let (wanted, wanted_receiver) = watch::channel(control::wanted(&first.desired));
        let path_mtus = pmtu::spawn(outer, node.gue_port, wanted_receiver.clone())
            .context("path MTUs towards reals cannot be learnt")?;
        let follower = nexthop::spawn(ifindex, wanted_receiver, path_mtus)
            .await
            .context("next hops of reals cannot be learnt")?;

        let (targets, targets_receiver) = watch::channel(Arc::default());
        let settings = scheduler::Settings {
            probes_in_flight: usize::try_from(node.probes_in_flight).unwrap_or(usize::MAX),
            seed: seed(&node),
            initially_up: in_force.clone(),
        };
        let scheduler =
            health::scheduler::spawn(Prober::new(node.name.clone()), targets_receiver.clone(), settings);
        let verdicts = scheduler.verdicts();

        let (status, status_receiver) = watch::channel(Arc::default());
        let control_metrics = ControlMetrics::default();
        let sources = metrics::Sources {
            dataplane: Arc::clone(&dataplane),
            status: status_receiver.clone(),
            file: file.clone(),
            cluster: in_cluster.cloned(),
            announced: announced.clone(),
            tree: tree.clone(),
            capacity: node.capacity,
        };
        let (turned, turned_receiver) = watch::channel(Instant::now());
        let _behind = in_cluster
            .map(|learnt| tokio::spawn(tree.follow(learnt.followed.clone(), status_receiver.clone())));
        let shown = Shown {
            node: node.name.clone(),
            status: status_receiver.clone(),
            file,
            cluster: in_cluster.cloned(),
            announced,
            turned: turned_receiver.clone(),
            registry: Arc::new(metrics::registry(sources, &control_metrics, scheduler.metrics())),
            pins: Some(bpffs::directory(bpffs, &node.interface, "lb")),
        };
        let inputs = Inputs {
            snapshots: snapshots.clone(),
            verdicts: verdicts.clone(),
            next_hops: follower.next_hops,
            mode,
        };
        let outputs = Outputs { targets, wanted, status, report, turned };
        let prober = in_cluster.map(|_| node.name.clone());
        let control = Control::new(dataplane, start, in_force, prober, outputs, control_metrics);

        info!(
            node = %node.name,
            interface = node.interface,
            admin = %node.admin,
            vips = first.desired.vips.len(),
            predecessor = ?start,
            "lb-node {} starts",
            env!("CARGO_PKG_VERSION")
        );
        let tasks = [
            Task::spawn(async move {
                if let Err(error) = admin::serve(listener, shown).await {
                    error!("{error:#}");
                }
            }),
            Task::spawn(keep_probe_route(node.interface.clone(), outer, snapshots)),
        ];
        let (stop, stopped) = oneshot::channel::<()>();
        let control = tokio::spawn(async move {
            // Dropping the scheduler would end the probes.
            let _scheduler = scheduler;
            let stop = async {
                let _ = stopped.await;
            };
            control.run(inputs, stop).await;
        });
        Ok(Running {
            targets: targets_receiver,
            verdicts,
            status: status_receiver,
            turned: turned_receiver,
            stop,
            control,
            _tasks: tasks,
        })
    }
}

impl Running {
    /// Tells the service manager how the node is, for as long as it lives: a turn of the control loop is the sign of
    /// life. `announced` is what a node of a cluster announces.
    fn tell(
        &self,
        mut notifier: Notifier,
        announced: Option<watch::Receiver<FrontStatus>>,
    ) -> impl Future<Output = ()> + use<> {
        let (mut status, mut turned) = (self.status.clone(), self.turned.clone());
        async move {
            loop {
                let now = Arc::clone(&status.borrow_and_update());
                let count = announced.as_ref().map(|announced| announced.borrow().announced.len());
                if now.not_ready().is_empty() {
                    notifier.ready();
                }
                notifier.status(&now.summary(count));
                if turned.changed().await.is_err() {
                    return;
                }
                notifier.alive(status.borrow().not_healthy().is_empty());
            }
        }
    }

    /// Ends, when what is being applied has been applied.
    async fn stop(self) {
        drop(self.stop);
        if let Err(panic) = self.control.await {
            error!("a fault of this program: {panic}");
        }
    }
}

/// The first decision to go by: the tree's if it comes soon, else what was kept on disk, else whatever comes.
async fn first_decision(mut followed: watch::Receiver<Followed>) -> Arc<Decided> {
    let decided = |followed: &Followed| followed.decided.clone();
    let current = followed.wait_for(|followed| followed.current && followed.decided.is_some());
    if let Ok(Ok(followed)) = tokio::time::timeout(TREE_FIRST, current).await
        && let Some(decided) = decided(&followed)
    {
        return decided;
    }
    let cached = decided(&followed.borrow());
    if let Some(cached) = cached {
        let (term, epoch) = cached.head.order();
        warn!(term, epoch, "no tree in sight: going by what was kept on disk");
        return cached;
    }
    let any = followed.wait_for(|followed| followed.decided.is_some()).await.map(|any| decided(&any));
    match any {
        Ok(Some(decided)) => decided,
        // The agent has ended: so will this process.
        _ => std::future::pending().await,
    }
}

/// Tells the service manager, until it is dropped, that this node waits and what for.
async fn tell_of_waiting(notifier: &mut Notifier, mut link: watch::Receiver<Link>) -> Infallible {
    let mut ticks = tokio::time::interval(WAITING_TOLD_EVERY);
    loop {
        tokio::select! {
            _ = ticks.tick() => notifier.alive(false),
            Ok(()) = link.changed() => {}
        }
        match &link.borrow_and_update().problem {
            Some(problem) => notifier.status(&format!("waiting for ZooKeeper: {problem}")),
            None => notifier.status("waiting for the first decision of a leader"),
        }
    }
}

/// Passes decisions on, and keeps the newest on disk.
async fn follow_decisions(mut followed: watch::Receiver<Followed>, snapshots: Snapshots, cache: Cache) {
    let mut told = None;
    let mut refused = None;
    loop {
        let (decided, problem) = {
            let followed = followed.borrow_and_update();
            (followed.decided.clone(), followed.problem.clone())
        };
        if problem != refused {
            if let Some(problem) = &problem {
                error!(problem, "the tree's decision is not taken over; what is in force stays");
            }
            refused = problem;
        }
        if let Some(decided) = decided {
            snapshots.follow(Arc::clone(&decided));
            let cache = cache.clone();
            let kept = tokio::task::spawn_blocking(move || cache.store(&decided)).await;
            let problem = match kept {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(panic) => Some(panic.to_string()),
            };
            if let Some(problem) = problem.as_ref().filter(|problem| told.as_ref() != Some(*problem)) {
                warn!(
                    problem,
                    "the decision cannot be kept on disk; a reboot without ZooKeeper would not find it"
                );
            }
            told = problem;
        }
        if followed.changed().await.is_err() {
            // Dropping the snapshots would end the loop that goes by them.
            std::future::pending::<()>().await;
        }
    }
}

/// Keeps what is to be announced: what this node serves, unless it is out of service, bears another's name, or has fallen
/// behind the others: it is told that it is late, and `patience` later still has not applied what it was told.
async fn keep_wanted(
    node: Node,
    patience: Duration,
    mut report: watch::Receiver<Arc<Report>>,
    learnt: Learnt,
    wanted: watch::Sender<BTreeSet<IpAddr>>,
) {
    let (mut followed, mut maintenance, mut name) = (learnt.followed, learnt.maintenance, learnt.name);
    let mut late_since = None;
    let mut fallen_behind = false;
    loop {
        let report_now = Arc::clone(&report.borrow_and_update());
        let out_of_service = *maintenance.borrow_and_update();
        let name_is_taken = matches!(*name.borrow_and_update(), Name::Taken(_));
        let head = followed.borrow_and_update().decided.as_ref().map(|decided| decided.head.clone());
        // If most nodes are behind, withdrawing would take the VIPs off the front altogether.
        let late = head.is_some_and(|head| {
            head.lagging.contains(&node.name)
                && head.lagging.len() * 2 <= head.nodes.len()
                && report_now.order.is_none_or(|order| order < head.order())
        });
        // The head that says so may be the first word from the tree after an outage, to be applied in a moment.
        let behind_at = late.then(|| *late_since.get_or_insert_with(Instant::now) + patience);
        late_since = late_since.filter(|_| late);
        let behind = behind_at.is_some_and(|at| Instant::now() >= at);
        if behind != fallen_behind {
            match behind {
                true => error!("this node has fallen behind the others and withdraws its VIPs"),
                false => info!("this node has caught up with the others"),
            }
            fallen_behind = behind;
        }
        // Before the first report, what a predecessor announced stays.
        if report_now.order.is_some() {
            let out = out_of_service || behind || name_is_taken;
            let serving = if out { BTreeSet::new() } else { report_now.serving.clone() };
            wanted.send_if_modified(|wanted| {
                let differs = *wanted != serving;
                *wanted = serving;
                differs
            });
        }
        tokio::select! {
            Ok(()) = report.changed() => {}
            Ok(()) = maintenance.changed() => {}
            Ok(()) = name.changed() => {}
            Ok(()) = followed.changed() => {}
            () = control::sleep_until(behind_at), if !behind && behind_at.is_some() => {}
            else => return,
        }
    }
}

/// Keeps what the tree is told of what is announced.
async fn tell_announced(
    mut announced: watch::Receiver<FrontStatus>,
    told: watch::Sender<Option<BTreeSet<IpAddr>>>,
) {
    loop {
        told.send_replace(Some(announced.borrow_and_update().announced.clone()));
        if announced.changed().await.is_err() {
            return;
        }
    }
}

/// Reads and validates a node file, of which some settings may come from elsewhere.
fn read_node_file(path: &Path, instead: &NodeOverrides) -> Result<NodeFile> {
    Ok(NodeFile::parse_with(&read_text(path)?, &path.display().to_string(), instead)?)
}

/// What ends a node.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?,
        })
    }

    async fn wait(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
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
