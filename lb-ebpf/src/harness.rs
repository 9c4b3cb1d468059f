//! The layouts that the benchmark's entry program and user space share.
//!
//! An XDP program that encapsulates cannot simply be run again and again: the kernel's test run hands it
//! the frame that it has itself changed. The entry program therefore restores the frame, makes it the
//! next flow's, and tail-calls the program under test.

/// Bytes at the start of the frame that are restored: all that a load balancer may change.
pub const RESTORED: usize = 62;
/// Offset of the first of [`Packet::words`] in the frame. The words lie as the fields of the headers
/// behind an untagged Ethernet header do. A load of a field that two different stores have written would
/// wait until both have left the store buffer, which a frame that comes from a network card never does.
pub const WORDS_AT: usize = 6;
/// Number of [`Packet::words`].
pub const WORDS: usize = 7;

/// The packet that is sent; the only element of its map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Packet {
    /// The frame's first six bytes in the low bits, as loaded on a little-endian machine.
    pub head: u64,
    /// The frame's bytes from [`WORDS_AT`] on, likewise.
    pub words: [u64; WORDS],
    /// Bytes of the frame.
    pub length: u32,
    /// 4 or 6.
    pub version: u32,
    /// After so many flows it is the first one's turn again.
    pub flows: u64,
    /// After so many destination addresses it is the first one's turn again: 1..=65536.
    pub destinations: u64,
}

/// The flow whose turn it is, per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Turn {
    /// Number of the flow.
    pub flow: u64,
    /// Number of the destination address.
    pub destination: u64,
}

/// Bits by which a flow's packets differ from those of flow 0: 24 of the source address and, above them,
/// 16 of the source port. No two of the first million flows have the same, and neighbours are far apart,
/// so that neither caches nor admission limits profit from their order.
#[inline(always)]
#[must_use]
pub const fn difference(flow: u64) -> u64 {
    flow.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24
}

impl Packet {
    /// The words of this turn's frame.
    #[inline(always)]
    #[must_use]
    pub const fn words_of(&self, turn: Turn) -> [u64; WORDS] {
        let difference = difference(turn.flow);
        let (address, port) = (difference & 0x00ff_ffff, difference >> 24);
        let destination = (turn.destination as u16).swap_bytes() as u64;
        let mut words = self.words;
        if self.version == 4 {
            // The last three bytes of the source address, the last two of the destination, the source port.
            words[2] ^= address << 40;
            words[3] ^= destination << 16 ^ port << 32;
        } else {
            // Bytes 4 to 6 of the source address (a /56 of its own), the last two of the destination, the
            // source port.
            words[2] ^= address << 32;
            words[5] ^= destination << 48;
            words[6] ^= port;
        }
        words
    }

    /// The turn after this one.
    #[inline(always)]
    #[must_use]
    pub const fn after(&self, turn: Turn) -> Turn {
        let (flow, destination) = (turn.flow + 1, turn.destination + 1);
        Turn {
            flow: if flow >= self.flows { 0 } else { flow },
            destination: if destination >= self.destinations { 0 } else { destination },
        }
    }
}

const _: () = {
    assert!(WORDS_AT + WORDS * 8 == RESTORED);
    assert!(size_of::<Packet>() == 88);
};

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, made of integers only, without padding (as is asserted above).
    unsafe impl aya::Pod for super::Packet {}
    // SAFETY: likewise: two words.
    unsafe impl aya::Pod for super::Turn {}
}
