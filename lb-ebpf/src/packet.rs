//! Bounds-checked access to a frame, and the headers as they stand on the wire: the packet parser of all BPF programs.
//!
//! Numbers of protocols are in [`wire`](crate::wire).

use crate::wire::{ETHERNET_LENGTH, ETHERTYPE_QINQ, ETHERTYPE_VLAN, VLAN_LENGTH, fold};
use aya_ebpf::bindings::xdp_md;

/// A frame under XDP. Any change of its length makes earlier copies stale; make a new one then.
#[derive(Clone, Copy)]
pub struct Frame {
    /// The program's context.
    pub ctx: *mut xdp_md,
    /// Address of the first byte.
    pub data: usize,
    /// Address behind the last byte; in a frame of several buffers, behind the first buffer.
    pub end: usize,
}

impl Frame {
    /// The frame of a context, as it is now.
    #[inline(always)]
    #[allow(clippy::not_unsafe_ptr_arg_deref, reason = "a program has one context, which the verifier knows")]
    pub fn new(ctx: *mut xdp_md) -> Self {
        // Volatile, or LLVM hoists the loads into a caller and passes their halves as arguments, which
        // the verifier refuses.
        // SAFETY: the kernel hands the program a valid context; the verifier checks both loads.
        unsafe {
            let data = (&raw const (*ctx).data).read_volatile() as usize;
            let end = (&raw const (*ctx).data_end).read_volatile() as usize;
            Self { ctx, data, end }
        }
    }

    /// Bytes in the frame's first buffer.
    #[inline(always)]
    pub fn length(&self) -> u32 {
        (self.end - self.data) as u32
    }

    /// The header at `offset`, if the frame holds all of it.
    #[inline(always)]
    pub fn header<T: Header>(&self, offset: usize) -> Option<&'static mut T> {
        let start = self.data + offset;
        if start + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: within the frame (checked above, and by the verifier); `Header` types are packed and
        // valid for all bytes. The reference is not used after the frame's length changes.
        unsafe { Some(&mut *(start as *mut T)) }
    }
}

/// A wire format: packed, every byte pattern valid.
///
/// # Safety
/// The type must be `repr(C, packed)` and made of integers only.
pub unsafe trait Header {}

macro_rules! header {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        #[repr(C, packed)]
        pub struct $name { $(pub $field: $type),* }
        // SAFETY: packed, integers only.
        unsafe impl Header for $name {}
    };
}

header!(
    /// Ethernet header without tags.
    Ethernet { addresses: [u8; 12], ethertype: u16 }
);
header!(
    /// Both MAC addresses as words: as bytes they would be copied one by one.
    Macs { words: [u32; 3] }
);
header!(
    /// The destination's MAC address, and two bytes of the source's.
    Destination { word: u64 }
);
header!(
    /// The bytes behind the EtherType of a tag (IEEE 802.1Q, 802.1ad).
    Vlan { control: u16, ethertype: u16 }
);
header!(
    /// IPv4 header without options (RFC 791).
    Ipv4 {
        version_ihl: u8,
        tos: u8,
        total_length: u16,
        identification: u16,
        fragment: u16,
        ttl: u8,
        protocol: u8,
        checksum: u16,
        source: u32,
        destination: u32,
    }
);
header!(
    /// IPv6 header without extensions (RFC 8200).
    Ipv6 {
        version_class_label: u32,
        payload_length: u16,
        next_header: u8,
        hop_limit: u8,
        source: [u64; 2],
        destination: [u64; 2],
    }
);
header!(
    /// An extension header's common start (RFC 8200, section 4).
    Extension { next_header: u8, length: u8 }
);
header!(
    /// Fragment header (RFC 8200, section 4.5).
    Fragment { next_header: u8, reserved: u8, offset: u16, identification: u32 }
);
header!(
    /// The ports that TCP and UDP start with, as one word.
    Ports { word: u32 }
);
header!(
    /// TCP header without options (RFC 9293).
    Tcp {
        ports: u32,
        sequence: u32,
        acknowledgment: u32,
        offset: u8,
        flags: u8,
        window: u16,
        checksum: u16,
        urgent: u16
    }
);
header!(
    /// UDP header (RFC 768).
    Udp { ports: u32, length: u16, checksum: u16 }
);
header!(
    /// GUE variant 0 header without optional fields (draft-ietf-intarea-gue-09, section 3). Its first byte: variant (2
    /// bits), control (1), length of what follows in 32-bit words (5).
    Gue { variant_length: u8, protocol: u8, flags: u16 }
);
header!(
    /// Start of an ICMP or ICMPv6 message (RFC 792, RFC 4443).
    Icmp { kind: u8, code: u8, checksum: u16, rest: u32 }
);

impl Ipv4 {
    /// Length of the header by its own account, in bytes: 0..=60.
    #[inline(always)]
    pub fn header_length(&self) -> usize {
        usize::from(self.version_ihl & 0x0f) * 4
    }
}

impl Ipv6 {
    /// The version.
    #[inline(always)]
    pub fn version(&self) -> u8 {
        (u32::from_be(self.version_class_label) >> 28) as u8
    }

    /// The traffic class: DSCP and ECN.
    #[inline(always)]
    pub fn traffic_class(&self) -> u8 {
        (u32::from_be(self.version_class_label) >> 20) as u8
    }

    /// Sets the traffic class.
    #[inline(always)]
    pub fn set_traffic_class(&mut self, class: u8) {
        let others = u32::from_be(self.version_class_label) & !(0xff << 20);
        self.version_class_label = (others | u32::from(class) << 20).to_be();
    }
}

/// SYN, in the TCP header's flags.
pub const TCP_SYN: u8 = 0x02;
/// ACK.
pub const TCP_ACK: u8 = 0x10;

/// "More fragments" and the offset, in the IPv4 header's fragment word (host order).
pub const IPV4_FRAGMENT: u16 = 0x3fff;
/// The offset alone.
pub const IPV4_FRAGMENT_OFFSET: u16 = 0x1fff;
/// "Don't fragment".
pub const IPV4_DONT_FRAGMENT: u16 = 0x4000;

/// Returns whether an EtherType (host order) announces a VLAN tag.
#[inline(always)]
pub fn is_vlan(ethertype: u16) -> bool {
    ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_QINQ
}

/// Finds the network header: its offset, and its EtherType (host order). Behind more than two tags, that is a tag's.
#[inline(always)]
pub fn network(frame: &Frame) -> Option<(usize, u16)> {
    let ethertype = u16::from_be(frame.header::<Ethernet>(0)?.ethertype);
    if is_vlan(ethertype) { behind_tags(frame) } else { Some((ETHERNET_LENGTH, ethertype)) }
}

/// The same for a frame that has a tag, or two (IEEE 802.1Q, 802.1ad).
#[inline(always)]
pub fn behind_tags(frame: &Frame) -> Option<(usize, u16)> {
    let outer = frame.header::<Vlan>(ETHERNET_LENGTH)?;
    let mut l3 = ETHERNET_LENGTH + VLAN_LENGTH;
    let mut ethertype = u16::from_be(outer.ethertype);
    if is_vlan(ethertype) {
        let inner = frame.header::<Vlan>(l3)?;
        l3 += VLAN_LENGTH;
        ethertype = u16::from_be(inner.ethertype);
    }
    Some((l3, ethertype))
}

/// The second port of a [`Ports`] word, as on the wire.
#[inline(always)]
pub fn second_port(ports: u32) -> u16 {
    if cfg!(target_endian = "big") { ports as u16 } else { (ports >> 16) as u16 }
}

/// A checksum after one of its 16-bit words changed (RFC 1624, equation 3).
#[inline(always)]
pub fn adjust_checksum(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(u32::from(!checksum) + u32::from(!old) + u32::from(new))
}

/// `length` as the verifier can follow it: within `1..=most`, or nothing. The detour keeps LLVM from
/// comparing one copy of the value and passing on another.
#[inline(always)]
pub fn bounded(length: u32, most: usize) -> Option<u32> {
    let length = core::hint::black_box(length as usize);
    (length >= 1 && length <= most).then_some(length as u32)
}
