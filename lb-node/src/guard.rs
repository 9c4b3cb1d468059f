//! The guard: withdraws a node's VIPs when its daemon gives no sign of life, though the kernel forwards on and BIRD
//! announces on.
//!
//! A daemon that is away for the time of a restart costs nothing, and must cost nothing. One that stays away, or hangs, learns
//! nothing: packets that reach it go by tables that everybody else has left. So the daemon writes a [`Pulse`] with
//! each turn of its control loop, and a [`Guard`], a process of its own, withdraws when there has been none for longer than a
//! restart takes. ZooKeeper has no part in it: a daemon that is cut off lives.

use crate::front::{AnnounceError, Announcer, Driver};
use crate::node::read_node_file;
use anyhow::{Context as _, Result};
use host::identity::boot_id;
use host::notify::Notifier;
use host::signals::Signals;
use std::fs::OpenOptions;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{error, info, warn};
use zk_schema::{FrontDriver, NodeOverrides};

/// Time between a daemon's signs of life.
pub(crate) const PULSE_EVERY: Duration = Duration::from_secs(1);

/// Time between the guard's looks for one.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Time after which a guard that has withdrawn looks whether that is still so.
const AGAIN_EVERY: Duration = Duration::from_secs(5);

/// The longest time between the guard's own turns, for its service manager.
const OWN_TURN: Duration = Duration::from_secs(15);

/// The file by which a daemon shows that it lives: the boot that it runs in, and a number that rises.
#[derive(Clone, Debug)]
pub struct Pulse {
    path: PathBuf,
    boot: String,
}

impl Pulse {
    /// The pulse of the daemon that writes `bird_file`, in the boot that [`boot_id`] names.
    #[must_use]
    pub fn new(bird_file: &Path, boot: &str) -> Self {
        Self { path: bird_file.with_extension("alive"), boot: boot.to_owned() }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives a sign of life, at this monotonic time of the host.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn beat(&self, now: Duration) -> io::Result<()> {
        if let Some(directory) = self.path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o644).open(&self.path)?;
        // The same length each time, in place: it needs no room, and nothing else is left in the file.
        file.write_all_at(format!("{} {:020}\n", self.boot, now.as_millis()).as_bytes(), 0)
    }

    /// The last sign of life of this boot; `None` where there is none that can be read.
    fn last(&self) -> Option<u128> {
        let text = std::fs::read_to_string(&self.path).ok()?;
        let (boot, number) = text.lines().next()?.split_once(' ')?;
        number.parse().ok().filter(|_| boot == self.boot)
    }
}

/// The host's monotonic time.
pub(crate) fn monotonic() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::try_from(now).unwrap_or_default()
}

/// Runs the guard of the node with this file until SIGTERM or SIGINT. What it has withdrawn stays so.
///
/// # Errors
/// If the file is wrong, or the driver that it names cannot be used.
pub async fn run(file: &Path, instead: &NodeOverrides) -> Result<()> {
    let signals = Signals::new()?;
    let settings = read_node_file(file, instead)?.front;
    let mut notifier = Notifier::from_env(OWN_TURN);
    let Some(patience) = settings.withdraw_after().filter(|_| settings.driver != FrontDriver::None) else {
        notifier.ready();
        info!("nothing to guard: front.driver is \"none\", or front.withdraw_after_ms is 0");
        return Ok(());
    };
    let boot = boot_id().context("cannot read this machine's boot id")?;
    let announcer = Driver::open(&settings, &boot)?;
    let guard = Guard::new(announcer, Pulse::new(&settings.bird_file, &boot), patience);
    info!(pulse = %guard.pulse.path().display(), ?patience, "watching the daemon's sign of life");
    guard.run(notifier, signals.wait()).await;
    Ok(())
}

/// Withdraws what a silent daemon announced.
#[derive(Debug)]
pub struct Guard<A> {
    announcer: A,
    pulse: Pulse,
    silence: Silence,
    /// The time at which to withdraw again, while the daemon is silent.
    withdraw_at: Option<Instant>,
    problem: Option<String>,
}

impl<A: Announcer> Guard<A> {
    /// A guard that withdraws by `announcer` when `pulse` has not changed for `patience`.
    #[must_use]
    pub fn new(announcer: A, pulse: Pulse, patience: Duration) -> Self {
        Self { announcer, pulse, silence: Silence::new(patience), withdraw_at: None, problem: None }
    }

    async fn run(mut self, mut notifier: Notifier, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        notifier.ready();
        loop {
            tokio::select! {
                biased;
                () = &mut stop => return,
                _ = looks.tick() => {}
            }
            self.look().await;
            notifier.alive(true);
            notifier.status(match (&self.problem, self.withdraw_at) {
                (Some(problem), _) => problem,
                (None, Some(_)) => "the daemon gives no sign of life: its VIPs are withdrawn",
                (None, None) => "watching the daemon",
            });
        }
    }

    /// Looks for a sign of life, and withdraws if there has been none for too long.
    async fn look(&mut self) {
        let now = Instant::now();
        if !self.silence.lasts(self.pulse.last(), now) {
            if self.withdraw_at.take().is_some() {
                info!("the daemon is alive again, and announces by itself");
            }
            self.problem = None;
            return;
        }
        if self.withdraw_at.is_none() {
            error!(patience = ?self.silence.patience, "the daemon gives no sign of life: withdrawing its VIPs");
        }
        if self.withdraw_at.is_none_or(|at| now >= at) {
            let outcome = self.withdraw().await;
            self.note(outcome);
        }
    }

    async fn withdraw(&mut self) -> Result<(), AnnounceError> {
        // What was announced when this process started is long out of date.
        let _ = self.announcer.check().await;
        let before = self.announcer.announced().clone();
        self.announcer.withdraw_all().await?;
        if !before.is_empty() {
            let addresses: Vec<String> = before.iter().map(IpAddr::to_string).collect();
            warn!(addresses = addresses.join(", "), "withdrawn for a daemon that gives no sign of life");
        }
        Ok(())
    }

    fn note(&mut self, outcome: Result<(), AnnounceError>) {
        let pause = if outcome.is_ok() { AGAIN_EVERY } else { LOOK_EVERY };
        self.withdraw_at = Some(Instant::now() + pause);
        let problem = outcome.err().map(|error| error.to_string());
        if let Some(problem) = problem.as_ref().filter(|problem| self.problem.as_ref() != Some(*problem)) {
            error!(problem, "cannot withdraw; trying again");
        }
        self.problem = problem;
    }
}

/// For how long a pulse has not changed while it was looked at.
#[derive(Debug)]
struct Silence {
    patience: Duration,
    last: Option<u128>,
    looked: Option<Instant>,
    observed: Duration,
}

impl Silence {
    fn new(patience: Duration) -> Self {
        Self { patience, last: None, looked: None, observed: Duration::ZERO }
    }

    /// Returns whether the silence has lasted too long, given what the pulse says now. Where there never was one, there
    /// is nothing to be silent.
    ///
    /// Time counts only as far as it was observed: when the host as a whole stood still, or this process did, the daemon
    /// gets its chance first.
    fn lasts(&mut self, pulse: Option<u128>, now: Instant) -> bool {
        let since = self.looked.replace(now).map_or(Duration::ZERO, |looked| now.duration_since(looked));
        match pulse {
            // A pulse that cannot be read, after one that could, is silence.
            Some(_) if pulse != self.last => {
                self.last = pulse;
                self.observed = Duration::ZERO;
            }
            _ => self.observed += since.min(2 * LOOK_EVERY),
        }
        self.last.is_some() && self.observed >= self.patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::sync::{Arc, Mutex};

    const PATIENCE: Duration = Duration::from_secs(10);
    const SECOND: Duration = Duration::from_secs(1);

    /// The addresses that BIRD announces, which daemon and guard change alike.
    #[derive(Clone, Default)]
    struct Shared {
        bird: Arc<Mutex<BTreeSet<IpAddr>>>,
        known: BTreeSet<IpAddr>,
        failing: Arc<Mutex<bool>>,
    }

    impl Announcer for Shared {
        fn announced(&self) -> &BTreeSet<IpAddr> {
            &self.known
        }

        async fn replace(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), AnnounceError> {
            if *self.failing.lock().unwrap() {
                let socket = PathBuf::from("/run/bird.ctl");
                return Err(AnnounceError::Connect { socket, source: io::ErrorKind::NotFound.into() });
            }
            self.bird.lock().unwrap().clone_from(addresses);
            self.known.clone_from(addresses);
            Ok(())
        }

        async fn check(&mut self) -> Result<(), AnnounceError> {
            self.known.clone_from(&self.bird.lock().unwrap());
            Ok(())
        }
    }

    struct Host {
        guard: Guard<Shared>,
        bird: Shared,
        pulse: Pulse,
        beats: u64,
        _folder: tempfile::TempDir,
    }

    impl Host {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let pulse = Pulse::new(&folder.path().join("made/bird.conf"), "boot-1");
            let bird = Shared::default();
            let guard = Guard::new(bird.clone(), pulse.clone(), PATIENCE);
            let host = Self { guard, bird, pulse, beats: 0, _folder: folder };
            host.announce();
            host
        }

        fn announce(&self) {
            self.bird.bird.lock().unwrap().insert([198, 51, 100, 1].into());
        }

        fn announces(&self) -> bool {
            !self.bird.bird.lock().unwrap().is_empty()
        }

        async fn pass(&mut self, time: Duration, alive: bool) {
            let end = Instant::now() + time;
            while Instant::now() < end {
                if alive {
                    self.beats += 1;
                    self.pulse.beat(Duration::from_millis(self.beats)).unwrap();
                }
                tokio::time::advance(LOOK_EVERY).await;
                self.guard.look().await;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_is_silent_for_too_long_is_withdrawn_and_announces_itself_again() {
        let mut host = Host::new();
        host.pass(60 * SECOND, true).await;
        assert!(host.announces());
        host.pass(PATIENCE - SECOND, false).await;
        assert!(host.announces(), "a restart must fit in");
        host.pass(2 * SECOND, false).await;
        assert!(!host.announces());
        host.pass(SECOND, true).await;
        assert!(!host.announces(), "what it announces is the daemon's own affair");
        host.announce();
        host.pass(60 * SECOND, true).await;
        assert!(host.announces());
    }

    #[tokio::test(start_paused = true)]
    async fn a_restart_in_time_loses_nothing() {
        let mut host = Host::new();
        for _ in 0..5 {
            host.pass(3 * SECOND, true).await;
            host.pass(PATIENCE - SECOND, false).await;
        }
        assert!(host.announces());
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_first_sign_of_life_of_this_boot_there_is_nothing_to_guard() {
        let mut host = Host::new();
        host.pass(100 * SECOND, false).await;
        assert!(host.announces(), "a daemon of a version without a pulse");
        Pulse { boot: "boot-0".into(), ..host.pulse.clone() }.beat(SECOND).unwrap();
        host.pass(100 * SECOND, false).await;
        assert!(host.announces(), "a pulse from before this boot");
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_stood_still_as_a_whole_withdraws_nothing() {
        let mut host = Host::new();
        host.pass(3 * SECOND, true).await;
        tokio::time::advance(3600 * SECOND).await;
        host.guard.look().await;
        assert!(host.announces(), "the guard woke up first");
        host.pass(3 * SECOND, true).await;
        assert!(host.announces());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pulse_that_vanishes_or_breaks_is_silence() {
        let mut host = Host::new();
        host.pass(3 * SECOND, true).await;
        std::fs::write(host.pulse.path(), "\u{0}").unwrap();
        host.pass(PATIENCE + SECOND, false).await;
        assert!(!host.announces());
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_withdrawn_is_tried_again_and_what_comes_back_is_withdrawn_again() {
        let mut host = Host::new();
        host.pass(SECOND, true).await;
        *host.bird.failing.lock().unwrap() = true;
        host.pass(PATIENCE + 3 * SECOND, false).await;
        assert!(host.announces() && host.guard.problem.is_some());
        *host.bird.failing.lock().unwrap() = false;
        host.pass(SECOND, false).await;
        assert!(!host.announces() && host.guard.problem.is_none());
        // BIRD was restarted, perhaps, on a file that somebody had kept.
        host.announce();
        host.pass(AGAIN_EVERY + SECOND, false).await;
        assert!(!host.announces());
    }
}
