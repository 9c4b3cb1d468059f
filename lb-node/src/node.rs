//! A node: everything put together, run, and shut down.
//!
//! There are two kinds. A standalone node goes by a file and decides itself; a node of a cluster goes by what the
//! leader decided, which an [`Agent`] learns. From the snapshot on they are the same.

use crate::admin::{self, Shown};
use crate::attachment;
use crate::cluster::agent::{self, Agent, ClusterView};
use crate::cluster::cache::Cache;
use crate::cluster::peers::{self, Peers};
use crate::cluster::{exclusions, vote};
use crate::control::{self, Control, Inputs, Outputs, Report, Shared};
use crate::front::{Driver, Front, FrontStatus};
use crate::guard::{self, PULSE_EVERY, Pulse};
use crate::metrics::{self, ControlMetrics};
use crate::standalone::{FileStatus, FileStore};
use crate::status::{KeptStatus, Status};
use crate::tree_metrics::TreeMetrics;
use crate::wanted::keep_wanted;
use ::admin::auth::{self, Auth};
use anyhow::{Context as _, Result, bail};
use coordination::follow::Followed;
use coordination::{Snapshot, Snapshots};
use dataplane::attachment::{Attachment, Lost};
use dataplane::nexthop::sources::{self, Sources};
use dataplane::nexthop::{self, pmtu};
use dataplane::probe_route::ProbeRoute;
use dataplane::{Dataplane, Settings, Start};
use health::metrics::ProbeMetrics;
use health::probe::Prober;
use health::scheduler;
use host::bpffs;
use host::clock::wall;
use host::files::read_text;
use host::identity::{self, boot_id, network_namespace};
use host::log_limit::LogLimit;
use host::notify::Notifier;
use host::signals::Signals;
use host::supervisor::{Supervisor, Task};
use policy::announce::{self, Announcer};
use policy::leader;
use policy::local::Exclusions;
use prometheus_client::registry::Registry;
use rustix::thread::CapabilitySet;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, error, info, warn};
use zk_schema::tree::{Decided, Member, Mode};
use zk_schema::{FrontDriver, Node, NodeFile, NodeOverrides, fnv1a};

/// Time between looks after the probes' route.
const PROBE_ROUTE_EVERY: Duration = Duration::from_secs(15);

/// Time for which a node that starts prefers what the tree says to what it kept on disk.
const TREE_FIRST: Duration = Duration::from_secs(3);

/// Time after which a write to the disk that failed is tried again.
const KEEP_AGAIN: Duration = Duration::from_secs(5);

/// Time between log lines about what keeps failing.
const PULSE_TOLD_EVERY: Duration = Duration::from_secs(60);

/// Time after which everything in the tree is read again, since a lost notification is never announced.
const REREAD: Duration = Duration::from_secs(45);

/// Runs a node from a cluster file until SIGTERM or SIGINT. Forwarding goes on when this returns.
///
/// # Errors
/// If the node cannot start; each says what to fix. Once it runs, nothing that can be tried again ends it; that its
/// interface is gone does.
pub async fn run_standalone(file: &Path, bpffs: &Path) -> Result<()> {
    let signals = Signals::new()?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot wait for SIGHUP")?;
    check_capabilities()?;
    dataplane::check_kernel(&dataplane::kernel_release())?;

    let notifier = Notifier::from_env(control::SELF_TEST_EVERY);
    let supervisor = Supervisor::default();
    let store = FileStore::open(file)?;
    let mut base = Base::prepare(store.node().clone(), &supervisor).await?;
    let scene = Scene {
        in_cluster: None,
        file: store.status(),
        announced: watch::channel(FrontStatus::default()).1,
        kept: watch::channel(KeptStatus::default()).1,
        tree: TreeMetrics::default(),
    };
    base.show(&scene, bpffs);
    let (report, _) = watch::channel(Arc::default());
    let plan = Plan {
        bpffs,
        snapshots: store.snapshots(),
        mode: watch::channel(Mode::Live).1,
        exclusions: watch::Sender::default(),
        report,
        scene,
    };
    let running = base.start(plan).await?;
    let teller = supervisor.spawn("service manager", running.tell(notifier, None));
    let _file = supervisor.spawn(
        "cluster file",
        store.follow(async move || {
            if hangup.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
        }),
    );
    let lost = tokio::select! {
        biased;
        () = signals.wait() => None,
        lost = running.lost() => Some(lost),
        fault = supervisor.fault() => return Err(fault.into()),
    };
    drop(teller);
    Notifier::from_env(control::SELF_TEST_EVERY).stopping(Duration::ZERO, "stopping; forwarding goes on");
    running.stop().await;
    if let Some(lost) = lost {
        bail!("{lost}");
    }
    info!("stopping; forwarding goes on as it is until the next lb-node, or `lb-node detach`");
    Ok(())
}

/// Runs a node of a cluster from its node file, of which some settings may come from elsewhere, until SIGTERM or SIGINT: then it withdraws its VIPs, waits for
/// packets to find other ways, leaves the tree, and ends. Forwarding goes on when this returns.
///
/// # Errors
/// If the node cannot start; each says what to fix. Once it runs, nothing that can be tried again ends it; that its
/// interface is gone does.
pub async fn run_in_cluster(file: &Path, instead: &NodeOverrides, bpffs: &Path) -> Result<()> {
    let signals = Signals::new()?;
    let mut stop = std::pin::pin!(signals.wait());
    check_capabilities()?;
    dataplane::check_kernel(&dataplane::kernel_release())?;

    let mut notifier = Notifier::from_env(control::SELF_TEST_EVERY);
    let NodeFile { node, zookeeper, front, cluster } = read_node_file(file, instead)?;
    let tree_metrics = TreeMetrics::default();
    let store = coordination::zookeeper::store(&zookeeper)?.with_observer(Arc::new(tree_metrics.clone()));
    let boot = boot_id().context("cannot read this machine's boot id")?;
    let announcer = Driver::open(&front, &boot)?;
    let supervisor = Supervisor::default();
    let mut base = Base::prepare(node, &supervisor).await?;
    let pulse = (front.driver != FrontDriver::None).then(|| Pulse::new(&front.bird_file, &boot));
    let floor = dataplane::pinned_order(&base.node.interface, bpffs);
    let cache = Cache::new(&cluster.state_dir, &base.node.name);
    let cached = not_older(told(cache.load()).flatten(), floor);
    let exclusions_kept = exclusions::Kept::new(&cluster.state_dir, &base.node.name);
    let exclusions = watch::Sender::new(told(exclusions_kept.load()).unwrap_or_default());

    let (report, report_receiver) = watch::channel(Arc::<Report>::default());
    let (vote_sender, vote_receiver) = watch::channel(None);
    let settings = agent::MemberSettings {
        node: base.node.name.clone(),
        member: base.member(&boot)?,
        leader: leader::Timeouts {
            session_timeout: zookeeper.session_timeout(),
            ack_timeout: cluster.ack_timeout(),
            withdraw_after: front.withdraw_after().unwrap_or_default(),
        },
        autonomy_after: cluster.autonomy_after(),
        reread: REREAD,
    };
    let (agent, learnt) = Agent::new(store, settings, cached, floor, report_receiver.clone(), vote_receiver);
    let (overtaken, overtaken_receiver) = watch::channel(None);
    let learnt = ClusterView { overtaken: overtaken_receiver, ..learnt };
    let known = peers::Known {
        followed: learnt.followed.clone(),
        link: learnt.link.clone(),
        report: report_receiver.clone(),
    };
    let peers = (cluster.peer_port > 0).then(|| Peers {
        node: base.node.name.clone(),
        sources: base.outer,
        port: cluster.peer_port,
        withdraw_after: front.withdraw_after(),
    });
    let _peers = peers.map(|peers| supervisor.spawn("peers", peers.run(known, overtaken)));
    let (announcing, announcing_receiver) = watch::channel(None);
    let agent = agent.announcing(announcing_receiver);
    let (leave, left) = oneshot::channel::<()>();
    let agent = supervisor.spawn(
        "agent",
        agent.run(async move {
            let _ = left.await;
        }),
    );
    let front_task = Front::new(announcer, front.announce_hold());
    let announced = front_task.status();
    let (kept, kept_receiver) = watch::channel(KeptStatus::default());
    let scene = Scene {
        in_cluster: Some(learnt.clone()),
        file: watch::channel(FileStatus::default()).1,
        announced: announced.clone(),
        kept: kept_receiver,
        tree: tree_metrics,
    };
    base.show(&scene, bpffs);
    info!(node = %base.node.name, zookeeper = zookeeper.servers, "waiting for the first decision");
    let first = tokio::select! {
        biased;
        () = &mut stop => {
            notifier.stopping(Duration::ZERO, "stopping before the first decision");
            drop(leave);
            agent.ended().await;
            return Ok(());
        }
        fault = supervisor.fault() => return Err(fault.into()),
        first = first_decision(learnt.followed.clone()) => first,
        never = wait(&mut notifier, &learnt, pulse.as_ref(), &supervisor) => match never {},
    };
    let snapshots = Snapshots::of_cluster(first);
    let node = base.node.clone();
    let running = base
        .start(Plan {
            bpffs,
            snapshots: snapshots.subscribe(),
            mode: learnt.mode.clone(),
            exclusions: exclusions.clone(),
            report,
            scene,
        })
        .await?;
    let teller = supervisor.spawn("service manager", running.tell(notifier, Some(announced.clone())));
    let inherited = announced.borrow().announced.clone();
    let (wanted, wanted_receiver) = watch::channel(inherited);
    let (withdraw, withdrawn) = oneshot::channel::<()>();
    let front_task = supervisor.spawn(
        "front",
        front_task.run(wanted_receiver, async move {
            let _ = withdrawn.await;
        }),
    );
    let patience = announce::Patience {
        behind: cluster.ack_timeout(),
        standstill: front.withdraw_after(),
        autonomy: cluster.autonomy_after(),
    };
    let announcer = Announcer::new(node.name, patience, Duration::ZERO);
    let keeper = Keeper { cache, exclusions: exclusions_kept, kept };
    let mut tasks = vec![
        supervisor.spawn("decisions", follow_decisions(learnt.followed.clone(), snapshots)),
        supervisor.spawn("state on disk", keeper.run(learnt.followed.clone(), exclusions.subscribe())),
        supervisor.spawn(
            "vote",
            vote::follow(
                report_receiver.clone(),
                running.targets.clone(),
                running.verdicts.clone(),
                vote_sender,
            ),
        ),
        supervisor.spawn("what is announced", tell_announced(announced.clone(), announcing)),
        supervisor.spawn("what is wanted", keep_wanted(announcer, report_receiver, learnt, wanted)),
    ];
    if let Some(pulse) = pulse {
        let turned = running.turned.clone();
        tasks.push(supervisor.spawn("sign of life", keep_pulse(pulse, turned, supervisor.clone())));
    }

    let lost = tokio::select! {
        biased;
        () = &mut stop => None,
        lost = running.lost() => Some(lost),
        fault = supervisor.fault() => return Err(fault.into()),
    };
    drop(teller);
    Notifier::from_env(control::SELF_TEST_EVERY).stopping(
        cluster.drain_wait(),
        "withdrawing the VIPs, and waiting until routers send packets elsewhere",
    );
    // Routers have to stop sending packets here before this node may stop answering for what it serves.
    let served = !announced.borrow().announced.is_empty();
    drop(withdraw);
    match front_task.ended().await {
        Some(Ok(())) => info!("withdrawn from the front"),
        Some(Err(error)) => error!("{error}"),
        None => error!("the front has panicked: the VIPs may still be announced"),
    }
    // Where nothing is forwarded, nothing is worth waiting for.
    if served && lost.is_none() {
        info!(wait = ?cluster.drain_wait(), "waiting until routers send packets elsewhere");
        tokio::time::sleep(cluster.drain_wait()).await;
    }
    drop(leave);
    agent.ended().await;
    running.stop().await;
    if let Some(lost) = lost {
        bail!("{lost}");
    }
    info!("stopping; forwarding goes on as it is until the next lb-node, or `lb-node detach`");
    Ok(())
}

/// Returns what was read from the disk; logs what cannot be.
fn told<T, E: std::fmt::Display>(read: Result<T, E>) -> Option<T> {
    read.inspect_err(|error| warn!("{error}")).ok()
}

/// Returns what was kept on disk, unless the tables in the kernel are from something newer: the disk may have been
/// full.
fn not_older(cached: Option<Decided>, floor: Option<(u64, u64)>) -> Option<Arc<Decided>> {
    let order = cached.as_ref()?.head.order();
    if let Some(floor) = floor.filter(|floor| order < *floor) {
        warn!(
            kept = ?order,
            in_force = ?floor,
            "what was kept on disk is older than the tables in the kernel, which stay until the tree has something newer"
        );
        return None;
    }
    cached.map(Arc::new)
}

/// The parts that both kinds of node have before they know what to serve.
struct Base {
    node: Node,
    ifindex: u32,
    outer: Sources,
    supervisor: Supervisor,
    pages: Pages,
}

/// The admin pages, which are there before there is anything to forward by, and what they show.
struct Pages {
    /// Until [`Base::show`].
    closed: Option<(TcpListener, Auth)>,
    serving: Option<Task<Infallible>>,
    status: watch::Sender<Arc<Status>>,
    turned: watch::Sender<Option<Instant>>,
    registry: watch::Sender<Arc<Registry>>,
}

/// The surroundings of a node, before it forwards and then.
struct Scene {
    in_cluster: Option<ClusterView>,
    file: watch::Receiver<FileStatus>,
    announced: watch::Receiver<FrontStatus>,
    kept: watch::Receiver<KeptStatus>,
    tree: TreeMetrics,
}

/// The inputs of a running node.
struct Plan<'a> {
    bpffs: &'a Path,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    mode: watch::Receiver<Mode>,
    /// The reals that it leaves out by its own judgement, and did before.
    exclusions: watch::Sender<Exclusions>,
    report: watch::Sender<Arc<Report>>,
    scene: Scene,
}

/// A node that forwards.
struct Running {
    targets: watch::Receiver<Arc<Vec<health::Target>>>,
    verdicts: watch::Receiver<Arc<health::Verdicts>>,
    status: watch::Receiver<Arc<Status>>,
    turned: watch::Receiver<Option<Instant>>,
    attachment: watch::Receiver<Attachment>,
    stop: oneshot::Sender<()>,
    control: Task<()>,
    supervisor: Supervisor,
    _registry: watch::Sender<Arc<Registry>>,
    _pages: Option<Task<Infallible>>,
    _tasks: Vec<Task<()>>,
}

impl Base {
    async fn prepare(node: Node, supervisor: &Supervisor) -> Result<Self> {
        // Before anything in the kernel is touched: a second daemon ends here.
        let auth = Auth::new(node.admin, &admin_files(&node))?;
        let listener = admin::bind(node.admin).await?;
        let interface =
            sources::interface(&node.interface).await.context("the front interface is not usable")?;
        let outer = Sources {
            v4: node.source_v4.or(interface.sources.v4),
            v6: node.source_v6.or(interface.sources.v6),
        };
        let pages = Pages {
            closed: Some((listener, auth)),
            serving: None,
            status: watch::Sender::default(),
            turned: watch::Sender::new(None),
            registry: watch::Sender::default(),
        };
        Ok(Self { node, ifindex: interface.index, outer, supervisor: supervisor.clone(), pages })
    }

    /// The record that others read of this node.
    fn member(&self, boot: &str) -> Result<Member> {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .context("cannot get random bytes")?;
        let namespace = network_namespace().context("cannot tell the network namespace")?;
        Ok(Member {
            instance: random.map(|byte| format!("{byte:02x}")).concat(),
            boot: identity::host_id(boot, namespace),
            source_v4: self.outer.v4,
            source_v6: self.outer.v6,
            admin: self.node.admin,
            software: env!("CARGO_PKG_VERSION").to_owned(),
            started: wall(),
            extra: Default::default(),
        })
    }

    /// Answers on the admin address from now on.
    fn show(&mut self, scene: &Scene, bpffs: &Path) {
        let Some((listener, auth)) = self.pages.closed.take() else { return };
        let nothing = self.sources::<Dataplane>(scene, None);
        let registry = metrics::registry(nothing, &ControlMetrics::default(), &ProbeMetrics::default());
        self.pages.registry.send_replace(Arc::new(registry));
        let shown = Shown {
            node: self.node.name.clone(),
            status: self.pages.status.subscribe(),
            file: scene.file.clone(),
            cluster: scene.in_cluster.clone(),
            announced: scene.announced.clone(),
            turned: self.pages.turned.subscribe(),
            tasks: self.supervisor.clone(),
            kept: scene.kept.clone(),
            registry: self.pages.registry.subscribe(),
            pins: Some(bpffs::directory(bpffs, &self.node.interface, "lb")),
        };
        self.pages.serving = Some(self.supervisor.spawn("admin pages", admin::serve(listener, auth, shown)));
    }

    /// The sources of the metrics.
    fn sources<D>(&self, scene: &Scene, dataplane: Option<Shared<D>>) -> metrics::Scraped<D> {
        metrics::Scraped {
            dataplane,
            status: self.pages.status.subscribe(),
            file: scene.file.clone(),
            cluster: scene.in_cluster.clone(),
            announced: scene.announced.clone(),
            tree: scene.tree.clone(),
            kept: scene.kept.clone(),
            capacity: self.node.capacity,
        }
    }

    /// Takes up forwarding by what the snapshots say.
    async fn start(self, plan: Plan<'_>) -> Result<Running> {
        let Plan { bpffs, snapshots, mode, exclusions, report, scene } = plan;
        let (node, supervisor) = (self.node.clone(), self.supervisor.clone());
        let first = Arc::clone(&snapshots.borrow());
        let (dataplane, start) = open(&node, self.outer, &first, bpffs)?;
        let in_force = control::inherited(&dataplane, start, &first.desired);
        let dataplane = Arc::new(Mutex::new(dataplane));

        let (wanted, wanted_receiver) = watch::channel(control::wanted(&first.desired));
        let path_mtus = pmtu::spawn(self.outer, node.gue_port, wanted_receiver.clone())
            .context("path MTUs towards reals cannot be learnt")?;
        let follower = nexthop::spawn(self.ifindex, wanted_receiver, path_mtus.clone())
            .await
            .context("next hops of reals cannot be learnt")?;

        let (targets, targets_receiver) = watch::channel(Arc::default());
        let settings = scheduler::Options {
            probes_in_flight: usize::try_from(node.probes_in_flight).unwrap_or(usize::MAX),
            seed: seed(&node),
            initially_up: in_force.clone(),
        };
        let scheduler =
            health::scheduler::spawn(Prober::new(node.name.clone()), targets_receiver.clone(), settings);
        let verdicts = scheduler.verdicts();

        let control_metrics = ControlMetrics::default();
        let sources = self.sources(&scene, Some(Arc::clone(&dataplane)));
        let registry = metrics::registry(sources, &control_metrics, scheduler.metrics());
        let Pages { serving, status, turned, registry: shown_registry, .. } = self.pages;
        shown_registry.send_replace(Arc::new(registry));
        let (status_receiver, turned_receiver) = (status.subscribe(), turned.subscribe());
        let mut tasks = vec![
            supervisor.spawn(
                "probe route",
                keep_probe_route(node.interface.clone(), self.outer, snapshots.clone()),
            ),
            supervisor.watch("next hops", follower.next_hops.clone()),
            supervisor.watch("path MTUs", path_mtus),
            supervisor.watch("health checks", verdicts.clone()),
        ];
        if let Some(learnt) = &scene.in_cluster {
            let following = scene.tree.clone().follow(learnt.followed.clone(), status_receiver.clone());
            tasks.push(supervisor.spawn("metrics of the tree", following));
        }
        let attachment = attachment::follow(Arc::clone(&dataplane));
        tasks.push(supervisor.watch("attachment", attachment.clone()));
        let inputs = Inputs {
            snapshots,
            verdicts: verdicts.clone(),
            next_hops: follower.next_hops,
            mode,
            attachment: attachment.clone(),
        };
        let left_out = exclusions.borrow().clone();
        let outputs = Outputs { targets, wanted, status, report, turned, exclusions };
        let prober = scene.in_cluster.is_some().then(|| node.name.clone());
        let control =
            Control::new(dataplane, start, in_force, prober, outputs, control_metrics).remembering(left_out);

        info!(
            node = %node.name,
            interface = node.interface,
            admin = %node.admin,
            vips = first.desired.vips.len(),
            predecessor = ?start,
            "lb-node {} starts",
            env!("CARGO_PKG_VERSION")
        );
        let (stop, stopped) = oneshot::channel::<()>();
        let control = supervisor.spawn("control loop", async move {
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
            attachment,
            stop,
            control,
            supervisor,
            _registry: shown_registry,
            _pages: serving,
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
        let supervisor = self.supervisor.clone();
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
                let well = status.borrow().not_healthy().is_empty() && supervisor.hung().is_empty();
                notifier.alive(well);
            }
        }
    }

    /// Waits until only a new process can go on, and says why: the interface is gone, or another one has its name.
    fn lost(&self) -> impl Future<Output = String> + use<> {
        let mut attachment = self.attachment.clone();
        async move {
            let gone = |now: &Attachment| matches!(now.problem, Some(Lost::Interface(_)));
            let problem = attachment.wait_for(gone).await.ok().and_then(|now| now.problem.clone());
            match problem {
                Some(problem) => problem.to_string(),
                // Nobody looks any more, since the node is being stopped.
                None => std::future::pending().await,
            }
        }
    }

    /// Ends, when what is being applied has been applied.
    async fn stop(self) {
        drop(self.stop);
        self.control.ended().await;
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
        warn!(term, epoch, "ZooKeeper's tree is not in sight: using the decision kept on disk");
        return cached;
    }
    let any = followed.wait_for(|followed| followed.decided.is_some()).await.map(|any| decided(&any));
    match any {
        Ok(Some(decided)) => decided,
        // The agent has ended: so will this process.
        _ => std::future::pending().await,
    }
}

/// Shows, until it is dropped, that this node lives though it waits, and what for. A node that has waited for a while
/// counts as started: whether there is a tree is not for its service manager to wait for.
async fn wait(
    notifier: &mut Notifier,
    learnt: &ClusterView,
    pulse: Option<&Pulse>,
    supervisor: &Supervisor,
) -> Infallible {
    let began = Instant::now();
    let (mut link, followed) = (learnt.link.clone(), learnt.followed.clone());
    let mut log_limit = LogLimit::new(1, PULSE_TOLD_EVERY);
    let mut ticks = tokio::time::interval(PULSE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                // Not earlier: a daemon that fails after each start must not pass for one that lives.
                if began.elapsed() > TREE_FIRST {
                    notifier.ready();
                    if let Some(pulse) = pulse {
                        beat(pulse, supervisor, &mut log_limit);
                    }
                }
                notifier.alive(supervisor.hung().is_empty());
            }
            Ok(()) = link.changed() => {}
        }
        let problem = link.borrow_and_update().problem.clone();
        let problem = problem.map(|problem| format!("waiting for ZooKeeper: {problem}"));
        match problem.or_else(|| followed.borrow().problem.clone()) {
            Some(problem) => notifier.status(&problem),
            None => notifier.status("waiting for the first decision of a leader"),
        }
    }
}

/// Gives a sign of life with each turn of the control loop.
async fn keep_pulse(pulse: Pulse, mut turned: watch::Receiver<Option<Instant>>, supervisor: Supervisor) {
    let mut log_limit = LogLimit::new(1, PULSE_TOLD_EVERY);
    while turned.changed().await.is_ok() {
        beat(&pulse, &supervisor, &mut log_limit);
        tokio::time::sleep(PULSE_EVERY / 2).await;
    }
}

/// Gives a sign of life, unless something essential hangs.
fn beat(pulse: &Pulse, supervisor: &Supervisor, log_limit: &mut LogLimit) {
    if !supervisor.hung().is_empty() {
        return;
    }
    if let Err(error) = pulse.beat(guard::monotonic())
        && let Some(skipped) = log_limit.allows(Instant::now())
    {
        let file = pulse.path().display();
        warn!(%file, %error, skipped, "cannot write the sign of life that the guard reads");
    }
}

/// Passes decisions on.
async fn follow_decisions(mut followed: watch::Receiver<Followed>, snapshots: Snapshots) {
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
        }
        if followed.changed().await.is_err() {
            // Dropping the snapshots would end the loop that goes by them.
            std::future::pending::<()>().await;
        }
    }
}

/// Keeps on disk what a restart without ZooKeeper needs. A disk that is slow or hangs holds up nothing else.
struct Keeper {
    cache: Cache,
    exclusions: exclusions::Kept,
    kept: watch::Sender<KeptStatus>,
}

impl Keeper {
    async fn run(self, mut followed: watch::Receiver<Followed>, mut exclusions: watch::Receiver<Exclusions>) {
        let mut on_disk: (Option<Arc<Decided>>, Option<Exclusions>) = (None, None);
        loop {
            let decided = followed.borrow_and_update().decided.clone();
            let left_out = exclusions.borrow_and_update().clone();
            let mut problems = Vec::new();
            if let Some(decided) = decided.filter(|decided| on_disk.0.as_ref() != Some(decided)) {
                let (cache, new) = (self.cache.clone(), Arc::clone(&decided));
                match on_disk_as(move || cache.store(&new)).await {
                    Ok(()) => on_disk.0 = Some(decided),
                    Err(problem) => problems.push(problem),
                }
            }
            if on_disk.1.as_ref() != Some(&left_out) {
                let (kept, new) = (self.exclusions.clone(), left_out.clone());
                match on_disk_as(move || kept.store(&new)).await {
                    Ok(()) => on_disk.1 = Some(left_out),
                    Err(problem) => problems.push(problem),
                }
            }
            let again = !problems.is_empty();
            self.tell(problems);
            tokio::select! {
                Ok(()) = followed.changed() => {}
                Ok(()) = exclusions.changed() => {}
                () = tokio::time::sleep(KEEP_AGAIN), if again => {}
            }
        }
    }

    fn tell(&self, problems: Vec<String>) {
        let problem = (!problems.is_empty()).then(|| {
            format!(
                "the newest decision cannot be kept on disk, and a reboot without ZooKeeper would not find it: {}",
                problems.join("; ")
            )
        });
        self.kept.send_if_modified(|kept| {
            let is_new = kept.problem != problem;
            if is_new {
                match &problem {
                    Some(problem) => warn!("{problem}"),
                    None => info!("the newest decision is kept on disk again"),
                }
                kept.problem = problem;
            }
            is_new
        });
    }
}

/// Writes to the disk, off the threads that must not block.
async fn on_disk_as<E: std::fmt::Display + Send + 'static>(
    write: impl FnOnce() -> Result<(), E> + Send + 'static,
) -> Result<(), String> {
    match tokio::task::spawn_blocking(write).await {
        Ok(written) => written.map_err(|error| error.to_string()),
        Err(panic) => Err(panic.to_string()),
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

/// The files that guard the node's admin pages.
fn admin_files(node: &Node) -> auth::ServerFiles {
    auth::ServerFiles {
        token: node.admin_token_file.clone(),
        cert: node.admin_tls_cert.clone(),
        key: node.admin_tls_key.clone(),
        client_ca: node.admin_tls_client_ca.clone(),
    }
}

/// Reads and validates a node file, of which some settings may come from elsewhere.
pub(crate) fn read_node_file(path: &Path, instead: &NodeOverrides) -> Result<NodeFile> {
    Ok(NodeFile::parse_with(&read_text(path)?, &path.display().to_string(), instead)?)
}

fn open(node: &Node, outer: Sources, first: &Snapshot, bpffs: &Path) -> Result<(Dataplane, Start)> {
    let settings = Settings {
        interface: node.interface.clone(),
        xdp_mode: node.xdp_mode,
        source_v4: outer.v4,
        source_v6: outer.v6,
        gue_port: node.gue_port,
        unserved: node.unserved,
        accept_macs: node.accept_macs.clone(),
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
    let mut ticks = tokio::time::interval(PROBE_ROUTE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut log_limit = LogLimit::new(1, PULSE_TOLD_EVERY);
    let route = loop {
        ticks.tick().await;
        match ProbeRoute::new(&interface, outer) {
            Ok(route) => break route,
            Err(error) => {
                if let Some(skipped) = log_limit.allows(Instant::now()) {
                    error!(%error, skipped, "probes through the tunnel have no route of their own; trying again");
                }
            }
        }
    };
    ticks.reset_immediately();
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
    fnv1a(node.name.as_str().bytes()) ^ u64::from(now.subsec_nanos()) ^ now.as_secs().rotate_left(32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{checked_vip, decided, desired, name};
    use zk_schema::{RealName, VipName};

    const SECOND: Duration = Duration::from_secs(1);

    fn some(term: u64, epoch: u64) -> Decided {
        decided(term, epoch, &desired([("mqtt", checked_vip(&[("a", 100), ("b", 50)]))]))
    }

    #[test]
    fn what_was_kept_on_disk_counts_unless_the_kernel_has_something_newer() {
        let kept = |floor| not_older(Some(some(2, 8)), floor).is_some();
        assert!(kept(None) && kept(Some((2, 8))) && kept(Some((1, 99))));
        assert!(!kept(Some((2, 9))) && !kept(Some((3, 1))));
        assert!(not_older(None, Some((2, 9))).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_kept_on_disk_is_told_and_tried_again_and_holds_up_no_decision() {
        let folder = tempfile::tempdir().unwrap();
        // In the place of the directory there is a file, as with a disk that takes nothing.
        let directory = folder.path().join("state");
        std::fs::write(&directory, "").unwrap();
        let (cache, exclusions_kept) =
            (Cache::new(&directory, &name("lb-1")), exclusions::Kept::new(&directory, &name("lb-1")));
        let (kept, mut problem) = watch::channel(KeptStatus::default());
        let followed = watch::Sender::new(Followed::default());
        let left_out: (VipName, RealName) = (name("mqtt"), name("a"));
        let exclusions = watch::Sender::new(Exclusions::new((2, 8), [left_out].into()));
        let keeper = Keeper { cache: cache.clone(), exclusions: exclusions_kept.clone(), kept };
        let _task = tokio::spawn(keeper.run(followed.subscribe(), exclusions.subscribe()));
        followed.send_modify(|followed| followed.decided = Some(Arc::new(some(2, 8))));
        let told = problem.wait_for(|kept| kept.problem.is_some()).await.unwrap().clone();
        assert!(told.problem.unwrap().contains("lb-1"));

        std::fs::remove_file(&directory).unwrap();
        problem.wait_for(|kept| kept.problem.is_none()).await.unwrap();
        assert_eq!(cache.load().unwrap(), Some(some(2, 8)));
        assert_eq!(exclusions_kept.load().unwrap(), *exclusions.borrow());
        exclusions.send_replace(Exclusions::default());
        followed.send_modify(|followed| followed.decided = Some(Arc::new(some(2, 9))));
        while cache.load().unwrap() != Some(some(2, 9)) || !exclusions_kept.load().unwrap().is_empty() {
            tokio::time::sleep(SECOND).await;
        }
    }
}
