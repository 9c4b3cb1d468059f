//! Reals that a node leaves out by its own judgement, kept on disk: a restart while the node is cut off must not bring
//! dead reals back.

use super::cache::{CacheError, replace};
use policy::local::Exclusions;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use zk_schema::{NodeName, RealName, VipName};

/// Largest file that is read: a cluster of the largest size stays well below.
const MAX_BYTES: u64 = 64 << 20;

/// The file of a state directory. There is none while nothing is left out.
#[derive(Clone, Debug)]
pub struct Kept {
    path: PathBuf,
}

/// The (term, epoch) makes sure that exclusions end after a restart as they do without: with a newer head of a leader that
/// has settled.
#[derive(Serialize, Deserialize)]
struct Content {
    term: u64,
    epoch: u64,
    reals: BTreeMap<VipName, BTreeSet<RealName>>,
}

impl Kept {
    /// The exclusions of a node in `directory`.
    #[must_use]
    pub fn new(directory: &Path, node: &NodeName) -> Self {
        Self { path: directory.join(format!("{node}.exclusions.json")) }
    }

    /// Returns what was left out last; nothing where there is no file.
    ///
    /// # Errors
    /// If the file cannot be read or is damaged.
    pub fn load(&self) -> Result<Exclusions, CacheError> {
        let file = |error| CacheError::File { path: self.path.clone(), error };
        let wrong = |problem: String| CacheError::Content { path: self.path.clone(), problem };
        let bytes = match std::fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Exclusions::default()),
            Err(error) => return Err(file(error)),
            Ok(metadata) if metadata.len() > MAX_BYTES => {
                return Err(wrong("larger than it could be".into()));
            }
            Ok(_) => std::fs::read(&self.path).map_err(file)?,
        };
        let content: Content = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        let of_vip = |(vip, reals): (VipName, BTreeSet<RealName>)| {
            reals.into_iter().map(move |real| (vip.clone(), real)).collect::<Vec<_>>()
        };
        let reals = content.reals.into_iter().flat_map(of_vip).collect();
        Ok(Exclusions::new((content.term, content.epoch), reals))
    }

    /// Keeps `exclusions` in place of what was there.
    ///
    /// # Errors
    /// If the file cannot be written, or removed where nothing is left out.
    pub fn store(&self, exclusions: &Exclusions) -> Result<(), CacheError> {
        let file = |error| CacheError::File { path: self.path.clone(), error };
        if exclusions.is_empty() {
            return match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file(error)),
                _ => Ok(()),
            };
        }
        let (term, epoch) = exclusions.order();
        let mut content = Content { term, epoch, reals: BTreeMap::new() };
        for (vip, real) in exclusions.reals() {
            content.reals.entry(vip.clone()).or_default().insert(real.clone());
        }
        let bytes = serde_json::to_vec(&content).map_err(|error| file(error.into()))?;
        replace(&self.path, &bytes).map_err(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::name;

    #[test]
    fn what_is_left_out_comes_back_and_nothing_is_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::new(&folder.path().join("below"), &name("lb-1"));
        assert!(kept.load().unwrap().is_empty());
        let reals = [(name("mqtt"), name("a")), (name("mqtt"), name("b")), (name("web"), name("a"))];
        let exclusions = Exclusions::new((3, 17), reals.into());
        kept.store(&exclusions).unwrap();
        assert_eq!(kept.load().unwrap(), exclusions);
        kept.store(&Exclusions::default()).unwrap();
        assert!(!kept.path.exists() && kept.load().unwrap().is_empty());
        kept.store(&Exclusions::default()).unwrap();
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::new(folder.path(), &name("lb-1"));
        for damaged in
            [&b"{"[..], b"", b"[1]", &[0xff; 100], br#"{"term":1,"epoch":2,"reals":{"A b":["x"]}}"#]
        {
            std::fs::write(&kept.path, damaged).unwrap();
            let error = kept.load().unwrap_err().to_string();
            assert!(error.contains("lb-1.exclusions.json"), "{error}");
        }
    }
}
