//! Closed trees: the credentials of each group, and files with them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use coordination::access::digest;
use coordination::zookeeper::Login;
use zk_schema::tree::Access;

/// Who somebody is to ZooKeeper. The password is `secret of <user>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member {
    /// Of the operators.
    Operator,
    /// Of the nodes.
    Node,
    /// Of the reals' agents.
    Agent,
    /// Of no group.
    Stranger,
}

impl Member {
    /// User and password.
    #[must_use]
    pub fn login(self) -> Login {
        let user = format!("{self:?}").to_lowercase();
        Login { password: format!("secret of {user}"), user }
    }

    /// Writes a file that only root may read into `folder`, for `credentials_file`.
    ///
    /// # Errors
    ///
    /// When that fails.
    pub fn credentials(self, folder: &Path) -> Result<PathBuf> {
        let Login { user, password } = self.login();
        let path = folder.join(format!("{user}.credentials"));
        fs::write(&path, format!("{user}:{password}\n")).with_context(|| path.display().to_string())?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(path)
    }
}

/// A tree that only the groups may read.
///
/// # Panics
///
/// Never: the names above can be used.
#[must_use]
pub fn closed() -> Access {
    let group = |member: Member| {
        let Login { user, password } = member.login();
        [digest(&user, &password).expect("a user's name without a colon")].into()
    };
    Access {
        operators: group(Member::Operator),
        nodes: group(Member::Node),
        agents: group(Member::Agent),
        ..Access::default()
    }
}
