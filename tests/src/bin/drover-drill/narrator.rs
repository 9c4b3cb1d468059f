//! The timeline between what a drill does: what an observer saw of the nodes and the router.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use drover_tests::crowd::broker_name;
use drover_tests::{Observed, Sight};

use crate::report::Voice;

/// Tells everything once.
#[derive(Debug, Default)]
pub(crate) struct Narrator {
    nodes: BTreeMap<String, usize>,
    carriers: BTreeMap<IpAddr, usize>,
}

impl Narrator {
    /// Takes everything so far for told.
    pub(crate) fn skip(&mut self, observed: &Observed) {
        self.nodes = observed.nodes.iter().map(|(node, sights)| (node.clone(), sights.len())).collect();
        self.carriers = observed.carriers.iter().map(|(vip, changes)| (*vip, changes.len())).collect();
    }

    /// Tells what is new, in the order in which it happened. There are so many brokers.
    pub(crate) fn tell(&mut self, observed: &Observed, brokers: usize, voice: &Voice) {
        let mut events: Vec<(Instant, String)> = Vec::new();
        for (node, sights) in &observed.nodes {
            let told = self.nodes.get(node).copied().unwrap_or(0);
            for (index, sight) in sights.iter().enumerate().skip(told) {
                let before = index.checked_sub(1).map(|before| &sights[before]);
                let what = change(before, sight, brokers);
                if !what.is_empty() {
                    events.push((sight.at, format!("{node}: {}", what.join(", "))));
                }
            }
        }
        for (vip, changes) in &observed.carriers {
            let told = self.carriers.get(vip).copied().unwrap_or(0);
            for (at, carriers) in changes.iter().skip(told) {
                let carriers: Vec<&str> = carriers.iter().map(String::as_str).collect();
                events.push((*at, format!("the router sends {vip} to {}", carriers.join(", "))));
            }
        }
        self.skip(observed);
        events.sort_by_key(|(at, _)| *at);
        for (at, event) in events {
            voice.event(at, event);
        }
    }
}

/// What is different, in words.
fn change(before: Option<&Sight>, now: &Sight, brokers: usize) -> Vec<String> {
    let mut what = Vec::new();
    if before.is_none_or(|before| before.mode != now.mode) {
        what.push(format!("is {}", now.mode));
    }
    match (before.and_then(|before| before.leading), now.leading) {
        (old, Some(term)) if old != Some(term) => what.push(format!("leads, term {term}")),
        (Some(_), None) => what.push("leads no more".to_owned()),
        _ => {}
    }
    let old = before.map(missing(brokers));
    let missing = missing(brokers)(now);
    if old.as_ref() != Some(&missing) {
        let epoch = now.tables.values().map(|table| table.epoch).max().unwrap_or(0);
        let names: Vec<&str> = missing.iter().map(String::as_str).collect();
        let tables = if names.is_empty() {
            "with every broker".to_owned()
        } else {
            format!("without {}", names.join(", "))
        };
        what.push(format!("tables {tables} (epoch {epoch})"));
    }
    what
}

/// The brokers that are not in every table.
fn missing(brokers: usize) -> impl Fn(&Sight) -> BTreeSet<String> {
    move |sight| {
        let everywhere = |broker: &String| sight.tables.values().all(|table| table.reals.contains(broker));
        (0..brokers).map(broker_name).filter(|broker| !everywhere(broker)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_tests::Table;

    fn sight(mode: &str, leading: Option<u64>, reals: &[&str]) -> Sight {
        let reals = reals.iter().map(|real| (*real).to_owned()).collect();
        let table = Table { epoch: 7, digest: Some("d".into()), reals };
        Sight { at: Instant::now(), mode: mode.into(), leading, tables: [("mqtt".to_owned(), table)].into() }
    }

    #[test]
    fn only_what_changed_is_told() {
        let all = sight("live", None, &["broker-1", "broker-2"]);
        assert_eq!(change(Some(&all), &all, 2), Vec::<String>::new());
        let leads = sight("live", Some(3), &["broker-1", "broker-2"]);
        assert_eq!(change(Some(&all), &leads, 2), ["leads, term 3"]);
        let cut_off = sight("static", None, &["broker-1", "broker-2"]);
        assert_eq!(change(Some(&leads), &cut_off, 2), ["is static", "leads no more"]);
        let less = sight("live", None, &["broker-1"]);
        assert_eq!(change(Some(&all), &less, 2), ["tables without broker-2 (epoch 7)"]);
        assert_eq!(change(Some(&less), &all, 2), ["tables with every broker (epoch 7)"]);
    }
}
