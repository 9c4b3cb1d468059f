//! The tables by which the program finds a VIP: two positions per key, at least one of which holds it.
//!
//! A cuckoo hash table (Pagh and Rodler, 2004) built here in full and read there in two loads at most,
//! without a loop. Where a seed does not work out the next one is tried.

use lb_ebpf::lb::{
    ADDRESS_SLOTS, AddressEntry, IPV4_KEY, NO_KEY, SERVICE_SLOTS, ServiceEntry, address_positions, ipv4_key,
    service_key, service_positions,
};
use lb_ebpf::wire::protocol;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use zk_schema::Protocol;

/// The wanted content of the index: VIPs' indices by address, port and protocol.
pub(super) type Services = BTreeMap<(IpAddr, u16, Protocol), u32>;

/// One half of the tables, ready to be written.
pub(super) struct Index {
    /// Seed that the positions depend on.
    pub(super) seed: u32,
    /// All cells, empty ones included.
    pub(super) addresses: Vec<AddressEntry>,
    /// All cells, empty ones included.
    pub(super) services: Vec<ServiceEntry>,
}

/// Seeds that are tried; of the fullest table that is allowed, half full, some two in three fit at once.
const SEEDS: u32 = 64;
/// Displacements before a seed is given up.
const KICKS: usize = 500;

/// The address's key in the table.
pub(super) fn address_key(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(ip) => ipv4_key(u32::from_le_bytes(ip.octets())),
        IpAddr::V6(ip) => words(ip.octets()),
    }
}

/// Sixteen bytes as the program loads them.
pub(super) fn words(bytes: [u8; 16]) -> [u64; 2] {
    let bits = u128::from_le_bytes(bytes);
    #[allow(clippy::cast_possible_truncation, reason = "the two halves")]
    [bits as u64, (bits >> 64) as u64]
}

/// Returns the address behind a key; `None` for an empty cell.
fn address_of(key: [u64; 2]) -> Option<IpAddr> {
    match key {
        [0, 0] => None, // a cell that was never written
        [IPV4_KEY, low] => Some(Ipv4Addr::from(u32::try_from(low).ok()?.to_le_bytes()).into()),
        [first, second] => {
            Some(Ipv6Addr::from((u128::from(first) | u128::from(second) << 64).to_le_bytes()).into())
        }
    }
}

/// Reads an index back: what [`build`] was given, from the cells of one half.
pub(super) fn read(
    addresses: impl IntoIterator<Item = AddressEntry>,
    services: impl IntoIterator<Item = ServiceEntry>,
) -> Services {
    let mut found = Services::new();
    let mut by_id = HashMap::new();
    for entry in addresses {
        let Some(address) = address_of(entry.key) else { continue };
        by_id.insert(entry.id, address);
        for (vip, protocol) in [(entry.any_tcp, Protocol::Tcp), (entry.any_udp, Protocol::Udp)] {
            if vip != 0 {
                found.insert((address, 0, protocol), vip);
            }
        }
    }
    for entry in services {
        let [id @ .., p0, p1, _, number] = entry.key.to_be_bytes();
        let Some(&address) = id.first_chunk().and_then(|&id| by_id.get(&u32::from_be_bytes(id))) else {
            continue;
        };
        let protocol = if number == protocol::TCP { Protocol::Tcp } else { Protocol::Udp };
        // The port stands in the key as on the wire, read little-endian.
        found.insert((address, u16::from_be(u16::from_be_bytes([p0, p1])), protocol), entry.vip);
    }
    found
}

/// Builds the index; `None` if there are more addresses or services than fit.
pub(super) fn build(services: &Services) -> Option<Index> {
    let mut addresses: BTreeMap<[u64; 2], AddressEntry> = BTreeMap::new();
    let mut entries = Vec::new();
    for (&(address, port, protocol), &vip) in services {
        let key = address_key(address);
        let id = u32::try_from(addresses.len() + 1).ok()?;
        let entry = addresses.entry(key).or_insert(AddressEntry { key, id, ..Default::default() });
        match (port, protocol) {
            (0, Protocol::Tcp) => entry.any_tcp = vip,
            (0, Protocol::Udp) => entry.any_udp = vip,
            _ => {
                entry.has_services = 1;
                let number = match protocol {
                    Protocol::Tcp => protocol::TCP,
                    Protocol::Udp => protocol::UDP,
                };
                entries.push(ServiceEntry {
                    key: service_key(entry.id, port.to_be(), number),
                    vip,
                    reserved: 0,
                });
            }
        }
    }
    let addresses: Vec<_> = addresses.into_values().collect();
    (1..=SEEDS).map(|n| n.wrapping_mul(0x9e37_79b9)).find_map(|seed| {
        Some(Index {
            seed,
            addresses: place(
                &addresses,
                ADDRESS_SLOTS,
                |entry| address_positions(seed, entry.key),
                AddressEntry { key: NO_KEY, ..AddressEntry::default() },
                |e| e.id == 0,
            )?,
            services: place(
                &entries,
                SERVICE_SLOTS,
                |entry| service_positions(seed, entry.key),
                ServiceEntry::default(),
                |e| e.key == 0,
            )?,
        })
    })
}

fn place<T: Copy>(
    entries: &[T],
    cells: u32,
    positions: impl Fn(&T) -> (u32, u32),
    empty: T,
    is_empty: impl Fn(&T) -> bool,
) -> Option<Vec<T>> {
    let mut table = vec![empty; cells as usize];
    if entries.len() > table.len() / 2 {
        return None;
    }
    'entries: for &entry in entries {
        let (mut moving, mut position) = (entry, positions(&entry).0);
        for _ in 0..KICKS {
            std::mem::swap(&mut moving, &mut table[position as usize]);
            if is_empty(&moving) {
                continue 'entries;
            }
            let (first, second) = positions(&moving);
            position = if position == first { second } else { first };
        }
        return None;
    }
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn find(index: &Index, address: IpAddr, port: u16, protocol: u8) -> Option<u32> {
        let key = address_key(address);
        let (a, b) = address_positions(index.seed, key);
        let entry =
            [a, b].map(|at| index.addresses[at as usize]).into_iter().find(|e| e.key == key && e.id != 0)?;
        let key = service_key(entry.id, port.to_be(), protocol);
        let (a, b) = service_positions(index.seed, key);
        let exact =
            [a, b].map(|at| index.services[at as usize]).into_iter().find(|e| e.key == key).map(|e| e.vip);
        let any = if protocol == protocol::TCP { entry.any_tcp } else { entry.any_udp };
        exact.or((any != 0).then_some(any))
    }

    #[test]
    fn every_service_of_a_full_index_is_found_at_one_of_its_positions() {
        let mut services = Services::new();
        for n in 0..4096_u32 {
            let address: IpAddr = if n % 2 == 0 {
                Ipv4Addr::from(0xc633_6400 + n).into()
            } else {
                Ipv6Addr::from(0x2001_0db8_u128 << 96 | u128::from(n)).into()
            };
            services.insert((address, 1883, Protocol::Tcp), n + 1);
        }
        let index = build(&services).expect("half full");
        for (&(address, port, _), &vip) in &services {
            assert_eq!(find(&index, address, port, protocol::TCP), Some(vip));
            assert_eq!(find(&index, address, port, protocol::UDP), None);
        }
        assert_eq!(read(index.addresses, index.services), services);
    }

    #[test]
    fn addresses_that_differ_in_any_two_of_their_bytes_alone_find_room() {
        for shift in (0..=112).step_by(8) {
            let at = |n: u32| Ipv6Addr::from(0x2001_0db8_u128 << 96 ^ u128::from(n) << shift);
            let services: Services = (0..4096).map(|n| ((at(n).into(), 0, Protocol::Tcp), n + 1)).collect();
            assert!(build(&services).is_some(), "IPv6, bit {shift}");
        }
        for shift in [0, 8, 16, 20] {
            let at = |n: u32| Ipv4Addr::from(0xc633_6401 ^ n << shift);
            let services: Services = (0..4096).map(|n| ((at(n).into(), 0, Protocol::Udp), n + 1)).collect();
            assert!(build(&services).is_some(), "IPv4, bit {shift}");
        }
        let address: IpAddr = Ipv4Addr::new(198, 51, 100, 1).into();
        for step in [1, 2, 3, 8, 15] {
            let services = (1..=4096).map(|n| ((address, n * step, Protocol::Tcp), u32::from(n))).collect();
            assert!(build(&services).is_some(), "every {step}th port");
        }
    }

    #[test]
    fn a_named_port_wins_over_all_ports() {
        let address: IpAddr = Ipv4Addr::new(198, 51, 100, 1).into();
        let services = Services::from([
            ((address, 0, Protocol::Tcp), 1),
            ((address, 80, Protocol::Tcp), 2),
            ((address, 0, Protocol::Udp), 3),
        ]);
        let index = build(&services).expect("three services");
        assert_eq!(find(&index, address, 80, protocol::TCP), Some(2));
        assert_eq!(find(&index, address, 81, protocol::TCP), Some(1));
        assert_eq!(find(&index, address, 80, protocol::UDP), Some(3));
        assert_eq!(read(index.addresses.clone(), index.services.clone()), services);
    }

    #[test]
    fn too_many_services_are_refused() {
        let address: IpAddr = Ipv4Addr::new(198, 51, 100, 1).into();
        let services = (1..=4097).map(|port| ((address, port, Protocol::Tcp), u32::from(port))).collect();
        assert!(build(&services).is_none());
    }
}
