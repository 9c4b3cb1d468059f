//! Turns weights into tables and flows into slots, from records. The daemon, its self-test and `lbctl` all use this.

use crate::flow::{self, Flow, Seed};
use crate::maglev::{self, BuildError, Real, Table, TableSize, TableSizeError};
use std::collections::BTreeMap;
use zk_schema::{Affinity, Cluster, RealName};

/// Seed and size, which all tables of a cluster have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TableParams {
    /// Key of the flow hash and of table building.
    pub seed: Seed,
    /// Slots per VIP.
    pub size: TableSize,
}

impl TableParams {
    /// That of this cluster.
    ///
    /// # Errors
    /// If the record was not validated, and its table size is not a supported prime.
    pub fn of(cluster: &Cluster) -> Result<Self, TableSizeError> {
        let (k0, k1) = cluster.seed();
        Ok(Self { seed: Seed { k0, k1 }, size: TableSize::try_from(cluster.table_size)? })
    }

    /// The table of a VIP with these reals and their weights in force. Owners are indices into `reals`.
    ///
    /// # Errors
    /// If there are too many reals, or one is named twice.
    pub fn table(&self, reals: &[(RealName, u16)]) -> Result<Table, BuildError> {
        let members: Vec<Real<'_>> =
            reals.iter().map(|(name, weight)| Real { id: name.as_str(), weight: *weight }).collect();
        maglev::build(self.seed, &members, self.size)
    }

    /// The slot that a flow to a VIP of this affinity falls into.
    #[must_use]
    pub fn slot(&self, flow: &Flow, affinity: Affinity) -> u32 {
        let hash = match affinity {
            Affinity::Flow => flow.hash(self.seed),
            Affinity::Source => flow.hash_source(self.seed),
        };
        flow::slot(hash, self.size.slots())
    }
}

/// All `reals` of a VIP with the weights that `weights` has for them: 0 where it has none.
pub fn weighted<'a>(
    reals: impl IntoIterator<Item = &'a RealName>,
    weights: &BTreeMap<RealName, u16>,
) -> Vec<(RealName, u16)> {
    let weight = |real: &RealName| weights.get(real).copied().unwrap_or(0);
    reals.into_iter().map(|real| (real.clone(), weight(real))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_source_affinity_all_flows_of_a_client_share_a_slot_and_without_it_they_spread() {
        let params = TableParams::of(&Cluster::default()).unwrap();
        let flow = |port| Flow { client: ([192, 0, 2, 7], port).into(), service_port: 1883 };
        let slots = |affinity| {
            let mut slots: Vec<u32> = (1..100).map(|port| params.slot(&flow(port), affinity)).collect();
            slots.sort_unstable();
            slots.dedup();
            slots.len()
        };
        assert_eq!(slots(Affinity::Source), 1);
        assert!(slots(Affinity::Flow) > 90);
    }

    #[test]
    fn a_real_without_a_weight_is_listed_and_owns_nothing() {
        let name = |text: &str| text.parse::<RealName>().unwrap();
        let reals = [name("a"), name("b")];
        let weighted = weighted(&reals, &[(name("b"), 10)].into());
        assert_eq!(weighted, [(name("a"), 0), (name("b"), 10)]);
        let table = TableParams::of(&Cluster::default()).unwrap().table(&weighted).unwrap();
        assert_eq!(table.shares(), [0, 65_537]);
    }

    #[test]
    fn a_table_size_that_does_not_exist_is_refused() {
        let cluster = Cluster { table_size: 100, ..Cluster::default() };
        assert!(TableParams::of(&cluster).is_err());
    }
}
