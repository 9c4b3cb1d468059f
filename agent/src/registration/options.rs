//! The part of the command line that is about registration.

use anyhow::{Context as _, Result, bail, ensure};
use host::files::read_text;
use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use zk_schema::{RealFile, RealName, VipName, ZookeeperSettings};

/// The weight of a real unless told otherwise.
const DEFAULT_WEIGHT: u16 = 100;

/// The options of `lb-node real` about the cluster.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "registration")]
#[command(next_help_heading = "Registration with a cluster")]
pub struct Options {
    /// A VIP of the cluster that this host is to serve, by its name in the tree. Repeat for each.
    ///
    /// While this agent runs, the host is among the VIP's reals: the record /drover/vips/<VIP>/reals/<NAME> is ephemeral.
    /// Addresses of VIPs and nodes are learnt from the tree where --vip and --from are left out.
    #[arg(long, value_name = "VIP")]
    pub register: Vec<VipName>,

    /// Servers of the cluster's ZooKeeper: zk-1:2181,zk-2:2181,zk-3:2181, perhaps with a chroot such as /site-a.
    #[arg(long, value_name = "SERVERS", requires = "register", conflicts_with = "config")]
    pub zookeeper: Option<String>,

    /// File with a table [zookeeper] as node files have it (docs/node-file.md): for TLS, credentials, timeouts.
    #[arg(long, value_name = "FILE", requires = "register")]
    pub config: Option<PathBuf>,

    /// This host's name as a real; its host name if absent.
    #[arg(long, value_name = "NAME", requires = "register")]
    pub name: Option<RealName>,

    /// Address of this host that nodes are to send packets to; that of the interface if absent, where it has just one.
    #[arg(long, value_name = "ADDRESS", requires = "register")]
    pub address: Option<IpAddr>,

    /// Share of the VIPs' new connections relative to their other reals: 0 to 65535; 0 takes none.
    #[arg(long, value_name = "WEIGHT", requires = "register", default_value_t = DEFAULT_WEIGHT)]
    pub weight: u16,

    /// Milliseconds between leaving the VIPs and ending, in which connections that there are go on.
    #[arg(long, value_name = "MS", requires = "register", default_value_t = 0,
          value_parser = clap::value_parser!(u32).range(..=600_000))]
    pub drain_wait_ms: u32,
}

impl Default for Options {
    /// No registration.
    fn default() -> Self {
        Self {
            register: Vec::new(),
            zookeeper: None,
            config: None,
            name: None,
            address: None,
            weight: DEFAULT_WEIGHT,
            drain_wait_ms: 0,
        }
    }
}

impl Options {
    /// Returns whether this host is to be registered at all.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        !self.register.is_empty()
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    ///
    /// Names the flag, the value, and what is expected of it.
    pub fn validate(&self) -> Result<()> {
        if !self.is_wanted() {
            return Ok(());
        }
        ensure!(
            self.zookeeper.is_some() || self.config.is_some(),
            "--register needs to know the cluster's ZooKeeper: add --zookeeper zk-1:2181,... or --config FILE"
        );
        if let Some(servers) = &self.zookeeper
            && let Err(problems) = RealFile::new(servers).validate()
        {
            let problems: Vec<&str> = problems.iter().map(|problem| problem.message.as_str()).collect();
            bail!("--zookeeper: {}", problems.join("; "));
        }
        Ok(())
    }

    /// The VIPs to serve.
    pub(crate) fn vips(&self) -> BTreeSet<VipName> {
        self.register.iter().cloned().collect()
    }

    /// The settings of ZooKeeper. Reads the file, if one is named.
    pub(crate) fn zookeeper(&self) -> Result<ZookeeperSettings> {
        match (&self.config, &self.zookeeper) {
            (Some(path), _) => Ok(RealFile::parse(&read_text(path)?, &path.display().to_string())?.zookeeper),
            (None, Some(servers)) => Ok(ZookeeperSettings::new(servers)),
            (None, None) => bail!("--zookeeper and --config are missing: name one"),
        }
    }

    /// The real's name.
    pub(crate) fn real_name(&self) -> Result<RealName> {
        match &self.name {
            Some(name) => Ok(name.clone()),
            None => {
                let hostname = fs::read_to_string("/proc/sys/kernel/hostname")
                    .context("cannot read the host name; name the real by --name")?;
                hostname.trim().parse().context("the host name cannot be the real's; choose one by --name")
            }
        }
    }

    /// The real's address, given those that `interface` has.
    pub(crate) fn real_address(&self, interface: &str, addresses: &BTreeSet<IpAddr>) -> Result<IpAddr> {
        match (self.address, addresses.iter().collect::<Vec<_>>().as_slice()) {
            (Some(address), _) => Ok(address),
            (None, [address]) => Ok(**address),
            (None, []) => {
                bail!("{interface} has no address of its own: name the one that nodes reach by --address")
            }
            (None, several) => {
                let several: Vec<String> = several.iter().map(ToString::to_string).collect();
                bail!(
                    "{interface} has several addresses ({}): name the one that nodes are to send to by --address",
                    several.join(", ")
                )
            }
        }
    }

    /// Time between leaving the VIPs and ending.
    pub(crate) fn drain_wait(&self) -> Duration {
        Duration::from_millis(self.drain_wait_ms.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_the_interfaces_only_one_or_must_be_named() {
        let choose = |named: Option<&str>, there: &[&str]| {
            let options =
                Options { address: named.map(|address| address.parse().unwrap()), ..Options::default() };
            let there = there.iter().map(|address| address.parse().unwrap()).collect();
            options.real_address("eth0", &there).map(|address| address.to_string()).map_err(|e| e.to_string())
        };
        assert_eq!(choose(None, &["10.0.0.7"]).unwrap(), "10.0.0.7");
        assert_eq!(choose(Some("10.0.0.8"), &["10.0.0.7"]).unwrap(), "10.0.0.8");
        let ambiguous = choose(None, &["10.0.0.7", "2001:db8::7"]).unwrap_err();
        assert!(
            ambiguous.contains("10.0.0.7, 2001:db8::7") && ambiguous.contains("--address"),
            "{ambiguous}"
        );
        assert!(choose(None, &[]).unwrap_err().contains("eth0 has no address of its own"));
    }
}
