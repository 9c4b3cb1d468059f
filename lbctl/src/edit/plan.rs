//! From the tree and what is wanted to what is to be written. Pure.

use super::danger;
use super::fields::{self, FieldChange};
use super::flags;
use super::names;
use super::step::{Action, Edit, FlagName, Object, Remark, Severity, Step};
use crate::tree::Tree;
use anyhow::{Result, bail};
use coordination::Change;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use zk_schema::picture::Found;
use zk_schema::tree::{Flag, SCHEMA_VERSION, Target, Znode, paths};
use zk_schema::{Cluster, Desired, Real, Record, Vip, VipName, VipState, to_json};

/// A plan: what to write, with remarks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The changes, in the order in which they are to be written.
    pub steps: Vec<Step>,
    /// Remarks to read before.
    pub remarks: Vec<Remark>,
}

impl Plan {
    /// Returns whether it asks for more than consent by silence.
    #[must_use]
    pub fn is_dangerous(&self) -> bool {
        self.remarks.iter().any(|remark| remark.severity == Severity::Danger)
    }

    /// The VIPs whose assignments it may change.
    #[must_use]
    pub fn vips(&self) -> BTreeSet<VipName> {
        self.steps.iter().filter_map(|step| step.object.vip()).cloned().collect()
    }
}

/// Plans `edits` at `now`, in seconds since 1970.
///
/// # Errors
/// All that is wrong with them, alone or together with what is in the tree.
pub fn plan(tree: &Tree, edits: Vec<Edit>, now: u64) -> Result<Plan> {
    names::made(tree)?;
    let mut planner = Planner::new(tree, now);
    let before = planner.after.validate().err();
    for edit in edits {
        planner.add(edit)?;
    }
    // What was wrong before is not what was edited.
    let before: BTreeSet<String> = before.iter().flatten().map(ToString::to_string).collect();
    if let Err(problems) = planner.after.validate() {
        let new = problems.iter().map(ToString::to_string).filter(|problem| !before.contains(problem));
        planner.refusals.extend(new);
    }
    if !planner.refusals.is_empty() {
        bail!("{}\nNothing was written.", planner.refusals.join("\n"));
    }
    let mut plan = Plan { steps: planner.steps, remarks: planner.remarks };
    plan.remarks.extend(danger::of(tree, &planner.after.vips, &planner.drains, &plan.steps, now)?);
    plan.remarks.sort_by_key(|remark| remark.severity);
    plan.remarks.dedup();
    Ok(plan)
}

struct Planner<'t> {
    tree: &'t Tree,
    /// The state that there will be, as far as it is sound.
    after: Desired,
    /// The drains that will count.
    drains: BTreeSet<Target>,
    steps: Vec<Step>,
    remarks: Vec<Remark>,
    refusals: Vec<String>,
}

impl<'t> Planner<'t> {
    fn new(tree: &'t Tree, now: u64) -> Self {
        let cluster = tree.cluster.as_ref().and_then(Found::ok).cloned().unwrap_or_default();
        let after = Desired { cluster: Cluster { extra: Default::default(), ..cluster }, vips: sound(tree) };
        Self {
            tree,
            after,
            drains: tree.view(now).drains,
            steps: Vec::new(),
            remarks: Vec::new(),
            refusals: Vec::new(),
        }
    }

    fn add(&mut self, edit: Edit) -> Result<()> {
        match edit {
            Edit::PutVip(name, vip) => self.put_vip(name, vip),
            Edit::PutReal(target, real) => self.put_real(target, real),
            Edit::RemoveVip(name) => {
                self.remove_vip(name);
                Ok(())
            }
            Edit::RemoveReal(target) => {
                self.remove_real(target);
                Ok(())
            }
            Edit::PutFlag(name, flag, there) => self.put_flag(name, &flag, there),
            Edit::RemoveFlag(name, there) => {
                if let FlagName::Drain(target) = &name {
                    self.drains.remove(target);
                }
                let delete = Change::Delete { path: name.path(), version: Some(there.version) };
                self.step(Object::Flag(name), Action::Delete, Vec::new(), vec![delete]);
                Ok(())
            }
            Edit::ForgetNode(name) => {
                let there = self.tree.applied.get(&name).map(|found| found.znode.version);
                let delete = Change::Delete { path: paths::applied(&name), version: there };
                self.step(Object::Node(name), Action::Delete, Vec::new(), vec![delete]);
                Ok(())
            }
        }
    }

    fn put_vip(&mut self, name: VipName, mut vip: Vip) -> Result<()> {
        let there = self.tree.vips.get(&name);
        if let Some(old) = there.and_then(|there| there.vip.ok()) {
            vip.extra.clone_from(&old.extra);
        }
        match self.after.vips.get_mut(&name) {
            Some(state) => state.vip = vip.clone(),
            None => {
                let reals = there.map(|there| sound_reals(&there.reals)).unwrap_or_default();
                self.after.vips.insert(name.clone(), VipState { vip: vip.clone(), reals });
            }
        }
        let object = Object::Vip(name.clone());
        let Some((action, fields, first)) = self.put(&object, there.map(|there| &there.vip), &vip)? else {
            return Ok(());
        };
        let mut changes = vec![first];
        if !there.is_some_and(|there| there.has_reals) {
            changes.push(Change::Create { path: paths::reals(&name), data: Vec::new(), ephemeral: false });
        }
        self.step(object, action, fields, changes);
        Ok(())
    }

    fn put_real(&mut self, target: Target, mut real: Real) -> Result<()> {
        let there = self.tree.vips.get(&target.vip).and_then(|vip| vip.reals.get(&target.real));
        let old = there.and_then(Found::ok);
        if let Some(old) = old {
            real.extra.clone_from(&old.extra);
        }
        if there.is_some_and(|there| there.znode.owner.is_some()) {
            if old != Some(&real) {
                self.remarks.push(Remark::warning(format!(
                    "real {target} is registered by its own agent and stays as that says; give the agent other \
                     settings, or stop it and run this again"
                )));
            }
            return Ok(());
        }
        let Some(state) = self.after.vips.get_mut(&target.vip) else {
            let path = paths::vip(&target.vip);
            self.refusals
                .push(format!("{path} is missing or broken: write it before its real {}", target.real));
            return Ok(());
        };
        state.reals.insert(target.real.clone(), real.clone());
        let object = Object::Real(target.clone());
        let Some((action, fields, first)) = self.put(&object, there, &real)? else { return Ok(()) };
        let mut changes = Vec::new();
        let is_made_here = self.steps.iter().any(|step| step.object == Object::Vip(target.vip.clone()));
        let has_parent = self.tree.vips.get(&target.vip).is_some_and(|vip| vip.has_reals);
        let parent = paths::reals(&target.vip);
        let made_already = is_made_here
            || self.steps.iter().flat_map(|step| &step.changes).any(|change| change.path() == parent);
        if !has_parent && !made_already {
            changes.push(Change::Create { path: parent, data: Vec::new(), ephemeral: false });
        }
        changes.push(first);
        self.step(object, action, fields, changes);
        Ok(())
    }

    /// Returns the writes that a record takes; `None`: it is there as it should be.
    fn put<T: Record + PartialEq>(
        &mut self,
        object: &Object,
        there: Option<&Found<T>>,
        record: &T,
    ) -> Result<Option<(Action, Vec<FieldChange>, Change)>> {
        let path = object.path();
        let data = match to_json(record) {
            Ok(data) => data,
            Err(problem) => {
                self.refusals.push(format!("{object}: {problem}"));
                return Ok(None);
            }
        };
        let new = fields::of_record(record)?;
        let Some(there) = there else {
            let create = Change::Create { path, data, ephemeral: false };
            return Ok(Some((Action::Create, fields::difference(&BTreeMap::new(), &new), create)));
        };
        let old = match &there.record {
            Ok(old) if old == record => return Ok(None),
            Ok(old) => fields::of_record(old)?,
            Err(_) if is_newer(&there.znode.data) => {
                self.refusals.push(format!(
                    "{path} was written by newer software, which this lbctl would undo: upgrade lbctl"
                ));
                return Ok(None);
            }
            Err(problem) => {
                self.remarks.push(Remark::note(format!("{path} is broken and is replaced whole: {problem}")));
                BTreeMap::new()
            }
        };
        let set = Change::Set { path, data, version: Some(there.znode.version) };
        Ok(Some((Action::Change, fields::difference(&old, &new), set)))
    }

    fn remove_vip(&mut self, name: VipName) {
        let Some(there) = self.tree.vips.get(&name) else { return };
        let own: Vec<&str> = there
            .reals
            .iter()
            .filter(|(_, real)| real.znode.owner.is_some())
            .map(|(real, _)| real.as_str())
            .collect();
        if !own.is_empty() {
            self.refusals.push(format!(
                "vip {name}: its reals {} are registered by their own agents, which would lose their place; stop \
                 those agents first",
                own.join(", ")
            ));
            return;
        }
        for real in there.reals.keys() {
            self.remove_real(Target { vip: name.clone(), real: real.clone() });
        }
        let mut changes = Vec::new();
        if there.has_reals {
            changes.push(Change::Delete { path: paths::reals(&name), version: None });
        }
        let version = Some(there.vip.znode.version);
        changes.push(Change::Delete { path: paths::vip(&name), version });
        self.after.vips.remove(&name);
        self.step(Object::Vip(name), Action::Delete, Vec::new(), changes);
    }

    fn remove_real(&mut self, target: Target) {
        let there = self.tree.vips.get(&target.vip).and_then(|vip| vip.reals.get(&target.real));
        let Some(there) = there else { return };
        if there.znode.owner.is_some() {
            let text =
                format!("real {target} is registered by its own agent: it stays until that is stopped");
            self.remarks.push(Remark::note(text));
            return;
        }
        if let Some(state) = self.after.vips.get_mut(&target.vip) {
            state.reals.remove(&target.real);
        }
        let version = Some(there.znode.version);
        let delete = Change::Delete { path: paths::real(&target.vip, &target.real), version };
        self.step(Object::Real(target.clone()), Action::Delete, Vec::new(), vec![delete]);
        // Else a real that is given this name one day would be drained for no reason that anybody remembers.
        if self.tree.flags.drain.contains_key(&target) {
            self.drains.remove(&target);
            let flag = FlagName::Drain(target);
            let delete = Change::Delete { path: flag.path(), version: None };
            self.step(Object::Flag(flag), Action::Delete, Vec::new(), vec![delete]);
        }
    }

    fn put_flag(&mut self, name: FlagName, flag: &Flag, there: Option<Znode>) -> Result<()> {
        if let FlagName::Drain(target) = &name {
            self.drains.insert(target.clone());
        }
        let data = serde_json::to_vec(flag)?;
        let path = name.path();
        let old = there.as_ref().map(|znode| flags::fields(&Flag::read(&znode.data))).unwrap_or_default();
        let fields = fields::difference(&old, &flags::fields(flag));
        let (action, change) = match there {
            None => (Action::Create, Change::Create { path, data, ephemeral: false }),
            Some(_) if fields.is_empty() => return Ok(()),
            Some(znode) => (Action::Change, Change::Set { path, data, version: Some(znode.version) }),
        };
        self.step(Object::Flag(name), action, fields, vec![change]);
        Ok(())
    }

    fn step(&mut self, object: Object, action: Action, fields: Vec<FieldChange>, changes: Vec<Change>) {
        self.steps.push(Step { object, action, fields, changes });
    }
}

/// The VIPs and reals in the tree whose records are sound.
#[must_use]
pub fn sound(tree: &Tree) -> BTreeMap<VipName, VipState> {
    let vips = tree.vips.iter().filter_map(|(name, found)| {
        let vip = found.vip.ok()?.clone();
        Some((name.clone(), VipState { vip, reals: sound_reals(&found.reals) }))
    });
    vips.collect()
}

fn sound_reals(reals: &BTreeMap<zk_schema::RealName, Found<Real>>) -> BTreeMap<zk_schema::RealName, Real> {
    reals.iter().filter_map(|(name, found)| Some((name.clone(), found.ok()?.clone()))).collect()
}

/// Returns whether it is a record of a schema that this software does not know.
fn is_newer(data: &[u8]) -> bool {
    let version =
        serde_json::from_slice::<Value>(data).ok().and_then(|record| record.get("version")?.as_u64());
    version.is_some_and(|version| version > u64::from(SCHEMA_VERSION))
}

#[cfg(test)]
mod tests;
