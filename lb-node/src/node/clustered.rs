//! A node of a cluster: it serves what the leader decides.

use super::base::{Base, Plan, Scene, check_capabilities};
use super::keep::{Keeper, not_older};
use super::pulse::{beat, keep_pulse};
use super::{TOLD_EVERY, read_node_file};
use crate::cluster::agent::{self, Agent, ClusterView};
use crate::cluster::cache::Cache;
use crate::cluster::peers::{self, Peers};
use crate::cluster::{exclusions, vote};
use crate::control;
use crate::control::report::Report;
use crate::front::{Driver, Front, FrontStatus};
use crate::guard::{PULSE_EVERY, Pulse};
use crate::standalone::FileStatus;
use crate::status::KeptStatus;
use crate::tree_metrics::TreeMetrics;
use crate::wanted::keep_wanted;
use anyhow::{Context as _, Result, bail};
use coordination::Snapshots;
use coordination::follow::Followed;
use host::identity::boot_id;
use host::log_limit::LogLimit;
use host::notify::Notifier;
use host::signals::Signals;
use host::supervisor::Supervisor;
use policy::announce::{self, Announcer};
use policy::leader;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{error, info, warn};
use zk_schema::tree::Decided;
use zk_schema::{FrontDriver, NodeFile, NodeOverrides};

/// Time for which a node that starts prefers what the tree says to what it kept on disk.
pub(super) const TREE_FIRST: Duration = Duration::from_secs(3);

/// Time after which everything in the tree is read again, since a lost notification is never announced.
pub(super) const REREAD: Duration = Duration::from_secs(45);

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
pub(super) fn told<T, E: std::fmt::Display>(read: Result<T, E>) -> Option<T> {
    read.inspect_err(|error| warn!("{error}")).ok()
}

/// The first decision to go by: the tree's if it comes soon, else what was kept on disk, else whatever comes.
pub(super) async fn first_decision(mut followed: watch::Receiver<Followed>) -> Arc<Decided> {
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

/// Passes decisions on.
pub(super) async fn follow_decisions(mut followed: watch::Receiver<Followed>, snapshots: Snapshots) {
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

/// Keeps what the tree is told of what is announced.
pub(super) async fn tell_announced(
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

/// Shows, until it is dropped, that this node lives though it waits, and what for. A node that has waited for a while
/// counts as started: whether there is a tree is not for its service manager to wait for.
pub(super) async fn wait(
    notifier: &mut Notifier,
    learnt: &ClusterView,
    pulse: Option<&Pulse>,
    supervisor: &Supervisor,
) -> Infallible {
    let began = Instant::now();
    let (mut link, followed) = (learnt.link.clone(), learnt.followed.clone());
    let mut log_limit = LogLimit::new(1, TOLD_EVERY);
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
