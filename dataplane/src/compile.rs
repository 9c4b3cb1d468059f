//! From desired state and weights to what the data plane is to do. Pure.

use crate::program::{Program, RealProgram, VipProgram};
use slot_table::maglev::{BuildError, Table, TableSizeError};
use slot_table::placement::{TableParams, weighted};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use zk_schema::{Desired, RealName, VipName};

/// The reason why a desired state cannot be compiled. Records that were validated do not cause it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The cluster's table size is not supported.
    #[error("cluster: {0}")]
    TableSize(#[from] TableSizeError),
    /// A VIP's table cannot be built.
    #[error("VIP {vip}: {reason}")]
    Table {
        /// The VIP.
        vip: VipName,
        /// The reason.
        reason: BuildError,
    },
}

/// Compiles `desired` into program number `epoch`.
///
/// `weights` tells of a VIP which reals hold slots, each with a weight above 0. A VIP that it knows nothing of gets a table
/// without owners.
///
/// A table depends on the seed, its size, and names and weights of the reals. Where those are the same as in
/// `previous`, or for two VIPs, the table is shared rather than built again.
///
/// # Errors
/// If the state was not validated: see [`CompileError`].
pub fn compile<'a>(
    desired: &Desired,
    epoch: u64,
    weights: impl Fn(&VipName) -> Option<&'a BTreeMap<RealName, u16>>,
    previous: Option<&Program>,
) -> Result<Program, CompileError> {
    compile_with(desired, epoch, weights, previous, None)
}

/// [`compile`] that takes the tables that `shared` has from there, and puts the others there.
///
/// # Errors
/// If the state was not validated: see [`CompileError`].
pub fn compile_with<'a>(
    desired: &Desired,
    epoch: u64,
    weights: impl Fn(&VipName) -> Option<&'a BTreeMap<RealName, u16>>,
    previous: Option<&Program>,
    shared: Option<&TableCache>,
) -> Result<Program, CompileError> {
    let params = TableParams::of(&desired.cluster)?;
    let mut tables = Tables::from_previous(previous, shared, params);
    let mut program =
        Program { epoch, seed: params.seed, table_size: params.size.slots(), vips: Default::default() };
    let none = BTreeMap::new();
    for (name, state) in &desired.vips {
        let weighted = weighted(state.reals.keys(), weights(name).unwrap_or(&none));
        let reals: Vec<RealProgram> = state
            .reals
            .values()
            .zip(&weighted)
            .map(|(record, (name, weight))| RealProgram {
                name: name.clone(),
                address: record.address,
                weight: *weight,
            })
            .collect();
        let table =
            tables.table(weighted).map_err(|reason| CompileError::Table { vip: name.clone(), reason })?;
        let vip = &state.vip;
        let compiled = VipProgram {
            address: vip.address,
            port: vip.port,
            protocol: vip.protocol,
            encapsulation: vip.encapsulation,
            affinity: vip.affinity,
            limits: vip.limits,
            reals,
            table,
        };
        program.vips.insert(name.clone(), compiled);
    }
    Ok(program)
}

/// Tables that exist already, by what they were built from. Owners are indices into the list of reals, so those
/// without a weight are part of the key.
struct Tables<'a> {
    params: TableParams,
    known: HashMap<Vec<(RealName, u16)>, Arc<Table>>,
    shared: Option<&'a TableCache>,
}

impl<'a> Tables<'a> {
    fn from_previous(
        previous: Option<&Program>,
        shared: Option<&'a TableCache>,
        params: TableParams,
    ) -> Self {
        let alike = previous
            .filter(|program| program.seed == params.seed && program.table_size == params.size.slots());
        let known = alike
            .into_iter()
            .flat_map(|program| program.vips.values())
            .map(|vip| (key(&vip.reals), Arc::clone(&vip.table)))
            .collect();
        Self { params, known, shared }
    }

    fn table(&mut self, reals: Vec<(RealName, u16)>) -> Result<Arc<Table>, BuildError> {
        if let Some(table) = self.known.get(&reals) {
            return Ok(Arc::clone(table));
        }
        let build = || self.params.table(&reals).map(Arc::new);
        let table = match self.shared {
            Some(shared) => shared.get_or_build((self.params, reals.clone()), build)?,
            None => build()?,
        };
        self.known.insert(reals, Arc::clone(&table));
        Ok(table)
    }
}

/// Tables for several nodes of one process, which would each build the same ones. Clones are the same cache.
#[derive(Clone, Debug, Default)]
pub struct TableCache(Arc<Mutex<HashMap<CacheKey, Arc<Table>>>>);

/// Seed and size, and names and weights of the reals.
type CacheKey = (TableParams, Vec<(RealName, u16)>);

impl TableCache {
    /// Tables that it holds at most: some 130 MiB of the smaller size.
    const MOST: usize = 1000;

    fn get_or_build<E>(
        &self,
        key: CacheKey,
        build: impl FnOnce() -> Result<Arc<Table>, E>,
    ) -> Result<Arc<Table>, E> {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = tables.get(&key) {
            return Ok(Arc::clone(table));
        }
        let table = build()?;
        if tables.len() >= Self::MOST {
            tables.clear();
        }
        tables.insert(key, Arc::clone(&table));
        Ok(table)
    }
}

fn key(reals: &[RealProgram]) -> Vec<(RealName, u16)> {
    reals.iter().map(|real| (real.name.clone(), real.weight)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use slot_table::maglev;
    use zk_schema::testing::{checked_vip, desired, name};

    type Weights = BTreeMap<VipName, BTreeMap<RealName, u16>>;

    fn weights(vips: &[(&str, &[(&str, u16)])]) -> Weights {
        let vip =
            |weights: &[(&str, u16)]| weights.iter().map(|(real, weight)| (name(real), *weight)).collect();
        vips.iter().map(|(vip_name, weights)| (name(vip_name), vip(weights))).collect()
    }

    fn compile(
        desired: &Desired,
        epoch: u64,
        weights: &Weights,
        previous: Option<&Program>,
    ) -> Result<Program, CompileError> {
        super::compile(desired, epoch, |vip| weights.get(vip), previous)
    }

    #[test]
    fn every_real_is_in_the_program_and_those_with_a_weight_own_slots() {
        let desired = desired([("mqtt", checked_vip(&[("a", 100), ("b", 100), ("c", 100)]))]);
        let program = compile(&desired, 4, &weights(&[("mqtt", &[("a", 10), ("c", 30)])]), None).unwrap();
        let vip = &program.vips["mqtt"];
        let reals: Vec<_> = vip.reals.iter().map(|real| (real.name.as_str(), real.weight)).collect();
        assert_eq!(reals, [("a", 10), ("b", 0), ("c", 30)]);
        let shares = vip.table.shares();
        assert_eq!(shares[1], 0);
        assert!(shares[0] > 16_000 && shares[2] > 49_000, "{shares:?}");
        assert_eq!((program.epoch, program.table_size), (4, 65_537));
        assert_eq!((program.seed.k0, program.seed.k1), desired.cluster.seed());
    }

    #[test]
    fn a_vip_without_weights_has_a_table_without_owners() {
        let desired = desired([("mqtt", checked_vip(&[("a", 100)]))]);
        let program = compile(&desired, 0, &Weights::default(), None).unwrap();
        assert!(program.vips["mqtt"].table.owners().is_empty());
        assert_eq!(program.vips["mqtt"].reals.len(), 1);
    }

    #[test]
    fn tables_are_shared_while_names_weights_seed_and_size_stay() {
        let reals = [("a", 100), ("b", 100)];
        let mut desired = desired([("v4", checked_vip(&reals)), ("v6", checked_vip(&reals))]);
        let even: &[(&str, u16)] = &[("a", 100), ("b", 100)];
        let both = weights(&[("v4", even), ("v6", even)]);
        let first = compile(&desired, 1, &both, None).unwrap();
        assert!(Arc::ptr_eq(&first.vips["v4"].table, &first.vips["v6"].table));

        desired.vips.get_mut("v6").unwrap().vip.port = 8883;
        let other = weights(&[("v4", &[("a", 100), ("b", 50)]), ("v6", even)]);
        let second = compile(&desired, 2, &other, Some(&first)).unwrap();
        assert!(Arc::ptr_eq(&first.vips["v6"].table, &second.vips["v6"].table));
        assert_ne!(first.vips["v4"].table, second.vips["v4"].table);

        desired.cluster.seed = 1.into();
        let third = compile(&desired, 2, &other, Some(&second)).unwrap();
        assert_ne!(second.vips["v6"].table, third.vips["v6"].table);
        desired.cluster.table_size = 655_373;
        let fourth = compile(&desired, 2, &other, Some(&third)).unwrap();
        assert_eq!(fourth.vips["v6"].table.owners().len(), 655_373);
    }

    #[test]
    fn a_new_real_without_a_weight_moves_no_slot_of_the_others() {
        let before = desired([("mqtt", checked_vip(&[("b", 100), ("c", 100)]))]);
        let after = desired([("mqtt", checked_vip(&[("a", 100), ("b", 100), ("c", 100)]))]);
        let weights = weights(&[("mqtt", &[("b", 100), ("c", 100)])]);
        let first = compile(&before, 1, &weights, None).unwrap();
        let second = compile(&after, 1, &weights, Some(&first)).unwrap();
        let (first, second) = (&first.vips["mqtt"].table, &second.vips["mqtt"].table);
        assert_eq!(maglev::disruption(first, second).moved, 0);
        assert_eq!(second.shares()[0], 0);
    }

    #[test]
    fn a_table_size_that_does_not_exist_is_refused() {
        let mut desired = desired([]);
        desired.cluster.table_size = 100;
        let error = compile(&desired, 0, &Weights::default(), None).unwrap_err();
        assert_eq!(error.to_string(), "cluster: table size 100 is not supported: use 65537 or 655373 slots");
    }
}
