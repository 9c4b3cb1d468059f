//! From a destination to a VIP.

use crate::maps::{ADDRESSES, CONFIG, SERVICES};
use lb_ebpf::lb::{
    ADDRESS_SLOTS, AddressEntry, Config, SERVICE_SLOTS, address_positions, service_key, service_positions,
};
use lb_ebpf::wire::protocol;

/// The half of the tables in force and its seed: [`lb_ebpf::lb::Config::index`], read once per packet.
#[derive(Clone, Copy)]
pub struct Index(pub u64);

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
    pub fn address(self, key: [u64; 2]) -> Option<&'static AddressEntry> {
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

    /// The VIP (never 0) that takes `port` (as on the wire) of an address.
    #[inline(always)]
    pub fn vip(self, address: &AddressEntry, port: u16, protocol: u8) -> Option<u32> {
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

/// What the rare paths, which get no pointers from their callers, look up again.
#[inline(always)]
pub fn again(key: [u64; 2]) -> Option<(&'static Config, Index, &'static AddressEntry)> {
    let config = CONFIG.get(0)?;
    let index = Index(config.index);
    Some((config, index, index.address(key)?))
}

/// The VIP that takes all ports of an address.
#[inline(always)]
pub fn any_port(address: &AddressEntry, protocol: u8) -> Option<u32> {
    let vip = if protocol == protocol::TCP { address.any_tcp } else { address.any_udp };
    (vip != 0).then_some(vip)
}
