//! The flow hash: which slot of a VIP's table a connection falls into.
//!
//! The hash covers the client's address and both ports, never the VIP's address: the slot table is
//! already the VIP's own. It is keyed with the cluster's [`Seed`], so that somebody outside cannot
//! tell which connections share a slot; it is not a cryptographic hash and does not need to be one.
//!
//! Words are formed from the bytes as they stand on the wire, read as little-endian numbers. On the
//! machines that run the data plane that is a plain load, and the result is the same on all others.

/// The cluster's hash key. All nodes of a cluster share it; changing it moves every flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(C)]
pub struct Seed {
    /// First half; any value will do.
    pub k0: u64,
    /// Second half; any value will do.
    pub k1: u64,
}

/// Odd multipliers with well-spread bits (from the splitmix64 and murmur3 finalisers' families).
const M1: u64 = 0xbf58_476d_1ce4_e5b9;
const M2: u64 = 0x94d0_49bb_1331_11eb;

/// The two ports of a flow as one word: the first four bytes of a TCP or UDP header.
///
/// `client` and `service` are in host order.
#[inline(always)]
#[must_use]
pub const fn ports_word(client: u16, service: u16) -> u32 {
    let [c0, c1] = client.to_be_bytes();
    let [s0, s1] = service.to_be_bytes();
    u32::from_le_bytes([c0, c1, s0, s1])
}

/// Hash of an IPv4 flow, uniform over all 32 bits.
///
/// `source` is the client's address as loaded from the packet (little-endian); `ports` is
/// [`ports_word`], or 0 where the VIP keeps all of a client's connections together.
#[inline(always)]
#[must_use]
pub const fn hash_v4(seed: Seed, source: u32, ports: u32) -> u32 {
    finish(seed, absorb(seed.k0, ((source as u64) << 32) | ports as u64))
}

/// Hash of an IPv6 flow, uniform over all 32 bits.
///
/// `source` is the client's address as two words loaded from the packet (little-endian).
#[inline(always)]
#[must_use]
pub const fn hash_v6(seed: Seed, source: [u64; 2], ports: u32) -> u32 {
    // Chaining `absorb` over words that a stranger chooses would not do: a difference in the top bit
    // of one comes out the same whatever the key, so the next can cancel it. NH (Black et al., UMAC,
    // CRYPTO 1999) has no such pairs, and its two multiplications do not wait for each other.
    let network = pair_product(source[0], seed.k0 ^ M1);
    let host = pair_product(source[1], seed.k1 ^ M2);
    finish(seed, absorb(network.wrapping_add(host), ports as u64))
}

/// The slot, in `0..m`, that a hash falls into.
///
/// Multiply-and-shift (Lemire, "Fast random integer generation in an interval", 2019) instead of a
/// division: every slot's share differs from `1/m` by less than `m / 2^32`.
#[inline(always)]
#[must_use]
pub const fn slot(hash: u32, m: u32) -> u32 {
    ((hash as u64 * m as u64) >> 32) as u32
}

#[inline(always)]
const fn absorb(state: u64, word: u64) -> u64 {
    let x = (state ^ word).wrapping_mul(M1);
    x ^ (x >> 32)
}

/// One term of NH. The key is mixed with a constant by the caller, so that a careless seed such as 0
/// does not make a factor 0 for addresses that end in zeros.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "taking the low halves is the point")]
const fn pair_product(word: u64, key: u64) -> u64 {
    let low = (word as u32).wrapping_add(key as u32);
    let high = ((word >> 32) as u32).wrapping_add((key >> 32) as u32);
    (low as u64).wrapping_mul(high as u64)
}

#[inline(always)]
const fn finish(seed: Seed, state: u64) -> u32 {
    let x = (state ^ seed.k1).wrapping_mul(M2);
    let x = (x ^ (x >> 29)).wrapping_mul(M1);
    (x >> 32) as u32
}

#[cfg(feature = "std")]
mod host {
    use super::{Seed, hash_v4, hash_v6, ports_word};
    use std::net::{IpAddr, SocketAddr};

    /// A client's connection to a service, as the data plane sees it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Flow {
        /// The client's address and port.
        pub client: SocketAddr,
        /// The port on the VIP that the client talks to.
        pub service_port: u16,
    }

    impl Flow {
        /// The flow's hash over address and ports.
        #[must_use]
        pub fn hash(&self, seed: Seed) -> u32 {
            self.hash_words(seed, ports_word(self.client.port(), self.service_port))
        }

        /// The hash over the client's address alone, for VIPs with source affinity.
        #[must_use]
        pub fn hash_source(&self, seed: Seed) -> u32 {
            self.hash_words(seed, 0)
        }

        fn hash_words(&self, seed: Seed, ports: u32) -> u32 {
            match self.client.ip() {
                IpAddr::V4(ip) => hash_v4(seed, u32::from_le_bytes(ip.octets()), ports),
                IpAddr::V6(ip) => {
                    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = ip.octets();
                    let network = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
                    let host = u64::from_le_bytes([i, j, k, l, m, n, o, p]);
                    hash_v6(seed, [network, host], ports)
                }
            }
        }
    }
}
#[cfg(feature = "std")]
pub use host::Flow;
