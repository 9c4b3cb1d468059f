use super::fake::FakeBird;
use super::*;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tokio::sync::oneshot;
use tokio::time::timeout;

const HOLD: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn set<const N: usize>(last: [u8; N]) -> BTreeSet<IpAddr> {
    last.into_iter().map(|last| IpAddr::from([198, 51, 100, last])).collect()
}

/// A driver whose failures the test decides on.
#[derive(Clone, Debug, Default)]
struct Fallible {
    announced: BTreeSet<IpAddr>,
    failing: Arc<Mutex<bool>>,
    attempts: Arc<Mutex<Vec<BTreeSet<IpAddr>>>>,
}

impl Fallible {
    fn outcome(&self) -> Result<(), AnnounceError> {
        if *self.failing.lock().unwrap() {
            return Err(AnnounceError::Connect {
                socket: PathBuf::from("/run/bird.ctl"),
                source: ErrorKind::ConnectionRefused.into(),
            });
        }
        Ok(())
    }
}

impl Announcer for Fallible {
    fn announced(&self) -> &BTreeSet<IpAddr> {
        &self.announced
    }

    async fn replace(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), AnnounceError> {
        self.attempts.lock().unwrap().push(addresses.clone());
        self.outcome()?;
        self.announced.clone_from(addresses);
        Ok(())
    }

    async fn check(&mut self) -> Result<(), AnnounceError> {
        self.outcome()
    }
}

struct Running {
    wanted: watch::Sender<BTreeSet<IpAddr>>,
    status: watch::Receiver<FrontStatus>,
    shutdown: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Result<(), AnnounceError>>,
}

fn run<A: Announcer + Sync>(announcer: A) -> Running {
    let front = Front::new(announcer, HOLD);
    let status = front.status();
    let (wanted, receiver) = watch::channel(status.borrow().announced.clone());
    let (shutdown, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(front.run(receiver, async {
        let _ = stopped.await;
    }));
    Running { wanted, status, shutdown, task }
}

impl Running {
    /// Waits until `ready` holds; the clock of these tests runs ahead while all wait.
    async fn until(&mut self, ready: impl FnMut(&FrontStatus) -> bool) {
        timeout(Duration::from_secs(60), self.status.wait_for(ready)).await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_wanted_is_announced_after_the_hold_and_withdrawn_at_once() {
    let mut front = run(Recorder::default());
    front.wanted.send_replace(set([1, 2]));
    let start = Instant::now();
    front.until(|status| status.announced == set([1, 2])).await;
    assert!(start.elapsed() >= HOLD);
    let start = Instant::now();
    front.wanted.send_replace(set([2]));
    front.until(|status| status.announced == set([2])).await;
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn what_a_predecessor_announced_is_not_interrupted() {
    let attempts = Arc::default();
    let announcer = Fallible { announced: set([1]), attempts: Arc::clone(&attempts), ..Fallible::default() };
    let mut front = run(announcer);
    front.wanted.send_replace(set([1, 2]));
    front.until(|status| status.announced == set([1, 2])).await;
    assert!(attempts.lock().unwrap().iter().all(|target| target.contains(&IpAddr::from([198, 51, 100, 1]))));
}

#[tokio::test(start_paused = true)]
async fn failures_are_counted_told_and_repeated_until_it_works() {
    let announcer = Fallible { announced: set([1]), ..Fallible::default() };
    let failing = Arc::clone(&announcer.failing);
    let mut front = run(announcer);
    tokio::time::sleep(MS).await;
    *failing.lock().unwrap() = true;
    front.wanted.send_replace(set([]));
    front.until(|status| status.errors >= 4).await;
    let status = front.status.borrow().clone();
    assert_eq!(status.announced, set([1]));
    assert!(status.problem.is_some_and(|problem| problem.contains("/run/bird.ctl: no BIRD answers")));
    *failing.lock().unwrap() = false;
    front.until(|status| status.announced.is_empty() && status.problem.is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_lost_behind_the_drivers_back_is_found_by_looking_and_announced_again() {
    let announcer = Fallible { announced: set([1]), ..Fallible::default() };
    let (failing, attempts) = (Arc::clone(&announcer.failing), Arc::clone(&announcer.attempts));
    let mut front = run(announcer);
    tokio::time::sleep(MS).await;
    attempts.lock().unwrap().clear();
    *failing.lock().unwrap() = true;
    front.until(|status| status.errors >= 1).await;
    *failing.lock().unwrap() = false;
    front.until(|status| status.problem.is_none()).await;
    assert!(attempts.lock().unwrap().contains(&set([1])));
}

#[tokio::test(start_paused = true)]
async fn shutdown_withdraws_everything_whatever_is_wanted() {
    let mut front = run(Recorder::default());
    front.wanted.send_replace(set([1]));
    front.until(|status| status.announced == set([1])).await;
    front.shutdown.send(()).unwrap();
    front.task.await.unwrap().unwrap();
    assert_eq!(front.status.borrow().announced, set([]));
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_with_an_error_when_nothing_can_be_withdrawn() {
    let announcer = Fallible { announced: set([1]), ..Fallible::default() };
    let (failing, attempts) = (Arc::clone(&announcer.failing), Arc::clone(&announcer.attempts));
    let front = run(announcer);
    tokio::time::sleep(MS).await;
    *failing.lock().unwrap() = true;
    attempts.lock().unwrap().clear();
    front.shutdown.send(()).unwrap();
    assert!(front.task.await.unwrap().is_err());
    assert_eq!(attempts.lock().unwrap().as_slice(), [set([]), set([]), set([])]);
    assert_eq!(front.status.borrow().announced, set([1]));
}

#[tokio::test(start_paused = true)]
async fn what_is_wanted_last_stays_when_nobody_is_left_to_want() {
    let mut front = run(Recorder::default());
    front.wanted.send_replace(set([1]));
    front.until(|status| status.announced == set([1])).await;
    drop(front.wanted);
    tokio::time::sleep(10 * HOLD).await;
    assert_eq!(front.status.borrow().announced, set([1]));
    front.shutdown.send(()).unwrap();
    front.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_settings_choose_the_driver() {
    let fake = FakeBird::start();
    let mut settings = FrontSettings {
        bird_file: fake.file.clone(),
        bird_socket: fake.socket.clone(),
        ..FrontSettings::default()
    };
    let address = "198.51.100.1".parse().unwrap();
    Driver::open(&settings, "boot").unwrap().announce(address).await.unwrap();
    assert_eq!(fake.commands(), Vec::<String>::new());
    settings.driver = FrontDriver::Bird;
    let mut driver = Driver::open(&settings, "boot").unwrap();
    driver.announce(address).await.unwrap();
    driver.check().await.unwrap();
    assert_eq!(*driver.announced(), set([1]));
    assert!(fake.commands().contains(&"configure soft".to_owned()));
}
