//! The front: which addresses the routers before this node are told to send here.
//!
//! - [`Announcer`] is a driver: it makes what is announced be a given set of addresses. [`Driver`] is one of those there
//!   are: [`Recorder`] announces to nobody, [`Bird`] by way of a BIRD on the same host.
//! - [`Front`] runs a driver: it announces what has been wanted for long enough, withdraws what is not wanted any more
//!   at once, tries again what failed, and says what is announced.
//! - [`schedule`] decides when to do what; pure.

mod bird;
mod error;
mod metrics;
mod schedule;

pub use bird::Bird;
pub use error::AnnounceError;
pub use metrics::FrontMetrics;
pub use schedule::{Schedule, Step};

use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{error, info};
use zk_schema::{FrontDriver, FrontSettings};

/// Time between questions to a driver whether its addresses are still announced.
const CHECK_EVERY: Duration = Duration::from_secs(5);

/// Attempts to withdraw before the node stops all the same.
const LAST_ATTEMPTS: u32 = 3;

/// Pause between these attempts.
const LAST_PAUSE: Duration = Duration::from_millis(500);

/// A driver: tells routers which addresses this node serves.
///
/// What is announced is a set of addresses; making it what it is already is no error and changes nothing. After an error
/// what is announced may be the old set or the new one; [`announced`](Self::announced) says what is known of it, and
/// the caller tries again.
pub trait Announcer: Send + 'static {
    /// Returns the addresses announced, as far as the driver knows. At first that is what a predecessor of this process
    /// has left, if it is known to have done so since the host booted.
    fn announced(&self) -> &BTreeSet<IpAddr>;

    /// Announces these addresses and no others.
    ///
    /// # Errors
    ///
    /// If that could not be done, or could not be seen to be done.
    fn replace(
        &mut self,
        addresses: &BTreeSet<IpAddr>,
    ) -> impl Future<Output = Result<(), AnnounceError>> + Send;

    /// Finds out what is announced, changing nothing.
    ///
    /// # Errors
    ///
    /// If that cannot be found out, or is not what it was last made to be.
    fn check(&mut self) -> impl Future<Output = Result<(), AnnounceError>> + Send;

    /// Announces an address, beside those that are.
    ///
    /// # Errors
    ///
    /// As [`replace`](Self::replace).
    fn announce(&mut self, address: IpAddr) -> impl Future<Output = Result<(), AnnounceError>> + Send {
        async move {
            let mut addresses = self.announced().clone();
            addresses.insert(address);
            self.replace(&addresses).await
        }
    }

    /// Announces an address no longer.
    ///
    /// # Errors
    ///
    /// As [`replace`](Self::replace).
    fn withdraw(&mut self, address: IpAddr) -> impl Future<Output = Result<(), AnnounceError>> + Send {
        async move {
            let mut addresses = self.announced().clone();
            addresses.remove(&address);
            self.replace(&addresses).await
        }
    }

    /// Announces nothing any more.
    ///
    /// # Errors
    ///
    /// As [`replace`](Self::replace).
    fn withdraw_all(&mut self) -> impl Future<Output = Result<(), AnnounceError>> + Send {
        async move { self.replace(&BTreeSet::new()).await }
    }
}

/// The driver `none`: keeps account of what would be announced.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    announced: BTreeSet<IpAddr>,
}

impl Announcer for Recorder {
    fn announced(&self) -> &BTreeSet<IpAddr> {
        &self.announced
    }

    async fn replace(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), AnnounceError> {
        self.announced.clone_from(addresses);
        Ok(())
    }

    async fn check(&mut self) -> Result<(), AnnounceError> {
        Ok(())
    }
}

/// A driver that the node's file chose.
#[derive(Debug)]
pub enum Driver {
    /// `none`.
    None(Recorder),
    /// `bird`.
    Bird(Bird),
}

impl Driver {
    /// The driver of these settings. Nothing is changed yet. `boot_id` tells this boot of the host from others;
    /// see [`boot_id`](host::identity::boot_id).
    ///
    /// # Errors
    ///
    /// As [`Bird::open`].
    pub fn open(settings: &FrontSettings, boot_id: &str) -> Result<Self, AnnounceError> {
        Ok(match settings.driver {
            FrontDriver::None => Self::None(Recorder::default()),
            FrontDriver::Bird => Self::Bird(Bird::open(&settings.bird_file, &settings.bird_socket, boot_id)?),
        })
    }
}

impl Announcer for Driver {
    fn announced(&self) -> &BTreeSet<IpAddr> {
        match self {
            Self::None(recorder) => recorder.announced(),
            Self::Bird(bird) => bird.announced(),
        }
    }

    async fn replace(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), AnnounceError> {
        match self {
            Self::None(recorder) => recorder.replace(addresses).await,
            Self::Bird(bird) => bird.replace(addresses).await,
        }
    }

    async fn check(&mut self) -> Result<(), AnnounceError> {
        match self {
            Self::None(recorder) => recorder.check().await,
            Self::Bird(bird) => bird.check().await,
        }
    }
}

/// The state of the front.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrontStatus {
    /// The addresses to announce, if that stays so for the hold.
    pub wanted: BTreeSet<IpAddr>,
    /// The addresses announced, as far as is known.
    pub announced: BTreeSet<IpAddr>,
    /// Addresses that were announced, counted once for each time.
    pub announcements: u64,
    /// Addresses that were withdrawn, counted once for each time.
    pub withdrawals: u64,
    /// Times that the driver has failed.
    pub errors: u64,
    /// The driver's problem, if there is one.
    pub problem: Option<String>,
}

/// Keeps what is announced in step with what is wanted, by a driver.
#[derive(Debug)]
pub struct Front<A> {
    announcer: A,
    schedule: Schedule,
    status: watch::Sender<FrontStatus>,
}

impl<A: Announcer> Front<A> {
    /// A front that announces an address once it has been wanted for `hold` without a break; what the driver
    /// has found announced already need not wait.
    #[must_use]
    pub fn new(announcer: A, hold: Duration) -> Self {
        let announced = announcer.announced().clone();
        let schedule = Schedule::new(announced.clone(), hold, Instant::now().into_std());
        let (status, _) = watch::channel(FrontStatus { announced, ..FrontStatus::default() });
        Self { announcer, schedule, status }
    }

    /// Returns the addresses announced, and the problem. It has its last value when [`run`](Self::run) has returned.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<FrontStatus> {
        self.status.subscribe()
    }

    /// Announces what is `wanted` until `shutdown` comes, then withdraws everything and returns.
    ///
    /// What was announced when the daemon started stays so only while it is wanted: give the channel the
    /// [`announced`](FrontStatus::announced) addresses as its first value, until more is known. When the channel's
    /// sender goes, its last value stays.
    ///
    /// # Errors
    ///
    /// If at the end something could not be withdrawn, after three attempts. Earlier errors are
    /// logged, are in the [`status`](Self::status), and are fixed by trying again.
    pub async fn run(
        mut self,
        mut wanted: watch::Receiver<BTreeSet<IpAddr>>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), AnnounceError> {
        let mut shutdown = pin!(shutdown);
        let mut open = true;
        let mut check_at = Instant::now() + CHECK_EVERY;
        loop {
            self.want(&wanted.borrow_and_update());
            let step = self.schedule.step(self.announcer.announced(), Instant::now().into_std());
            let wake_at = match step {
                Step::Replace(target) => {
                    let outcome = self.announcer.replace(&target).await;
                    self.note(&outcome, Some(&target));
                    // What is wanted may have changed meanwhile, and the shutdown may have come.
                    Instant::now()
                }
                Step::Wait(None) => check_at,
                Step::Wait(Some(until)) => check_at.min(until.into()),
            };
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                changed = wanted.changed(), if open => open = changed.is_ok(),
                () = sleep_until(wake_at) => {}
            }
            if Instant::now() >= check_at {
                check_at = Instant::now() + CHECK_EVERY;
                if self.status.borrow().problem.is_some() {
                    continue; // what failed is being tried again, which says more than a look
                }
                let outcome = self.announcer.check().await;
                self.note(&outcome, None);
            }
        }
        self.withdraw_all().await
    }

    fn want(&mut self, addresses: &BTreeSet<IpAddr>) {
        self.schedule.want(addresses, Instant::now().into_std());
        self.status.send_if_modified(|status| {
            let changed = status.wanted != *addresses;
            if changed {
                status.wanted.clone_from(addresses);
            }
            changed
        });
    }

    async fn withdraw_all(mut self) -> Result<(), AnnounceError> {
        let mut attempts_left = LAST_ATTEMPTS;
        self.want(&BTreeSet::new());
        loop {
            let outcome = self.announcer.withdraw_all().await;
            self.note(&outcome, Some(&BTreeSet::new()));
            attempts_left -= 1;
            if outcome.is_ok() || attempts_left == 0 {
                return outcome;
            }
            sleep(LAST_PAUSE).await;
        }
    }

    /// Takes account of what came of an attempt to announce `target` or, without one, of a check.
    fn note(&mut self, outcome: &Result<(), AnnounceError>, target: Option<&BTreeSet<IpAddr>>) {
        match outcome {
            Ok(()) if target.is_some() => self.schedule.succeeded(),
            Ok(()) => {}
            Err(_) => self.schedule.failed(target, Instant::now().into_std()),
        }
        let before = self.status.borrow().clone();
        let announced = self.announcer.announced();
        let count = |new: &BTreeSet<IpAddr>, old: &BTreeSet<IpAddr>| {
            u64::try_from(new.difference(old).count()).unwrap_or(u64::MAX)
        };
        let status = FrontStatus {
            wanted: before.wanted.clone(),
            announcements: before.announcements + count(announced, &before.announced),
            withdrawals: before.withdrawals + count(&before.announced, announced),
            announced: announced.clone(),
            errors: before.errors + u64::from(outcome.is_err()),
            problem: outcome.as_ref().err().map(ToString::to_string),
        };
        match &status.problem {
            Some(problem) if before.problem.as_ref() != Some(problem) => error!("the front: {problem}"),
            None if before.problem.is_some() => info!("the front works again"),
            _ => {}
        }
        for address in status.announced.difference(&before.announced) {
            info!(%address, "announced");
        }
        for address in before.announced.difference(&status.announced) {
            info!(%address, "withdrawn");
        }
        if status != before {
            self.status.send_replace(status);
        }
    }
}

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
