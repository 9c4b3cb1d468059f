//! The numbers that each field takes.

use crate::records::TABLE_SIZES;
use std::fmt;

/// The numbers that a field takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowed {
    low: u32,
    high: u32,
    /// True if 0, outside the range, stands for a default.
    or_zero: bool,
}

impl Allowed {
    const fn range(low: u32, high: u32) -> Self {
        Self { low, high, or_zero: false }
    }

    const fn zero_or(low: u32, high: u32) -> Self {
        Self { low, high, or_zero: true }
    }

    pub(crate) fn contains(self, number: u32) -> bool {
        (self.low..=self.high).contains(&number) || (self.or_zero && number == 0)
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let zero = if self.or_zero { "0 or " } else { "" };
        write!(f, "{zero}in {}..={}", self.low, self.high)
    }
}

pub(crate) const PORT_OR_ALL: Allowed = Allowed::range(0, 65_535);
pub(crate) const PORT: Allowed = Allowed::range(1, 65_535);
pub(crate) const WEIGHT: Allowed = Allowed::range(0, 65_535);
pub(crate) const PERCENT: Allowed = Allowed::range(0, 100);
/// Also for bursts. Far above what a node can take, far below where the token buckets' arithmetic ends.
pub(crate) const RATE: Allowed = Allowed::range(0, 100_000_000);
/// The same for one source prefix, whose limiter counts in ticks of about a microsecond.
pub(crate) const PREFIX_RATE: Allowed = Allowed::range(0, 100_000);
/// The same for packets, whose limiter's ticks are a sixteenth of that.
pub(crate) const PREFIX_PACKET_RATE: Allowed = Allowed::range(0, 1_000_000);
pub(crate) const PREFIX_V4: Allowed = Allowed::zero_or(8, 32);
pub(crate) const PREFIX_V6: Allowed = Allowed::zero_or(16, 64);
pub(crate) const INTERVAL_MS: Allowed = Allowed::range(100, 3_600_000);
pub(crate) const TIMEOUT_MS: Allowed = Allowed::range(10, 60_000);
pub(crate) const IN_A_ROW: Allowed = Allowed::range(1, 100);
pub(crate) const STATUS: Allowed = Allowed::range(100, 599);
pub(crate) const PROBES_IN_FLIGHT: Allowed = Allowed::range(1, 10_000);
pub(crate) const SESSION_TIMEOUT_MS: Allowed = Allowed::range(2000, 60_000);
pub(crate) const ANNOUNCE_HOLD_MS: Allowed = Allowed::range(0, 600_000);
pub(crate) const WITHDRAW_AFTER_MS: Allowed = Allowed::zero_or(3000, 600_000);
pub(crate) const AUTONOMY_AFTER_MS: Allowed = Allowed::range(1000, 3_600_000);
pub(crate) const DRAIN_WAIT_MS: Allowed = Allowed::range(0, 600_000);
pub(crate) const ACK_TIMEOUT_MS: Allowed = Allowed::range(100, 600_000);
pub(crate) const PEER_PORT: Allowed = Allowed::range(0, 65_535);
pub(crate) const CAPACITY_VIPS: Allowed = Allowed::range(1, 4096);
pub(crate) const CAPACITY_REALS: Allowed = Allowed::range(1, 1_000_000);
pub(crate) const CAPACITY_TABLES: Allowed = Allowed::zero_or(2, 8192);

pub(crate) fn table_size() -> String {
    format!("{} or {}", TABLE_SIZES[0], TABLE_SIZES[1])
}
