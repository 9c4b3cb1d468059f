//! The command line of `lb-node real`.

use crate::Prefix;
use crate::registration;
use admin::auth::ServerFiles;
use anyhow::{Result, ensure};
use host::bpffs;
use lb_ebpf::real::{DEFAULT_GUE_PORT, MAX_ADDRESSES};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use zk_schema::is_interface_name;

/// The options of `lb-node real`.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Interface that the nodes' packets arrive on.
    ///
    /// The decapsulation program is attached to it. For packets in a VLAN name the physical interface
    /// (eth0), not the VLAN on it (eth0.100): tags are understood.
    #[arg(long, value_name = "NAME")]
    pub interface: String,

    /// A VIP that this host serves. Repeat for each.
    ///
    /// It is put on the loopback as /32 or /128 unless it is there already, and taken off again when it
    /// is no longer named, or by `lb-node detach`. Let the server listen on it, or on all addresses. May be left out with
    /// --register.
    #[arg(long = "vip", value_name = "ADDRESS", required_unless_present = "register")]
    pub vips: Vec<IpAddr>,

    /// A node that may send packets through a tunnel: its address, or a prefix. Repeat for each.
    ///
    /// Tunnel packets of anyone else are dropped and counted (reason unknown_source). Examples:
    /// 10.0.0.7, 10.0.0.0/24, 2001:db8:1::/64. May be left out with --register.
    #[arg(long = "from", value_name = "ADDRESS[/LENGTH]", required_unless_present = "register")]
    pub from: Vec<Prefix>,

    /// UDP port that Generic UDP Encapsulation arrives on.
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_GUE_PORT,
          value_parser = clap::value_parser!(u16).range(1..))]
    pub gue_port: u16,

    /// Address and port of /healthz, /readyz, /status and /metrics.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9941")]
    pub admin: Option<SocketAddr>,

    /// Files that say who may ask there.
    #[command(flatten)]
    pub admin_files: ServerFiles,

    /// Directory on a BPF file system that keeps program and counters while no process runs.
    ///
    /// A BPF file system is mounted on /sys/fs/bpf if there is none.
    #[arg(long, value_name = "DIRECTORY", default_value = bpffs::DEFAULT)]
    pub bpffs: PathBuf,

    /// Mode in which the program is attached.
    ///
    /// Native mode needs support by the interface's driver; generic mode works everywhere and is slower.
    #[arg(long, value_enum, default_value_t)]
    pub xdp_mode: XdpMode,

    /// Registration with a cluster.
    #[command(flatten)]
    pub registration: registration::Options,
}

/// The mode in which an XDP program is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum XdpMode {
    /// Native where the driver can, else generic with a warning.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the network stack.
    Generic,
}

impl Options {
    /// Checks what the types do not.
    ///
    /// # Errors
    ///
    /// Names the flag, the value, and what is expected of it.
    pub fn validate(&self) -> Result<()> {
        validate_interface(&self.interface)?;
        self.registration.validate()?;
        let learns = self.registration.is_wanted();
        ensure!(
            learns || !self.vips.is_empty(),
            "--vip is missing: name at least one VIP that this host serves"
        );
        ensure!(
            learns || !self.from.is_empty(),
            "--from is missing: name the nodes, else every packet is refused"
        );
        for (flag, count) in [("--vip", self.vips.len()), ("--from", self.from.len())] {
            ensure!(
                u32::try_from(count).is_ok_and(|count| count <= MAX_ADDRESSES),
                "{flag} is given {count} times: at most {MAX_ADDRESSES} fit"
            );
        }
        for vip in &self.vips {
            let mapped = matches!(vip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
            let link_local = match vip {
                IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
                IpAddr::V6(v6) => v6.is_unicast_link_local(),
            };
            ensure!(
                !(vip.is_unspecified() || vip.is_loopback() || vip.is_multicast() || mapped || link_local),
                "--vip {vip}: a VIP is a unicast address that clients can reach, written in its own family"
            );
        }
        ensure!(self.gue_port != 0, "--gue-port 0: a UDP port is 1..=65535, {DEFAULT_GUE_PORT} by default");
        Ok(())
    }
}

/// The name is part of file names, so it must be one that the kernel would take.
pub(crate) fn validate_interface(name: &str) -> Result<()> {
    ensure!(
        is_interface_name(name),
        "--interface {name:?}: not the name of a network interface (`ip link` lists them)"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::path::Path;

    #[derive(Debug, Parser)]
    struct Front {
        #[command(flatten)]
        options: Options,
    }

    fn parse(arguments: &str) -> Result<Options> {
        let options = Front::try_parse_from(std::iter::once("real").chain(arguments.split(' ')))?.options;
        options.validate()?;
        Ok(options)
    }

    #[test]
    fn three_flags_are_enough() {
        let options = parse("--interface eth0 --vip 198.51.100.1 --from 10.0.0.0/24").unwrap();
        assert_eq!(options.gue_port, 6080);
        assert_eq!(options.admin, Some("127.0.0.1:9941".parse().unwrap()));
        assert_eq!(options.bpffs, Path::new("/sys/fs/bpf/drover"));
        assert_eq!(options.xdp_mode, XdpMode::Auto);
    }

    #[test]
    fn a_real_of_a_cluster_learns_vips_and_nodes_from_the_tree() {
        let options = parse("--interface eth0 --register mqtt --register web --zookeeper zk-1:2181").unwrap();
        let names: Vec<&str> = options.registration.register.iter().map(|vip| vip.as_str()).collect();
        assert_eq!(names, ["mqtt", "web"]);
        assert!(options.vips.is_empty() && options.from.is_empty());
        assert_eq!(options.registration.weight, 100);
        parse("--interface eth0 --register mqtt --config /etc/drover/real.toml").unwrap();
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let refused = |arguments: &str, word: &str| {
            let error = format!("{:#}", parse(arguments).unwrap_err());
            assert!(error.contains(word), "{arguments}: {error}");
        };
        refused("--interface ../x --vip 198.51.100.1 --from 10.0.0.1", "--interface");
        refused("--interface eth0 --from 10.0.0.1", "--vip");
        refused("--interface eth0 --vip 198.51.100.1", "--from");
        refused("--interface eth0 --register mqtt", "--zookeeper");
        refused("--interface eth0 --register mqtt --zookeeper zk-1:port", "zk-1:port");
        refused("--interface eth0 --register MQTT --zookeeper zk-1:2181", "MQTT");
        refused("--interface eth0 --vip 198.51.100.1 --from 10.0.0.1 --weight 1", "--register");
        refused("--interface eth0 --vip 127.0.0.2 --from 10.0.0.1", "127.0.0.2");
        refused("--interface eth0 --vip ::ffff:192.0.2.1 --from 10.0.0.1", "::ffff:192.0.2.1");
        refused("--interface eth0 --vip fe80::1 --from 10.0.0.1", "fe80::1");
        refused("--interface eth0 --vip 198.51.100.1 --from 10.0.0.1/24", "10.0.0.0/24");
        refused("--interface eth0 --vip 198.51.100.1 --from 10.0.0.1 --gue-port 0", "--gue-port");
    }
}
