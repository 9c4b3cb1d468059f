//! What a step may cost, what it did cost, and whether that is within what is promised. Figures in, verdict out.

use std::time::Duration;

/// A router is asked where it sends packets some twenty times a second, so it may have moved on a moment earlier than
/// is known, and a packet takes a moment to get to it.
const SLACK: Duration = Duration::from_millis(100);

/// What a step may cost. By default nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Allowed {
    /// The broker, counted from 0, that dies with its connections.
    pub(crate) dead_broker: Option<usize>,
    /// The node, counted from 0, that is gone: packets may be lost that were sent before the router had moved on from it.
    pub(crate) lost_node: Option<usize>,
    /// New connections may be refused until all is steady.
    pub(crate) refusals: bool,
    /// The router may change its routes to the VIPs.
    pub(crate) route_changes: bool,
}

/// What was seen of a step. Times are counted from when it began.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Connections that were held when it began.
    pub(crate) connections: usize,
    /// Those of them that the dead broker held.
    pub(crate) doomed: usize,
    /// Those of the doomed that broke.
    pub(crate) doomed_broken: usize,
    /// What happened to each of the others that broke.
    pub(crate) others_broken: Vec<String>,
    /// Requests that were sent one by one, to be counted.
    pub(crate) packets: usize,
    /// When those without an answer were sent.
    pub(crate) lost: Vec<Duration>,
    /// The longest that a client that was not at the dead broker waited for an answer.
    pub(crate) longest_gap: Duration,
    /// New connections.
    pub(crate) new: usize,
    /// When those came that were not served.
    pub(crate) refused: Vec<Duration>,
    /// The longest that one took which was served.
    pub(crate) slowest_new: Duration,
    /// Changes of the router's routes to the VIPs.
    pub(crate) route_changes: usize,
    /// When the router sent no more packets to the node that is gone.
    pub(crate) moved: Option<Duration>,
    /// When all was steady.
    pub(crate) steady: Option<Duration>,
    /// What else the step promises.
    pub(crate) checks: Vec<Check>,
}

/// A promise of one step's own.
#[derive(Clone, Debug)]
pub(crate) struct Check {
    pub(crate) promise: String,
    pub(crate) seen: String,
    pub(crate) kept: bool,
}

impl Allowed {
    /// What two steps at once may cost.
    pub(crate) fn and(self, other: Allowed) -> Allowed {
        Allowed {
            dead_broker: self.dead_broker.or(other.dead_broker),
            lost_node: self.lost_node.or(other.lost_node),
            refusals: self.refusals || other.refusals,
            route_changes: self.route_changes || other.route_changes,
        }
    }

    /// What was not kept, in words; nothing if all was.
    pub(crate) fn judge(&self, seen: &Seen) -> Vec<String> {
        let mut wrong = Vec::new();
        if let Some(first) = seen.others_broken.first() {
            let count = seen.others_broken.len();
            wrong.push(format!("{count} connections broke that no dead broker held, such as: {first}"));
        }
        // A drill in which nothing dies, or nothing is at stake, proves nothing.
        if seen.doomed_broken < seen.doomed {
            let left = seen.doomed - seen.doomed_broken;
            wrong.push(format!("{left} connections live that the dead broker held: is it dead?"));
        }
        if self.dead_broker.is_some() && seen.doomed == 0 {
            wrong.push("the dead broker held no connection".to_owned());
        }
        if seen.connections == seen.doomed {
            wrong.push("no connection was held that could have broken".to_owned());
        }
        if seen.packets == 0 || seen.new == 0 {
            wrong.push(format!("{} packets and {} new connections prove nothing", seen.packets, seen.new));
        }
        let bound = self.lost_node.map(|_| seen.moved.map_or(Duration::ZERO, |moved| moved + SLACK));
        let undue = seen.lost.iter().filter(|lost| bound.is_none_or(|bound| **lost > bound)).count();
        match (undue, bound) {
            (0, _) => {}
            (_, None) => wrong.push(format!("{undue} packets of {} were lost", seen.packets)),
            (_, Some(bound)) => wrong.push(format!(
                "{undue} packets of {} were lost later than {} ms, when the router had moved on",
                seen.packets,
                bound.as_millis()
            )),
        }
        if !self.refusals && !seen.refused.is_empty() {
            wrong.push(format!("{} of {} new connections were not served", seen.refused.len(), seen.new));
        }
        if !self.route_changes && seen.route_changes > 0 {
            wrong.push(format!("the router changed its routes {} times", seen.route_changes));
        }
        if seen.steady.is_none() {
            wrong.push("it did not become steady in time".to_owned());
        }
        let broken = seen.checks.iter().filter(|check| !check.kept);
        wrong.extend(broken.map(|check| format!("not so: {}: {}", check.promise, check.seen)));
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn well() -> Seen {
        Seen { connections: 300, packets: 1000, new: 40, steady: Some(1200 * MS), ..Seen::default() }
    }

    fn verdict(allowed: &Allowed, change: impl FnOnce(&mut Seen)) -> String {
        let mut seen = well();
        change(&mut seen);
        allowed.judge(&seen).join("; ")
    }

    #[test]
    fn a_step_that_costs_nothing_keeps_every_promise() {
        assert_eq!(Allowed::default().judge(&well()), Vec::<String>::new());
    }

    #[test]
    fn only_the_connections_of_the_dead_broker_may_break() {
        let death = Allowed { dead_broker: Some(1), ..Allowed::default() };
        let due = |seen: &mut Seen| (seen.doomed, seen.doomed_broken) = (100, 100);
        assert_eq!(verdict(&death, due), "");
        let more = |seen: &mut Seen| {
            due(seen);
            seen.others_broken.push("client-7 lost broker-1: reset".into());
        };
        assert!(verdict(&death, more).contains("1 connections broke that no dead broker held"));
        let alive = |seen: &mut Seen| (seen.doomed, seen.doomed_broken) = (100, 98);
        assert!(verdict(&death, alive).contains("2 connections live"));
    }

    #[test]
    fn a_packet_may_be_lost_only_where_that_is_allowed_and_only_before_the_router_moved_on() {
        let lost = |at: u32| {
            move |seen: &mut Seen| {
                seen.lost.push(at * MS);
                seen.moved = Some(50 * MS);
            }
        };
        assert!(verdict(&Allowed::default(), lost(10)).contains("1 packets of 1000 were lost"));
        let in_flight = Allowed { lost_node: Some(0), ..Allowed::default() };
        assert_eq!(verdict(&in_flight, lost(10)), "");
        assert_eq!(verdict(&in_flight, lost(150)), "");
        assert!(verdict(&in_flight, lost(151)).contains("later than 150 ms"));
        let never_moved = |seen: &mut Seen| seen.lost.push(MS);
        assert!(verdict(&in_flight, never_moved).contains("later than 0 ms"));
    }

    #[test]
    fn refusals_and_changes_of_routes_count_unless_they_are_allowed() {
        let refused = |seen: &mut Seen| seen.refused.push(MS);
        let moved = |seen: &mut Seen| seen.route_changes = 2;
        assert!(verdict(&Allowed::default(), refused).contains("1 of 40 new connections"));
        assert!(verdict(&Allowed::default(), moved).contains("routes 2 times"));
        let both = Allowed { refusals: true, route_changes: true, ..Allowed::default() };
        let all = |seen: &mut Seen| {
            refused(seen);
            moved(seen);
        };
        assert_eq!(verdict(&both, all), "");
    }

    #[test]
    fn two_steps_at_once_may_cost_what_either_may() {
        let death = Allowed { dead_broker: Some(1), refusals: true, ..Allowed::default() };
        let power = Allowed { lost_node: Some(2), route_changes: true, ..Allowed::default() };
        let both = death.clone().and(power.clone());
        assert_eq!((both.dead_broker, both.lost_node), (Some(1), Some(2)));
        assert!(both.refusals && both.route_changes);
        let none = Allowed::default().and(Allowed::default());
        assert!(none.dead_broker.is_none() && none.lost_node.is_none());
        assert!(!none.refusals && !none.route_changes);
    }

    #[test]
    fn never_steady_and_a_check_that_fails_are_told() {
        let nothing = Allowed::default();
        assert!(verdict(&nothing, |seen| seen.steady = None).contains("did not become steady"));
        let check = Check { promise: "another node leads".into(), seen: "term 1".into(), kept: false };
        let told = verdict(&nothing, |seen| seen.checks.push(check));
        assert_eq!(told, "not so: another node leads: term 1");
    }

    #[test]
    fn a_drill_in_which_nothing_was_at_stake_fails() {
        let nothing = Allowed::default();
        assert!(verdict(&nothing, |seen| seen.connections = 0).contains("no connection was held"));
        assert!(verdict(&nothing, |seen| seen.packets = 0).contains("prove nothing"));
        let death = Allowed { dead_broker: Some(0), ..nothing };
        assert!(verdict(&death, |_| ()).contains("held no connection"));
    }
}
