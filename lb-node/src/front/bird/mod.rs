//! The driver `bird`: a BIRD 2 on this host announces what a file says that its configuration includes.
//!
//! The file holds two static protocols. A change writes it, has BIRD read its configuration again, and asks BIRD what
//! it has loaded. `docs/node-file.md` says what the operator's part of the configuration is.

mod control;
mod file;

use super::{AnnounceError, Announcer};
use control::{Control, Reply};
use file::IncludedFile;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

/// The static protocols, one for each family.
const PROTOCOLS: [&str; 2] = ["drover_v4", "drover_v6"];

/// Time that one change, or one check, may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Pause between two looks at whether BIRD is done with a configuration that it takes up step by step.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// BIRD's reply codes to `configure`.
mod code {
    /// The configuration is in force.
    pub(super) const RECONFIGURED: u16 = 3;
    /// It will be, when protocols that it stops have stopped.
    pub(super) const IN_PROGRESS: u16 = 4;
    /// It will be, after the one before it.
    pub(super) const QUEUED: u16 = 5;
    /// It is in force and stays.
    pub(super) const CONFIRMED: u16 = 18;
    /// `show protocols` found none.
    pub(super) const NO_PROTOCOLS: u16 = 8003;
    /// The configuration has a mistake.
    pub(super) const CONFIGURATION_ERROR: u16 = 8002;
    /// The socket may only be used for looking.
    pub(super) const RESTRICTED: u16 = 8007;
    /// Refusals are from here on.
    pub(super) const FIRST_ERROR: u16 = 8000;
}

/// Announces by BIRD.
#[derive(Debug)]
pub struct Bird {
    file: IncludedFile,
    socket: PathBuf,
    limit: Duration,
    announced: BTreeSet<IpAddr>,
}

impl Bird {
    /// The driver for a BIRD that includes `file` and has its control socket at `socket`. Changes nothing yet.
    ///
    /// Addresses that a predecessor left in the file count as announced if the file was written since the host booted,
    /// as `boot_id` tells: then what it announced is still forwarded. After a boot nothing is forwarded yet, and
    /// nothing announced.
    ///
    /// # Errors
    ///
    /// If there is a file that cannot be read, or that this program has not written.
    pub fn open(file: &Path, socket: &Path, boot_id: &str) -> Result<Self, AnnounceError> {
        let file = IncludedFile::new(file, boot_id);
        let announced = file.inherited()?;
        Ok(Self { file, socket: socket.to_owned(), limit: LIMIT, announced })
    }

    async fn limited<T>(
        socket: PathBuf,
        limit: Duration,
        work: impl Future<Output = Result<T, AnnounceError>>,
    ) -> Result<T, AnnounceError> {
        match timeout(limit, work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(AnnounceError::TimedOut { socket, limit }),
        }
    }

    async fn connect(&mut self) -> Result<Control, AnnounceError> {
        let control = Control::connect(&self.socket).await;
        if let Err(AnnounceError::Connect { .. }) = control {
            // A BIRD that has gone announces nothing: its sessions went with it.
            self.announced.clear();
        }
        control
    }

    async fn make_announced(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), AnnounceError> {
        let written = self.file.write(addresses).await;
        let mut control = self.connect().await?;
        if let Ok(false) = written
            && self.look(&mut control).await? == Some(true)
        {
            return Ok(());
        }
        let read = match written {
            Ok(_) => self.configure(&mut control, addresses).await,
            Err(error) => Err(error),
        };
        if read.is_err() && addresses.is_empty() {
            // Also with a configuration that is broken elsewhere, nothing must be announced any more.
            // BIRD enables the protocols by itself when it next reads a configuration.
            let reply = control.ask("disable \"drover_v*\"").await?;
            warn!(
                bird = reply.text(),
                "BIRD's protocols for VIPs are disabled: its configuration could not be changed"
            );
            self.look(&mut control).await?;
        }
        read
    }

    /// Has BIRD read its configuration, and waits until it announces these addresses.
    async fn configure(
        &mut self,
        control: &mut Control,
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<(), AnnounceError> {
        const COMMAND: &str = "configure soft";
        let reply = control.ask(COMMAND).await?;
        debug!(bird = reply.text(), "BIRD has been told to read its configuration");
        let done = match reply.code() {
            code::RECONFIGURED | code::CONFIRMED => true,
            code::IN_PROGRESS | code::QUEUED => false,
            _ => {
                // What it announced it goes on announcing.
                self.look(control).await?;
                return Err(self.refused(COMMAND, &reply));
            }
        };
        loop {
            let included = self.look(control).await?.is_some();
            if self.announced == *addresses {
                return Ok(());
            }
            if done && !included {
                return Err(AnnounceError::NotIncluded { file: self.file.path().to_owned() });
            }
            if done {
                return Err(self.differs());
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Asks BIRD what it announces and remembers that. `None` if it does not know the file's protocols, else whether
    /// it is what the file says.
    async fn look(&mut self, control: &mut Control) -> Result<Option<bool>, AnnounceError> {
        const COMMAND: &str = "show protocols \"drover_v*\"";
        let reply = control.ask(COMMAND).await?;
        if reply.code() >= code::FIRST_ERROR && reply.code() != code::NO_PROTOCOLS {
            return Err(self.refused(COMMAND, &reply));
        }
        let mut known = 0;
        let mut announced = BTreeSet::new();
        for protocol in PROTOCOLS {
            let Some(state) = reply.lines().find_map(|line| protocol_state(line, protocol)) else { continue };
            known += 1;
            if state != "up" {
                continue;
            }
            let command = format!("show static {protocol}");
            let routes = control.ask(&command).await?;
            if routes.code() >= code::FIRST_ERROR {
                return Err(self.refused(&command, &routes));
            }
            announced.extend(routes.lines().filter_map(route_address));
        }
        self.announced = announced;
        Ok((known == PROTOCOLS.len()).then(|| self.file.says(&self.announced)))
    }

    async fn find_out(&mut self) -> Result<(), AnnounceError> {
        let before = self.announced.clone();
        let mut control = self.connect().await?;
        self.look(&mut control).await?;
        if self.announced == before { Ok(()) } else { Err(self.differs()) }
    }

    fn differs(&self) -> AnnounceError {
        let announced: Vec<String> = self.announced.iter().map(IpAddr::to_string).collect();
        let announced = if announced.is_empty() { "none".to_owned() } else { announced.join(", ") };
        AnnounceError::Differs { file: self.file.path().to_owned(), announced }
    }

    fn refused(&self, command: &str, reply: &Reply) -> AnnounceError {
        let fix = match reply.code() {
            code::CONFIGURATION_ERROR => "fix its configuration there",
            code::RESTRICTED => "name a control socket that is not restricted in bird_socket",
            _ => "see BIRD's log",
        };
        AnnounceError::Refused {
            socket: self.socket.clone(),
            command: command.to_owned(),
            code: reply.code(),
            text: reply.text().to_owned(),
            fix,
        }
    }
}

impl Announcer for Bird {
    fn announced(&self) -> &BTreeSet<IpAddr> {
        &self.announced
    }

    async fn replace(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), AnnounceError> {
        Self::limited(self.socket.clone(), self.limit, self.make_announced(addresses)).await
    }

    async fn check(&mut self) -> Result<(), AnnounceError> {
        Self::limited(self.socket.clone(), self.limit, self.find_out()).await
    }
}

/// The state of this protocol, if the line of `show protocols` is about it:
/// `drover_v4  Static     master4    up     03:26:15.578`.
fn protocol_state<'l>(line: &'l str, protocol: &str) -> Option<&'l str> {
    let mut words = line.split_whitespace();
    if words.next() == Some(protocol) { words.nth(2) } else { None }
}

/// The address in a line of `show static`, such as `198.51.100.10/32 blackhole` (with a tab).
fn route_address(line: &str) -> Option<IpAddr> {
    let (address, _) = line.trim_start().split_once('/')?;
    address.parse().ok()
}

#[cfg(test)]
mod tests;
