//! Cluster files for standalone nodes.

use std::fmt::{self, Write as _};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use testbed::{Protocol, Station};

/// How packets travel to the reals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encapsulation {
    /// Generic UDP Encapsulation.
    Gue,
    /// IP in IP.
    Ipip,
    /// None: all are on one segment.
    L2,
}

impl fmt::Display for Encapsulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Encapsulation::Gue => "gue",
            Encapsulation::Ipip => "ipip",
            Encapsulation::L2 => "l2",
        })
    }
}

/// A family of IP, as a choice among a host's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "v4",
            Family::V6 => "v6",
        })
    }
}

/// A VIP as it stands in a cluster file.
#[derive(Clone, Debug)]
pub struct Vip {
    /// Its name.
    pub name: String,
    /// Address and port that clients use.
    pub at: SocketAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// How its packets travel.
    pub encapsulation: Encapsulation,
    /// Name, address and weight of its reals.
    pub reals: Vec<(String, IpAddr, u32)>,
    settings: String,
    health: Option<String>,
    limits: Option<String>,
}

impl Vip {
    /// A VIP of TCP by GUE, without reals.
    #[must_use]
    pub fn new(name: impl Into<String>, at: SocketAddr) -> Vip {
        Vip {
            name: name.into(),
            at,
            protocol: Protocol::Tcp,
            encapsulation: Encapsulation::Gue,
            reals: Vec::new(),
            settings: String::new(),
            health: None,
            limits: None,
        }
    }

    /// Sets the protocol.
    #[must_use]
    pub fn protocol(mut self, protocol: Protocol) -> Vip {
        self.protocol = protocol;
        self
    }

    /// Sets the encapsulation.
    #[must_use]
    pub fn encapsulation(mut self, encapsulation: Encapsulation) -> Vip {
        self.encapsulation = encapsulation;
        self
    }

    /// Adds these hosts as reals, reached at their address of the given family, each with weight 100.
    #[must_use]
    pub fn reals<'a>(mut self, stations: impl IntoIterator<Item = &'a Station>, family: Family) -> Vip {
        self.reals.extend(stations.into_iter().map(|station| {
            let address = match family {
                Family::V4 => station.v4.into(),
                Family::V6 => station.v6.into(),
            };
            (station.host.name().to_owned(), address, 100)
        }));
        self
    }

    /// Adds lines to the VIP's own table.
    #[must_use]
    pub fn settings(mut self, lines: &str) -> Vip {
        let _ = writeln!(self.settings, "{lines}");
        self
    }

    /// Gives it a health check of these lines.
    #[must_use]
    pub fn health(mut self, lines: &str) -> Vip {
        self.health = Some(lines.to_owned());
        self
    }

    /// Gives it limits of these lines.
    #[must_use]
    pub fn limits(mut self, lines: &str) -> Vip {
        self.limits = Some(lines.to_owned());
        self
    }

    /// Sets a real's weight.
    ///
    /// # Panics
    ///
    /// When the VIP has no such real.
    pub fn set_weight(&mut self, real: &str, weight: u32) {
        let found = self.reals.iter_mut().find(|(name, ..)| name == real);
        found.expect("the VIP has this real").2 = weight;
    }
}

/// What a node reads.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Lines that are added to the `[node]` table.
    pub node_settings: String,
    /// All VIPs.
    pub vips: Vec<Vip>,
}

impl Cluster {
    /// A cluster of these VIPs.
    #[must_use]
    pub fn new(vips: impl IntoIterator<Item = Vip>) -> Cluster {
        Cluster { node_settings: String::new(), vips: vips.into_iter().collect() }
    }

    /// The VIPs' addresses, each once.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut addresses: Vec<IpAddr> = self.vips.iter().map(|vip| vip.at.ip()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// The VIP of this name.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn vip(&mut self, name: &str) -> &mut Vip {
        self.vips.iter_mut().find(|vip| vip.name == name).expect("the cluster has this VIP")
    }

    /// The file's text for a node.
    #[must_use]
    pub fn text(&self, node: &Station) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "[node]\nname = \"{}\"\ninterface = \"{}\"", node.host.name(), node.interface);
        let _ = writeln!(text, "{}", self.node_settings);
        for vip in &self.vips {
            let Vip { name, at, protocol, encapsulation, settings, .. } = vip;
            let _ = writeln!(text, "[vips.{name}]\naddress = \"{}\"\nport = {}", at.ip(), at.port());
            let _ =
                writeln!(text, "protocol = \"{protocol}\"\nencapsulation = \"{encapsulation}\"\n{settings}");
            if let Some(health) = &vip.health {
                let _ = writeln!(text, "[vips.{name}.health]\n{health}\n");
            }
            if let Some(limits) = &vip.limits {
                let _ = writeln!(text, "[vips.{name}.limits]\n{limits}\n");
            }
            for (real, address, weight) in &vip.reals {
                let _ = writeln!(
                    text,
                    "[vips.{name}.reals.{real}]\naddress = \"{address}\"\nweight = {weight}\n"
                );
            }
        }
        text
    }

    /// Writes the file for a node into its folder, replacing it in one step as editors do, and returns its path.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&self, node: &Station) -> Result<PathBuf> {
        let path = node.host.dir().join("cluster.toml");
        replace(&path, &self.text(node))?;
        Ok(path)
    }
}

/// Replaces a file's contents in one step.
pub(crate) fn replace(path: &Path, text: &str) -> Result<()> {
    let next = path.with_extension("next");
    fs::write(&next, text).with_context(|| format!("cannot write {}", next.display()))?;
    fs::rename(&next, path).with_context(|| format!("cannot replace {}", path.display()))
}
