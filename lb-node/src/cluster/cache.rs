//! The last decision on disk, so that a node that boots while ZooKeeper is away forwards.

use coordination::follow::Decided;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use zk_schema::VipName;
use zk_schema::tree::{Head, StateRecord as _};

/// Largest file that is read: a cluster of the largest size stays well below.
const MAX_BYTES: u64 = 256 << 20;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// It cannot be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// It was read and is wrong.
    #[error("{}: {problem}; it is not used, and will be written anew", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// The file of a state directory.
#[derive(Clone, Debug)]
pub struct Cache {
    path: PathBuf,
}

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

    /// What was kept last; `None` if nothing ever was.
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
        let head = Head::parse(content.head.get().as_bytes()).map_err(|error| wrong(error.to_string()))?;
        let bytes = |vip: &VipName| content.assignments.get(vip).map(|raw| raw.get().as_bytes().to_vec());
        Decided::assemble(head, bytes, None).map(Some).map_err(wrong)
    }

    /// Keeps `decided` in place of what was there: after a crash, or with a full disk, one or the other is there.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn store(&self, decided: &Decided) -> Result<(), CacheError> {
        let file = |error| CacheError::File { path: self.path.clone(), error };
        let text = |bytes: Vec<u8>| RawValue::from_string(String::from_utf8_lossy(&bytes).into_owned());
        let wrong = |problem: String| CacheError::Content { path: self.path.clone(), problem };
        let raw = |bytes: Result<Vec<u8>, zk_schema::RecordError>| {
            text(bytes.map_err(|error| wrong(error.to_string()))?).map_err(|error| wrong(error.to_string()))
        };
        let mut content = Content { head: raw(decided.head.bytes())?, assignments: BTreeMap::new() };
        for (vip, assignment) in &decided.assignments {
            content.assignments.insert(vip.clone(), raw(assignment.bytes())?);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{checked_vip, decided, desired, name};

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
