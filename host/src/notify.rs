//! Reports this process' state to the service manager by systemd's notification protocol (`sd_notify(3)`,
//! `Type=notify`).
//!
//! Sends datagrams of `NAME=value` lines to the socket that `NOTIFY_SOCKET` names. Sends nothing if it is not set.
//!
//! | sent | when |
//! |---|---|
//! | `READY=1` | once, when the process does its work |
//! | `EXTEND_TIMEOUT_USEC` | until then, with each sign of life: a start that waits is not killed, one that hangs is |
//! | `WATCHDOG=1` | from then on, with each sign of life of a healthy process: others are restarted |
//! | `STATUS` | one line for people, when it changes |
//! | `STOPPING=1` | when the process begins to stop, with the time that stopping may take |
//!
//! A *sign of life* is a turn of the loop that does the work, never a timer beside it.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;

/// Longest time between two signs of life during the start.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// Longest time that stopping takes beyond its deliberate wait.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// Shortest time between two signs of life that are sent.
const LEAST_PAUSE: Duration = Duration::from_secs(1);

/// Longest time to send. A manager that does not read must not block the process.
const SEND_LIMIT: Duration = Duration::from_millis(200);

/// A connection to the service manager, and the state that was reported to it.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
    ready: bool,
    status: String,
    last_sign: Option<Instant>,
    failing: bool,
}

impl Notifier {
    /// Connects to the socket that `NOTIFY_SOCKET` names, for a process that gives a sign of life every `life_every`.
    ///
    /// Logs a warning and reports nothing if the socket cannot be used. Warns, too, if `WATCHDOG_USEC` is less than
    /// twice `life_every`.
    #[must_use]
    pub fn from_env(life_every: Duration) -> Self {
        let watchdog = env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse().ok());
        if let Some(watchdog) = watchdog.map(Duration::from_micros)
            && watchdog < 2 * life_every
        {
            warn!(
                "WatchdogSec= is {watchdog:?}, but there is a sign of life only every {life_every:?}: at least twice \
                 that is needed, or a process that is well is killed"
            );
        }
        let Some(address) = env::var_os("NOTIFY_SOCKET") else { return Self::default() };
        Self::to(&address).unwrap_or_else(|error| {
            warn!(?address, %error, "the service manager's NOTIFY_SOCKET cannot be used");
            Self::default()
        })
    }

    /// Connects to the socket at `address`: an absolute path, or `@` and an abstract name.
    ///
    /// # Errors
    ///
    /// If there is no such socket.
    pub fn to(address: &OsStr) -> io::Result<Self> {
        let address = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(address)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        socket.set_write_timeout(Some(SEND_LIMIT))?;
        Ok(Self { socket: Some(socket), ..Self::default() })
    }

    /// Reports that the process does its work. Only the first call sends.
    pub fn ready(&mut self) {
        if !self.ready {
            // The watchdog counts from here.
            self.send("READY=1\nWATCHDOG=1");
            self.ready = true;
        }
    }

    /// Reports a sign of life: before [`ready`](Self::ready) always, which extends the start, later only if `well`.
    pub fn alive(&mut self, well: bool) {
        let now = Instant::now();
        if self.last_sign.is_some_and(|last| now < last + LEAST_PAUSE) {
            return;
        }
        if !self.ready {
            self.send(&format!("EXTEND_TIMEOUT_USEC={}", START_PATIENCE.as_micros()));
        } else if well {
            self.send("WATCHDOG=1");
        } else {
            return;
        }
        self.last_sign = Some(now);
    }

    /// Reports the state in one line, if it differs from the last one.
    pub fn status(&mut self, status: &str) {
        let status = status.replace('\n', "; ");
        if status != self.status {
            self.send(&format!("STATUS={status}"));
            self.status = status;
        }
    }

    /// Reports that the process stops, in at most 20 seconds more than `wait`.
    pub fn stopping(&mut self, wait: Duration, status: &str) {
        let patience = (wait + STOP_PATIENCE).as_micros();
        self.send(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={patience}"));
        self.status(status);
    }

    fn send(&mut self, message: &str) {
        let Some(socket) = &self.socket else { return };
        let outcome = socket.send(message.as_bytes());
        if let Err(error) = &outcome
            && !self.failing
        {
            warn!(%error, "cannot tell the service manager how this process is");
        }
        self.failing = outcome.is_err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Manager {
        _directory: tempfile::TempDir,
        socket: UnixDatagram,
        notifier: Notifier,
    }

    impl Manager {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("notify");
            let socket = UnixDatagram::bind(&path).unwrap();
            socket.set_nonblocking(true).unwrap();
            let notifier = Notifier::to(path.as_os_str()).unwrap();
            Self { _directory: directory, socket, notifier }
        }

        /// Returns what it was told since it was last asked.
        fn told(&self) -> Vec<String> {
            let mut buffer = [0; 1024];
            std::iter::from_fn(|| {
                let length = self.socket.recv(&mut buffer).ok()?;
                Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
            })
            .collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_that_lives_gets_more_time_and_readiness_is_told_once() {
        let mut manager = Manager::new();
        manager.notifier.alive(false);
        assert_eq!(manager.told(), ["EXTEND_TIMEOUT_USEC=60000000"]);
        manager.notifier.ready();
        manager.notifier.ready();
        assert_eq!(manager.told(), ["READY=1\nWATCHDOG=1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_hears_of_a_process_that_is_well_and_of_no_other() {
        let mut manager = Manager::new();
        manager.notifier.ready();
        manager.told();
        manager.notifier.alive(false);
        assert_eq!(manager.told(), Vec::<String>::new());
        manager.notifier.alive(true);
        manager.notifier.alive(true);
        assert_eq!(manager.told(), ["WATCHDOG=1"], "signs of life in quick succession are one");
        tokio::time::advance(LEAST_PAUSE).await;
        manager.notifier.alive(true);
        assert_eq!(manager.told(), ["WATCHDOG=1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_status_is_one_line_and_told_when_it_changes() {
        let mut manager = Manager::new();
        manager.notifier.status("one\ntwo");
        manager.notifier.status("one\ntwo");
        assert_eq!(manager.told(), ["STATUS=one; two"]);
        manager.notifier.stopping(Duration::from_secs(5), "withdrawing");
        assert_eq!(manager.told(), ["STOPPING=1\nEXTEND_TIMEOUT_USEC=25000000", "STATUS=withdrawing"]);
    }

    #[test]
    fn an_abstract_socket_will_do_and_a_missing_one_is_an_error() {
        let name = format!("drover-notify-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        Notifier::to(OsStr::new(&format!("@{name}"))).unwrap().ready();
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1\nWATCHDOG=1");
        assert!(Notifier::to(OsStr::new("/nonexistent/notify")).is_err());
    }
}
