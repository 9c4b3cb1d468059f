//! Maps of the load-balancing program.
//!
//! ```text
//!  destination address --AddressEntry--> services of the address --ServiceEntry--> VIP
//!  VIP --VipEntry.table (base, m)--> SLOTS[base + slot] --> RealEntry --> NextHop
//! ```
//!
//! Entries are immutable while something refers to them, except for single words that are replaced
//! atomically: [`VipEntry::table`], [`Config::index`], [`RealEntry::next_hop`] and [`RealEntry::mtu`].
//! Whatever else changes gets a new entry, and the word that refers to it is switched.
//! Index 0 is "none" for VIPs, reals and next hops alike.

use core::mem::offset_of;

/// Entries in one half of [`AddressEntry`]'s table: a power of two, twice the most addresses allowed.
pub const ADDRESS_SLOTS: u32 = 8192;
/// Entries in one half of [`ServiceEntry`]'s table.
pub const SERVICE_SLOTS: u32 = 8192;
/// Counters of one VIP in the drop map: [`DropReason`] fits below.
pub const DROP_REASONS: u32 = 32;
/// Lines of the source-prefix limiter: a power of two. 128 KiB in all, so that it stays in a core's L2
/// cache: a flood of new sources reads a random line for each packet.
pub const PREFIX_LINES: u32 = 2_048;
/// A tick of the source-prefix limiter is two to this power nanoseconds (1.024 us): 32 bits of it pass in
/// 73 minutes.
pub const PREFIX_TICK_SHIFT: u32 = 10;
/// The same for packets of a source prefix: 64 ns; 32 bits of it pass in 275 s.
pub const PACKET_TICK_SHIFT: u32 = 6;
/// First half of an IPv4 VIP's key: no unicast IPv6 address starts like this.
pub const IPV4_KEY: u64 = u64::MAX;
/// Key of an empty cell: no packet has it. (All zeros would be IPv6's unspecified address.)
pub const NO_KEY: [u64; 2] = [IPV4_KEY, u64::MAX];
/// Real's index in a slot's cell; the bits above are room for the cell's owner list.
pub const SLOT_REAL_MASK: u32 = 0x00ff_ffff;
/// Marks of probes' sockets: this, with the real's index in the low 24 bits.
pub const PROBE_MARK: u32 = 0xd700_0000;
/// Part of the mark that says it is a probe's.
pub const PROBE_MARK_MASK: u32 = 0xff00_0000;
/// Most bytes of a sampled packet that are kept.
pub const CAPTURE_LENGTH: usize = 256;

/// The configuration that all packets need; the only element of its map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// [`crate::LAYOUT_VERSION`]; always the first word.
    pub layout: u32,
    /// This node's UDP destination port for GUE, in host order.
    pub gue_port: u32,
    /// Half of the address and service tables in force (low 32 bits: 0 or 1) and their hash seed (high).
    pub index: u64,
    /// The flow hash's seed.
    pub seed: [u64; 2],
    /// MAC address that frames are taken for, see [`mac_word`]; 0: frames are taken whatever their destination.
    pub mac: u64,
    /// Monotonic time in ns until which sampling is on; 0 when it is off.
    pub capture_until: u64,
    /// Key of the prefix limiter, private to this node.
    pub prefix_seed: u64,
    /// Length of the kernel's tick (jiffy) in ns: at most 10 ms.
    pub tick: u32,
    /// Bits of [`config_flags`].
    pub flags: u32,
    /// Sampling: VIP's index or 0 for all (high 32 bits), mask on a random number (low); see `capture_until`.
    pub capture: u64,
    /// Of the ICMP errors that the node sends, in ns.
    pub icmp_errors: Rate,
    /// Of the echo requests that the node answers, in ns.
    pub echoes: Rate,
    /// Term and epoch of the decision that the tables are from, on a node of a cluster; else 0. Programs do not read it.
    pub order: [u64; 2],
    /// Further MAC addresses that frames are taken for, likewise; 0: none.
    pub more_macs: [u64; MORE_MACS],
}

/// Bits of [`Config::flags`].
pub mod config_flags {
    /// Packets that no VIP of their address serves are left to the kernel instead of dropped.
    pub const PASS_UNSERVED: u32 = 1;
}

/// Number of [`Config::more_macs`].
pub const MORE_MACS: usize = 8;

/// Mask of a MAC address in the first eight bytes of a frame, loaded as one word.
pub const MAC_MASK: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);

/// A MAC address as [`Config::mac`] holds it: a frame's first eight bytes under [`MAC_MASK`].
#[inline(always)]
#[must_use]
pub const fn mac_word(mac: [u8; 6]) -> u64 {
    u64::from_ne_bytes([mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], 0, 0])
}

/// An address that VIPs live on; a cell of a two-position hash table (see [`address_positions`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct AddressEntry {
    /// IPv6 as on the wire, [`IPV4_KEY`] and the IPv4 address, or [`NO_KEY`].
    pub key: [u64; 2],
    /// The address's number, from 1; 0: the cell is empty.
    pub id: u32,
    /// 1: single ports of this address are VIPs; 0: none.
    pub has_services: u32,
    /// VIP that takes all TCP ports not named otherwise, or 0.
    pub any_tcp: u32,
    /// VIP that takes all UDP ports not named otherwise, or 0.
    pub any_udp: u32,
}

/// A VIP of one port; a cell of a two-position hash table (see [`service_positions`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceEntry {
    /// [`service_key`]; 0: the cell is empty.
    pub key: u64,
    /// VIP's index.
    pub vip: u32,
    /// Filler.
    pub reserved: u32,
}

/// Two cells of a slot table: the kernel rounds array elements up to eight bytes.
pub type SlotPair = [u32; 2];

/// A limit on how often something may happen, by the generic cell rate algorithm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Rate {
    /// Distance of two at the limit.
    pub interval: u64,
    /// The most by which one may be ahead of its time: what a burst has beyond its first, times the distance.
    pub tolerance: u64,
}

/// A VIP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct VipEntry {
    /// First cell of the slot table (high 32 bits) and its size M (low). M = 0: no real takes packets.
    pub table: u64,
    /// Identity of the VIP, by which a new daemon recognises it; 0: the entry is free.
    pub id: u64,
    /// Bits of [`vip_flags`].
    pub flags: u32,
    /// Source prefix as a mask on the IPv4 address as on the wire.
    pub prefix_mask_v4: u32,
    /// Source prefix as a mask on the first half of the IPv6 address as on the wire.
    pub prefix_mask_v6: u64,
    /// Limit of new connections, in ns.
    pub connections: Rate,
    /// The same for each source prefix, in ticks (see [`PREFIX_TICK_SHIFT`]); the sum of both numbers is below 2^31.
    pub prefix_connections: Rate,
    /// Limit of packets, in ns. From here on only VIPs that limit packets are read.
    pub packets: Rate,
    /// The same for each source prefix, in ticks of [`PACKET_TICK_SHIFT`]; the sum of both numbers is below 2^31.
    pub prefix_packets: Rate,
    /// Filler.
    pub reserved: [u64; 4],
}

/// Bits of [`VipEntry::flags`].
pub mod vip_flags {
    /// Only the client's address is hashed.
    pub const SOURCE_AFFINITY: u32 = 1;
    /// The VIP has a limit on new connections.
    pub const RATE_LIMIT: u32 = 2;
    /// Each source prefix has.
    pub const PREFIX_LIMIT: u32 = 4;
    /// The VIP has a limit on packets.
    pub const PACKET_LIMIT: u32 = 8;
    /// Each source prefix has.
    pub const PREFIX_PACKET_LIMIT: u32 = 16;
}

/// Ways of wrapping a packet for a real: values of [`RealEntry::encapsulation`].
pub mod encapsulation {
    /// Not at all; the destination MAC alone is rewritten.
    pub const L2: u8 = 0;
    /// In IPv4.
    pub const IPIP_V4: u8 = 1;
    /// In IPv6.
    pub const IPIP_V6: u8 = 2;
    /// In IPv4, UDP, GUE.
    pub const GUE_V4: u8 = 3;
    /// In IPv6, UDP, GUE.
    pub const GUE_V6: u8 = 4;
}

/// A real of one VIP: what the outer header needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct RealEntry {
    /// Outer destination as on the wire; IPv4 in the first four bytes.
    pub destination: [u64; 2],
    /// Outer source as on the wire; IPv4 in the first four bytes.
    pub source: [u64; 2],
    /// Index of the next hop; 0: none is known.
    pub next_hop: u32,
    /// Largest outer IP packet that the path takes, in bytes.
    pub mtu: u32,
    /// Sum of the outer IPv4 header's constant 16-bit words, not yet folded.
    pub checksum: u32,
    /// VIP's index, for the drop counters.
    pub vip: u32,
    /// Identity of the (VIP, real, way to it), by which a new daemon recognises it; 0: free.
    pub id: u64,
    /// One of [`encapsulation`].
    pub encapsulation: u8,
    /// Filler.
    pub reserved: [u8; 3],
    /// UDP destination port of GUE as on the wire.
    pub gue_port: u16,
    /// Filler.
    pub reserved2: u16,
}

/// The way of frames to a real or its gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NextHop {
    /// Destination and source MAC as on the wire.
    pub ethernet: [u32; 3],
    /// VLAN tag (identifier) to add, or 0.
    pub vlan: u32,
    /// Interface to leave by, or 0 for the one that the packet came in by.
    pub ifindex: u32,
    /// Filler.
    pub reserved: [u32; 3],
}

/// Packets of one real, per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RealCounters {
    /// Packets sent to it.
    pub packets: u64,
    /// Bytes of their IP packets before encapsulation.
    pub bytes: u64,
    /// TCP SYNs among them.
    pub connections: u64,
    /// ICMP errors among them.
    pub icmp_errors: u64,
}

/// Fates of packets that no real's counter knows, per CPU: index of the event map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Event {
    /// Not for a VIP: left to the kernel.
    Passed = 0,
    /// To a VIP's address, but to no service of it: left to the kernel, as the node was told to. Neighbour
    /// discovery always is.
    PassedNoService = 1,
    /// ICMP echo answered.
    EchoAnswered = 2,
    /// "Packet too big" or "fragmentation needed" sent.
    TooBigSent = 3,
    /// "Time exceeded" sent.
    TimeExceededSent = 4,
    /// First fragments whose owner was noted.
    FragmentFirst = 5,
    /// Later fragments that followed their first.
    FragmentFollowed = 6,
    /// Probes encapsulated.
    ProbeSent = 7,
    /// Probes whose mark named no usable real.
    ProbeFailed = 8,
    /// Sampled packets.
    Captured = 9,
    /// To a VIP's address, but in a frame for another host, or for many: left to the kernel.
    PassedOtherHost = 10,
    /// Samples of the limiters of source prefixes' connections, taken when one is refused.
    PrefixSampled = 11,
    /// Those that found the limiters of a prefix chosen at random full: it would be refused whatever it sent.
    PrefixSampledFull = 12,
    /// The same for the limiters of source prefixes' packets.
    PrefixPacketSampled = 13,
    /// The same for the limiters of source prefixes' packets.
    PrefixPacketSampledFull = 14,
}

/// Number of [`Event`]s.
pub const EVENTS: u32 = 15;
/// Names of [`Event`]s in order, as metrics show them.
pub const EVENT_NAMES: [&str; EVENTS as usize] = [
    "passed",
    "passed_no_service",
    "echo_answered",
    "too_big_sent",
    "time_exceeded_sent",
    "fragment_first",
    "fragment_followed",
    "probe_sent",
    "probe_failed",
    "captured",
    "passed_other_host",
    "prefix_sampled",
    "prefix_sampled_full",
    "prefix_packet_sampled",
    "prefix_packet_sampled_full",
];

/// Reasons for which packets to a VIP are dropped: index into the VIP's share of the drop map (VIP 0: before the VIP
/// was known).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DropReason {
    /// IP version, header length or total length contradict the frame.
    MalformedIp = 0,
    /// A TCP or UDP header is cut short or contradicts itself.
    MalformedTransport = 1,
    /// An ICMP message is cut short.
    MalformedIcmp = 2,
    /// More IPv6 extension headers than are walked, or one cut short.
    ExtensionHeaders = 3,
    /// TTL or hop limit used up.
    TtlExpired = 4,
    /// Does not fit the path to the real.
    TooBig = 5,
    /// A later fragment whose first has not been seen here.
    FragmentUnknown = 6,
    /// Over the VIP's limit of new connections.
    RateLimited = 7,
    /// Over its source prefix's limit.
    PrefixRateLimited = 8,
    /// No real takes packets.
    NoReal = 9,
    /// The real's next hop is not known yet.
    NoNextHop = 10,
    /// An ICMP error about something that is no flow of a VIP.
    IcmpUnmatched = 11,
    /// The driver left no room for the outer header.
    NoHeadroom = 12,
    /// An ICMP fragment.
    IcmpFragment = 13,
    /// An answer was due, but the limit on the node's own ICMP messages was reached.
    IcmpRateLimited = 14,
    /// To a VIP's address, but to no service of it: another port or another protocol.
    NoService = 15,
    /// A first fragment, when the CPU had noted as many as it may.
    FragmentRateLimited = 16,
    /// An echo request over the limit of those that are answered.
    EchoRateLimited = 17,
    /// An echo request from an address that no host has.
    InvalidSource = 18,
    /// Over the VIP's limit of packets.
    PacketRateLimited = 19,
    /// Over its source prefix's limit of packets.
    PrefixPacketRateLimited = 20,
}

/// Number of [`DropReason`]s.
pub const REASONS: u32 = 21;
/// Names of [`DropReason`]s in order, as metrics show them.
pub const REASON_NAMES: [&str; REASONS as usize] = [
    "malformed_ip",
    "malformed_transport",
    "malformed_icmp",
    "extension_headers",
    "ttl_expired",
    "too_big",
    "fragment_unknown",
    "rate_limited",
    "prefix_rate_limited",
    "no_real",
    "no_next_hop",
    "icmp_unmatched",
    "no_headroom",
    "icmp_fragment",
    "icmp_rate_limited",
    "no_service",
    "fragment_rate_limited",
    "echo_rate_limited",
    "invalid_source",
    "packet_rate_limited",
    "prefix_packet_rate_limited",
];

/// Key of a fragmented packet in transit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FragmentKey {
    /// Source address as on the wire; IPv4 in the first word.
    pub source: [u64; 2],
    /// The VIP's address as in [`AddressEntry::key`], which also tells the families apart. (The address's number
    /// is another after each change of the index.)
    pub destination: [u64; 2],
    /// IP protocol.
    pub protocol: u32,
    /// Identification as on the wire.
    pub identification: u32,
}

/// The real that a fragmented packet's first fragment went to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FragmentOwner {
    /// Identity of the real's entry: a later fragment follows only while it is unchanged.
    pub id: u64,
    /// Time of the first fragment in ns (coarse monotonic clock).
    pub seen: u64,
    /// Real's index.
    pub real: u32,
    /// The flow's hash, so that all fragments take one path.
    pub hash: u32,
}

/// Time for which a fragment's record counts, in ns: the 30 s that Linux waits for the rest (`ipfrag_time`).
pub const FRAGMENT_LIFETIME: u64 = 30_000_000_000;

/// Least distance of the first fragments that one CPU notes, in ns: 10,000 a second. A record costs up to 0.8 us in a
/// full table, so that a flood of fragments takes less than a hundredth of a CPU for them.
pub const FRAGMENT_INTERVAL: u64 = 100_000;
/// The burst, 1,000, times the distance, in ns: more than the longest tick of the clock.
pub const FRAGMENT_TOLERANCE: u64 = 1_000 * FRAGMENT_INTERVAL;

/// A sampled packet, as it arrived.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Capture {
    /// Monotonic time in ns.
    pub time: u64,
    /// VIP's index.
    pub vip: u32,
    /// Real's index.
    pub real: u32,
    /// Bytes on the wire.
    pub length: u32,
    /// Bytes kept in `data`.
    pub kept: u32,
    /// The frame's first bytes.
    pub data: [u8; CAPTURE_LENGTH],
}

/// A cache line of the source-prefix limiter: arrival times as in [`Limiter`], but in ticks and of sixteen
/// cells.
pub type PrefixLine = [u32; 16];

/// Time of a rate limiter on a cache line of its own: the theoretical arrival time of the generic
/// cell rate algorithm (ITU-T I.371), in ns of the coarse monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Limiter {
    /// Theoretical arrival time; of a VIP's limiter: of new connections.
    pub arrival: u64,
    /// A VIP's limiter: that of packets.
    pub packets: u64,
    /// Filler.
    pub reserved: [u64; 6],
}

/// The two cells in which an address's entry can be, within one half of the table.
#[inline(always)]
#[must_use]
pub const fn address_positions(seed: u32, key: [u64; 2]) -> (u32, u32) {
    let x = key[0].wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // The last bytes of an IPv6 address, in which VIPs mostly differ, are the highest bits here: folded
    // down, as a product's lower bits do not depend on them.
    let x = x ^ key[1];
    positions((x ^ (x >> 32)).wrapping_mul(multiplier(seed)))
}

/// The two cells in which a service's entry can be, within one half of the table.
#[inline(always)]
#[must_use]
pub const fn service_positions(seed: u32, key: u64) -> (u32, u32) {
    let x = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    positions((x ^ (x >> 32)).wrapping_mul(multiplier(seed)))
}

/// An odd number that depends on the seed. Keys in a row are mapped to cells in a pattern, and a pattern that
/// does not work out for one multiplier does for another; a seed that is merely added would keep it.
#[inline(always)]
const fn multiplier(seed: u32) -> u64 {
    0xd6e8_feb8_6659_fd93 ^ (seed as u64) << 31
}

/// Two 13-bit positions from the best-mixed bits of a product.
#[inline(always)]
const fn positions(x: u64) -> (u32, u32) {
    ((x >> 51) as u32, (x >> 38) as u32 & (ADDRESS_SLOTS - 1))
}

/// Key of a service: the address's number, the port as on the wire, the IP protocol. Never 0.
#[inline(always)]
#[must_use]
pub const fn service_key(address: u32, port: u16, protocol: u8) -> u64 {
    ((address as u64) << 32) | ((port as u64) << 16) | protocol as u64
}

/// Key of an IPv4 address given as its octets, read little-endian.
#[inline(always)]
#[must_use]
pub const fn ipv4_key(address: u32) -> [u64; 2] {
    [IPV4_KEY, address as u64]
}

const _: () = {
    assert!(ADDRESS_SLOTS == 1 << 13 && SERVICE_SLOTS == ADDRESS_SLOTS);
    assert!(size_of::<Config>() == 184 && offset_of!(Config, capture) == 64);
    assert!(size_of::<AddressEntry>() == 32);
    assert!(size_of::<ServiceEntry>() == 16);
    assert!(size_of::<VipEntry>() == 128 && offset_of!(VipEntry, packets) == 64);
    assert!(size_of::<RealEntry>() == 64);
    assert!(size_of::<NextHop>() == 32);
    assert!(size_of::<FragmentKey>() == 40);
    assert!(size_of::<Capture>() == 24 + CAPTURE_LENGTH);
    assert!(REASONS <= DROP_REASONS);
};

#[cfg(feature = "user")]
mod pod {
    use super::{
        AddressEntry, Config, FragmentKey, FragmentOwner, Limiter, NextHop, RealCounters, RealEntry,
        ServiceEntry, VipEntry,
    };

    macro_rules! pod {
        ($($name:ty),*) => {
            $(
                // SAFETY: `repr(C)`, made of integers only, without padding (sizes are asserted above).
                unsafe impl aya::Pod for $name {}
            )*
        };
    }
    pod!(
        Config,
        AddressEntry,
        ServiceEntry,
        VipEntry,
        RealEntry,
        NextHop,
        RealCounters,
        FragmentKey,
        FragmentOwner,
        Limiter
    );
}
