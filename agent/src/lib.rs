//! The side of a real: takes the nodes' outer headers off and gives the VIPs to the host, so that a
//! server that knows nothing of Drover answers for them. Answers go to the client directly.
//!
//! [`run`] brings a bare host to that state and keeps it there; [`detach`] undoes it. In between the
//! state is the kernel's: the program stays on the interface and the VIPs on the loopback while no
//! process runs.
//!
//! In a cluster, [`registration`] has the host in the tree for as long as the process runs, and learns VIPs and nodes
//! from there.
//!
//! For a real that is reached without encapsulation (L2 direct server return) there is nothing to
//! decapsulate, but the VIPs on the loopback and the ARP settings are what it needs too.

mod load;
mod network;
mod pins;
mod prefix;
mod program;
pub mod registration;
mod status;

pub use prefix::{Prefix, PrefixError};

use admin::auth::ServerFiles;
use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use host::attached;
use host::bpffs;
use host::log_limit::LogLimit;
use host::netlink::Netlink;
use host::notify::Notifier;
use host::signals::Signals;
use host::supervisor::Supervisor;
use lb_ebpf::real::{DEFAULT_GUE_PORT, LAYOUT, MAX_ADDRESSES};
use network::{Host, Journal};
use pins::Pins;
use program::Program;
use registration::{Learnt, Registration, Standing};
use rtnetlink::MulticastGroup;
use std::collections::BTreeSet;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use zk_schema::is_interface_name;

/// The BPF object of a real's decapsulation (`drover-real` of `lb-ebpf`), for who runs it without the agent.
pub static DECAPSULATION: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/drover-real"));

/// How often the host is looked at even though netlink has told of no change: notifications can be
/// lost, and ARP settings change without one.
const REREAD: Duration = Duration::from_secs(30);

/// How long changes are collected before they are acted upon; they come in bursts.
const SETTLE: Duration = Duration::from_millis(50);

/// What `lb-node real` is told.
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

    /// Who may ask there.
    #[command(flatten)]
    pub admin_files: ServerFiles,

    /// Directory on a BPF file system that keeps program and counters while no process runs.
    ///
    /// A BPF file system is mounted on /sys/fs/bpf if there is none.
    #[arg(long, value_name = "DIRECTORY", default_value = bpffs::DEFAULT)]
    pub bpffs: PathBuf,

    /// How the program is attached.
    ///
    /// Native mode needs support by the interface's driver; generic mode works everywhere and is slower.
    #[arg(long, value_enum, default_value_t)]
    pub xdp_mode: XdpMode,

    /// How the host is registered with a cluster.
    #[command(flatten)]
    pub registration: registration::Options,
}

/// How an XDP program is attached.
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
fn validate_interface(name: &str) -> Result<()> {
    ensure!(
        is_interface_name(name),
        "--interface {name:?}: not the name of a network interface (`ip link` lists them)"
    );
    Ok(())
}

/// Makes this host a real and keeps it one until SIGTERM or SIGINT. Program and VIPs stay when this
/// returns: see [`detach`].
///
/// # Errors
///
/// When the options are wrong, when another process is at work on the interface, or when the kernel
/// refuses something; the host may then be left half-way, which a later call or [`detach`] mends.
pub async fn run(options: Options) -> Result<()> {
    run_until(options, Signals::new()?.wait()).await
}

/// As [`run`], until `stop` is ready. The future may be dropped at any point, with the effect of a
/// crash there.
///
/// # Errors
///
/// As [`run`].
pub async fn run_until(options: Options, stop: impl Future<Output = ()>) -> Result<()> {
    options.validate()?;
    let (connection, netlink, mut changes) = rtnetlink::new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
    ])
    .context("cannot open a netlink socket")?;
    let supervisor = Supervisor::default();
    let _connection = supervisor.spawn("netlink", connection);
    let host = Host::new(Netlink::from(netlink));
    let registrar = match options.registration.is_wanted() {
        true => Some(Registration::prepare(&options, &host).await?),
        false => None,
    };
    let (mut real, counters) = Real::start(options, host).await?;
    let mut notifier = Notifier::from_env(REREAD);
    notifier.ready();
    let in_place = watch::Sender::new(real.in_place());
    let mut registration =
        registrar.map(|prepared| prepared.start(&supervisor, in_place.subscribe(), real.before.clone()));
    let standing = registration.as_ref().map(Registration::standing);
    let _admin = match real.options.admin {
        Some(address) => {
            let pages =
                status::serve(address, &real.options.admin_files, real.status(standing.clone()), counters)
                    .await?;
            Some(supervisor.spawn("admin pages", pages))
        }
        None => None,
    };
    let mut stop = pin!(stop);
    let mut reread = tokio::time::interval(REREAD);
    reread.set_missed_tick_behavior(MissedTickBehavior::Delay);
    reread.reset();
    let mut listening = true;
    let mut log_limit = LogLimit::new(3, Duration::from_secs(60));
    loop {
        notifier.status(&real.summary(standing.as_ref()));
        tokio::select! {
            () = &mut stop => break,
            fault = supervisor.fault() => return Err(fault.into()),
            _ = reread.tick() => {}
            learnt = async { registration.as_mut()?.learnt().await }, if registration.is_some() => {
                match learnt {
                    Some(learnt) => real.learn(learnt),
                    None => return Err(supervisor.fault().await.into()),
                }
            }
            change = changes.next(), if listening => {
                if change.is_none() {
                    tracing::warn!("netlink tells of no more changes: looking every {REREAD:?} instead");
                    listening = false;
                }
                tokio::time::sleep(SETTLE).await;
                while changes.try_recv().is_ok() {}
            }
        }
        let outcome = real.reconcile().await;
        // What the host's own settings stand in the way of, a restart would not bring about either.
        let is_well = outcome.is_ok() || real.obstacle.borrow().is_some();
        notifier.alive(is_well && supervisor.hung().is_empty());
        match outcome {
            // From its first success on, whether the host takes packets is for the nodes' probes to tell.
            Ok(()) => drop(in_place.send_replace(real.in_place())),
            Err(error) => {
                if let Some(skipped) = log_limit.allows(tokio::time::Instant::now()) {
                    tracing::error!(
                        skipped,
                        "cannot bring this host to the wanted state, trying again later: {error:#}"
                    );
                }
            }
        }
    }
    notifier.stopping(real.options.registration.drain_wait(), "stopping; the program stays on the interface");
    if let Some(registration) = registration {
        registration.stop().await;
        tokio::time::sleep(real.options.registration.drain_wait()).await;
    }
    tracing::info!(interface = real.options.interface, "stopping; the program stays on the interface");
    Ok(())
}

/// Undoes what [`run`] has done on an interface: takes the program off it and off the BPF file system,
/// the VIPs that it added off the loopback, and restores the ARP settings that it changed. Does nothing
/// where there is nothing to undo.
///
/// # Errors
///
/// When a process is still at work on the interface, or the kernel refuses something; what was not
/// undone yet is undone by the next call.
pub async fn detach(interface: &str, bpffs: &Path) -> Result<()> {
    validate_interface(interface)?;
    let Some(pins) = Pins::open_existing(bpffs, interface, LAYOUT)? else {
        tracing::info!(interface, "nothing to detach");
        return Ok(());
    };
    let host = Host::new(Netlink::open()?);
    program::remove_link(&host, interface, &pins).await?;
    Journal::open(&pins)?.undo_all(&host, interface).await?;
    pins.remove(bpffs)
}

/// A host that is being kept a real.
#[derive(Debug)]
struct Real {
    options: Options,
    /// The VIPs to take packets for.
    vips: watch::Sender<BTreeSet<IpAddr>>,
    from: BTreeSet<Prefix>,
    /// What it goes by until it has learnt better.
    before: Learnt,
    has_learnt: bool,
    host: Host,
    pins: Pins,
    program: Program,
    journal: Journal,
    /// What keeps the VIPs from being on the loopback as they should, if anything.
    obstacle: watch::Sender<Option<String>>,
}

impl Real {
    async fn start(options: Options, host: Host) -> Result<(Self, program::Counters)> {
        host.interface_index(&options.interface).await?;
        let pins = Pins::open(&options.bpffs, &options.interface, LAYOUT)?;
        let (program, counters) = Program::load(&pins, options.gue_port)?;
        let journal = Journal::open(&pins)?;
        // What is to be learnt is as a predecessor had it, until then.
        let vips = match options.vips.is_empty() {
            true => &program.vips()? | &journal.vips()?,
            false => options.vips.iter().copied().collect(),
        };
        let sources = if options.from.is_empty() { program.single_sources()? } else { BTreeSet::new() };
        let from = match options.from.is_empty() {
            true => sources.iter().copied().map(Prefix::from).collect(),
            false => options.from.iter().copied().collect(),
        };
        let before = Learnt { vips: vips.clone(), sources };
        let vips = watch::Sender::new(vips);
        let has_learnt = false;
        let obstacle = watch::Sender::new(None);
        let mut real =
            Self { options, vips, from, before, has_learnt, host, pins, program, journal, obstacle };
        match real.reconcile().await {
            Err(error) if real.obstacle.borrow().is_some() => {
                // Somebody else has to mend it; a process that ended would be started again and again meanwhile.
                tracing::error!("this host cannot serve its VIPs, trying again later: {error:#}");
            }
            outcome => outcome?,
        }
        real.pins.remove_other_layouts()?;
        tracing::info!(
            interface = real.options.interface,
            vips = real.vips.borrow().len(),
            from = real.from.len(),
            gue_port = real.options.gue_port,
            "this host is a real"
        );
        if !real.is_complete() {
            tracing::info!("waiting for ZooKeeper to tell of VIPs and nodes; as before until then");
        }
        Ok((real, counters))
    }

    /// Whether nothing is left to be learnt before packets can be taken as they should.
    fn is_complete(&self) -> bool {
        self.has_learnt || !(self.options.vips.is_empty() || self.options.from.is_empty())
    }

    /// The VIPs that it takes packets for as it should, given that the host is in the wanted state.
    fn in_place(&self) -> BTreeSet<IpAddr> {
        let is_in_place = self.is_complete() && self.obstacle.borrow().is_none();
        if is_in_place { self.vips.borrow().clone() } else { BTreeSet::new() }
    }

    /// Takes over what was not told on the command line.
    fn learn(&mut self, learnt: Learnt) {
        self.has_learnt = true;
        if self.options.vips.is_empty() {
            self.vips.send_replace(learnt.vips);
        }
        if self.options.from.is_empty() {
            self.from = learnt.sources.into_iter().map(Prefix::from).collect();
        }
    }

    /// Brings the program's sets, its place on the interface, and the loopback to the wanted state.
    async fn reconcile(&mut self) -> Result<()> {
        // Any address of the host may be the tunnel's end, for instance one of a VLAN on the interface,
        // or a routed one on the loopback; a VIP never is.
        let vips = self.vips.borrow().clone();
        let local = &self.host.addresses().await? - &vips;
        self.program.set_local(&local)?;
        self.program.set_sources(&self.from)?;
        self.program.set_vips(&vips)?;
        let interface = &self.options.interface;
        let index = self.host.interface_index(interface).await?;
        if let Err(why) = attached::check(&self.pins.link(), self.program.id(), index) {
            tracing::debug!(interface, "attaching the program: {why}");
            self.program.attach(&self.host, interface, self.options.xdp_mode, &self.pins).await?;
        }
        let applied = self.journal.apply(&self.host, interface, &vips).await;
        self.obstacle.send_replace(applied.as_ref().err().map(|error| format!("{error:#}")));
        applied
    }

    /// How it is, in one line.
    fn summary(&self, standing: Option<&watch::Receiver<Standing>>) -> String {
        let mut problems: Vec<String> = self.obstacle.borrow().iter().cloned().collect();
        problems.extend(standing.into_iter().flat_map(|standing| standing.borrow().problems()));
        let vips = self.vips.borrow().len();
        let problems = problems.iter().map(|problem| format!("; {problem}")).collect::<String>();
        format!("decapsulating on {} for {vips} VIPs{problems}", self.options.interface)
    }

    fn status(&self, registration: Option<watch::Receiver<Standing>>) -> status::Status {
        status::Status {
            host: self.host.clone(),
            interface: self.options.interface.clone(),
            program: self.program.id(),
            link: self.pins.link(),
            obstacle: self.obstacle.subscribe(),
            vips: self.vips.subscribe(),
            registration,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

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
