//! The number of slots that each real holds.

use slot_table::placement::TableParams;
use std::collections::HashMap;
use std::sync::Arc;
use zk_schema::RealName;

/// Slots by real, computed as nodes do, and remembered from one look to the next.
#[derive(Clone, Debug, Default)]
pub struct Shares {
    known: HashMap<Key, Arc<[u32]>>,
    used: HashMap<Key, Arc<[u32]>>,
}

type Key = (TableParams, Vec<(RealName, u16)>);

impl Shares {
    /// Slots of each of these reals, in their order; none where no table can be built.
    pub fn slots(&mut self, params: TableParams, reals: Vec<(RealName, u16)>) -> Arc<[u32]> {
        let key = (params, reals);
        let built = || match key.0.table(&key.1) {
            Ok(table) => table.shares().into(),
            Err(_) => vec![0; key.1.len()].into(),
        };
        let slots = self.known.get(&key).or_else(|| self.used.get(&key)).cloned().unwrap_or_else(built);
        self.used.insert(key, Arc::clone(&slots));
        slots
    }

    /// Forgets what was not asked for since the last time.
    pub fn turn(&mut self) {
        self.known = std::mem::take(&mut self.used);
    }
}
