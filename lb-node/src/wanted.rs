//! Keeps what a node of a cluster wants announced, by [`policy::announce`].

use crate::cluster::agent::{ClusterView, Name};
use crate::cluster::peers::Overtaken;
use crate::control::report::Report;
use crate::control::sleep_until;
use crate::guard::PULSE_EVERY;
use policy::announce::{Announce, Announcer, News, Situation};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{error, info};

/// Keeps `wanted` as `announcer`, whose time begins now, decides on what the node has in force and learns.
pub(crate) async fn keep_wanted(
    mut announcer: Announcer,
    mut report: watch::Receiver<Arc<Report>>,
    mut learnt: ClusterView,
    wanted: watch::Sender<BTreeSet<IpAddr>>,
) {
    let start = Instant::now();
    let mut ticks = tokio::time::interval(PULSE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let in_force = Arc::clone(&report.borrow_and_update());
        let others = *learnt.overtaken.borrow_and_update();
        let turn = {
            let followed = learnt.followed.borrow_and_update();
            let link = learnt.link.borrow();
            let situation = Situation {
                order: in_force.order,
                head: followed.decided.as_ref().map(|decided| &decided.head),
                current: followed.current,
                connected: link.connected,
                sessions: link.sessions,
                maintenance: *learnt.maintenance.borrow_and_update(),
                name_is_taken: matches!(*learnt.name.borrow_and_update(), Name::Taken(_)),
                overtaken: others.is_some(),
            };
            announcer.turn(start.elapsed(), &situation)
        };
        turn.news.into_iter().for_each(|news| log(news, others));
        let serving = match turn.announce {
            Announce::AsBefore => None,
            Announce::Nothing => Some(BTreeSet::new()),
            Announce::Serving => Some(in_force.serving.clone()),
        };
        if let Some(serving) = serving {
            wanted.send_if_modified(|wanted| {
                let differs = *wanted != serving;
                *wanted = serving;
                differs
            });
        }
        tokio::select! {
            Ok(()) = report.changed() => {}
            Ok(()) = learnt.maintenance.changed() => {}
            Ok(()) = learnt.name.changed() => {}
            Ok(()) = learnt.followed.changed() => {}
            Ok(()) = learnt.overtaken.changed() => {}
            () = sleep_until(turn.wake.map(|wake| start + wake)) => {}
            _ = ticks.tick() => {}
        }
    }
}

fn log(news: News, others: Option<Overtaken>) {
    match news {
        News::StoodStill(stood_still) => {
            error!(?stood_still, "this process stood still: announcing nothing until it has caught up");
        }
        News::Overtaken => {
            let (ahead, answered) = others.map_or((0, 0), |others| (others.ahead, others.answered));
            error!(
                ahead,
                answered,
                "cut off from ZooKeeper, and other nodes have something newer in force: withdrawing the VIPs"
            );
        }
        News::NotOvertaken => info!("no longer behind the other nodes"),
        News::Behind => error!("this node has fallen behind the others and withdraws its VIPs"),
        News::CaughtUp => info!("this node has caught up with the others"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::lead::Leading;
    use crate::cluster::link::Link;
    use crate::testing::{checked_vip, decided, desired, name};
    use coordination::follow::Followed;
    use policy::announce::Patience;
    use std::time::Duration;
    use zk_schema::tree::{Decided, Mode};

    const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1));
    const SECOND: Duration = Duration::from_secs(1);

    fn some(term: u64, epoch: u64) -> Decided {
        decided(term, epoch, &desired([("mqtt", checked_vip(&[("a", 100), ("b", 50)]))]))
    }

    /// A node that serves, and what it learns.
    struct Serving {
        report: watch::Sender<Arc<Report>>,
        followed: watch::Sender<Followed>,
        link: watch::Sender<Link>,
        wanted: watch::Receiver<BTreeSet<IpAddr>>,
        overtaken: watch::Sender<Option<Overtaken>>,
        _others: (watch::Sender<Mode>, watch::Sender<bool>, watch::Sender<Leading>, watch::Sender<Name>),
        _task: tokio::task::JoinHandle<()>,
    }

    fn serving() -> Serving {
        let report = Report { order: Some((2, 8)), serving: [VIP].into(), ..Report::default() };
        let report = watch::Sender::new(Arc::new(report));
        let followed = Followed { decided: Some(Arc::new(some(2, 8))), current: true, ..Followed::default() };
        let followed = watch::Sender::new(followed);
        let link = Link { connected: true, since: Instant::now(), problem: None, sessions: 1 };
        let link = watch::Sender::new(link);
        let overtaken = watch::Sender::new(None);
        let others = (
            watch::Sender::new(Mode::Live),
            watch::Sender::new(false),
            watch::Sender::new(Leading::default()),
            watch::Sender::new(Name::Own),
        );
        let learnt = ClusterView {
            followed: followed.subscribe(),
            mode: others.0.subscribe(),
            maintenance: others.1.subscribe(),
            leading: others.2.subscribe(),
            link: link.subscribe(),
            name: others.3.subscribe(),
            overtaken: overtaken.subscribe(),
            past: watch::channel(Default::default()).1,
        };
        let patience = Patience { behind: 3 * SECOND, standstill: Some(10 * SECOND), autonomy: 10 * SECOND };
        let announcer = Announcer::new(name("lb-1"), patience, Duration::ZERO);
        let (wanted, receiver) = watch::channel(BTreeSet::new());
        let task = keep_wanted(announcer, report.subscribe(), learnt, wanted);
        Serving {
            report,
            followed,
            link,
            overtaken,
            wanted: receiver,
            _others: others,
            _task: tokio::spawn(task),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_standstill_a_node_announces_nothing_until_it_has_met_the_tree_again() {
        let serving = serving();
        let announces = || !serving.wanted.borrow().is_empty();
        tokio::time::sleep(60 * SECOND).await;
        assert!(announces());
        // As SIGSTOP and SIGCONT.
        tokio::time::advance(15 * SECOND).await;
        tokio::time::sleep(SECOND / 10).await;
        assert!(!announces());
        serving.link.send_modify(|link| link.sessions = 2);
        serving.followed.send_modify(|followed| followed.decided = Some(Arc::new(some(2, 9))));
        tokio::time::sleep(2 * SECOND).await;
        assert!(!announces(), "the newest head is not in force yet");
        serving.report.send_modify(|report| Arc::make_mut(report).order = Some((2, 9)));
        tokio::time::sleep(2 * SECOND).await;
        assert!(announces());
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_node_withdraws_when_its_time_is_over() {
        let serving = serving();
        let mut late = some(2, 9);
        late.head.nodes = ["lb-1", "lb-2"].map(name).into();
        late.head.lagging = [name("lb-1")].into();
        tokio::time::sleep(SECOND / 2).await;
        serving.followed.send_modify(|followed| followed.decided = Some(Arc::new(late)));
        tokio::time::sleep(3 * SECOND - SECOND / 10).await;
        assert_eq!(*serving.wanted.borrow(), [VIP].into());
        tokio::time::sleep(SECOND / 5).await;
        assert!(serving.wanted.borrow().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_others_overtook_withdraws_until_there_are_no_others() {
        let serving = serving();
        serving.link.send_modify(|link| link.connected = false);
        serving.overtaken.send_replace(Some(Overtaken { ahead: 1, answered: 1 }));
        tokio::time::sleep(2 * SECOND).await;
        assert!(serving.wanted.borrow().is_empty());
        serving.overtaken.send_replace(None);
        tokio::time::sleep(2 * SECOND).await;
        assert_eq!(*serving.wanted.borrow(), [VIP].into());
    }
}
