//! What a node's probes find, put into words for the leader.

use super::verdict::is_suspect;
use crate::control::Report;
use crate::health::{self, State, Verdicts};
use crate::status::seconds;
use std::sync::Arc;
use tokio::sync::watch;
use zk_schema::tree::{Finding, StateRecord as _, Target, Vote};

/// Longest reason that is passed on, in bytes.
const LONGEST_REASON: usize = 200;

/// The vote that follows from `verdicts` on `targets`, which were in force with the head's `since`.
#[must_use]
pub fn vote(targets: &[health::Target], verdicts: &Verdicts, since: u64) -> Vote {
    let mut vote = Vote { targets: since, ..Vote::default() };
    for target in targets {
        let name = Target { vip: target.vip.clone(), real: target.real.clone() };
        match verdicts.get(&target.key()) {
            Some(verdict) if verdict.state == State::Down && !verdict.blind => {
                let since = seconds(verdict.since).unwrap_or(0);
                vote.down.insert(name, Finding { since, reason: shortened(&verdict.reason) });
            }
            Some(verdict) if verdict.state == State::Up && !verdict.blind => {}
            _ => {
                vote.unknown.insert(name);
            }
        }
    }
    vote.suspect = is_suspect(vote.down.len(), targets.len());
    vote
}

fn shortened(reason: &str) -> String {
    let end = (0..=LONGEST_REASON.min(reason.len())).rev().find(|end| reason.is_char_boundary(*end));
    reason[..end.unwrap_or(0)].to_owned()
}

/// Keeps `content` what the newest report, targets and verdicts say, until all their senders are gone.
pub async fn follow(
    mut report: watch::Receiver<Arc<Report>>,
    mut targets: watch::Receiver<Arc<Vec<health::Target>>>,
    mut verdicts: watch::Receiver<Arc<Verdicts>>,
    content: watch::Sender<Option<Vec<u8>>>,
) {
    loop {
        // The report first: targets that are newer than it do no harm, and older ones would.
        let (order, since) = {
            let report = report.borrow_and_update();
            (report.order, report.targets)
        };
        let now = Arc::clone(&targets.borrow_and_update());
        let found = Arc::clone(&verdicts.borrow_and_update());
        if order.is_some()
            && let Ok(bytes) = vote(&now, &found, since).bytes()
        {
            content.send_if_modified(|content| {
                let differs = content.as_ref() != Some(&bytes);
                *content = Some(bytes);
                differs
            });
        }
        tokio::select! {
            biased;
            Ok(()) = report.changed() => {}
            Ok(()) = targets.changed() => {}
            Ok(()) = verdicts.changed() => {}
            else => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Verdict;
    use crate::testing::{checked_vip, desired, name};
    use std::collections::BTreeMap;
    use std::time::{Duration, SystemTime};

    fn found(states: &[(&str, State, bool)]) -> Vote {
        let reals: Vec<(&str, u16)> = states.iter().map(|(real, _, _)| (*real, 100)).collect();
        let desired = desired([("mqtt", checked_vip(&reals))]);
        let targets = crate::control::targets(&desired, &BTreeMap::new());
        let verdict = |state, blind| Verdict {
            state,
            blind,
            since: SystemTime::UNIX_EPOCH + Duration::from_secs(5),
            reason: "é".repeat(150),
        };
        let verdicts =
            states.iter().map(|(real, state, blind)| ((name("mqtt"), name(real)), verdict(*state, *blind)));
        vote(&targets, &verdicts.collect(), 7)
    }

    #[test]
    fn only_exceptions_are_named() {
        let vote = found(&[
            ("a", State::Up, false),
            ("b", State::Down, false),
            ("c", State::Unknown, false),
            ("d", State::Up, true),
            ("e", State::Down, true),
        ]);
        assert_eq!(vote.targets, 7);
        assert_eq!(vote.down.keys().map(ToString::to_string).collect::<Vec<_>>(), ["mqtt/b"]);
        let unknown: Vec<_> = vote.unknown.iter().map(ToString::to_string).collect();
        assert_eq!(unknown, ["mqtt/c", "mqtt/d", "mqtt/e"], "what it is blind to it does not judge");
        let finding = vote.down.values().next().unwrap();
        assert_eq!((finding.since, finding.reason.len()), (5, LONGEST_REASON));
        assert!(!vote.suspect);
    }

    #[test]
    fn a_node_that_finds_most_of_its_targets_down_doubts_itself() {
        let states = [("a", State::Down, false), ("b", State::Down, false), ("c", State::Up, false)];
        assert!(found(&states).suspect);
        assert!(!found(&states[1..]).suspect);
    }
}
