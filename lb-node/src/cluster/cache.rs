//! The last decision on disk, so that a node that boots while ZooKeeper is away forwards.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use zk_schema::VipName;
use zk_schema::tree::{Decided, Head, StateRecord as _};

/// Largest file that is read: a cluster of the largest size stays well below.
const MAX_BYTES: u64 = 256 << 20;

/// The reason why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// It cannot be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
    /// It was read and is wrong.
    #[error("{}: {problem}; it is not used, and will be written anew", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The problem.
        problem: String,
    },
}

/// The file of a state directory.
#[derive(Clone, Debug)]
pub struct Cache {
    path: PathBuf,
}

/// Records as they stand in the tree. What this version could write itself is kept as it is; other text, such as an object
/// with blanks around it, as a string of JSON.
#[derive(Serialize, Deserialize)]
struct Content {
    head: Box<RawValue>,
    assignments: BTreeMap<VipName, Box<RawValue>>,
}

impl Cache {
    /// The cache of a node in `directory`.
    #[must_use]
    pub fn new(directory: &Path, node: &zk_schema::NodeName) -> Self {
        Self { path: directory.join(format!("{node}.json")) }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns what was kept last; `None` if nothing ever was.
    ///
    /// # Errors
    /// If it cannot be read or is damaged.
    pub fn load(&self) -> Result<Option<Decided>, CacheError> {
        let file = |error| CacheError::File { path: self.path.clone(), error };
        let wrong = |problem: String| CacheError::Content { path: self.path.clone(), problem };
        let bytes = match std::fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(file(error)),
            Ok(metadata) if metadata.len() > MAX_BYTES => {
                return Err(wrong("larger than it could be".into()));
            }
            Ok(_) => std::fs::read(&self.path).map_err(file)?,
        };
        let content: Content = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        let head_bytes = unwrapped(&content.head);
        let head = Head::parse(&head_bytes).map_err(|error| wrong(error.to_string()))?;
        let bytes = |vip: &VipName| content.assignments.get(vip).map(|raw| unwrapped(raw));
        Decided::assemble(head, &head_bytes, bytes, None).map(Some).map_err(wrong)
    }

    /// Keeps `decided` in place of what was there: after a crash, or with a full disk, one or the other is there.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn store(&self, decided: &Decided) -> Result<(), CacheError> {
        let file = |error| CacheError::File { path: self.path.clone(), error };
        let wrong = |problem: String| CacheError::Content { path: self.path.clone(), problem };
        let raw = |bytes: &[u8]| wrapped(bytes).map_err(|error| wrong(error.to_string()));
        let mut content = Content { head: raw(&decided.raw.head)?, assignments: BTreeMap::new() };
        for (vip, bytes) in &decided.raw.assignments {
            content.assignments.insert(vip.clone(), raw(bytes)?);
        }
        let bytes = serde_json::to_vec(&content).map_err(|error| wrong(error.to_string()))?;
        replace(&self.path, &bytes).map_err(file)
    }
}

/// Puts `bytes` in place of a file's content: after a crash, or with a full disk, the old content is there or the new.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    let beside = path.with_extension("new");
    let written = std::fs::File::create(&beside).and_then(|mut new| {
        new.write_all(bytes)?;
        new.sync_all()
    });
    let placed = written.and_then(|()| std::fs::rename(&beside, path));
    if placed.is_err() {
        // What is half written takes room that may be short.
        let _ = std::fs::remove_file(&beside);
    }
    placed
}

fn wrapped(bytes: &[u8]) -> Result<Box<RawValue>, serde_json::Error> {
    let raw: &RawValue = serde_json::from_slice(bytes)?;
    if raw.get().len() == bytes.len() && raw.get().starts_with('{') {
        return Ok(raw.to_owned());
    }
    // Parsing leaves out what is around a value.
    serde_json::value::to_raw_value(std::str::from_utf8(bytes).map_err(serde::de::Error::custom)?)
}

fn unwrapped(raw: &RawValue) -> Vec<u8> {
    match serde_json::from_str::<String>(raw.get()) {
        Ok(text) => text.into_bytes(),
        Err(_) => raw.get().as_bytes().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{checked_vip, decided, desired, name};
    use zk_schema::tree::Assignment;

    fn cache() -> (tempfile::TempDir, Cache) {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::new(&directory.path().join("below"), &name("lb-1"));
        (directory, cache)
    }

    fn some() -> Decided {
        decided(
            3,
            17,
            &desired([("mqtt", checked_vip(&[("a", 100), ("b", 50)])), ("other", checked_vip(&[]))]),
        )
    }

    #[test]
    fn what_was_stored_is_loaded_and_nothing_was_stored_at_first() {
        let (_directory, cache) = cache();
        assert!(cache.load().unwrap().is_none());
        cache.store(&some()).unwrap();
        assert_eq!(cache.load().unwrap(), Some(some()));
        let empty = decided(4, 18, &desired([]));
        cache.store(&empty).unwrap();
        assert_eq!(cache.load().unwrap(), Some(empty));
        let files = std::fs::read_dir(cache.path().parent().unwrap()).unwrap();
        assert_eq!(files.count(), 1, "nothing is left beside it");
    }

    fn one() -> Decided {
        decided(3, 17, &desired([("mqtt", checked_vip(&[("a", 100), ("b", 50)]))]))
    }

    /// A decision as a newer version writes it: with fields at every depth that this one does not know, and blanks.
    fn newer() -> Decided {
        let mut known = one();
        let name = known.assignments.keys().next().unwrap().clone();
        let insert = |bytes: &[u8], at: &str, pointer: &str| {
            let mut value: serde_json::Value = serde_json::from_slice(bytes).unwrap();
            let place = value.pointer_mut(pointer).unwrap().as_object_mut().unwrap();
            place.insert(at.to_owned(), serde_json::json!({"deep": [1, null]}));
            serde_json::to_vec_pretty(&value).unwrap()
        };
        let mut next = Assignment::clone(&known.assignments[&name]);
        next.next = Some(zk_schema::tree::Adoption { epoch: 1, weights: next.weights.clone() });
        let mut bytes = insert(&next.bytes().unwrap(), "future", "/next");
        bytes = insert(&bytes, "future", "/vip");
        bytes.extend(b" \n");
        known.head.vips.get_mut(&name).unwrap().digest = Assignment::digest(&bytes);
        let head = insert(&known.head.bytes().unwrap(), "future", &format!("/vips/{name}"));
        Decided::assemble(Head::parse(&head).unwrap(), &head, |_| Some(bytes.clone()), None).unwrap()
    }

    #[test]
    fn what_a_newer_version_wrote_is_kept_to_the_byte() {
        let (_directory, cache) = cache();
        let newer = newer();
        let text = String::from_utf8(newer.raw.assignments.values().next().unwrap().to_vec()).unwrap();
        assert_eq!(text.matches("future").count(), 2, "{text}");
        cache.store(&newer).unwrap();
        assert_eq!(cache.load().unwrap(), Some(newer));
    }

    #[test]
    fn a_file_of_an_earlier_version_is_read() {
        let (_directory, cache) = cache();
        let some = one();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let assignment = text(&some.raw.assignments["mqtt"]);
        let file = format!(r#"{{"head":{},"assignments":{{"mqtt":{assignment}}}}}"#, text(&some.raw.head));
        std::fs::create_dir_all(cache.path().parent().unwrap()).unwrap();
        std::fs::write(cache.path(), &file).unwrap();
        assert_eq!(cache.load().unwrap(), Some(some.clone()));
        cache.store(&some).unwrap();
        assert_eq!(std::fs::read_to_string(cache.path()).unwrap(), file, "and goes on to be written");
    }

    #[test]
    fn a_damaged_file_is_refused_by_name_wherever_it_is_damaged() {
        let (_directory, cache) = cache();
        cache.store(&some()).unwrap();
        let whole = std::fs::read(cache.path()).unwrap();
        for damaged in [&whole[..whole.len() / 2], b"", b"{}", b"[1]", &[0xff; 100]] {
            std::fs::write(cache.path(), damaged).unwrap();
            let error = cache.load().unwrap_err().to_string();
            assert!(error.contains("lb-1.json") && error.contains("written anew"), "{error}");
        }
        // One digit of a weight: still JSON, but not what the head lists.
        let text = String::from_utf8(whole).unwrap().replacen("\"a\":100", "\"a\":101", 1);
        std::fs::write(cache.path(), text).unwrap();
        assert!(cache.load().unwrap_err().to_string().contains("/drover/assignments/mqtt: not what"));
    }

    #[test]
    fn what_cannot_be_written_is_told_and_what_was_there_stays() {
        let (_directory, cache) = cache();
        cache.store(&some()).unwrap();
        // The place where the new file is written first is taken.
        std::fs::create_dir(cache.path().with_extension("new")).unwrap();
        let error = cache.store(&decided(4, 18, &desired([]))).unwrap_err().to_string();
        assert!(error.contains("lb-1.json"), "{error}");
        assert_eq!(cache.load().unwrap(), Some(some()));
    }
}
