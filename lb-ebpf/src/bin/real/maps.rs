//! The maps: sets of addresses, and counters.

use aya_ebpf::Global;
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{HashMap, LpmTrie, PerCpuArray};
use lb_ebpf::real::{
    Address, DEFAULT_GUE_PORT, DROP_ENTRIES, DropReason, Encapsulation, Inner, MAX_ADDRESSES,
    TRAFFIC_ENTRIES, Traffic, traffic_index,
};

#[map]
static LOCAL: HashMap<Address, u8> = HashMap::with_max_entries(MAX_ADDRESSES, 0);
#[map]
static VIPS: HashMap<Address, u8> = HashMap::with_max_entries(MAX_ADDRESSES, 0);
#[map]
static SOURCES: LpmTrie<Address, u8> = LpmTrie::with_max_entries(MAX_ADDRESSES, 0);
#[map]
static DECAPSULATED: PerCpuArray<Traffic> = PerCpuArray::with_max_entries(TRAFFIC_ENTRIES, 0);
#[map]
static DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(DROP_ENTRIES, 0);

#[unsafe(no_mangle)]
pub static GUE_PORT: Global<u16> = Global::new(DEFAULT_GUE_PORT);

/// An address as it stands on the wire, to be looked up.
///
/// Bytes as of a trie's [`Key`] of an [`Address`], whose words are pairs here: LLVM makes one store of two to neighbouring
/// words, and the verifier refuses that on the stack where it is not aligned.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Lookup {
    bits: u32,
    family: u32,
    address: [u64; 2],
}

const _: () = assert!(size_of::<Lookup>() == size_of::<Key<Address>>());

impl Lookup {
    /// Looks for the longest prefix of the whole address.
    const BITS: u32 = Address::prefix_bits(128);

    #[inline(always)]
    pub fn v4(address: u32) -> Self {
        let address = u64::from(address);
        let first = if cfg!(target_endian = "big") { address << 32 } else { address };
        Self { bits: Self::BITS, family: 4, address: [first, 0] }
    }

    #[inline(always)]
    pub fn v6(first: u64, second: u64) -> Self {
        Self { bits: Self::BITS, family: 6, address: [first, second] }
    }

    /// Returns whether it is an address of this host.
    #[inline(always)]
    pub fn is_local(self) -> bool {
        self.is_in(&LOCAL)
    }

    /// Returns whether it is a VIP.
    #[inline(always)]
    pub fn is_vip(self) -> bool {
        self.is_in(&VIPS)
    }

    /// Returns whether it is a node's.
    #[inline(always)]
    pub fn is_node(self) -> bool {
        SOURCES.get(self.key()).is_some()
    }

    #[inline(always)]
    fn is_in(&self, set: &HashMap<Address, u8>) -> bool {
        let address = &raw const self.key().data;
        // SAFETY: behind the first word, so aligned as an `Address` must be; only the presence of the entry is used.
        unsafe { set.get(&*address).is_some() }
    }

    #[inline(always)]
    fn key(&self) -> &Key<Address> {
        // SAFETY: the same bytes, without padding; a packed type needs no alignment.
        unsafe { &*(&raw const *self).cast() }
    }
}

/// Counts a packet that is dropped.
#[inline(always)]
pub fn count_drop(reason: DropReason) {
    if let Some(count) = DROPS.get_ptr_mut(reason as u32) {
        // SAFETY: the map's own entry of this CPU; no other program context writes it.
        unsafe { *count += 1 };
    }
}

/// Counts a packet of `length` bytes that came out of a tunnel.
#[inline(always)]
pub fn count_decapsulated(encapsulation: Encapsulation, family: Inner, length: usize) {
    if let Some(traffic) = DECAPSULATED.get_ptr_mut(traffic_index(encapsulation, family)) {
        // SAFETY: the map's own entry of this CPU; no other program context writes it.
        unsafe {
            (*traffic).packets += 1;
            (*traffic).bytes += length as u64;
        }
    }
}
