//! Znodes as a mirror holds them: cheap to copy, and two copies tell cheaply in what they differ.

use super::Znode;
use std::collections::BTreeMap;
use std::iter;
use std::sync::Arc;

/// The children of one znode, by name.
type Directory = BTreeMap<Arc<str>, Arc<Znode>>;

/// The content of a mirror.
///
/// Copies share what they have in common: a copy of 100,000 znodes costs as much as a list of their parents, a change
/// as much as a list of the znode's siblings, and [`changed_since`](Self::changed_since) looks at no more than that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// By the parent's path.
    directories: BTreeMap<Arc<str>, Arc<Directory>>,
    /// Znodes that are there and cannot be read, by path, with the reason: a znode that matches or one whose children
    /// would. It is as unknown as what such a list names. What was read of it before stays among the znodes until it is
    /// gone.
    pub unreadable: BTreeMap<String, String>,
    /// True if all has been read once, as far as it can be: false only before the first publication.
    pub complete: bool,
}

impl Contents {
    /// All of `znodes`, and nothing is missing.
    #[must_use]
    pub fn of(znodes: impl IntoIterator<Item = (String, Znode)>) -> Self {
        let mut contents = Self { complete: true, ..Self::default() };
        for (path, znode) in znodes {
            contents.insert(&path, Arc::new(znode));
        }
        contents
    }

    /// The znode at `path`.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Arc<Znode>> {
        let (parent, name) = split(path);
        self.directories.get(parent)?.get(name)
    }

    /// The znodes below `parent`, by name, in order.
    pub fn children<'a>(&'a self, parent: &str) -> impl Iterator<Item = (&'a str, &'a Arc<Znode>)> + use<'a> {
        let children = self.directories.get(parent).into_iter().flat_map(|children| children.iter());
        children.map(|(name, znode)| (&**name, znode))
    }

    /// All znodes with their paths: parents before their children, and siblings by name.
    pub fn iter(&self) -> impl Iterator<Item = (String, &Arc<Znode>)> {
        let all = self.directories.iter();
        all.flat_map(|(parent, children)| {
            children.iter().map(move |(name, znode)| (format!("{parent}/{name}"), znode))
        })
    }

    /// Returns the number of znodes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.directories.values().map(|children| children.len()).sum()
    }

    /// Returns whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.directories.is_empty()
    }

    /// The paths of the znodes that came, went or differ since these were `before`, in no particular order.
    #[must_use]
    pub fn changed_since(&self, before: &Self) -> Vec<String> {
        let mut changed = Vec::new();
        let nothing = Directory::new();
        for (parent, now, then) in joined(&self.directories, &before.directories) {
            if let (Some(now), Some(then)) = (now, then)
                && Arc::ptr_eq(now, then)
            {
                continue;
            }
            let (now, then) =
                (now.map_or(&nothing, |children| children), then.map_or(&nothing, |children| children));
            let differing = joined(now, then).filter(|(_, now, then)| now != then);
            changed.extend(differing.map(|(name, _, _)| format!("{parent}/{name}")));
        }
        changed
    }

    /// Puts a znode in; returns what was there.
    pub fn insert(&mut self, path: &str, znode: Arc<Znode>) -> Option<Arc<Znode>> {
        let (parent, name) = split(path);
        if !self.directories.contains_key(parent) {
            self.directories.insert(parent.into(), Arc::default());
        }
        let children = Arc::make_mut(self.directories.get_mut(parent)?);
        match children.get_mut(name) {
            Some(place) => Some(std::mem::replace(place, znode)),
            None => children.insert(name.into(), znode),
        }
    }

    /// Takes a znode out; returns what was there.
    pub fn remove(&mut self, path: &str) -> Option<Arc<Znode>> {
        let (parent, name) = split(path);
        let children = self.directories.get_mut(parent)?;
        if !children.contains_key(name) {
            return None;
        }
        let children = Arc::make_mut(children);
        let removed = children.remove(name);
        if children.is_empty() {
            self.directories.remove(parent);
        }
        removed
    }
}

/// A path's parent and its last name; the parent of `/drover` is empty.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// The entries of two maps side by side, by key.
fn joined<'a, K: Ord, V>(
    one: &'a BTreeMap<K, V>,
    other: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, Option<&'a V>, Option<&'a V>)> {
    let (mut one, mut other) = (one.iter().peekable(), other.iter().peekable());
    iter::from_fn(move || {
        let key = match (one.peek(), other.peek()) {
            (Some((a, _)), Some((b, _))) => (*a).min(b),
            (Some((key, _)), None) | (None, Some((key, _))) => key,
            (None, None) => return None,
        };
        let left = one.next_if(|(a, _)| *a == key);
        let right = other.next_if(|(b, _)| *b == key);
        Some((key, left.map(|(_, value)| value), right.map(|(_, value)| value)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn znode(data: u8) -> Znode {
        Znode { data: vec![data], version: 0, created: 1, modified: 1, owner: None }
    }

    fn some() -> Contents {
        let paths = ["/v", "/v/a", "/v/a/r/1", "/v/a/r/2", "/v/b", "/v/b/r/1"];
        Contents::of(paths.map(|path| (path.to_owned(), znode(0))))
    }

    #[test]
    fn znodes_are_found_by_path_and_by_parent() {
        let contents = some();
        assert_eq!(contents.get("/v/a/r/2").map(|znode| znode.data[0]), Some(0));
        assert_eq!(contents.get("/v/a/r"), None);
        assert_eq!(contents.get("/v/a/r/3"), None);
        assert_eq!(contents.children("/v/a/r").map(|(name, _)| name).collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(contents.len(), 6);
        let paths: Vec<String> = contents.iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["/v", "/v/a", "/v/b", "/v/a/r/1", "/v/a/r/2", "/v/b/r/1"]);
    }

    #[test]
    fn a_copy_shares_every_list_of_siblings_that_was_not_changed() {
        let before = some();
        let mut after = before.clone();
        after.insert("/v/a/r/1", Arc::new(znode(1)));
        for (parent, children) in &before.directories {
            let is_shared = Arc::ptr_eq(children, &after.directories[parent]);
            assert_eq!(is_shared, &**parent != "/v/a/r", "{parent}");
        }
        assert!(Arc::ptr_eq(before.get("/v/a/r/2").unwrap(), after.get("/v/a/r/2").unwrap()));
        assert_eq!(before.get("/v/a/r/1").unwrap().data, [0], "the copy that was made before is as it was");
    }

    #[test]
    fn what_has_no_znodes_left_is_as_if_it_had_never_been() {
        let mut contents = some();
        contents.insert("/x/y", Arc::new(znode(0)));
        assert_eq!(contents.remove("/x/z"), None);
        assert!(contents.remove("/x/y").is_some());
        assert_eq!(contents, some());
    }

    proptest! {
        #[test]
        fn it_is_a_map_and_tells_in_what_two_copies_differ(
            edits in prop::collection::vec((0..4_u8, 0..4_u8, prop::option::of(0..3_u8)), 0..40),
            since in 0..40_usize,
        ) {
            let mut contents = Contents::default();
            let mut map = BTreeMap::new();
            let mut before = (contents.clone(), map.clone());
            for (number, (parent, name, data)) in edits.into_iter().enumerate() {
                if number == since {
                    before = (contents.clone(), map.clone());
                }
                let path = format!("/{parent}/{name}");
                match data {
                    Some(data) => {
                        let old = contents.insert(&path, Arc::new(znode(data)));
                        prop_assert_eq!(old, map.insert(path, Arc::new(znode(data))));
                    }
                    None => prop_assert_eq!(contents.remove(&path), map.remove(&path)),
                }
            }
            let all: BTreeMap<String, Arc<Znode>> =
                contents.iter().map(|(path, znode)| (path, Arc::clone(znode))).collect();
            prop_assert_eq!(&all, &map);
            let differs = |path: &&String| before.1.get(*path) != map.get(*path);
            let paths: std::collections::BTreeSet<&String> = before.1.keys().chain(map.keys()).collect();
            let expected: Vec<&String> = paths.into_iter().filter(differs).collect();
            let mut changed = contents.changed_since(&before.0);
            changed.sort();
            prop_assert_eq!(changed.iter().collect::<Vec<_>>(), expected);
        }
    }
}
