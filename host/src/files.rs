//! Reads configuration files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Largest configuration file, in bytes. A device or a log named by mistake may have no end.
const MAX_BYTES: u64 = 64 << 20;

/// A file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}; name a file that this user can read", path.display())]
pub struct Unreadable {
    /// The file.
    pub path: PathBuf,
    /// The cause.
    pub source: io::Error,
}

/// Reads a configuration file's text.
///
/// # Errors
///
/// If the file cannot be read, is not UTF-8, or is larger than 64 MiB.
pub fn read_text(path: &Path) -> Result<String, Unreadable> {
    let unreadable = |source| Unreadable { path: path.to_owned(), source };
    let bytes = fs::metadata(path).map_err(unreadable)?.len();
    if bytes > MAX_BYTES {
        return Err(unreadable(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("the file has {bytes} bytes, which is more than {MAX_BYTES}"),
        )));
    }
    fs::read_to_string(path).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_missing_or_too_large_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cluster.toml");
        assert!(read_text(&path).unwrap_err().to_string().contains("cluster.toml: No such file"));
        fs::File::create(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
        assert!(read_text(&path).unwrap_err().to_string().contains("more than 67108864"));
        fs::write(&path, "text").unwrap();
        assert_eq!(read_text(&path).unwrap(), "text");
    }
}
