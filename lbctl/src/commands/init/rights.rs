//! Rights in a closed tree.

use crate::context::Context;
use anyhow::{Context as _, Result, bail};
use coordination::{access, zookeeper};
use std::collections::BTreeSet;
use std::path::Path;
use zk_schema::tree::{Access, AccessId};
use zk_schema::{ZookeeperAuth, ZookeeperSettings};

// Who belongs to which group. No docstring, since clap would take it for that of the command.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(
    next_help_heading = "Rights (an ID is digest:USER:HASH, sasl:USER or x509:SUBJECT; a FILE holds user:password)"
)]
pub(super) struct Rights {
    /// Close the tree, new or old: operators alone write VIPs, reals and flags, nodes alone what they find and decide.
    #[arg(long, requires = "nodes")]
    secure: bool,

    /// Operators; you are one in any case.
    #[arg(long, value_name = "ID|FILE", num_args = 1.., requires = "secure")]
    operators: Vec<String>,

    /// Nodes.
    #[arg(long, value_name = "ID|FILE", num_args = 1.., requires = "secure")]
    nodes: Vec<String>,

    /// Agents of reals that register themselves.
    #[arg(long, value_name = "ID|FILE", num_args = 1.., requires = "secure")]
    agents: Vec<String>,

    /// Let everybody read, the seed included; else only the groups may.
    #[arg(long, requires = "secure")]
    world_reads: bool,
}

impl Rights {
    /// Returns the rights, if the tree is to be closed.
    pub(super) fn access(&self, context: &Context) -> Result<Option<Access>> {
        if !self.secure {
            return Ok(None);
        }
        let mut operators = ids(&self.operators)?;
        operators.extend(own(&context.settings()?.zookeeper)?);
        if operators.is_empty() {
            bail!(
                "nobody could change a tree that is closed without operators: set credentials_file in the table \
                 [zookeeper] of the file that --config names, or name operators by --operators"
            );
        }
        let (nodes, agents) = (ids(&self.nodes)?, ids(&self.agents)?);
        Ok(Some(Access { operators, nodes, agents, world_reads: self.world_reads, ..Access::default() }))
    }
}

/// The ids that were typed.
fn ids(words: &[String]) -> Result<BTreeSet<AccessId>> {
    let id = |word: &String| if word.starts_with('/') { of_file(Path::new(word)) } else { Ok(word.parse()?) };
    words.iter().map(id).collect()
}

/// The id of the credentials in a file, in ZooKeeper's scheme `digest`.
fn of_file(path: &Path) -> Result<AccessId> {
    let login = zookeeper::login(path)?;
    access::digest(&login.user, &login.password).with_context(|| path.display().to_string())
}

/// The ids of the person at the keyboard, as ZooKeeper knows them.
fn own(settings: &ZookeeperSettings) -> Result<Option<AccessId>> {
    let Some(path) = &settings.credentials_file else { return Ok(None) };
    match settings.auth {
        ZookeeperAuth::Digest => of_file(path).map(Some),
        ZookeeperAuth::Sasl => Ok(Some(AccessId::new("sasl", &zookeeper::login(path)?.user)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Global;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn ids_are_typed_or_taken_from_files_and_passwords_are_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("zk.credentials");
        std::fs::write(&file, "super:test\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let file = file.display().to_string();
        let both = ids(&[file, "sasl:anna".to_owned()]).unwrap();
        let texts: Vec<String> = both.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["digest:super:D/InIHSb7yEEbrWz8b9l71RjZJU=", "sasl:anna"]);
        let refusal = ids(&["digest:super:test".to_owned()]).unwrap_err().to_string();
        assert!(refusal.contains("with the hash and not the password"), "{refusal}");
    }

    #[test]
    fn a_tree_is_not_closed_without_operators() {
        let context = Context::new(Global { zookeeper: Some("zk-1:2181".to_owned()), ..Global::default() });
        assert_eq!(Rights::default().access(&context).unwrap(), None);
        let options = Rights { secure: true, nodes: vec!["sasl:node".to_owned()], ..Rights::default() };
        let refusal = options.access(&context).unwrap_err().to_string();
        assert!(refusal.contains("--operators") && refusal.contains("credentials_file"), "{refusal}");
    }
}
