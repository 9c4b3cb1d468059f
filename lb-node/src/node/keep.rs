//! Keeps on disk what a node must know after a restart without ZooKeeper.

use crate::cluster::cache::Cache;
use crate::cluster::exclusions;
use crate::status::KeptStatus;
use anyhow::Result;
use coordination::follow::Followed;
use policy::local::Exclusions;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{info, warn};
use zk_schema::tree::Decided;

/// Time after which a write to the disk that failed is tried again.
const KEEP_AGAIN: Duration = Duration::from_secs(5);

/// Keeps on disk what a restart without ZooKeeper needs. A disk that is slow or hangs holds up nothing else.
pub(super) struct Keeper {
    pub(super) cache: Cache,
    pub(super) exclusions: exclusions::Kept,
    pub(super) kept: watch::Sender<KeptStatus>,
}

impl Keeper {
    pub(super) async fn run(
        self,
        mut followed: watch::Receiver<Followed>,
        mut exclusions: watch::Receiver<Exclusions>,
    ) {
        let mut on_disk: (Option<Arc<Decided>>, Option<Exclusions>) = (None, None);
        loop {
            let decided = followed.borrow_and_update().decided.clone();
            let left_out = exclusions.borrow_and_update().clone();
            let mut problems = Vec::new();
            if let Some(decided) = decided.filter(|decided| on_disk.0.as_ref() != Some(decided)) {
                let (cache, new) = (self.cache.clone(), Arc::clone(&decided));
                match on_disk_as(move || cache.store(&new)).await {
                    Ok(()) => on_disk.0 = Some(decided),
                    Err(problem) => problems.push(problem),
                }
            }
            if on_disk.1.as_ref() != Some(&left_out) {
                let (kept, new) = (self.exclusions.clone(), left_out.clone());
                match on_disk_as(move || kept.store(&new)).await {
                    Ok(()) => on_disk.1 = Some(left_out),
                    Err(problem) => problems.push(problem),
                }
            }
            let again = !problems.is_empty();
            self.tell(problems);
            tokio::select! {
                Ok(()) = followed.changed() => {}
                Ok(()) = exclusions.changed() => {}
                () = tokio::time::sleep(KEEP_AGAIN), if again => {}
            }
        }
    }

    pub(super) fn tell(&self, problems: Vec<String>) {
        let problem = (!problems.is_empty()).then(|| {
            format!(
                "the newest decision cannot be kept on disk, and a reboot without ZooKeeper would not find it: {}",
                problems.join("; ")
            )
        });
        self.kept.send_if_modified(|kept| {
            let is_new = kept.problem != problem;
            if is_new {
                match &problem {
                    Some(problem) => warn!("{problem}"),
                    None => info!("the newest decision is kept on disk again"),
                }
                kept.problem = problem;
            }
            is_new
        });
    }
}

/// Writes to the disk, off the threads that must not block.
async fn on_disk_as<E: std::fmt::Display + Send + 'static>(
    write: impl FnOnce() -> Result<(), E> + Send + 'static,
) -> Result<(), String> {
    match tokio::task::spawn_blocking(write).await {
        Ok(written) => written.map_err(|error| error.to_string()),
        Err(panic) => Err(panic.to_string()),
    }
}

/// Returns what was kept on disk, unless the tables in the kernel are from something newer: the disk may have been
/// full.
pub(super) fn not_older(cached: Option<Decided>, floor: Option<(u64, u64)>) -> Option<Arc<Decided>> {
    let order = cached.as_ref()?.head.order();
    if let Some(floor) = floor.filter(|floor| order < *floor) {
        warn!(
            kept = ?order,
            in_force = ?floor,
            "what was kept on disk is older than the tables in the kernel, which stay until the tree has something newer"
        );
        return None;
    }
    cached.map(Arc::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{checked_vip, decided, desired, name};
    use zk_schema::{RealName, VipName};

    const SECOND: Duration = Duration::from_secs(1);

    fn some(term: u64, epoch: u64) -> Decided {
        decided(term, epoch, &desired([("mqtt", checked_vip(&[("a", 100), ("b", 50)]))]))
    }

    #[test]
    fn what_was_kept_on_disk_counts_unless_the_kernel_has_something_newer() {
        let kept = |floor| not_older(Some(some(2, 8)), floor).is_some();
        assert!(kept(None) && kept(Some((2, 8))) && kept(Some((1, 99))));
        assert!(!kept(Some((2, 9))) && !kept(Some((3, 1))));
        assert!(not_older(None, Some((2, 9))).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_kept_on_disk_is_told_and_tried_again_and_holds_up_no_decision() {
        let folder = tempfile::tempdir().unwrap();
        // In the place of the directory there is a file, as with a disk that takes nothing.
        let directory = folder.path().join("state");
        std::fs::write(&directory, "").unwrap();
        let (cache, exclusions_kept) =
            (Cache::new(&directory, &name("lb-1")), exclusions::Kept::new(&directory, &name("lb-1")));
        let (kept, mut problem) = watch::channel(KeptStatus::default());
        let followed = watch::Sender::new(Followed::default());
        let left_out: (VipName, RealName) = (name("mqtt"), name("a"));
        let exclusions = watch::Sender::new(Exclusions::new((2, 8), [left_out].into()));
        let keeper = Keeper { cache: cache.clone(), exclusions: exclusions_kept.clone(), kept };
        let _task = tokio::spawn(keeper.run(followed.subscribe(), exclusions.subscribe()));
        followed.send_modify(|followed| followed.decided = Some(Arc::new(some(2, 8))));
        let told = problem.wait_for(|kept| kept.problem.is_some()).await.unwrap().clone();
        assert!(told.problem.unwrap().contains("lb-1"));

        std::fs::remove_file(&directory).unwrap();
        problem.wait_for(|kept| kept.problem.is_none()).await.unwrap();
        assert_eq!(cache.load().unwrap(), Some(some(2, 8)));
        assert_eq!(exclusions_kept.load().unwrap(), *exclusions.borrow());
        exclusions.send_replace(Exclusions::default());
        followed.send_modify(|followed| followed.decided = Some(Arc::new(some(2, 9))));
        while cache.load().unwrap() != Some(some(2, 9)) || !exclusions_kept.load().unwrap().is_empty() {
            tokio::time::sleep(SECOND).await;
        }
    }
}
