//! Standalone mode: the cluster file is the store.
//!
//! The file is looked at a few times a second rather than watched: editors replace it by renaming, configuration
//! tools swap symbolic links above it, and network file systems tell of nothing; a look at its metadata sees
//! all of that and costs next to nothing.

use coordination::{Snapshot, Snapshots};
use host::files::{Unreadable, read_text};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tracing::{error, info, warn};
use zk_schema::{ClusterFile, Desired, FileErrors, Node, Problems};

/// Pause between two looks. A change is read when two looks agree, since it may be half written at the first.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The reason why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] Unreadable),
    /// It was read and is wrong.
    #[error(transparent)]
    Invalid(#[from] FileErrors),
    /// It is right, but a node that runs cannot become what it says.
    #[error("{}: {problems} (the node runs with the [node] table that it was started with; restart it)", path.display())]
    NeedsRestart {
        /// The file.
        path: PathBuf,
        /// The settings that do not fit.
        problems: Problems,
    },
}

impl FileError {
    /// One message per problem.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.to_string().lines().map(str::to_owned).collect()
    }
}

/// Reads and validates a cluster file.
///
/// # Errors
/// If it cannot be read, or with everything that is wrong with it.
pub fn read(path: &Path) -> Result<ClusterFile, FileError> {
    Ok(ClusterFile::parse(&read_text(path)?, &path.display().to_string())?)
}

/// The fate of the file's newest content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileStatus {
    /// Its problems, one a line; the last good state stays in force. Empty: nothing.
    pub problems: Vec<String>,
    /// Fields whose change takes effect after a restart.
    pub restart_for: BTreeSet<String>,
    /// The time at which the state in force was read; `None` where nobody reads a file.
    pub loaded: Option<SystemTime>,
}

impl FileStatus {
    /// Returns whether the newest content is in force.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.problems.is_empty()
    }
}

/// The desired state that a cluster file tells, kept up to date.
#[derive(Debug)]
pub struct FileStore {
    path: PathBuf,
    /// The settings that the node runs with.
    node: Node,
    store: Snapshots,
    status: watch::Sender<FileStatus>,
    /// The file as it was when it was last read.
    handled: Option<Identity>,
    /// The file at the last look.
    seen: Option<Identity>,
}

impl FileStore {
    /// Reads the file.
    ///
    /// # Errors
    /// As [`read`]: a node does not start on a file that is wrong.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let identity = Identity::of(path);
        let file = read(path)?;
        let status = FileStatus { loaded: Some(SystemTime::now()), ..FileStatus::default() };
        Ok(Self {
            path: path.to_owned(),
            node: file.node,
            store: Snapshots::new(file.desired),
            status: watch::Sender::new(status),
            handled: identity,
            seen: identity,
        })
    }

    /// The node's own settings, as they were when the file was opened.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The desired state, always the newest that is valid.
    #[must_use]
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.store.subscribe()
    }

    /// The fate of the file's newest content.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<FileStatus> {
        self.status.subscribe()
    }

    /// Follows the file for ever: at every change, and whenever `reload` ticks even without one.
    pub async fn follow(mut self, mut reload: impl AsyncFnMut()) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = looks.tick() => self.look(),
                () = reload() => {
                    info!(file = %self.path.display(), "reading the cluster file again, on a signal");
                    self.reload();
                }
            }
        }
    }

    /// Reads the file if it has changed since it was last read, and not since the last look.
    fn look(&mut self) {
        let now = Identity::of(&self.path);
        let settled = now == self.seen;
        self.seen = now;
        if settled && now != self.handled {
            self.reload();
        }
    }

    /// Reads the file and publishes what it says, or why the last good state stays.
    fn reload(&mut self) {
        self.handled = Identity::of(&self.path);
        self.seen = self.handled;
        let result = read(&self.path).and_then(|file| self.adapt(file));
        let problems = match result {
            Ok((desired, restart_for)) => {
                self.accept(desired, restart_for);
                return;
            }
            Err(error) => error.lines(),
        };
        error!(file = %self.path.display(), "the cluster file is refused; the last good state stays in force");
        for problem in &problems {
            error!("{problem}");
        }
        self.status.send_modify(|status| status.problems = problems);
    }

    fn accept(&self, desired: Desired, restart_for: BTreeSet<String>) {
        let before = self.store.subscribe().borrow().revision;
        let revision = self.store.replace(desired);
        let changed = if revision == before { "nothing that is in force changes" } else { "applying it" };
        info!(file = %self.path.display(), revision, "the cluster file is valid: {changed}");
        let pending = &self.status.borrow().restart_for.clone();
        if restart_for != *pending && !restart_for.is_empty() {
            warn!(fields = %Listed(&restart_for), "changed settings take effect when lb-node is restarted");
        }
        let loaded = Some(SystemTime::now());
        self.status.send_replace(FileStatus { problems: Vec::new(), restart_for, loaded });
    }

    /// Returns the part of a valid file that can be put in force now, and the fields that cannot.
    fn adapt(&self, file: ClusterFile) -> Result<(Desired, BTreeSet<String>), FileError> {
        let mut restart_for = BTreeSet::new();
        differences("node", &json(&self.node), &json(&file.node), &mut restart_for);
        let mut running = ClusterFile { node: self.node.clone(), desired: file.desired };
        // The data plane's maps have been made for tables of one size.
        let table_size = self.store.subscribe().borrow().desired.cluster.table_size;
        if running.desired.cluster.table_size != table_size {
            restart_for.insert("cluster.table_size".into());
            running.desired.cluster.table_size = table_size;
        }
        match running.validate() {
            Ok(()) => Ok((running.desired, restart_for)),
            Err(problems) => Err(FileError::NeedsRestart { path: self.path.clone(), problems }),
        }
    }
}

/// The marks by which a file shows that it was written to or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds of the last change of content, and of content or metadata.
    times: [i64; 4],
}

impl Identity {
    /// `None` where there is no such file.
    fn of(path: &Path) -> Option<Self> {
        let metadata: Metadata = std::fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            times: [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()],
        })
    }
}

fn json(node: &Node) -> Value {
    serde_json::to_value(node).expect("a node's settings are plain data")
}

/// Collects the paths of the fields in which two records differ.
fn differences(path: &str, old: &Value, new: &Value, found: &mut BTreeSet<String>) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for key in old.keys().chain(new.keys()) {
                let [old, new] = [old, new].map(|object| object.get(key).unwrap_or(&Value::Null));
                differences(&format!("{path}.{key}"), old, new, found);
            }
        }
        _ if old == new => {}
        _ => {
            found.insert(path.to_owned());
        }
    }
}

struct Listed<'a>(&'a BTreeSet<String>);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, item) in self.0.iter().enumerate() {
            write!(f, "{}{item}", if number == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tempfile::TempDir;

    const GOOD: &str = r#"
[node]
name = "lb-1"
interface = "eth0"

[vips.mqtt]
address = "198.51.100.10"
port = 1883
protocol = "tcp"

[vips.mqtt.reals.broker-1]
address = "10.0.2.11"
weight = 100
"#;

    struct Edited {
        store: FileStore,
        path: PathBuf,
        _dir: TempDir,
    }

    impl Edited {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("cluster.toml");
            fs::write(&path, GOOD).unwrap();
            Self { store: FileStore::open(&path).unwrap(), path, _dir: dir }
        }

        /// Replaces the file as editors do, and lets it be looked at until nothing more can come of it.
        fn edit(&mut self, text: &str) {
            let new = self.path.with_extension("new");
            fs::write(&new, text).unwrap();
            fs::rename(&new, &self.path).unwrap();
            self.look();
        }

        fn look(&mut self) {
            self.store.look();
            self.store.look();
        }

        fn revision(&self) -> u64 {
            self.store.snapshots().borrow().revision
        }

        fn weight(&self) -> u16 {
            self.store.snapshots().borrow().desired.vips["mqtt"].reals["broker-1"].weight
        }

        fn status(&self) -> FileStatus {
            self.store.status().borrow().clone()
        }
    }

    #[test]
    fn an_edit_is_published_and_a_look_without_one_changes_nothing() {
        let mut file = Edited::new();
        file.look();
        assert_eq!((file.revision(), file.weight()), (1, 100));
        file.edit(&GOOD.replace("weight = 100", "weight = 7"));
        assert_eq!((file.revision(), file.weight()), (2, 7));
        assert!(file.status().is_valid());
        file.look();
        assert_eq!(file.revision(), 2);
    }

    #[test]
    fn an_invalid_edit_is_refused_whole_until_it_is_mended() {
        let mut file = Edited::new();
        file.edit(&GOOD.replace("weight = 100", "weight = 70000").replace("1883", "8883"));
        assert_eq!((file.revision(), file.weight()), (1, 100));
        let problems = file.status().problems;
        assert_eq!(problems.len(), 1, "{problems:?}");
        let expected = ":13:10: vips.mqtt.reals.broker-1.weight: 70000 is not in 0..=65535";
        assert!(problems[0].ends_with(expected), "{problems:?}");

        file.edit(&GOOD.replace("weight = 100", "weight = 8").replace("1883", "8883"));
        assert_eq!((file.revision(), file.weight()), (2, 8));
        assert!(file.status().is_valid());
    }

    #[test]
    fn going_back_to_the_state_in_force_clears_the_problems_without_a_revision() {
        let mut file = Edited::new();
        file.edit("[node");
        assert!(!file.status().is_valid());
        file.edit(GOOD);
        assert!(file.status().is_valid());
        assert_eq!(file.revision(), 1);
    }

    #[test]
    fn a_file_that_is_being_written_is_read_when_it_rests() {
        let mut file = Edited::new();
        fs::write(&file.path, &GOOD[..60]).unwrap();
        file.store.look();
        assert!(file.status().is_valid(), "read while it may still be changing");
        fs::write(&file.path, GOOD.replace("weight = 100", "weight = 9")).unwrap();
        file.look();
        assert_eq!((file.revision(), file.weight()), (2, 9));
    }

    #[test]
    fn a_file_that_vanishes_leaves_the_last_state_and_says_so() {
        let mut file = Edited::new();
        fs::remove_file(&file.path).unwrap();
        file.look();
        assert_eq!(file.weight(), 100);
        assert!(file.status().problems[0].contains("cluster.toml: No such file"), "{:?}", file.status());
        file.edit(GOOD);
        assert!(file.status().is_valid());
    }

    #[test]
    fn settings_of_the_node_wait_for_a_restart_and_the_rest_of_the_edit_does_not() {
        let mut file = Edited::new();
        let edited = GOOD
            .replace("\"eth0\"", "\"eth1\"\ngue_port = 6081\n[node.capacity]\nvips = 9")
            .replace("weight = 100", "weight = 3");
        file.edit(&format!("{edited}\n[cluster]\ntable_size = 655373\n"));
        let restart_for: Vec<String> = file.status().restart_for.into_iter().collect();
        let fields = ["cluster.table_size", "node.capacity.vips", "node.gue_port", "node.interface"];
        assert_eq!(restart_for, fields);
        assert_eq!(file.weight(), 3);
        assert_eq!(file.store.snapshots().borrow().desired.cluster.table_size, 65_537);
        assert_eq!(file.store.node().interface, "eth0");
        file.edit(GOOD);
        assert!(file.status().restart_for.is_empty());
    }

    #[test]
    fn an_edit_that_only_a_restart_makes_room_for_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.toml");
        let small = "interface = \"eth0\"\n[node.capacity]\nvips = 1";
        fs::write(&path, GOOD.replace("interface = \"eth0\"", small)).unwrap();
        let mut file = Edited { store: FileStore::open(&path).unwrap(), path, _dir: dir };
        let second = GOOD.split_once("[vips.mqtt]").unwrap().1.replace("vips.mqtt", "vips.tls");
        file.edit(&format!("{GOOD}\n[vips.tls]\n{}", second.replace("1883", "8883")));
        let problems = file.status().problems.join("\n");
        assert!(problems.contains("node.capacity.vips: 1 is too little"), "{problems}");
        assert!(problems.contains("restart it"), "{problems}");
        assert_eq!(file.revision(), 1);
    }

    #[test]
    fn a_node_does_not_start_on_a_missing_or_wrong_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none.toml");
        let error = FileStore::open(&path).unwrap_err();
        assert!(matches!(error, FileError::Read(_)), "{error}");
        fs::write(&path, "[node]\nname = \"lb-1\"\n").unwrap();
        let error = FileStore::open(&path).unwrap_err();
        assert!(error.to_string().contains("none.toml:1:2: node.interface: missing"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn following_sees_edits_and_reads_again_when_told() {
        let Edited { store, path, _dir } = Edited::new();
        let mut snapshots = store.snapshots();
        let mut status = store.status();
        let (hangup, mut hangups) = tokio::sync::mpsc::channel::<()>(1);
        let task = tokio::spawn(store.follow(async move || {
            if hangups.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
        }));
        fs::write(&path, GOOD.replace("weight = 100", "weight = 5")).unwrap();
        snapshots.changed().await.unwrap();
        assert_eq!(snapshots.borrow_and_update().desired.vips["mqtt"].reals["broker-1"].weight, 5);
        let first = status.borrow_and_update().loaded;
        hangup.send(()).await.unwrap();
        status.changed().await.unwrap();
        assert!(status.borrow().loaded > first);
        task.abort();
    }
}
