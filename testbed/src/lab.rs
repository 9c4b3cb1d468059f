//! What a run owns outside its own process, and how it is removed.
//!
//! A lab called `drv-<pid>-<n>` has: a folder [`STATE_DIR`]`/<lab>` with a lock file that its process keeps locked,
//! network namespaces `<lab>-<host>`, and a folder `drover-<lab>` in bpffs. The kernel lets go of the lock when the
//! process ends, however it ends; so a folder whose lock can be had belongs to nobody, and a reused process id
//! deceives no one.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::fs::statfs;
use rustix::process::{Pid, Signal, geteuid, kill_process};

use crate::host::{Host, NETNS_DIR};
use crate::process::run_well;
use crate::wait::wait_undisturbed;

const PREFIX: &str = "drv-";
const STATE_DIR: &str = "/run/drover-lab";
const BPFFS: &str = "/sys/fs/bpf";
const BPFFS_MAGIC: i64 = 0xcafe_4a11;
const LOCK: &str = "lock";
const KEPT: &str = "kept";
const COMMAND_LIMIT: Duration = Duration::from_secs(20);
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// A set of hosts with everything that belongs to them. Dropping it ends their processes and removes it all.
#[derive(Debug)]
pub struct Lab {
    name: String,
    kept: Arc<AtomicBool>,
    hosts: Mutex<BTreeSet<String>>,
    _lock: File,
}

impl Lab {
    /// A lab without hosts. The first one of a process sweeps away what crashed predecessors left.
    ///
    /// # Errors
    ///
    /// Without root, and when the state folder or bpffs cannot be had.
    pub fn new() -> Result<Lab> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        static SWEPT: Mutex<bool> = Mutex::new(false);

        ensure!(
            geteuid().is_root(),
            "a lab needs root: network namespaces and BPF programs are created. Run this with sudo"
        );
        {
            let mut swept = SWEPT.lock().unwrap_or_else(PoisonError::into_inner);
            if !*swept {
                Self::sweep()?;
                *swept = true;
            }
        }
        mount_bpffs()?;
        let name = format!("{PREFIX}{}-{}", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let registry = Registry::lock()?;
        let dir = state_dir(&name);
        fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let lock = File::create(dir.join(LOCK))?;
        lock.try_lock().with_context(|| format!("cannot lock {}", dir.join(LOCK).display()))?;
        drop(registry);
        Ok(Lab { name, kept: Arc::default(), hosts: Mutex::default(), _lock: lock })
    }

    /// The lab's name, with which the names of its namespaces begin.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A folder for files and logs; it goes with the lab.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        state_dir(&self.name)
    }

    /// Adds a host, alone with its loopback.
    ///
    /// # Errors
    ///
    /// When the lab has a host of this name, when the name is not made of letters, digits and hyphens, and when
    /// the kernel refuses.
    pub fn host(&self, name: &str) -> Result<Host> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        ensure!(
            !name.is_empty() && name.len() <= 32 && name.chars().all(plain),
            "host name \"{name}\": 1 to 32 letters, digits and hyphens are allowed"
        );
        let new = self.hosts.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        ensure!(new, "the lab already has a host called {name}");
        Host::create(
            name,
            format!("{}-{name}", self.name),
            self.dir().join(name),
            bpffs_dir(&self.name).join(name),
            self.kept.clone(),
        )
        .with_context(|| format!("cannot create the host {name}"))
    }

    /// Leaves everything standing, processes too, until [`Lab::remove_kept`].
    ///
    /// # Errors
    ///
    /// When the note that says so cannot be written; the lab is removed then.
    pub fn keep(self) -> Result<()> {
        fs::write(self.dir().join(KEPT), "")
            .with_context(|| format!("cannot mark {} as kept", self.dir().display()))?;
        self.kept.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Removes the labs of processes that are gone, except kept ones. Returns their names.
    ///
    /// # Errors
    ///
    /// When something of theirs cannot be removed.
    pub fn sweep() -> Result<Vec<String>> {
        let _registry = Registry::lock()?;
        let mut removed = Vec::new();
        for name in registered()?.into_iter().filter(|name| !is_kept(name)) {
            if is_dead(&name)? {
                remove(&name).with_context(|| format!("cannot remove the leftover lab {name}"))?;
                removed.push(name);
            }
        }
        Ok(removed)
    }

    /// The names of the labs that were left standing by [`Lab::keep`].
    ///
    /// # Errors
    ///
    /// When the state folder cannot be read.
    pub fn kept() -> Result<Vec<String>> {
        Ok(registered()?.into_iter().filter(|name| is_kept(name)).collect())
    }

    /// Removes a lab that was left standing by [`Lab::keep`].
    ///
    /// # Errors
    ///
    /// When there is no such lab, or something of it cannot be removed.
    pub fn remove_kept(name: &str) -> Result<()> {
        let _registry = Registry::lock()?;
        ensure!(registered()?.iter().any(|found| found == name) && is_kept(name), "no lab {name} is kept");
        remove(name).with_context(|| format!("cannot remove the kept lab {name}"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.kept.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = remove(&self.name) {
            #[expect(clippy::print_stderr, reason = "a destructor has no other way to be heard")]
            {
                eprintln!("cannot remove the lab {} (the next run will try again): {error:#}", self.name);
            }
        }
    }
}

/// The lock under which labs are registered and swept, so that no lab is swept between its folder and its lock.
struct Registry {
    _lock: File,
}

impl Registry {
    fn lock() -> Result<Registry> {
        fs::create_dir_all(STATE_DIR).with_context(|| format!("cannot create {STATE_DIR}"))?;
        let path = Path::new(STATE_DIR).join("registry.lock");
        let lock = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        lock.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Registry { _lock: lock })
    }
}

fn registered() -> Result<Vec<String>> {
    Ok(entries(Path::new(STATE_DIR))?.into_iter().filter(|name| name.starts_with(PREFIX)).collect())
}

fn is_kept(name: &str) -> bool {
    state_dir(name).join(KEPT).exists()
}

fn is_dead(name: &str) -> Result<bool> {
    match File::open(state_dir(name).join(LOCK)) {
        Ok(lock) => match lock.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error.into()),
        },
        // Crashed between folder and lock.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Removes all that is called after the lab. What is gone already is no error; what stays behind is, and the state
/// folder, by which the next sweep finds the lab, goes last.
fn remove(name: &str) -> Result<()> {
    let prefix = format!("{name}-");
    for namespace in entries(Path::new(NETNS_DIR))?.into_iter().filter(|found| found.starts_with(&prefix)) {
        end_processes(&namespace)?;
        run_well(Command::new("ip").args(["netns", "delete", &namespace]), COMMAND_LIMIT)?;
    }
    for folder in [bpffs_dir(name), state_dir(name)] {
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Kills what runs in the namespace: it was started there by the lab, or by what the lab started.
fn end_processes(namespace: &str) -> Result<()> {
    let path = Path::new(NETNS_DIR).join(namespace);
    // A crash may have left the name without its mount; then the identity is that of a plain file, and nothing
    // runs in it.
    let identity = match fs::metadata(&path) {
        Ok(metadata) => (metadata.dev(), metadata.ino()),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    wait_undisturbed(format_args!("the processes in {namespace} to die"), KILL_LIMIT, || {
        let inside = processes_in(identity)?;
        for pid in &inside {
            let _ = kill_process(*pid, Signal::KILL);
        }
        Ok(inside.is_empty().then_some(()))
    })
}

fn processes_in(namespace: (u64, u64)) -> Result<Vec<Pid>> {
    let own = rustix::process::getpid();
    let mut found = Vec::new();
    for entry in entries(Path::new("/proc"))? {
        let Some(pid) = entry.parse().ok().and_then(Pid::from_raw) else { continue };
        // Processes end while we look, and zombies have no namespace.
        let Ok(metadata) = fs::metadata(format!("/proc/{entry}/ns/net")) else { continue };
        if pid != own && (metadata.dev(), metadata.ino()) == namespace {
            found.push(pid);
        }
    }
    Ok(found)
}

fn mount_bpffs() -> Result<()> {
    static MOUNTING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = MOUNTING.lock().unwrap_or_else(PoisonError::into_inner);
    let mounted = statfs(BPFFS).with_context(|| format!("no {BPFFS}: is sysfs mounted?"))?;
    if mounted.f_type != BPFFS_MAGIC {
        run_well(Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]), COMMAND_LIMIT)?;
    }
    Ok(())
}

fn state_dir(lab: &str) -> PathBuf {
    Path::new(STATE_DIR).join(lab)
}

fn bpffs_dir(lab: &str) -> PathBuf {
    Path::new(BPFFS).join(format!("drover-{lab}"))
}

/// The names in a folder; none when it does not exist.
fn entries(folder: &Path) -> Result<Vec<String>> {
    let listing = match fs::read_dir(folder) {
        Ok(listing) => listing,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot list {}", folder.display())),
    };
    let mut names = Vec::new();
    for entry in listing {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}
