//! Writing a plan: whole where it fits into one transaction, else VIP by VIP.

use super::fields;
use super::plan::Plan;
use super::step::{Object, Step};
use crate::tree::Tree;
use coordination::{Change, Error, Session};
use std::collections::BTreeMap;
use std::fmt;
use zk_schema::picture::Found;
use zk_schema::tree::{Target, paths};
use zk_schema::{Record, VipName};

/// Changes that go into one transaction. ZooKeeper bounds its size in bytes: 1 MiB unless told otherwise.
const MOST_CHANGES: usize = 1_000;
const MOST_BYTES: usize = 512 * 1024;

/// Writing came to a halt.
#[derive(Debug, thiserror::Error)]
pub struct Halt {
    /// The steps that were written before.
    pub done: Vec<Object>,
    /// The steps that were not written: the first of it is what failed, together with some that follow.
    pub left: Vec<Object>,
    /// Why.
    pub error: Error,
    /// The change that somebody else made to it, as far as that was looked up.
    pub what: Option<String>,
}

impl fmt::Display for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |objects: &[Object]| objects.iter().map(Object::to_string).collect::<Vec<_>>().join(", ");
        match &self.error {
            Error::BadVersion(path) | Error::NotEmpty(path) => {
                write!(f, "{path} was changed by somebody else in the meantime")?;
            }
            Error::Exists(path) => write!(f, "{path} was made by somebody else in the meantime")?,
            Error::NoNode(path) => {
                write!(f, "{path} is missing: somebody else deleted it, or its parent, in the meantime")?
            }
            Error::Lost(why) => {
                write!(f, "no answer from ZooKeeper ({why}): it may have been written, or be so in a moment")?
            }
            error => write!(f, "{error}")?,
        }
        if let Some(what) = &self.what {
            write!(f, "\n  {what}")?;
        }
        match self.done.as_slice() {
            [] if self.error.is_lost() => {}
            [] => f.write_str("\nNothing was written.")?,
            done => write!(f, "\nWritten before that: {}. Not written: {}.", list(done), list(&self.left))?,
        }
        if matches!(self.error, Error::NoAuth(_) | Error::AuthFailed(_)) {
            return Ok(());
        }
        f.write_str("\nRun the command again: it compares with what is there then.")
    }
}

/// Writes a plan.
///
/// # Errors
/// If something was changed since the plan was made, or the store fails.
pub async fn carry_out<S: Session>(session: &S, plan: &Plan) -> Result<(), Halt> {
    let batches = batches(&plan.steps);
    for (number, batch) in batches.iter().enumerate() {
        let changes = batch.iter().flat_map(|step| step.changes.iter().cloned()).collect();
        if let Err(error) = session.commit(changes).await {
            let objects = |batches: &[Vec<&Step>]| {
                batches.iter().flatten().map(|step| step.object.clone()).collect::<Vec<_>>()
            };
            return Err(Halt {
                done: objects(&batches[..number]),
                left: objects(&batches[number..]),
                error,
                what: None,
            });
        }
    }
    Ok(())
}

/// All steps at once if they fit, else those of each VIP, and those cut where they do not fit either.
fn batches(steps: &[Step]) -> Vec<Vec<&Step>> {
    let all: Vec<&Step> = steps.iter().collect();
    if fits(&all) {
        return if all.is_empty() { Vec::new() } else { vec![all] };
    }
    let mut by_vip: Vec<Vec<&Step>> = Vec::new();
    let mut places: BTreeMap<Option<&VipName>, usize> = BTreeMap::new();
    for step in all {
        let place = *places.entry(step.object.vip()).or_insert(by_vip.len());
        match by_vip.get_mut(place) {
            Some(of_vip) => of_vip.push(step),
            None => by_vip.push(vec![step]),
        }
    }
    let mut batches = Vec::new();
    for of_vip in by_vip {
        let mut batch: Vec<&Step> = Vec::new();
        for step in of_vip {
            batch.push(step);
            if !fits(&batch) && batch.len() > 1 {
                let step = batch.pop().into_iter().collect();
                batches.push(std::mem::replace(&mut batch, step));
            }
        }
        batches.push(batch);
    }
    batches
}

fn fits(steps: &[&Step]) -> bool {
    let changes = || steps.iter().flat_map(|step| &step.changes);
    let bytes = |change: &Change| {
        let data = match change {
            Change::Create { data, .. } | Change::Set { data, .. } => data.len(),
            Change::Check { .. } | Change::Delete { .. } => 0,
        };
        data + change.path().len()
    };
    changes().count() <= MOST_CHANGES && changes().map(bytes).sum::<usize>() <= MOST_BYTES
}

/// Tells what became of the znode on which a plan failed; `None` where there is nothing to tell.
#[must_use]
pub fn what_changed(path: &str, before: &Tree, now: &Tree) -> Option<String> {
    let parts: Vec<&str> = path.strip_prefix(paths::VIPS)?.split('/').skip(1).collect();
    match parts[..] {
        [vip] => {
            let vip: VipName = vip.parse().ok()?;
            compare(before.vips.get(&vip).map(|vip| &vip.vip), now.vips.get(&vip).map(|vip| &vip.vip))
        }
        [vip, "reals"] => {
            let names = |tree: &Tree| {
                let reals = tree.vips.get(vip).map(|vip| vip.reals.keys().map(ToString::to_string).collect());
                let reals: Vec<String> = reals.unwrap_or_default();
                reals.join(", ")
            };
            Some(format!("its reals were {} and are now {}", names(before), names(now)))
        }
        [vip, "reals", real] => {
            let target = Target { vip: vip.parse().ok()?, real: real.parse().ok()? };
            let found = |tree: &'_ Tree| {
                tree.vips.get(&target.vip).and_then(|vip| vip.reals.get(&target.real)).cloned()
            };
            compare(found(before).as_ref(), found(now).as_ref())
        }
        _ => None,
    }
}

fn compare<T: Record>(before: Option<&Found<T>>, now: Option<&Found<T>>) -> Option<String> {
    let (before, now) = match (before, now) {
        (None, None) => return None,
        (None, Some(now)) if now.znode.owner.is_some() => {
            return Some("it is there now, registered by its own agent".to_owned());
        }
        (None, Some(_)) => return Some("it is there now".to_owned()),
        (Some(_), None) => return Some("it is gone".to_owned()),
        (Some(before), Some(now)) => (before, now),
    };
    let fields = |found: &Found<T>| fields::of_record(found.record.as_ref().ok()?).ok();
    let text = match (fields(before), fields(now)) {
        (Some(before), Some(now)) => {
            let differences = fields::difference(&before, &now);
            differences.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        }
        _ => "its record is another".to_owned(),
    };
    let (old, new) = (before.znode.version, now.znode.version);
    Some(format!("since version {old} of the znode (now {new}): {text}"))
}

#[cfg(test)]
mod tests;
