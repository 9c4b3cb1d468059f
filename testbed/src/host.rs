//! A host: a network namespace, and what can be done inside it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::runtime::Runtime;

use crate::process::{Finished, Process, run_to_end, run_well};

/// Where `ip netns` mounts namespaces.
pub(crate) const NETNS_DIR: &str = "/run/netns";

/// How long a command that is run to its end may take, unless it says otherwise.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);

/// A host of a [`Lab`](crate::Lab). Clones are handles to the same host.
#[derive(Clone, Debug)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    namespace: String,
    netns: File,
    dir: PathBuf,
    bpffs: PathBuf,
    kept: Arc<AtomicBool>,
    started: AtomicU32,
}

impl Host {
    /// Creates the namespace `namespace`, with loopback up.
    pub(crate) fn create(
        name: &str,
        namespace: String,
        dir: PathBuf,
        bpffs: PathBuf,
        kept: Arc<AtomicBool>,
    ) -> Result<Host> {
        run_well(Command::new("ip").args(["netns", "add", &namespace]), COMMAND_LIMIT)?;
        let path = Path::new(NETNS_DIR).join(&namespace);
        let netns = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        for folder in [&dir, &bpffs] {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let inner =
            Inner { name: name.into(), namespace, netns, dir, bpffs, kept, started: AtomicU32::new(0) };
        let host = Host(Arc::new(inner));
        // Replies leave by another way than requests came (direct server return): no reverse path filter. The new
        // namespace may have inherited any setting, so the ones that matter are all written.
        host.sysctls(&[
            ("net.ipv4.conf.all.rp_filter", "0"),
            ("net.ipv4.conf.default.rp_filter", "0"),
            ("net.ipv4.conf.all.send_redirects", "0"),
            ("net.ipv4.conf.default.send_redirects", "0"),
            ("net.ipv6.conf.all.disable_ipv6", "0"),
            ("net.ipv6.conf.default.disable_ipv6", "0"),
            // Addresses can be used at once: the lab has no duplicates to detect, and tests no second to waste.
            ("net.ipv6.conf.all.accept_dad", "0"),
            ("net.ipv6.conf.default.accept_dad", "0"),
            ("net.ipv6.conf.default.accept_ra", "0"),
        ])?;
        host.ip("link set lo up")?;
        Ok(host)
    }

    /// The name given to it in the lab.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The network namespace's name, for `ip netns exec`.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// A folder for this host's files and logs; it goes with the lab.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// A folder in bpffs for what this host's daemons pin; it goes with the lab.
    #[must_use]
    pub fn bpffs(&self) -> &Path {
        &self.0.bpffs
    }

    /// A command that will run on this host.
    pub fn command(&self, program: impl AsRef<OsStr>) -> HostCommand {
        let program = program.as_ref().to_owned();
        HostCommand { host: self.clone(), program, arguments: Vec::new(), limit: COMMAND_LIMIT }
    }

    /// Runs a command to its end and returns its standard output.
    ///
    /// # Errors
    ///
    /// When it does not start, does not end in 20 s, or ends with a failing status.
    pub fn run<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<String> {
        let mut words = words.into_iter();
        let program = words.next().context("a command needs at least the program's name")?;
        self.command(program).args(words).run()
    }

    /// Runs `ip` with these words, separated by blanks, and returns its standard output.
    ///
    /// # Errors
    ///
    /// As [`Host::run`].
    pub fn ip(&self, words: &str) -> Result<String> {
        self.command("ip").args(words.split_whitespace()).run()
    }

    /// Runs `work` on a thread of this host: sockets that it opens belong to the host, also after it returns.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started or cannot enter the namespace. A panic in `work` goes on in the caller.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = thread::Builder::new().name(self.0.name.clone()).spawn_scoped(scope, || {
                self.enter_this_thread()?;
                Ok(work())
            });
            inside.context("cannot start a thread")?.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Runs `work` to its end on a runtime whose threads are of this host and carry its name: sockets that it and its
    /// tasks open belong to the host. Its tasks end with it.
    ///
    /// # Errors
    ///
    /// When threads cannot be started or cannot enter the namespace. A panic in `work` goes on in the caller.
    pub fn block_on<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> Result<T> {
        self.enter(|| Ok(self.runtime(2)?.block_on(work())))?
    }

    /// A runtime whose threads, of which `workers` run its tasks, are of this host and carry its name.
    ///
    /// # Errors
    ///
    /// When threads cannot be started or cannot enter the namespace.
    pub fn runtime(&self, workers: usize) -> Result<Runtime> {
        // What one thread can do, its helpers can.
        self.enter(|| ())?;
        let host = self.clone();
        let enter = move || host.enter_this_thread().expect("another thread could");
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(workers).thread_name(self.name()).on_thread_start(enter);
        runtime.enable_all().build().context("cannot start a runtime")
    }

    /// Moves the calling thread to this host for good. For threads that live there, such as those of a client.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn enter_this_thread(&self) -> Result<()> {
        move_into_link_name_space(self.0.netns.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("cannot enter the network namespace {}", self.0.namespace))
    }

    /// Writes a network setting (`net.…`) of this host.
    ///
    /// # Errors
    ///
    /// When the kernel does not know the setting or refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.sysctls(&[(key, value)])
    }

    /// Makes this host answer for `vip`, as a real does in direct server return: the address is on the loopback,
    /// and is not given away by ARP.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn hold_vip(&self, vip: std::net::IpAddr) -> Result<()> {
        self.sysctls(&[("net.ipv4.conf.all.arp_ignore", "1"), ("net.ipv4.conf.all.arp_announce", "2")])?;
        let length = if vip.is_ipv4() { 32 } else { 128 };
        self.ip(&format!("address replace {vip}/{length} dev lo"))?;
        Ok(())
    }

    pub(crate) fn sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        // /proc/sys/net shows the namespace of the thread that looks.
        self.enter(|| {
            for (key, value) in settings {
                let path = format!("/proc/sys/{}", key.replace('.', "/"));
                fs::write(&path, value)
                    .with_context(|| format!("cannot write {value} to {path} on {}", self.0.name))?;
            }
            Ok(())
        })?
    }

    fn log_path(&self, program: &str) -> PathBuf {
        let number = self.0.started.fetch_add(1, Ordering::Relaxed);
        self.0.dir.join(format!("{program}-{number}.log"))
    }
}

/// A command that will run on a [`Host`].
#[derive(Debug)]
pub struct HostCommand {
    host: Host,
    program: OsString,
    arguments: Vec<OsString>,
    limit: Duration,
}

impl HostCommand {
    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// How long [`run`](Self::run) and [`output`](Self::output) let it take; 20 s if not set.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end and returns its standard output.
    ///
    /// # Errors
    ///
    /// When it does not start, does not end in time, or ends with a failing status; with what it wrote.
    pub fn run(self) -> Result<String> {
        run_well(&mut self.prepared(), self.limit).with_context(|| format!("on {}", self.host.name()))
    }

    /// Runs it to its end, well or not.
    ///
    /// # Errors
    ///
    /// When it does not start or does not end in time.
    pub fn output(self) -> Result<Finished> {
        run_to_end(&mut self.prepared(), self.limit).with_context(|| format!("on {}", self.host.name()))
    }

    /// Starts it and lets it run. It ends with the handle.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn spawn(self) -> Result<Process> {
        let program = Path::new(&self.program).file_name().unwrap_or(&self.program).to_string_lossy();
        let name = format!("{program} on {}", self.host.name());
        let log = self.host.log_path(&program);
        Process::spawn(name, self.prepared(), log, self.host.0.kept.clone())
    }

    fn prepared(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        let host = self.host.clone();
        // SAFETY: between fork and exec only async-signal-safe calls are allowed. The closure makes one setns
        // system call on a descriptor that `host` keeps open; it neither allocates nor locks.
        unsafe {
            command.pre_exec(move || {
                move_into_link_name_space(host.0.netns.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(())
            });
        }
        command
    }
}
