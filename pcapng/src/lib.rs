//! Captured Ethernet packets as pcapng (draft-ietf-opsawg-pcapng), as far as Drover uses it: one section, little-endian,
//! interfaces with names and times in nanoseconds, packets with a comment.
//!
//! [`emit`] writes blocks; [`Parser`] reads what [`emit`] writes, from a stream, and nothing else: whoever merges
//! streams of others takes no more of them than it understands. Pure: no I/O.

mod emit;
mod parse;

pub use emit::emit;
pub use parse::{Error, Parser};

/// The most bytes of a packet that are kept.
pub const MAX_DATA: usize = 16 * 1024;
/// The most bytes of a name, a description or a comment.
pub const MAX_TEXT: usize = 1024;

/// A block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    /// Begins the section: the first block, and only that.
    Section,
    /// An interface. Packets name it by its place among the section's interfaces, counted from 0.
    Interface(Interface),
    /// A packet.
    Packet(Packet),
}

/// The place where packets were captured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Name: at most [`MAX_TEXT`] bytes, no control characters.
    pub name: String,
    /// A description of what was captured there; the same rules.
    pub description: String,
    /// The most bytes of each packet that were kept.
    pub snap_length: u32,
}

/// A captured Ethernet frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// The interface, counted from 0.
    pub interface: u32,
    /// When, in nanoseconds since 1970.
    pub time: u64,
    /// Bytes on the wire.
    pub length: u32,
    /// The frame's first bytes, at most [`MAX_DATA`].
    pub data: Vec<u8>,
    /// A remark on the packet: at most [`MAX_TEXT`] bytes, no control characters. Empty: none.
    pub comment: String,
}

/// Block types.
mod block {
    pub(crate) const SECTION: u32 = 0x0a0d_0d0a;
    pub(crate) const INTERFACE: u32 = 1;
    pub(crate) const PACKET: u32 = 6;
}

/// Option codes.
mod option {
    pub(crate) const END: u16 = 0;
    pub(crate) const COMMENT: u16 = 1;
    pub(crate) const INTERFACE_NAME: u16 = 2;
    pub(crate) const INTERFACE_DESCRIPTION: u16 = 3;
    pub(crate) const INTERFACE_RESOLUTION: u16 = 9;
}

/// Says that what follows is little-endian.
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// The format's version.
const VERSION: (u16, u16) = (1, 0);
/// A section of unknown length.
const UNKNOWN_LENGTH: u64 = u64::MAX;
const LINK_ETHERNET: u16 = 1;
/// Times count 10^-9 s.
const NANOSECONDS: u8 = 9;
