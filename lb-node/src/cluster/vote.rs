//! A node's vote: the findings of its probes, for the leader.

use crate::control::report::Report;
use health::{State, Verdicts};
use host::clock::seconds;
use policy::verdict::is_suspect;
use std::sync::Arc;
use tokio::sync::watch;
use tracing::warn;
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
                vote.down.insert(name, Finding { since, reason: shortened(&verdict.reason, LONGEST_REASON) });
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

/// The record of a vote, as much of it as a record holds: first the reasons go, then targets. What is cut says nothing of
/// what it does not name, so that nothing passes for up that is not.
fn bounded(mut vote: Vote) -> Option<(u64, Vec<u8>)> {
    let fits = |vote: &Vote| vote.bytes().ok().map(|bytes| (vote.omitted, bytes));
    if let Some(whole) = fits(&vote) {
        return Some(whole);
    }
    vote.down.values_mut().for_each(|finding| finding.reason.clear());
    if let Some(bare) = fits(&vote) {
        return Some(bare);
    }
    vote.targets = 0;
    vote.omitted = u64::try_from(vote.unknown.len()).unwrap_or(u64::MAX);
    vote.unknown.clear();
    loop {
        if let Some(cut) = fits(&vote) {
            return Some(cut);
        }
        // A quarter at a time: some ten attempts at most.
        let goes = vote.down.len().div_ceil(4);
        for _ in 0..goes {
            vote.down.pop_last()?;
            vote.omitted = vote.omitted.saturating_add(1);
        }
    }
}

/// A text's beginning, of at most so many bytes.
pub(super) fn shortened(text: &str, longest: usize) -> String {
    let end = (0..=longest.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text[..end.unwrap_or(0)].to_owned()
}

/// Keeps `content` what the newest report, targets and verdicts say, until all their senders are gone.
pub async fn follow(
    mut report: watch::Receiver<Arc<Report>>,
    mut targets: watch::Receiver<Arc<Vec<health::Target>>>,
    mut verdicts: watch::Receiver<Arc<Verdicts>>,
    content: watch::Sender<Option<Vec<u8>>>,
) {
    let mut told = 0;
    loop {
        // The report first: targets that are newer than it do no harm, and older ones would.
        let (order, since) = {
            let report = report.borrow_and_update();
            (report.order, report.targets)
        };
        let now = Arc::clone(&targets.borrow_and_update());
        let found = Arc::clone(&verdicts.borrow_and_update());
        if order.is_some()
            && let Some((omitted, bytes)) = bounded(vote(&now, &found, since))
        {
            if omitted > 0 && told == 0 {
                warn!(omitted, "too many targets are down for one vote: the rest is left out");
            }
            told = omitted;
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
    use crate::testing::{checked_vip, desired, name};
    use health::Verdict;
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

    fn many(down: usize, unknown: usize) -> Vote {
        let target = |number| Target {
            vip: name("a-vip-with-a-rather-long-name-as-people-give-them"),
            real: name(&format!("a-real-with-a-rather-long-name-as-well-{number:06}")),
        };
        let finding = Finding { since: 1_700_000_000, reason: "x".repeat(LONGEST_REASON) };
        Vote {
            targets: 7,
            down: (0..down).map(|number| (target(number), finding.clone())).collect(),
            unknown: (down..down + unknown).map(target).collect(),
            ..Vote::default()
        }
    }

    #[test]
    fn a_vote_that_is_too_large_is_sent_in_part_and_takes_nothing_for_up_that_it_leaves_out() {
        let (omitted, bytes) = bounded(many(1000, 10)).unwrap();
        assert_eq!((omitted, Vote::parse(&bytes).unwrap()), (0, many(1000, 10)), "what fits is sent whole");

        let (omitted, bytes) = bounded(many(2500, 10)).unwrap();
        let vote = Vote::parse(&bytes).unwrap();
        assert_eq!((omitted, vote.targets, vote.down.len(), vote.unknown.len()), (0, 7, 2500, 10));
        assert!(vote.down.values().all(|finding| finding.reason.is_empty()), "reasons go first");

        let (omitted, bytes) = bounded(many(20_000, 100)).unwrap();
        let vote = Vote::parse(&bytes).unwrap();
        assert_eq!(vote.omitted, omitted);
        assert_eq!(vote.down.len() + usize::try_from(omitted).unwrap(), 20_100);
        assert!(vote.down.len() > 1000);
        let left_out = many(20_000, 0).down.into_keys().next_back().unwrap();
        let nodes = [name("lb-1")].into();
        let said = policy::verdict::verdict(&left_out, &nodes, &[(name("lb-1"), vote)].into(), 3);
        assert_eq!(said, policy::verdict::Verdict::Open);
    }
}
