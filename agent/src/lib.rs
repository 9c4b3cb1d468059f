//! The agent of a real: takes the nodes' outer headers off packets and gives the VIPs to the host. A server that knows
//! nothing of Drover then answers for them, and its answers go to the client directly.
//!
//! - [`run`] brings a bare host to that state and keeps it there; [`detach`] undoes it. The state is the kernel's: the
//!   program stays on the interface and the VIPs on the loopback while no process runs.
//! - `real` is the loop that reconciles `program` (BPF program and maps, pinned by `pins`) and `journal` (VIPs on the
//!   loopback, ARP settings), over the host's `network`.
//! - In a cluster, [`registration`] keeps the host in the tree for as long as the process runs, and learns VIPs and nodes
//!   from there; `load` counts connections for it.
//! - `status` serves the admin pages.
//!
//! A real that is reached without encapsulation (L2 direct server return) has nothing to decapsulate, but needs the VIPs
//! on the loopback and the ARP settings too.
//!
//! This crate knows nothing of nodes' data planes or of the leader's rules.

mod journal;
mod load;
mod network;
mod options;
mod pins;
mod prefix;
mod program;
mod real;
pub mod registration;
mod status;

pub use options::{Options, XdpMode};
pub use prefix::{Prefix, PrefixError};

use anyhow::Result;
use host::log_limit::LogLimit;
use host::netlink::{self, MulticastGroup, Netlink};
use host::notify::Notifier;
use host::signals::Signals;
use host::supervisor::Supervisor;
use journal::Journal;
use lb_ebpf::real::LAYOUT;
use network::Network;
use options::validate_interface;
use pins::Pins;
use real::Real;
use registration::Registration;
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// The BPF object of a real's decapsulation (`drover-real` of `lb-ebpf`), for tests that run it without the agent.
pub static DECAPSULATION: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/drover-real"));

/// Interval of looks at the host without news from netlink: notifications can be lost, and ARP settings change without
/// one.
const REREAD: Duration = Duration::from_secs(30);

/// Pause after a change, in which others are collected: they come in bursts.
const SETTLE: Duration = Duration::from_millis(50);

/// Makes this host a real and keeps it one until SIGTERM or SIGINT. Program and VIPs stay when this
/// returns: see [`detach`].
///
/// # Errors
///
/// If the options are wrong, another process is at work on the interface, or the kernel refuses something. The host may
/// then be left half-way; a later call or [`detach`] fixes that.
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
    let (connection, netlink, mut changes) = netlink::with_changes(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
    ])?;
    let supervisor = Supervisor::default();
    let _connection = supervisor.spawn("netlink", connection);
    let network = Network::new(netlink);
    let registrar = match options.registration.is_wanted() {
        true => Some(Registration::prepare(&options, &network).await?),
        false => None,
    };
    let (mut real, counters) = Real::start(options, network).await?;
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
            is_change = changes.next(), if listening => {
                if !is_change {
                    tracing::warn!("netlink tells of no more changes: looking every {REREAD:?} instead");
                    listening = false;
                }
                tokio::time::sleep(SETTLE).await;
                changes.clear();
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
/// If a process is still at work on the interface, or the kernel refuses something. The next call undoes the rest.
pub async fn detach(interface: &str, bpffs: &Path) -> Result<()> {
    validate_interface(interface)?;
    let Some(pins) = Pins::open_existing(bpffs, interface, LAYOUT)? else {
        tracing::info!(interface, "nothing to detach");
        return Ok(());
    };
    let network = Network::new(Netlink::open()?);
    program::remove_link(&network, interface, &pins).await?;
    Journal::open(&pins)?.undo_all(&network, interface).await?;
    pins.remove(bpffs)
}
