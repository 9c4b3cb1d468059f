//! Puts VIPs on the loopback and keeps the interface from answering ARP for them, in a way that can be undone.

use crate::network::{LOOPBACK, Network};
use crate::pins::Pins;
use anyhow::{Context as _, Result, bail};
use aya::maps::{HashMap, Map, MapData};
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::PathBuf;

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

    /// The line of a sysctl file that sets it.
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

/// The changes made to the host, so that exactly these can be undone.
///
/// It is kept in a pinned map: that lives through crashes and upgrades of the daemon, and vanishes
/// with a reboot as the changes do. An entry is written before its change is made; a crash between
/// the two leaves an entry whose change the next start makes.
#[derive(Debug)]
pub(crate) struct Journal {
    /// A setting's earlier value; 0 for an address.
    changes: HashMap<MapData, [u8; KEY], u32>,
}

impl Journal {
    /// Opens the journal, or begins it.
    pub(crate) fn open(pins: &Pins) -> Result<Self> {
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
    pub(crate) fn vips(&self) -> Result<BTreeSet<IpAddr>> {
        let vip = |(change, _)| match change {
            Change::Address(vip) => Some(vip),
            Change::Setting(_) => None,
        };
        Ok(self.changes()?.into_iter().filter_map(vip).collect())
    }

    /// Puts every VIP on the loopback that is not there, takes those off that this journal put there
    /// and that are no longer wanted, and sets the interface's ARP settings right.
    pub(crate) async fn apply(
        &mut self,
        network: &Network,
        interface: &str,
        vips: &BTreeSet<IpAddr>,
    ) -> Result<()> {
        // First the settings: there must be no moment in which ARP for a VIP is answered.
        if vips.iter().any(IpAddr::is_ipv4) {
            for setting in ARP_SETTINGS {
                self.raise(setting, interface)?;
            }
        }
        let present = network.loopback_addresses().await?;
        for vip in vips.difference(&present) {
            self.changes.insert(Change::Address(*vip).encode(), 0, 0)?;
            network.add_to_loopback(*vip).await?;
            tracing::info!(%vip, "put the VIP on {LOOPBACK}");
        }
        for change in self.changes()? {
            if let (Change::Address(address), _) = change
                && !vips.contains(&address)
            {
                self.undo(network, interface, change).await?;
            }
        }
        Ok(())
    }

    /// Undoes every change.
    pub(crate) async fn undo_all(&mut self, network: &Network, interface: &str) -> Result<()> {
        let mut changes = self.changes()?;
        // The reverse of `apply`: addresses before the settings that keep them from ARP.
        changes.sort_by_key(|(change, _)| matches!(change, Change::Setting(_)));
        for change in changes {
            self.undo(network, interface, change).await?;
        }
        Ok(())
    }

    async fn undo(
        &mut self,
        network: &Network,
        interface: &str,
        (change, before): (Change, u32),
    ) -> Result<()> {
        match change {
            Change::Address(vip) => {
                network.remove_from_loopback(vip).await?;
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
