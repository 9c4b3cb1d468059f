//! The program of a data plane: everything that it is to do. The outcome of `compile`, the input of `dataplane`.

use slot_table::flow::Seed;
use slot_table::maglev::Table;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use zk_schema::{Affinity, Encapsulation, Limits, Protocol, RealName, VipName};

/// A complete configuration of the data plane. Applying it is idempotent.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// Number of the assignment that it came from; rises.
    pub epoch: u64,
    /// Key of the flow hash.
    pub seed: Seed,
    /// Slots per VIP.
    pub table_size: u32,
    /// VIPs by name.
    pub vips: BTreeMap<VipName, VipProgram>,
}

/// One VIP of a [`Program`].
#[derive(Clone, Debug, PartialEq)]
pub struct VipProgram {
    /// Address that clients use.
    pub address: IpAddr,
    /// Port, or 0 for all.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Encapsulation towards the reals.
    pub encapsulation: Encapsulation,
    /// The rule that keeps packets of one client together.
    pub affinity: Affinity,
    /// Admission limits.
    pub limits: Limits,
    /// All reals of the VIP, in the table or not, sorted by name. Those that are not in the table are
    /// known to the data plane too, since probes are sent to them.
    pub reals: Vec<RealProgram>,
    /// Slots to indices into `reals`. No owners: the VIP's packets are dropped and counted.
    pub table: Arc<Table>,
}

/// One real of a [`VipProgram`].
#[derive(Clone, Debug, PartialEq)]
pub struct RealProgram {
    /// Name within the VIP.
    pub name: RealName,
    /// Address that packets are sent to.
    pub address: IpAddr,
    /// Weight in the table; 0: not in it.
    pub weight: u16,
}
