//! Decides which addresses a node announces to routers, and when it withdraws them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;
use zk_schema::NodeName;
use zk_schema::tree::Head;

/// A VIP as a node has it in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InForce {
    /// The VIP's address, which other VIPs may share.
    pub address: IpAddr,
    /// True if reals hold slots in its table.
    pub has_reals: bool,
    /// True if packets pass through the node's programs as they should.
    pub works: bool,
}

/// Returns the addresses that a node serves: all VIPs of an address work, and at least one of them has reals.
#[must_use]
pub fn serving(vips: impl IntoIterator<Item = InForce>) -> BTreeSet<IpAddr> {
    let (mut with_reals, mut faulty) = (BTreeSet::new(), BTreeSet::new());
    for vip in vips {
        if vip.has_reals {
            with_reals.insert(vip.address);
        }
        if !vip.works {
            faulty.insert(vip.address);
        }
    }
    &with_reals - &faulty
}

/// Times for which a node goes on announcing in spite of something.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A node that the head lists as late has this long to apply what it was told.
    pub behind: Duration,
    /// A process that stood still for this long withdraws: the guard may have done so already. `None`: never.
    pub standstill: Option<Duration>,
    /// After a standstill, a node that cannot catch up announces what it has once this has passed.
    pub autonomy: Duration,
}

/// The facts by which a node decides whether to announce.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// (term, epoch) of the head in force; `None` before anything is.
    pub order: Option<(u64, u64)>,
    /// The newest head that the node knows.
    pub head: Option<&'a Head>,
    /// True if that is the head in the tree, as far as this session has seen.
    pub current: bool,
    /// True if ZooKeeper answers.
    pub connected: bool,
    /// Sessions so far.
    pub sessions: u64,
    /// True if operators took the node out of service.
    pub maintenance: bool,
    /// True if another node has this node's name.
    pub name_is_taken: bool,
    /// True if other nodes tell that they have something newer in force, while this one does not reach ZooKeeper.
    pub overtaken: bool,
}

impl Situation<'_> {
    /// Returns whether the newest head that the node knows is in force.
    fn has_newest(&self) -> bool {
        self.head.is_some_and(|head| self.order >= Some(head.order()))
    }

    /// Returns whether what the tree holds is in force.
    fn has_caught_up(&self) -> bool {
        self.current && self.has_newest()
    }

    /// Returns whether the head lists `node` as late, and few others: were most nodes late, to withdraw would take the
    /// VIPs off the front altogether.
    fn is_late(&self, node: &NodeName) -> bool {
        self.head.is_some_and(|head| {
            head.lagging.contains(node) && head.lagging.len() * 2 <= head.nodes.len() && !self.has_newest()
        })
    }
}

/// The addresses that a node should announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announce {
    /// Those that it announces already: nothing is in force yet, so what a predecessor announced stays.
    AsBefore,
    /// Nothing.
    Nothing,
    /// Those that it [serves](serving).
    Serving,
}

/// News for the operator, told once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// The process stood still for this long, and announces nothing until it has caught up.
    StoodStill(Duration),
    /// Other nodes have something newer in force.
    Overtaken,
    /// They no longer do.
    NotOvertaken,
    /// The node has fallen behind the others.
    Behind,
    /// It has caught up with them.
    CaughtUp,
}

/// The outcome of a [turn](Announcer::turn).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The addresses to announce.
    pub announce: Announce,
    /// The time of the next turn, unless something changes before.
    pub wake: Option<Duration>,
    /// The changes of this turn.
    pub news: Vec<News>,
}

/// Decides whether a node announces what it serves. It does unless the node
///
/// - is out of service;
/// - has a name that another node has;
/// - has fallen behind: the head lists it as late, and [`Patience::behind`] later it still has not applied that head;
/// - is overtaken: it is cut off, and others have something newer in force. That ends when they no longer say so; if
///   ZooKeeper answers by then, only once the node has caught up with the tree;
/// - wakes up after a standstill, over which a guard may have withdrawn everything. That ends when the node has caught up
///   with the tree in a new session, or after [`Patience::autonomy`].
///
/// Times are what has passed since an origin of the caller's choice.
#[derive(Clone, Debug)]
pub struct Announcer {
    node: NodeName,
    patience: Patience,
    /// The last turn.
    turned: Duration,
    is_overtaken: bool,
    late_since: Option<Duration>,
    is_behind: bool,
    awakening: Option<Awakening>,
}

/// A node that wakes up after a standstill.
#[derive(Clone, Copy, Debug)]
struct Awakening {
    /// The time at which that is over at the latest.
    until: Duration,
    /// Sessions when it woke up.
    sessions: u64,
}

impl Announcer {
    /// The rule of `node`, which starts at `now`.
    #[must_use]
    pub fn new(node: NodeName, patience: Patience, now: Duration) -> Self {
        Self {
            node,
            patience,
            turned: now,
            is_overtaken: false,
            late_since: None,
            is_behind: false,
            awakening: None,
        }
    }

    /// Decides what to announce at `now`. Turns must be taken much more often than [`Patience::standstill`], since a
    /// longer pause between two of them counts as a standstill.
    pub fn turn(&mut self, now: Duration, situation: &Situation<'_>) -> Turn {
        let mut news = Vec::new();
        self.look_for_standstill(now, situation, &mut news);
        self.look_at_others(situation, &mut news);
        let behind_at = self.look_at_head(now, situation, &mut news);
        let is_out = situation.maintenance
            || situation.name_is_taken
            || self.is_behind
            || self.is_overtaken
            || self.awakening.is_some();
        let announce = match situation.order {
            None => Announce::AsBefore,
            Some(_) if is_out => Announce::Nothing,
            Some(_) => Announce::Serving,
        };
        Turn { announce, wake: behind_at.filter(|_| !self.is_behind), news }
    }

    fn look_for_standstill(&mut self, now: Duration, situation: &Situation<'_>, news: &mut Vec<News>) {
        let stood_still = now.saturating_sub(self.turned);
        self.turned = now;
        if self.patience.standstill.is_some_and(|standstill| stood_still >= standstill) {
            news.push(News::StoodStill(stood_still));
            let until = now + self.patience.autonomy;
            self.awakening = Some(Awakening { until, sessions: situation.sessions });
        }
        self.awakening = self.awakening.filter(|awakening| {
            let caught_up = situation.sessions > awakening.sessions && situation.has_caught_up();
            now < awakening.until && !caught_up
        });
    }

    fn look_at_others(&mut self, situation: &Situation<'_>, news: &mut Vec<News>) {
        let was_overtaken = self.is_overtaken;
        self.is_overtaken =
            situation.overtaken || (was_overtaken && situation.connected && !situation.has_caught_up());
        match (was_overtaken, self.is_overtaken) {
            (false, true) => news.push(News::Overtaken),
            (true, false) => news.push(News::NotOvertaken),
            _ => {}
        }
    }

    /// Returns when the node counts as behind, if it is late.
    fn look_at_head(
        &mut self,
        now: Duration,
        situation: &Situation<'_>,
        news: &mut Vec<News>,
    ) -> Option<Duration> {
        // The head that says so may be the first word from the tree after an outage, to be applied in a moment.
        self.late_since = situation.is_late(&self.node).then(|| self.late_since.unwrap_or(now));
        let behind_at = self.late_since.map(|since| since + self.patience.behind);
        let is_behind = behind_at.is_some_and(|at| now >= at);
        if is_behind != self.is_behind {
            news.push(if is_behind { News::Behind } else { News::CaughtUp });
            self.is_behind = is_behind;
        }
        behind_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zk_schema::testing::{checked_vip, decided, desired, name};

    const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1));
    const SECOND: Duration = Duration::from_secs(1);

    fn head(term: u64, epoch: u64) -> Head {
        decided(term, epoch, &desired([("mqtt", checked_vip(&[("a", 100)]))])).head
    }

    /// A node that serves the head (2, 8), and a clock.
    struct Case {
        announcer: Announcer,
        now: Duration,
        head: Head,
        situation: Situation<'static>,
    }

    impl Case {
        fn new() -> Self {
            let patience =
                Patience { behind: 3 * SECOND, standstill: Some(10 * SECOND), autonomy: 20 * SECOND };
            let situation = Situation {
                order: Some((2, 8)),
                head: None,
                current: true,
                connected: true,
                sessions: 1,
                maintenance: false,
                name_is_taken: false,
                overtaken: false,
            };
            let announcer = Announcer::new(name("lb-1"), patience, Duration::ZERO);
            Self { announcer, now: Duration::ZERO, head: head(2, 8), situation }
        }

        /// The turn after `pause`.
        fn after(&mut self, pause: Duration) -> Turn {
            self.now += pause;
            let situation = Situation { head: Some(&self.head), ..self.situation };
            self.announcer.turn(self.now, &situation)
        }

        /// Returns whether it announces what it serves, a second later.
        fn announces(&mut self) -> bool {
            self.after(SECOND).announce == Announce::Serving
        }
    }

    #[test]
    fn an_address_is_served_if_all_its_vips_work_and_one_has_reals() {
        let other: IpAddr = [198, 51, 100, 2].into();
        let vip = |address, has_reals, works| InForce { address, has_reals, works };
        let served = |vips: &[InForce]| serving(vips.iter().copied()).into_iter().collect::<Vec<_>>();
        assert_eq!(served(&[vip(VIP, true, true), vip(VIP, false, true)]), [VIP]);
        assert_eq!(served(&[vip(VIP, false, true)]), [] as [IpAddr; 0]);
        assert_eq!(served(&[vip(VIP, true, true), vip(VIP, true, false), vip(other, true, true)]), [other]);
        assert_eq!(served(&[vip(VIP, true, true), vip(VIP, false, false)]), [] as [IpAddr; 0]);
    }

    #[test]
    fn what_a_predecessor_announced_stays_until_something_is_in_force() {
        let mut case = Case::new();
        case.situation.order = None;
        case.situation.maintenance = true;
        assert_eq!(case.after(SECOND).announce, Announce::AsBefore);
        case.situation.order = Some((2, 8));
        assert_eq!(case.after(SECOND).announce, Announce::Nothing);
    }

    #[test]
    fn a_node_announces_nothing_while_it_is_out_of_service_or_its_name_is_taken() {
        let mut case = Case::new();
        assert!(case.announces());
        case.situation.maintenance = true;
        assert!(!case.announces());
        case.situation.maintenance = false;
        assert!(case.announces());
        case.situation.name_is_taken = true;
        assert!(!case.announces());
        case.situation.name_is_taken = false;
        assert!(case.announces());
    }

    #[test]
    fn a_late_node_withdraws_some_time_after_it_was_told_and_returns_when_it_has_caught_up() {
        let mut case = Case::new();
        case.head = head(2, 9);
        case.head.nodes = ["lb-1", "lb-2"].map(name).into();
        case.head.lagging = [name("lb-1")].into();
        let told = case.after(SECOND);
        assert_eq!((told.announce, told.wake), (Announce::Serving, Some(4 * SECOND)));
        assert_eq!(case.after(2 * SECOND).announce, Announce::Serving);
        let behind = case.after(SECOND);
        let expected = Turn { announce: Announce::Nothing, wake: None, news: vec![News::Behind] };
        assert_eq!(behind, expected);
        assert_eq!(case.after(SECOND).news, [], "told once");
        case.situation.order = Some((2, 9));
        let back = case.after(SECOND);
        assert_eq!((back.announce, back.news), (Announce::Serving, vec![News::CaughtUp]));
    }

    #[test]
    fn a_late_node_that_catches_up_in_time_has_all_the_time_again() {
        let mut case = Case::new();
        case.head = head(2, 9);
        case.head.nodes = ["lb-1", "lb-2"].map(name).into();
        case.head.lagging = [name("lb-1")].into();
        case.after(SECOND);
        case.situation.order = Some((2, 9));
        assert_eq!(case.after(2 * SECOND).wake, None);
        case.situation.order = Some((2, 8));
        assert_eq!(case.after(2 * SECOND).wake, Some(8 * SECOND));
    }

    #[test]
    fn nobody_withdraws_for_being_late_if_most_nodes_are() {
        let mut case = Case::new();
        case.head = head(2, 9);
        case.head.nodes = ["lb-1", "lb-2", "lb-3"].map(name).into();
        case.head.lagging = ["lb-1", "lb-2"].map(name).into();
        for _ in 0..10 {
            assert!(case.announces());
        }
    }

    #[test]
    fn after_a_standstill_a_node_announces_nothing_until_it_has_met_the_tree_again() {
        let mut case = Case::new();
        assert!(case.announces());
        let awake = case.after(15 * SECOND);
        assert_eq!((awake.announce, awake.news), (Announce::Nothing, vec![News::StoodStill(15 * SECOND)]));
        case.head = head(2, 9);
        case.situation.sessions = 2;
        assert!(!case.announces(), "the newest head is not in force yet");
        case.situation.current = false;
        case.situation.order = Some((2, 9));
        assert!(!case.announces(), "the tree may hold a newer one");
        case.situation.current = true;
        assert!(case.announces());
    }

    #[test]
    fn after_a_standstill_without_a_tree_what_is_in_force_is_announced_again() {
        let mut case = Case::new();
        assert_eq!(case.after(15 * SECOND).announce, Announce::Nothing);
        for _ in 0..19 {
            assert!(!case.announces());
        }
        assert!(case.announces());
    }

    #[test]
    fn a_node_without_a_guard_takes_no_notice_of_a_standstill() {
        let mut case = Case::new();
        case.announcer.patience.standstill = None;
        assert_eq!(case.after(1000 * SECOND).announce, Announce::Serving);
    }

    #[test]
    fn a_node_that_others_overtook_withdraws_until_it_has_what_the_tree_holds() {
        let mut case = Case::new();
        case.situation.connected = false;
        assert!(case.announces(), "as long as nobody has anything newer");
        case.situation.overtaken = true;
        assert_eq!(case.after(SECOND).news, [News::Overtaken]);

        case.situation = Situation { overtaken: false, connected: true, current: false, ..case.situation };
        assert!(!case.announces(), "what the tree holds is not known yet");
        case.head = head(2, 9);
        case.situation.current = true;
        assert!(!case.announces(), "nor in force");
        case.situation.order = Some((2, 9));
        let back = case.after(SECOND);
        assert_eq!((back.announce, back.news), (Announce::Serving, vec![News::NotOvertaken]));
    }

    #[test]
    fn a_node_that_others_overtook_announces_again_once_there_are_no_others() {
        let mut case = Case::new();
        case.situation.connected = false;
        case.situation.overtaken = true;
        assert!(!case.announces());
        case.situation.overtaken = false;
        assert!(case.announces());
    }
}
