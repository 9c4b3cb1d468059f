//! Watches over core tasks: those without which a process looks alive but does not do its work.
//!
//! - A core task that ends by itself or panics is a [`Fault`], and the process ends. The kernel forwards on meanwhile,
//!   and the service manager restarts the process.
//! - A core task whose poll does not return has hung. The [`Supervisor`] notices, since it polls each task every two
//!   seconds even if nothing woke it. Health pages, the watchdog and the sign of life depend on it.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::error;

/// Longest time between two polls of a task.
const POLL_EVERY: Duration = Duration::from_secs(2);

/// A task has hung if a poll takes longer than this.
const HUNG_AFTER: Duration = Duration::from_secs(20);

/// A core task has ended or panicked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    task: &'static str,
    panic: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.panic {
            Some(message) => write!(f, "the task \"{}\" has panicked ({message})", self.task)?,
            None => write!(f, "the task \"{}\" has ended", self.task)?,
        }
        f.write_str(
            ", which is a fault of this program: it ends, so that its service manager starts it again; forwarding and \
             announcements stay as they are",
        )
    }
}

impl std::error::Error for Fault {}

/// Starts core tasks and watches over them. Clones watch over the same tasks.
#[derive(Clone, Debug)]
pub struct Supervisor {
    fault: watch::Sender<Option<Fault>>,
    /// Time of each running task's last poll.
    polled: Arc<Mutex<BTreeMap<&'static str, Instant>>>,
}

impl Default for Supervisor {
    fn default() -> Self {
        Self { fault: watch::Sender::new(None), polled: Arc::default() }
    }
}

impl Supervisor {
    /// Starts a core task, which runs until the result is dropped. If it ends before that, it is a fault.
    #[must_use]
    pub fn spawn<T: Send + 'static>(
        &self,
        task: &'static str,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Task<T> {
        let supervisor = self.clone();
        Task(tokio::spawn(async move {
            let outcome = supervisor.watched(task, work).await;
            let panic = outcome.as_ref().err().map(|panic| message(panic.as_ref()));
            supervisor.polled().remove(task);
            // The first one tells most: others may follow from it.
            supervisor.fault.send_if_modified(|fault| {
                let is_first = fault.is_none();
                fault.get_or_insert(Fault { task, panic });
                is_first
            });
            outcome.ok()
        }))
    }

    /// Watches over a task that was started elsewhere: it has ended once the sender of `published` is dropped.
    #[must_use]
    pub fn watch<T: Send + Sync + 'static>(
        &self,
        task: &'static str,
        mut published: watch::Receiver<T>,
    ) -> Task<()> {
        self.spawn(task, async move { while published.changed().await.is_ok() {} })
    }

    /// Waits for the first fault and logs it.
    pub async fn fault(&self) -> Fault {
        let mut receiver = self.fault.subscribe();
        match receiver.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(fault)) => {
                error!(task = fault.task, panic = fault.panic, "{fault}");
                fault.clone()
            }
            // This supervisor itself holds a sender.
            _ => std::future::pending().await,
        }
    }

    /// Returns a line for each core task that hangs, which says for how long.
    #[must_use]
    pub fn hung(&self) -> Vec<String> {
        let now = Instant::now();
        let silences = self.polled();
        let silences = silences.iter().map(|(task, polled)| (task, now.duration_since(*polled)));
        let hung = silences.filter(|(_, silence)| *silence > HUNG_AFTER);
        hung.map(|(task, silence)| {
            format!("the task \"{task}\" hangs: it last turned {} s ago", silence.as_secs())
        })
        .collect()
    }

    fn polled(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, Instant>> {
        self.polled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn watched<T>(
        &self,
        task: &'static str,
        work: impl Future<Output = T>,
    ) -> Result<T, Box<dyn Any + Send>> {
        let mut work = pin!(AssertUnwindSafe(work).catch_unwind());
        loop {
            self.polled().insert(task, Instant::now());
            tokio::select! {
                biased;
                outcome = &mut work => return outcome,
                () = tokio::time::sleep(POLL_EVERY) => {}
            }
        }
    }
}

/// Returns a panic's message.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}

/// A core task. Dropping it ends the task.
#[derive(Debug)]
pub struct Task<T>(JoinHandle<Option<T>>);

impl<T> Task<T> {
    /// Waits for a task that was told to end, and returns its result; `None` if it panicked.
    pub async fn ended(mut self) -> Option<T> {
        (&mut self.0).await.ok().flatten()
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    async fn told(supervisor: &Supervisor) -> String {
        supervisor.fault().await.to_string()
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_a_fault_that_names_it() {
        let supervisor = Supervisor::default();
        let _well = supervisor.spawn("well", std::future::pending::<()>());
        let _task = supervisor.spawn("agent", async {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            panic!("attempt to add with overflow");
        });
        let told = told(&supervisor).await;
        assert!(told.starts_with("the task \"agent\" has panicked (attempt to add with overflow)"), "{told}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_just_ends_is_a_fault_too() {
        let supervisor = Supervisor::default();
        let _task = supervisor.spawn("front", async {});
        assert!(told(&supervisor).await.starts_with("the task \"front\" has ended"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_of_somebody_else_has_ended_when_it_can_publish_nothing_more() {
        let supervisor = Supervisor::default();
        let (sender, receiver) = watch::channel(1);
        let _task = supervisor.watch("health checks", receiver);
        sender.send_replace(2);
        let fault = supervisor.fault();
        tokio::pin!(fault);
        let early = tokio::time::timeout(Duration::from_secs(60), &mut fault).await;
        assert!(early.is_err(), "news are no fault");
        drop(sender);
        assert_eq!(fault.await.task, "health checks");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_its_owner_ends_is_none() {
        let supervisor = Supervisor::default();
        drop(supervisor.spawn("a", std::future::pending::<()>()));
        let (stop, stopped) = oneshot::channel::<()>();
        let told_to = supervisor.spawn("b", async move {
            let _ = stopped.await;
            7
        });
        let fault = supervisor.fault();
        tokio::pin!(fault);
        assert!(tokio::time::timeout(Duration::from_secs(60), &mut fault).await.is_err());
        drop(stop);
        assert_eq!(told_to.ended().await, Some(7), "nobody listens to faults any more by then");
    }

    #[tokio::test]
    async fn a_task_that_does_not_come_back_from_a_poll_is_known_to_hang() {
        let supervisor = Supervisor::default();
        let _idle = supervisor.spawn("idle", std::future::pending::<()>());
        let began = Instant::now().checked_sub(HUNG_AFTER + Duration::from_secs(1)).unwrap();
        supervisor.polled().insert("agent", began);
        let hung = supervisor.hung();
        assert_eq!(hung, ["the task \"agent\" hangs: it last turned 21 s ago"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_task_does_not_hang() {
        let supervisor = Supervisor::default();
        let _idle = supervisor.spawn("idle", std::future::pending::<()>());
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(supervisor.hung(), Vec::<String>::new());
        }
    }
}
