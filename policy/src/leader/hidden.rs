//! Znodes that a leader knows to be there and cannot read. Pure.
//!
//! What cannot be read is not gone. A record that cannot be read is refused like one that is wrong, and the last good one
//! stays in force. While a list cannot be read, nothing that is missing counts as removed. Without the lists that nodes
//! write themselves nobody can lead.

use super::view::{View, Wish};
use std::collections::BTreeMap;
use std::sync::Arc;
use zk_schema::tree::{Contents, paths};

/// Lists that cannot be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hidden {
    /// True if VIPs or reals may be there that are not seen.
    pub wishes: bool,
    /// True if reals may be drained without that being seen.
    pub drains: bool,
    /// The first thing, in words, without which nothing can be decided, if it is missing.
    pub essential: Option<String>,
}

impl Hidden {
    /// The lists among what is `unreadable`, by path.
    pub(super) fn of(unreadable: &BTreeMap<String, String>) -> Self {
        let mut hidden = Self::default();
        for (path, why) in unreadable {
            let parts: Vec<&str> = path.split('/').skip(2).collect();
            match parts[..] {
                ["vips"] | ["vips", _, "reals"] => hidden.wishes = true,
                ["ops", "drain"] => hidden.drains = true,
                ["nodes" | "applied" | "health" | "assignments"] => {
                    hidden.essential.get_or_insert_with(|| format!("{path}: {why}"));
                }
                _ => {}
            }
        }
        hidden
    }
}

/// The paths that cannot be read and could be `before`, or the other way round, or for another reason.
pub(super) fn changed(contents: &Contents, before: &Contents) -> Vec<String> {
    let (now, then) = (&contents.unreadable, &before.unreadable);
    let new = now.iter().filter(|(path, why)| then.get(*path) != Some(why));
    let over = then.iter().filter(|(path, _)| !now.contains_key(*path));
    new.chain(over).map(|(path, _)| path.clone()).collect()
}

/// Takes into account that what has these `parts` of a path cannot be read.
///
/// # Errors
/// Why, unless that is told where its record is looked at.
pub(super) fn hide(view: &mut View, parts: &[&str], why: &str) -> Result<(), String> {
    match *parts {
        [] => {
            view.cluster = Some(Err(why.to_owned()));
            return Ok(());
        }
        ["vips", vip] => {
            if let Ok(name) = vip.parse() {
                let nothing = || Arc::new(Wish { vip: Err(String::new()), reals: BTreeMap::new() });
                Arc::make_mut(view.wishes.entry(name).or_insert_with(nothing)).vip = Err(why.to_owned());
                return Ok(());
            }
        }
        ["vips", vip, "reals", real] => {
            if let (Some(wish), Ok(real)) = (view.wishes.get_mut(vip), real.parse()) {
                Arc::make_mut(wish).reals.insert(real, Err(why.to_owned()));
                return Ok(());
            }
        }
        // The name is what counts of a node's record.
        ["nodes", node] => view.nodes.extend(node.parse()),
        ["applied", node] => drop(view.applied.remove(node)),
        ["health", node] => drop(view.votes.remove(node)),
        _ => {}
    }
    Err(why.to_owned())
}

impl View {
    /// Returns the reason why nothing can be decided on this view, if there is one; `decided_before` tells whether
    /// anything has been.
    #[must_use]
    pub fn blind(&self, decided_before: bool) -> Option<String> {
        let no_cluster = match &self.cluster {
            Some(Ok(_)) => None,
            Some(Err(problem)) => Some(problem.as_str()),
            None => Some("no such znode"),
        };
        let no_cluster = no_cluster.filter(|_| !decided_before);
        self.hidden.essential.clone().or_else(|| Some(format!("{}: {}", paths::CLUSTER, no_cluster?)))
    }
}
