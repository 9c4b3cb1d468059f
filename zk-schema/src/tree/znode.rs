//! A znode as it was read.

/// A znode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Znode {
    /// Its content.
    pub data: Vec<u8>,
    /// Rises with every write since it was created; 0 at first.
    pub version: i32,
    /// The transaction that created it: tells a znode from its successor at the same path.
    pub created: i64,
    /// The transaction that wrote it last. Rises over the whole tree.
    pub modified: i64,
    /// The session that owns it, if it is ephemeral.
    pub owner: Option<i64>,
}

/// The facts about a znode that are known without the right to read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Rises with every write since it was created; 0 at first.
    pub version: i32,
    /// The session that owns it, if it is ephemeral.
    pub owner: Option<i64>,
}

impl From<&Znode> for Stat {
    fn from(znode: &Znode) -> Self {
        Self { version: znode.version, owner: znode.owner }
    }
}
