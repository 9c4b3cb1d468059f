//! The loaded program: its maps and its link to the interface.

use super::{Prefix, XdpMode, network::Network, pins::Pins};
use anyhow::{Context as _, Result, bail};
use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, LpmTrie, Map, MapData, MapError, MapInfo, PerCpuArray};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpMode as AyaMode};
use aya::{Ebpf, EbpfLoader};
use lb_ebpf::real::{
    Address, DROP_ENTRIES, DropReason, Encapsulation, Inner, LAYOUT, PROGRAM, TRAFFIC_ENTRIES, Traffic, maps,
    traffic_index,
};
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

/// Pause between attempts to attach while the kernel still lets go of the link that was there before.
const RELEASE_POLL: Duration = Duration::from_millis(20);
/// Most such attempts.
const RELEASE_POLLS: u32 = 100;

/// The loaded program.
#[derive(Debug)]
pub(super) struct Program {
    ebpf: Ebpf,
    id: u32,
    local: HashMap<MapData, Address, u8>,
    vips: HashMap<MapData, Address, u8>,
    sources: LpmTrie<MapData, Address, u8>,
}

impl Program {
    /// Loads the program on the pinned maps of its layout, which are made where they are missing.
    pub(super) fn load(pins: &Pins, gue_port: u16) -> Result<(Self, Counters)> {
        discard_unusable(pins)?;
        let mut loader = EbpfLoader::new();
        loader.override_global(maps::GUE_PORT, &gue_port, true);
        for name in maps::ALL {
            loader.map_pin_path(name, pins.map(name));
        }
        let mut ebpf = loader
            .load(crate::DECAPSULATION)
            .context("cannot create the maps of the decapsulation program")?;
        let program = xdp(&mut ebpf)?;
        program.load().context("the kernel refuses the decapsulation program")?;
        let id = program.info().context("cannot read the program's number")?.id();
        let counters = Counters {
            decapsulated: take(&mut ebpf, maps::DECAPSULATED)?,
            drops: take(&mut ebpf, maps::DROPS)?,
        };
        let program = Self {
            id,
            local: take(&mut ebpf, maps::LOCAL)?,
            vips: take(&mut ebpf, maps::VIPS)?,
            sources: take(&mut ebpf, maps::SOURCES)?,
            ebpf,
        };
        Ok((program, counters))
    }

    /// The kernel's number of the program.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Makes the set of outer destinations exactly this one.
    pub(super) fn set_local(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<()> {
        set_keys(&mut self.local, addresses).context("cannot set this host's addresses")
    }

    /// The set of inner destinations: at first what a predecessor left.
    pub(super) fn vips(&self) -> Result<BTreeSet<IpAddr>> {
        let vips = self.vips.keys().map(|key| key.map(IpAddr::from));
        vips.collect::<Result<_, _>>().context("cannot read the VIPs")
    }

    /// The known outer sources that are single addresses: at first what a predecessor left.
    pub(super) fn single_sources(&self) -> Result<BTreeSet<IpAddr>> {
        let mut single = BTreeSet::new();
        for key in self.sources.keys() {
            let key = key.context("cannot read the known nodes")?;
            let (bits, address) = (key.prefix_len(), IpAddr::from(key.data()));
            if bits == Address::prefix_bits(Prefix::from(address).length()) {
                single.insert(address);
            }
        }
        Ok(single)
    }

    /// Makes the set of inner destinations exactly this one.
    pub(super) fn set_vips(&mut self, vips: &BTreeSet<IpAddr>) -> Result<()> {
        set_keys(&mut self.vips, vips).context("cannot set the VIPs")
    }

    /// Makes the set of known outer sources exactly this one.
    pub(super) fn set_sources(&mut self, prefixes: &BTreeSet<Prefix>) -> Result<()> {
        let encode =
            |prefix: &Prefix| (Address::prefix_bits(prefix.length()), Address::from(prefix.address()));
        let wanted: BTreeSet<_> = prefixes.iter().map(encode).collect();
        let present = self.sources.keys().map(|key| key.map(|key| (key.prefix_len(), key.data())));
        let present = present.collect::<Result<BTreeSet<_>, _>>().context("cannot read the known nodes")?;
        for &(bits, address) in wanted.difference(&present) {
            self.sources.insert(&Key::new(bits, address), 0, 0).context("cannot add a known node")?;
        }
        for &(bits, address) in present.difference(&wanted) {
            self.sources.remove(&Key::new(bits, address)).context("cannot remove a known node")?;
        }
        Ok(())
    }

    /// Puts the program on the interface: behind the pinned link in one step where there is one that
    /// holds the interface in the wanted mode, else by a new link.
    pub(super) async fn attach(
        &mut self,
        network: &Network,
        interface: &str,
        mode: XdpMode,
        pins: &Pins,
    ) -> Result<()> {
        let pin = pins.link();
        if pin.exists() {
            match self.replace(&pin) {
                Ok(()) => {
                    let attached = network.attached(interface).await?;
                    let mode_fits = match mode {
                        XdpMode::Auto => true,
                        XdpMode::Native => attached.is_some_and(|found| found.native),
                        XdpMode::Generic => attached.is_some_and(|found| !found.native),
                    };
                    if attached.is_some_and(|found| found.program == self.id) && mode_fits {
                        return Ok(());
                    }
                    tracing::warn!(
                        interface,
                        "the pinned link belongs to an earlier interface of this name, or to another XDP \
                         mode: attaching anew"
                    );
                }
                Err(error) => tracing::warn!(interface, "the pinned link is of no use: {error:#}"),
            }
            fs::remove_file(&pin).with_context(|| format!("cannot remove {}", pin.display()))?;
        }
        let index = network.interface_index(interface).await?;
        let link = self.new_link(index, interface, mode).await?;
        link.pin(&pin).with_context(|| format!("cannot pin {}", pin.display()))?;
        Ok(())
    }

    fn replace(&mut self, pin: &Path) -> Result<()> {
        let pinned = PinnedLink::from_pin(pin).context("cannot open it")?;
        let link = XdpLink::try_from(FdLink::from(pinned)).context("it is no XDP link")?;
        let program = xdp(&mut self.ebpf)?;
        let id = program.attach_to_link(link).context("cannot replace the program behind it")?;
        // Only the descriptor is closed; the pin holds the link.
        drop(program.take_link(id)?);
        Ok(())
    }

    async fn new_link(&mut self, index: u32, interface: &str, mode: XdpMode) -> Result<FdLink> {
        let program = xdp(&mut self.ebpf)?;
        let id = match mode {
            XdpMode::Native => attach_when_free(program, index, AyaMode::Driver).await,
            XdpMode::Generic => attach_when_free(program, index, AyaMode::Skb).await,
            XdpMode::Auto => match attach_when_free(program, index, AyaMode::Driver).await {
                Err(error) if !is_busy(&error) => {
                    tracing::warn!(
                        interface,
                        "no native XDP on this interface ({}): running in generic mode, which is slower",
                        os_error(&error).map_or_else(|| error.to_string(), |error| error.to_string()),
                    );
                    attach_when_free(program, index, AyaMode::Skb).await
                }
                result => result,
            },
        };
        let id = match id {
            Ok(id) => id,
            Err(error) if is_busy(&error) => bail!(
                "another XDP program is attached to {interface}: remove it (`ip link show dev {interface}` \
                 tells its number, `ip link set dev {interface} xdp off` removes one that was attached \
                 without a link) or choose another interface"
            ),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot attach to {interface} ({mode:?} mode)"));
            }
        };
        FdLink::try_from(program.take_link(id)?).with_context(|| {
            format!(
                "the kernel attached to {interface} without a link, so the program could not outlive this \
                 process: Linux 5.9 or later is needed (`ip link set dev {interface} xdp off` removes it)"
            )
        })
    }
}

/// Removes pinned maps that this program cannot use, although they claim its layout: the remains of
/// something else. The kernel keeps them alive for as long as a program uses them.
fn discard_unusable(pins: &Pins) -> Result<()> {
    let address = u32::try_from(size_of::<Address>()).expect("20 bytes");
    let traffic = u32::try_from(size_of::<Traffic>()).expect("16 bytes");
    for (name, key, value) in [
        (maps::LOCAL, address, 1),
        (maps::VIPS, address, 1),
        (maps::SOURCES, 4 + address, 1),
        (maps::DECAPSULATED, 4, traffic),
        (maps::DROPS, 4, 8),
    ] {
        let pin = pins.map(name);
        if !pin.exists() {
            continue;
        }
        let fits =
            MapInfo::from_pin(&pin).is_ok_and(|info| info.key_size() == key && info.value_size() == value);
        if !fits {
            tracing::warn!("{} is not a map of layout {LAYOUT}: making a new one", pin.display());
            fs::remove_file(&pin).with_context(|| format!("cannot remove {}", pin.display()))?;
        }
    }
    Ok(())
}

fn xdp(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    let program = ebpf.program_mut(PROGRAM).context("the decapsulation program is not in its object")?;
    Ok(program.try_into()?)
}

fn take<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<M> {
    let map = ebpf.take_map(name).with_context(|| format!("no map {name} in the object"))?;
    M::try_from(map).with_context(|| format!("the map {name} is of another type"))
}

/// Makes the map's keys those of `wanted`; adds before it removes.
fn set_keys(map: &mut HashMap<MapData, Address, u8>, wanted: &BTreeSet<IpAddr>) -> Result<()> {
    let wanted: BTreeSet<Address> = wanted.iter().copied().map(Address::from).collect();
    let present = map.keys().collect::<Result<BTreeSet<_>, _>>()?;
    for address in wanted.difference(&present) {
        map.insert(address, 0, 0).with_context(|| format!("cannot add {}", IpAddr::from(*address)))?;
    }
    for address in present.difference(&wanted) {
        map.remove(address).with_context(|| format!("cannot remove {}", IpAddr::from(*address)))?;
    }
    Ok(())
}

/// Attaches, and waits a little where the interface is taken: the kernel lets go of a link only some
/// time after its pin is gone.
async fn attach_when_free(
    program: &mut Xdp,
    index: u32,
    mode: AyaMode,
) -> Result<aya::programs::xdp::XdpLinkId, ProgramError> {
    let mut polls = 0;
    loop {
        match program.attach_to_if_index(index, mode) {
            Err(error) if is_busy(&error) && polls < RELEASE_POLLS => polls += 1,
            result => return result,
        }
        tokio::time::sleep(RELEASE_POLL).await;
    }
}

fn is_busy(error: &ProgramError) -> bool {
    os_error(error)
        .and_then(std::io::Error::raw_os_error)
        .is_some_and(|code| code == libc::EBUSY || code == libc::EEXIST)
}

fn os_error(error: &ProgramError) -> Option<&std::io::Error> {
    match error {
        ProgramError::SyscallError(error) => Some(&error.io_error),
        _ => None,
    }
}

/// Takes the program off the interface, if it is there by our link, and waits until it is.
pub(super) async fn remove_link(network: &Network, interface: &str, pins: &Pins) -> Result<()> {
    let pin = pins.link();
    if !pin.exists() {
        return Ok(());
    }
    let program =
        PinnedLink::from_pin(&pin).and_then(|link| FdLink::from(link).info()).map(|info| info.program_id());
    fs::remove_file(&pin).with_context(|| format!("cannot remove {}", pin.display()))?;
    let Ok(program) = program else { return Ok(()) };
    for _ in 0..RELEASE_POLLS {
        match network.attached(interface).await {
            Ok(Some(found)) if found.program == program => tokio::time::sleep(RELEASE_POLL).await,
            // Gone, or the whole interface is.
            _ => return Ok(()),
        }
    }
    bail!(
        "the program is still on {interface} although its link's pin is gone: something else holds the link \
         (`bpftool link show` names it)"
    )
}

/// The program's counters.
pub(super) struct Counters {
    decapsulated: PerCpuArray<MapData, Traffic>,
    drops: PerCpuArray<MapData, u64>,
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counters").finish_non_exhaustive()
    }
}

impl Counters {
    /// Packets and bytes decapsulated, summed over the CPUs.
    pub(super) fn decapsulated(&self) -> Result<Vec<(Encapsulation, Inner, Traffic)>, MapError> {
        let mut all = Vec::with_capacity(TRAFFIC_ENTRIES as usize);
        for encapsulation in Encapsulation::ALL {
            for inner in Inner::ALL {
                let mut sum = Traffic::default();
                for cpu in self.decapsulated.get(&traffic_index(encapsulation, inner), 0)?.iter() {
                    sum.packets += cpu.packets;
                    sum.bytes += cpu.bytes;
                }
                all.push((encapsulation, inner, sum));
            }
        }
        Ok(all)
    }

    /// Packets dropped, summed over the CPUs.
    pub(super) fn drops(&self) -> Result<Vec<(DropReason, u64)>, MapError> {
        let mut all = Vec::with_capacity(DROP_ENTRIES as usize);
        for reason in DropReason::ALL {
            all.push((reason, self.drops.get(&(reason as u32), 0)?.iter().sum()));
        }
        Ok(all)
    }
}
