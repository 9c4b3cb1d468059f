//! Rights in a closed tree: from a znode's path and the groups to ZooKeeper's rights. Pure.
//!
//! | below | operators | nodes | reals' agents |
//! |---|---|---|---|
//! | `/drover` itself | all | read, create | read |
//! | `access`, `ops`, `vips` | all | read | read |
//! | `vips/<vip>` | all | read | read, create |
//! | `vips/<vip>/reals` | all | read | read, create, delete |
//! | `vips/<vip>/reals/<real>`, ephemeral | all | read | read, write |
//! | `load` | read, admin | all but admin | all but admin |
//! | `leases` | read, admin | read | all but admin |
//! | all else: `nodes`, `applied`, `health`, `election`, `leader`, `assignments`, … | read, admin | all but admin | read |
//!
//! Operators have the right to change rights everywhere, so that they can close a tree again in which somebody left
//! something open; to write there, they would have to take that right first.
//!
//! ZooKeeper asks for the right to create and delete at the *parent*: an agent can delete every real of every VIP, and
//! a node its peers' znodes. Within a group there is no protection but that its members are told apart by their own
//! records.

use std::fmt;
use std::ops::BitOr;
use zk_schema::tree::{Access, AccessId, AccessIdError, paths};

/// A set of ZooKeeper's five rights.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Rights(u8);

impl Rights {
    /// To read the content and list the children.
    pub const READ: Self = Self(1);
    /// To write the content.
    pub const WRITE: Self = Self(2);
    /// To create children.
    pub const CREATE: Self = Self(4);
    /// To delete children.
    pub const DELETE: Self = Self(8);
    /// To change the rights.
    pub const ADMIN: Self = Self(16);
    /// All of them.
    pub const ALL: Self = Self(31);
    /// All but to change the rights.
    pub const USE: Self = Self(15);

    /// Returns whether all of `other` is among them.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Rights {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// As zkCli.sh writes them: `cdrwa`.
impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            (Self::CREATE, "c"),
            (Self::DELETE, "d"),
            (Self::READ, "r"),
            (Self::WRITE, "w"),
            (Self::ADMIN, "a"),
        ];
        all.iter().filter(|(right, _)| self.has(*right)).try_for_each(|(_, letter)| f.write_str(letter))
    }
}

impl fmt::Debug for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The id of a user with this password in ZooKeeper's scheme `digest`.
///
/// # Errors
/// If the user's name is empty or has a colon.
///
/// ```
/// // What `java … DigestAuthenticationProvider super:test` prints, too.
/// let id = coordination::access::digest("super", "test")?;
/// assert_eq!(id.to_string(), "digest:super:D/InIHSb7yEEbrWz8b9l71RjZJU=");
/// # Ok::<(), zk_schema::tree::AccessIdError>(())
/// ```
pub fn digest(user: &str, password: &str) -> Result<AccessId, AccessIdError> {
    if user.contains(':') {
        return AccessId::new("digest", user);
    }
    // What ZooKeeper's scheme prescribes. The password's strength is all that protects it.
    let algorithm = &ring::digest::SHA1_FOR_LEGACY_USE_ONLY;
    let hash = ring::digest::digest(algorithm, format!("{user}:{password}").as_bytes());
    AccessId::new("digest", &format!("{user}:{}", data_encoding::BASE64.encode(hash.as_ref())))
}

/// The rights of each group to a znode: (operators, nodes, agents).
fn groups(path: &str, ephemeral: bool) -> (Rights, Rights, Rights) {
    use Rights as R;
    let below = path.strip_prefix(paths::CLUSTER).unwrap_or(path);
    let parts: Vec<&str> = below.split('/').filter(|part| !part.is_empty()).collect();
    match parts[..] {
        [] => (R::ALL, R::READ | R::CREATE, R::READ),
        ["vips", _] => (R::ALL, R::READ, R::READ | R::CREATE),
        ["vips", _, "reals"] => (R::ALL, R::READ, R::READ | R::CREATE | R::DELETE),
        ["vips", _, "reals", _] if ephemeral => (R::ALL, R::READ, R::READ | R::WRITE),
        ["vips" | "ops" | "access", ..] => (R::ALL, R::READ, R::READ),
        ["load", ..] => (R::READ | R::ADMIN, R::USE, R::USE),
        ["leases", ..] => (R::READ | R::ADMIN, R::READ, R::USE),
        _ => (R::READ | R::ADMIN, R::USE, R::READ),
    }
}

/// Returns whether the path is of the tree, so that rights are given there.
#[must_use]
pub fn governs(path: &str) -> bool {
    path == paths::CLUSTER || path.strip_prefix(paths::CLUSTER).is_some_and(|rest| rest.starts_with('/'))
}

/// Returns the rights to the znode at `path`, in order of ids. `None` stands for everybody.
///
/// A member of two groups has the rights of both.
#[must_use]
pub fn rights(access: &Access, path: &str, ephemeral: bool) -> Vec<(Option<AccessId>, Rights)> {
    let (operators, nodes, agents) = groups(path, ephemeral);
    let mut all = std::collections::BTreeMap::<AccessId, Rights>::new();
    for (group, rights) in [(&access.operators, operators), (&access.nodes, nodes), (&access.agents, agents)]
    {
        for id in group {
            let entry = all.entry(id.clone()).or_default();
            *entry = *entry | rights;
        }
    }
    let mut all: Vec<_> = all.into_iter().map(|(id, rights)| (Some(id), rights)).collect();
    // Who belongs to the groups is no business of others, even where they may read.
    if access.world_reads && path != paths::ACCESS {
        all.push((None, Rights::READ));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(world_reads: bool) -> Access {
        let group = |name: &str| [AccessId::new("sasl", name).unwrap()].into();
        Access {
            operators: group("op"),
            nodes: group("node"),
            agents: group("real"),
            world_reads,
            extra: Default::default(),
        }
    }

    /// As `op:cdrwa node:r …`.
    fn told(path: &str, ephemeral: bool, world: bool) -> String {
        let rights = rights(&access(world), path, ephemeral);
        let told = rights.iter().map(|(id, rights)| match id {
            Some(id) => format!("{}:{rights}", id.id()),
            None => format!("world:{rights}"),
        });
        told.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn each_group_writes_its_own_part_of_the_tree() {
        for (path, expected) in [
            ("/drover", "node:cr op:cdrwa real:r"),
            ("/drover/access", "node:r op:cdrwa real:r"),
            ("/drover/vips", "node:r op:cdrwa real:r"),
            ("/drover/vips/mqtt", "node:r op:cdrwa real:cr"),
            ("/drover/vips/mqtt/reals", "node:r op:cdrwa real:cdr"),
            ("/drover/vips/mqtt/reals/a", "node:r op:cdrwa real:r"),
            ("/drover/ops/freeze", "node:r op:cdrwa real:r"),
            ("/drover/ops/drain/mqtt.a", "node:r op:cdrwa real:r"),
            ("/drover/assignments", "node:cdrw op:ra real:r"),
            ("/drover/assignments/mqtt", "node:cdrw op:ra real:r"),
            ("/drover/leader", "node:cdrw op:ra real:r"),
            ("/drover/events/e-0000000001", "node:cdrw op:ra real:r"),
            ("/drover/load/mqtt/a", "node:cdrw op:ra real:cdrw"),
            ("/drover/leases/mqtt", "node:r op:ra real:cdrw"),
        ] {
            assert_eq!(told(path, false, false), expected, "{path}");
        }
        assert_eq!(told("/drover/vips/mqtt/reals/a", true, false), "node:r op:cdrwa real:rw");
        assert_eq!(told("/drover/nodes/lb-1", true, false), "node:cdrw op:ra real:r");
    }

    #[test]
    fn the_world_reads_only_where_it_is_let_and_never_who_the_groups_are() {
        assert!(told("/drover", false, true).ends_with(" world:r"));
        assert!(!told("/drover/access", false, true).contains("world"));
        assert!(!told("/drover", false, false).contains("world"));
    }

    #[test]
    fn who_is_in_two_groups_may_do_what_either_may() {
        let mut both = access(false);
        both.nodes.extend(both.operators.clone());
        let rights = rights(&both, paths::LEADER, false);
        let op = rights.iter().find(|(id, _)| id.as_ref().is_some_and(|id| id.id() == "op")).unwrap();
        assert_eq!(op.1, Rights::ALL);
    }

    #[test]
    fn only_the_tree_is_governed() {
        assert!(governs("/drover") && governs("/drover/x"));
        assert!(!governs("/") && !governs("/droverx") && !governs("/other/drover"));
    }
}
