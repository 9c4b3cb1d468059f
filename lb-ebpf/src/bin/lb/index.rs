//! From a destination to a VIP.

use crate::maps::{ADDRESSES, CONFIG, SERVICES};
use aya_ebpf::bindings::xdp_md;
use lb_ebpf::lb::{
    ADDRESS_SLOTS, AddressEntry, Config, MAC_MASK, SERVICE_SLOTS, address_positions, service_key,
    service_positions,
};
use lb_ebpf::packet::{Destination, Frame};
use lb_ebpf::wire::protocol;

/// A destination that VIPs live on, and the tables that it was found in.
///
/// Rare paths, which get no pointers from their callers, find it again.
#[derive(Clone, Copy)]
pub struct Served {
    pub config: &'static Config,
    index: Index,
    address: &'static AddressEntry,
}

impl Served {
    /// Looks a packet's destination up.
    #[inline(always)]
    pub fn find(key: [u64; 2]) -> Option<Self> {
        let config = CONFIG.get(0)?;
        let index = Index(config.index);
        Some(Self { config, index, address: index.address(key)? })
    }

    /// The VIP (never 0) that takes `port` (as on the wire) of the destination.
    #[inline(always)]
    pub fn vip(self, port: u16, protocol: u8) -> Option<u32> {
        self.index.vip(self.address, port, protocol)
    }

    /// The VIP (never 0) that takes all ports of the destination.
    #[inline(always)]
    pub fn any_port(self, protocol: u8) -> Option<u32> {
        any_port(self.address, protocol)
    }
}

/// The half of the tables in force and its seed: [`lb_ebpf::lb::Config::index`], read once per packet.
#[derive(Clone, Copy)]
struct Index(u64);

impl Index {
    #[inline(always)]
    fn half(self) -> u32 {
        self.0 as u32 & 1
    }

    #[inline(always)]
    fn seed(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The entry of an address that VIPs live on.
    #[inline(always)]
    fn address(self, key: [u64; 2]) -> Option<&'static AddressEntry> {
        let base = self.half() * ADDRESS_SLOTS;
        let (first, second) = address_positions(self.seed(), key);
        if let Some(entry) = ADDRESSES.get(base + first)
            && entry.key[0] == key[0]
            && entry.key[1] == key[1]
        {
            return Some(entry);
        }
        ADDRESSES.get(base + second).filter(|entry| entry.key[0] == key[0] && entry.key[1] == key[1])
    }

    #[inline(always)]
    fn vip(self, address: &AddressEntry, port: u16, protocol: u8) -> Option<u32> {
        if address.has_services != 0 {
            let base = self.half() * SERVICE_SLOTS;
            let key = service_key(address.id, port, protocol);
            let (first, second) = service_positions(self.seed(), key);
            if let Some(entry) = SERVICES.get(base + first)
                && entry.key == key
            {
                return Some(entry.vip);
            }
            if let Some(entry) = SERVICES.get(base + second)
                && entry.key == key
            {
                return Some(entry.vip);
            }
        }
        any_port(address, protocol)
    }
}

/// Returns whether a frame is for this host. Others' frames arrive where a switch floods, and in promiscuous mode:
/// each node on the segment would send the packet on.
#[inline(always)]
pub fn is_ours(frame: &Frame, config: &Config) -> bool {
    let Some(destination) = frame.header::<Destination>(0) else { return false };
    destination.word & MAC_MASK == config.mac || has_another_mac(frame.ctx) != 0
}

/// Returns whether a frame is for one of the host's further MAC addresses.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn has_another_mac(ctx: *mut xdp_md) -> u32 {
    let frame = Frame::new(ctx);
    let (Some(config), Some(destination)) = (CONFIG.get(0), frame.header::<Destination>(0)) else { return 0 };
    let mac = destination.word & MAC_MASK;
    // An empty place is 0, which no frame is sent to.
    let listed = config.more_macs.contains(&mac);
    u32::from(config.mac == 0 || (listed && mac != 0))
}

#[inline(always)]
fn any_port(address: &AddressEntry, protocol: u8) -> Option<u32> {
    let vip = if protocol == protocol::TCP { address.any_tcp } else { address.any_udp };
    (vip != 0).then_some(vip)
}
