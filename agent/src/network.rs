//! What a real needs of its host: the addresses it has, the VIPs on the loopback, and an interface
//! that does not answer ARP for them.

use super::pins::Pins;
use anyhow::{Context as _, Result, bail};
use aya::maps::{HashMap, Map, MapData};
use host::netlink::{Link, Netlink, Xdp};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressScope, CacheInfo};
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::PathBuf;

const LOOPBACK: &str = "lo";

/// `INFINITY_LIFE_TIME` of the kernel's `net/addrconf.h`.
const FOR_EVER: u32 = u32::MAX;

/// The network namespace that this process runs in.
#[derive(Clone, Debug)]
pub(super) struct Host {
    netlink: Netlink,
}

impl Host {
    pub(super) fn new(netlink: Netlink) -> Self {
        Self { netlink }
    }

    pub(super) async fn interface_index(&self, name: &str) -> Result<u32> {
        Ok(self.link(name).await?.index)
    }

    async fn link(&self, name: &str) -> Result<Link> {
        self.netlink.link(name).await?.with_context(|| {
            format!("no interface {name} here: `ip link` lists the interfaces that there are")
        })
    }

    /// The XDP program of an interface.
    pub(super) async fn attached(&self, name: &str) -> Result<Option<Xdp>> {
        Ok(self.link(name).await?.xdp)
    }

    /// Every address of this host, on whatever interface, other than 127.0.0.0/8 and ::1.
    pub(super) async fn addresses(&self) -> Result<BTreeSet<IpAddr>> {
        let own = self.netlink.addresses().await?.into_iter().map(|own| own.address);
        Ok(own.filter(|address| !address.is_loopback()).collect())
    }

    /// The addresses of the loopback interface.
    pub(super) async fn loopback_addresses(&self) -> Result<BTreeSet<IpAddr>> {
        let index = self.interface_index(LOOPBACK).await?;
        let own = self.netlink.addresses().await?.into_iter().filter(|own| own.ifindex == index);
        Ok(own.map(|own| own.address).collect())
    }

    /// The addresses of an interface that others may know it by: no link-local, secondary, temporary or deprecated ones.
    pub(super) async fn primary_addresses(&self, interface: &str) -> Result<BTreeSet<IpAddr>> {
        let index = self.interface_index(interface).await?;
        let own = self.netlink.addresses().await?.into_iter();
        let primary = own.filter(|own| own.ifindex == index && own.global && own.primary);
        Ok(primary.map(|own| own.address).collect())
    }

    /// Puts a VIP on the loopback in such a way that the host never chooses it by itself as the
    /// source of a connection that it opens: scope `host` for IPv4, deprecated for IPv6.
    async fn add_to_loopback(&self, vip: IpAddr) -> Result<()> {
        let index = self.interface_index(LOOPBACK).await?;
        let length = if vip.is_ipv4() { 32 } else { 128 };
        let mut request = self.netlink.handle().address().add(index, vip, length);
        let message = request.message_mut();
        if vip.is_ipv4() {
            message.header.scope = AddressScope::Host;
        } else {
            let mut lifetime = CacheInfo::default();
            lifetime.ifa_preferred = 0;
            lifetime.ifa_valid = FOR_EVER;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            message.attributes.push(AddressAttribute::CacheInfo(lifetime));
        }
        request.execute().await.with_context(|| format!("cannot put {vip} on {LOOPBACK}"))
    }

    async fn remove_from_loopback(&self, vip: IpAddr) -> Result<()> {
        let index = self.interface_index(LOOPBACK).await?;
        for message in self.netlink.messages_of(index, vip).await? {
            let removed = self.netlink.handle().address().del(message).execute().await;
            removed.with_context(|| format!("cannot take {vip} off {LOOPBACK}"))?;
        }
        Ok(())
    }
}

/// Settings of an interface that keep it from answering ARP for addresses of the loopback, and from
/// announcing them: with several reals on a segment the VIP would belong to whoever answers first.
/// (Neighbour discovery needs no such setting: Linux answers it for the interface's own addresses
/// only.)
const ARP_SETTINGS: [Setting; 2] =
    [Setting { name: "arp_ignore", value: 1 }, Setting { name: "arp_announce", value: 2 }];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Setting {
    name: &'static str,
    value: u32,
}

impl Setting {
    fn path(self, interface: &str) -> PathBuf {
        PathBuf::from(format!("/proc/sys/net/ipv4/conf/{interface}/{}", self.name))
    }

    /// What an operator is to write to have it so.
    fn wanted(self, interface: &str) -> String {
        format!("net.ipv4.conf.{interface}.{} = {}", self.name, self.value)
    }

    /// The value that the kernel has; `None` where there is no such file.
    fn read(self, interface: &str) -> Result<Option<u32>> {
        let path = self.path(interface);
        match fs::read_to_string(&path) {
            Ok(text) => {
                let value = text.trim().parse();
                Ok(Some(value.with_context(|| format!("{} holds {text:?}", path.display()))?))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    fn write(self, interface: &str, value: u32) -> Result<()> {
        let path = self.path(interface);
        fs::write(&path, value.to_string()).with_context(|| {
            format!(
                "cannot write {value} to {}; until it is so, no VIP is put on {LOOPBACK}, since the host would answer \
                 ARP for it. Set it on the host (in a container's manifest it cannot be set): \"{}\" in a file of \
                 /etc/sysctl.d",
                path.display(),
                self.wanted(interface)
            )
        })
    }
}

/// A change of the host, as the key of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Address(IpAddr),
    Setting(Setting),
}

const KEY: usize = 17;
const MAX_CHANGES: u32 = lb_ebpf::real::MAX_ADDRESSES + 64;

impl Change {
    /// Kind, then the address or the number of the setting.
    fn encode(self) -> [u8; KEY] {
        let mut key = [0; KEY];
        match self {
            Self::Address(IpAddr::V4(address)) => {
                key[0] = 4;
                key[1..5].copy_from_slice(&address.octets());
            }
            Self::Address(IpAddr::V6(address)) => {
                key[0] = 6;
                key[1..].copy_from_slice(&address.octets());
            }
            Self::Setting(setting) => {
                let number = ARP_SETTINGS.iter().position(|known| *known == setting);
                key[0] = b's';
                key[1] = number.and_then(|number| u8::try_from(number).ok()).expect("a setting of the table");
            }
        }
        key
    }

    /// `None` for what a later version may have written.
    fn decode(key: [u8; KEY]) -> Option<Self> {
        let (kind, rest) = (key[0], &key[1..]);
        match kind {
            4 => Some(Self::Address(<[u8; 4]>::try_from(&rest[..4]).ok()?.into())),
            6 => Some(Self::Address(<[u8; 16]>::try_from(rest).ok()?.into())),
            b's' => ARP_SETTINGS.get(usize::from(rest[0])).copied().map(Self::Setting),
            _ => None,
        }
    }
}

/// What was changed on the host, so that exactly this can be undone.
///
/// It is kept in a pinned map: that lives through crashes and upgrades of the daemon, and vanishes
/// with a reboot as the changes do. An entry is written before its change is made; a crash between
/// the two leaves an entry whose change the next start makes.
#[derive(Debug)]
pub(super) struct Journal {
    /// A setting's earlier value; 0 for an address.
    changes: HashMap<MapData, [u8; KEY], u32>,
}

impl Journal {
    /// Opens the journal, or begins it.
    pub(super) fn open(pins: &Pins) -> Result<Self> {
        let pin = pins.host();
        if !pin.exists() {
            HashMap::<MapData, [u8; KEY], u32>::create(MAX_CHANGES, 0)
                .context("cannot create the map of changes to the host")?
                .pin(&pin)
                .with_context(|| format!("cannot pin {}", pin.display()))?;
        }
        let read = || anyhow::Ok(HashMap::try_from(Map::HashMap(MapData::from_pin(&pin)?))?);
        let changes = read().with_context(|| {
            format!("{} is not a map of changes to the host: remove it and start again", pin.display())
        })?;
        Ok(Self { changes })
    }

    /// The VIPs that it put on the loopback.
    pub(super) fn vips(&self) -> Result<BTreeSet<IpAddr>> {
        let vip = |(change, _)| match change {
            Change::Address(vip) => Some(vip),
            Change::Setting(_) => None,
        };
        Ok(self.changes()?.into_iter().filter_map(vip).collect())
    }

    /// Puts every VIP on the loopback that is not there, takes those off that this journal put there
    /// and that are no longer wanted, and mends the interface's ARP settings.
    pub(super) async fn apply(
        &mut self,
        host: &Host,
        interface: &str,
        vips: &BTreeSet<IpAddr>,
    ) -> Result<()> {
        // First the settings: there must be no moment in which ARP for a VIP is answered.
        if vips.iter().any(IpAddr::is_ipv4) {
            for setting in ARP_SETTINGS {
                self.raise(setting, interface)?;
            }
        }
        let present = host.loopback_addresses().await?;
        for vip in vips.difference(&present) {
            self.changes.insert(Change::Address(*vip).encode(), 0, 0)?;
            host.add_to_loopback(*vip).await?;
            tracing::info!(%vip, "put the VIP on {LOOPBACK}");
        }
        for change in self.changes()? {
            if let (Change::Address(address), _) = change
                && !vips.contains(&address)
            {
                self.undo(host, interface, change).await?;
            }
        }
        Ok(())
    }

    /// Undoes every change.
    pub(super) async fn undo_all(&mut self, host: &Host, interface: &str) -> Result<()> {
        let mut changes = self.changes()?;
        // The reverse of `apply`: addresses before the settings that keep them from ARP.
        changes.sort_by_key(|(change, _)| matches!(change, Change::Setting(_)));
        for change in changes {
            self.undo(host, interface, change).await?;
        }
        Ok(())
    }

    async fn undo(&mut self, host: &Host, interface: &str, (change, before): (Change, u32)) -> Result<()> {
        match change {
            Change::Address(vip) => {
                host.remove_from_loopback(vip).await?;
                tracing::info!(%vip, "took the VIP off {LOOPBACK}");
            }
            // A value that is no longer the one that was set is somebody else's decision.
            Change::Setting(setting) if setting.read(interface)? == Some(setting.value) => {
                setting.write(interface, before)?;
            }
            Change::Setting(_) => {}
        }
        Ok(self.changes.remove(&change.encode())?)
    }

    /// Raises a setting to at least its value. Every higher value of these settings is stricter.
    fn raise(&mut self, setting: Setting, interface: &str) -> Result<()> {
        match setting.read(interface)? {
            Some(before) if before < setting.value => {
                self.changes.insert(Change::Setting(setting).encode(), before, 0)?;
                setting.write(interface, setting.value)?;
                tracing::info!(interface, "set {} to {}", setting.name, setting.value);
                Ok(())
            }
            Some(_) => Ok(()),
            None => bail!(
                "{} is missing: no VIP is put on {LOOPBACK}, since the host might answer ARP for it. Is /proc/sys \
                 mounted, and the interface in this network namespace?",
                setting.path(interface).display()
            ),
        }
    }

    fn changes(&self) -> Result<Vec<(Change, u32)>> {
        let mut changes = Vec::new();
        for entry in self.changes.iter() {
            let (key, before) = entry.context("cannot read the changes to the host")?;
            changes.extend(Change::decode(key).map(|change| (change, before)));
        }
        Ok(changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_is_read_back_as_it_was_written() {
        let addresses = ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"];
        let addresses = addresses.map(|text| Change::Address(text.parse().unwrap()));
        for change in addresses.into_iter().chain(ARP_SETTINGS.map(Change::Setting)) {
            assert_eq!(Change::decode(change.encode()), Some(change));
        }
    }

    #[test]
    fn an_unknown_change_is_left_alone() {
        assert_eq!(Change::decode([99; KEY]), None);
        assert_eq!(Change::decode([b's'; KEY]), None);
    }
}
