//! Links between hosts: veth pairs, and bridges for shared segments.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::host::Host;
use crate::napi;
use crate::process::run_well;

/// Ethernet's usual MTU, in bytes.
pub(crate) const DEFAULT_MTU: u32 = 1500;

/// One end of a link.
#[derive(Clone, Debug)]
pub struct Port {
    host: Host,
    name: String,
    addresses: Vec<String>,
    bridge: Option<String>,
    receives_xdp_tx: bool,
}

impl Port {
    /// An interface of this name on `host`, without addresses.
    #[must_use]
    pub fn new(host: &Host, name: &str) -> Port {
        Port {
            host: host.clone(),
            name: name.to_owned(),
            addresses: Vec::new(),
            bridge: None,
            receives_xdp_tx: false,
        }
    }

    /// Gives it an address with prefix length, such as `10.0.0.1/24`.
    #[must_use]
    pub fn address(mut self, address: impl Into<String>) -> Port {
        self.addresses.push(address.into());
        self
    }

    /// Makes it a port of a bridge on the same host.
    #[must_use]
    pub fn on_bridge(mut self, bridge: &Bridge) -> Port {
        self.bridge = Some(bridge.name.clone());
        self
    }

    /// Says that an XDP program at the other end sends with `XDP_TX`: this end gets one that lets all pass, without
    /// which it would not take such frames at once.
    #[must_use]
    pub fn receives_xdp_tx(mut self) -> Port {
        self.receives_xdp_tx = true;
        self
    }

    fn set_up(&self) -> Result<()> {
        let Port { host, name, .. } = self;
        // A veth leaves checksums and segmentation to hardware that is not there. What XDP encapsulates would
        // arrive with a wrong inner checksum.
        host.run(["ethtool", "-K", name, "tx", "off"])?;
        if let Some(bridge) = &self.bridge {
            host.ip(&format!("link set {name} master {bridge}"))?;
        }
        for address in &self.addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            host.ip(&format!("address add {address} dev {name} {nodad}"))?;
        }
        host.ip(&format!("link set {name} up"))?;
        if self.receives_xdp_tx {
            napi::keep_polling(host, name)?;
        }
        Ok(())
    }
}

/// Connects two ports by a veth pair with this MTU in bytes, and brings both up.
///
/// # Errors
///
/// When a host already has an interface of that name, and when an address or the MTU is refused.
pub fn link(a: &Port, b: &Port, mtu: u32) -> Result<()> {
    let mtu = mtu.to_string();
    let wired = run_well(
        Command::new("ip")
            .args(["link", "add", "name", &a.name, "netns", a.host.namespace(), "mtu", &mtu, "type", "veth"])
            .args(["peer", "name", &b.name, "netns", b.host.namespace(), "mtu", &mtu]),
        Duration::from_secs(20),
    );
    wired.and_then(|_| a.set_up()).and_then(|()| b.set_up()).with_context(|| {
        format!("cannot link {} {} with {} {}", a.host.name(), a.name, b.host.name(), b.name)
    })
}

/// A bridge on a host: one Ethernet segment for all that are linked to it.
#[derive(Debug)]
pub struct Bridge {
    name: String,
}

impl Bridge {
    /// Creates a bridge and gives it these addresses (with prefix length), by which its host is on the segment.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the name or an address.
    pub fn create(host: &Host, name: &str, addresses: &[&str]) -> Result<Bridge> {
        host.ip(&format!("link add {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"))?;
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            host.ip(&format!("address add {address} dev {name} {nodad}"))?;
        }
        host.ip(&format!("link set {name} up"))?;
        Ok(Bridge { name: name.to_owned() })
    }
}
