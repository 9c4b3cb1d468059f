//! The context of every command: settings, and a session with the tree.

use crate::output::Format;
use anyhow::{Context as _, Result, bail};
use coordination::zookeeper::{self, ZooKeeperSession};
use coordination::{Session as _, Store as _};
use std::path::{Path, PathBuf};
use tracing_subscriber::EnvFilter;
use zk_schema::{NodeFile, OperatorFile};

/// The files in which settings are looked for when none are named.
const FILES: [&str; 2] = ["/etc/drover/lbctl.toml", "/etc/drover/node.toml"];

/// Options of every command.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Connect string: host:port of each server, separated by commas, and perhaps a chroot.
    #[arg(long, short, global = true, env = "DROVER_ZOOKEEPER", value_name = "SERVERS")]
    pub zookeeper: Option<String>,

    /// File with a table [zookeeper]: an operator's file (docs/lbctl.md) or a node file.
    #[arg(long, short, global = true, env = "DROVER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Format of results.
    #[arg(long, short, global = true, value_enum, default_value_t)]
    pub output: Format,

    /// Your name, for the flags and the history that others read.
    #[arg(long, global = true, env = "DROVER_BY", value_name = "NAME")]
    pub by: Option<String>,
}

/// The context of every command.
#[derive(Clone, Debug)]
pub struct Context {
    global: Global,
}

impl Context {
    /// From the options of every command. Reads nothing yet.
    #[must_use]
    pub fn new(global: Global) -> Self {
        Self { global }
    }

    /// Logs go to standard error, warnings only unless RUST_LOG says otherwise.
    pub(crate) fn start_log(&self) {
        let filter =
            EnvFilter::builder().with_default_directive(tracing::Level::ERROR.into()).from_env_lossy();
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        // Fails only if there is a log already, as in tests.
        let _ = log.try_init();
    }

    /// Returns the format of results.
    #[must_use]
    pub fn format(&self) -> Format {
        self.global.output
    }

    /// The file that `--config` names.
    #[must_use]
    pub fn config(&self) -> Option<&Path> {
        self.global.config.as_deref()
    }

    /// Returns who gives the orders, for others to read: `--by`, else the user's name, be it behind sudo.
    #[must_use]
    pub fn by(&self) -> String {
        let names = ["SUDO_USER", "USER", "LOGNAME"];
        let user = || names.iter().filter_map(|name| std::env::var(name).ok()).find(|name| !name.is_empty());
        self.global.by.clone().or_else(user).unwrap_or_else(|| "unknown".to_owned())
    }

    /// Reads how tree and nodes are reached.
    ///
    /// # Errors
    /// If nothing says where ZooKeeper is, or what says so is wrong.
    pub fn settings(&self) -> Result<OperatorFile> {
        let named = self.global.config.clone();
        let found = || FILES.iter().map(PathBuf::from).find(|path| path.is_file());
        let mut settings = match (named, &self.global.zookeeper) {
            (Some(path), _) => Some(read(&path)?),
            // A file that is merely there is not asked for when the servers are named.
            (None, Some(_)) => None,
            (None, None) => found().map(|path| read(&path)).transpose()?,
        };
        if let Some(servers) = &self.global.zookeeper {
            let named = OperatorFile::new(servers);
            named.validate().map_err(|problems| anyhow::anyhow!("--zookeeper: {problems}"))?;
            settings.get_or_insert(named).zookeeper.servers.clone_from(servers);
        }
        let Some(settings) = settings else {
            bail!(
                "where is ZooKeeper? Say so by --zookeeper zk-1:2181,zk-2:2181,zk-3:2181 (or DROVER_ZOOKEEPER), by \
                 --config FILE, or in {}",
                FILES.join(" or ")
            );
        };
        Ok(settings)
    }

    /// A session with the tree.
    ///
    /// # Errors
    /// If there are no settings, or ZooKeeper cannot be reached.
    pub async fn connect(&self) -> Result<ZooKeeperSession> {
        Ok(zookeeper::store(&self.settings()?.zookeeper)?.connect().await?)
    }

    /// Does `act` in a session, which ends with it.
    ///
    /// # Errors
    /// If there is no session, or `act` fails.
    pub async fn in_session<T>(&self, act: impl AsyncFnOnce(&ZooKeeperSession) -> Result<T>) -> Result<T> {
        let session = self.connect().await?;
        let outcome = act(&session).await;
        session.close().await;
        outcome
    }
}

/// Reads an operator's file, or the table `[zookeeper]` of a node file.
fn read(path: &Path) -> Result<OperatorFile> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(|| format!("{name}: cannot be read"))?;
    if NodeFile::is_told_apart(&text) {
        return Ok(OperatorFile::of_node_file(&text, &name)?);
    }
    Ok(OperatorFile::parse(&text, &name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(global: Global) -> Result<OperatorFile> {
        Context::new(global).settings()
    }

    #[test]
    fn a_node_file_serves_and_the_command_line_goes_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.toml");
        let node = "[node]\nname = \"lb-1\"\ninterface = \"eth0\"\n[zookeeper]\nservers = \"zk-1:2181\"\n";
        std::fs::write(&path, node).unwrap();
        let global = Global { config: Some(path), ..Global::default() };
        assert_eq!(settings(global.clone()).unwrap().zookeeper.servers, "zk-1:2181");
        let other = Global { zookeeper: Some("zk-2:2181/site".to_owned()), ..global };
        assert_eq!(settings(other).unwrap().zookeeper.servers, "zk-2:2181/site");
    }

    #[test]
    fn of_a_node_file_the_table_zookeeper_is_read_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.toml");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            settings(Global { config: Some(path.clone()), ..Global::default() })
        };
        // As in a pod: the name is the command line's. What only a newer version knows is the daemon's affair.
        for rest in ["[node]\ninterface = \"eth0\"\n", "[front]\ndriver = \"bird\"\n", "[cluster]\nnew = 1\n"]
        {
            let file = read(&format!("{rest}[zookeeper]\nservers = \"zk-1:2181\"\n")).unwrap();
            assert_eq!(file, OperatorFile::new("zk-1:2181"));
        }
        let wrong =
            read("[node]\n[zookeeper]\nservers = \"zk-1:2181\"\nservres = 1\n").unwrap_err().to_string();
        assert!(wrong.contains(":4:1: zookeeper.servres: unknown field"), "{wrong}");
        let missing = read("[node]\nname = \"lb-1\"\n").unwrap_err().to_string();
        assert!(missing.contains("zookeeper: missing"), "{missing}");
    }

    #[test]
    fn servers_that_cannot_be_meant_are_refused_by_name() {
        let global = Global { zookeeper: Some("zk-1:port".to_owned()), ..Global::default() };
        let error = format!("{:#}", settings(global).unwrap_err());
        assert!(error.contains("--zookeeper") && error.contains("zk-1:port"), "{error}");
    }
}
