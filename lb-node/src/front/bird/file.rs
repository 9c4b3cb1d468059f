//! The file that BIRD's configuration includes.

use super::super::AnnounceError;
use super::PROTOCOLS;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::Permissions;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use tokio::fs;

/// The beginning of every file that this program has written.
const MARK: &str = "# Written by Drover's lb-node";

/// The text before the boot id.
const BOOT: &str = "# boot: ";

#[derive(Debug)]
pub(super) struct IncludedFile {
    path: PathBuf,
    boot_id: String,
}

impl IncludedFile {
    pub(super) fn new(path: &Path, boot_id: &str) -> Self {
        Self { path: path.to_owned(), boot_id: boot_id.to_owned() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The addresses that a predecessor wrote since the host booted.
    pub(super) fn inherited(&self) -> Result<BTreeSet<IpAddr>, AnnounceError> {
        let text = self.accepted(std::fs::read_to_string(&self.path))?.unwrap_or_default();
        let boot = text.lines().find_map(|line| line.strip_prefix(BOOT));
        Ok(if boot == Some(&self.boot_id) { addresses(&text) } else { BTreeSet::new() })
    }

    /// Returns whether the file has these addresses, as far as it can be read.
    pub(super) fn says(&self, wanted: &BTreeSet<IpAddr>) -> bool {
        std::fs::read_to_string(&self.path).is_ok_and(|text| addresses(&text) == *wanted)
    }

    /// Makes the file have these addresses and no others. Returns whether it had to be changed. BIRD, which may read it
    /// at any time, sees the old file or the new one.
    pub(super) async fn write(&self, addresses: &BTreeSet<IpAddr>) -> Result<bool, AnnounceError> {
        let text = render(addresses, &self.boot_id);
        let before = self.accepted(fs::read_to_string(&self.path).await)?;
        if before.as_ref() == Some(&text) {
            return Ok(false);
        }
        let unwritable = |file: &Path, source| AnnounceError::Write { file: file.to_owned(), source };
        if let Some(directory) = self.path.parent()
            && !fs::try_exists(directory).await.unwrap_or(false)
        {
            // BIRD has a user of its own and must be able to read, whatever this daemon's umask is.
            let made = make_directory(directory).await;
            made.map_err(|error| unwritable(directory, error))?;
        }
        let mut beside = self.path.clone().into_os_string();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        let write = async {
            fs::write(&beside, &text).await?;
            // No fsync: after a crash of the host the content is void in any case.
            fs::set_permissions(&beside, Permissions::from_mode(0o644)).await
        };
        write.await.map_err(|error| unwritable(&beside, error))?;
        fs::rename(&beside, &self.path).await.map_err(|error| unwritable(&self.path, error))?;
        Ok(true)
    }

    /// The text of a file that is ours, or empty; `None` if there is none.
    fn accepted(&self, read: io::Result<String>) -> Result<Option<String>, AnnounceError> {
        match read {
            Ok(text) if text.is_empty() || text.starts_with(MARK) => Ok(Some(text)),
            Ok(_) => Err(AnnounceError::Foreign { file: self.path.clone() }),
            // Not UTF-8.
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                Err(AnnounceError::Foreign { file: self.path.clone() })
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(AnnounceError::Read { file: self.path.clone(), source }),
        }
    }
}

async fn make_directory(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory).await?;
    fs::set_permissions(directory, Permissions::from_mode(0o755)).await
}

/// The file's text.
fn render(addresses: &BTreeSet<IpAddr>, boot_id: &str) -> String {
    let mut text = format!(
        "{MARK}, which overwrites it; see docs/node-file.md.\n\
         # The routes lead nowhere on purpose: packets for a VIP are forwarded before they are routed.\n\
         # Keep them out of the kernel: `export where proto != \"{}\"` and the same for \"{}\".\n\
         {BOOT}{boot_id}\n",
        PROTOCOLS[0], PROTOCOLS[1]
    );
    for (protocol, channel, length, v4) in
        [(PROTOCOLS[0], "ipv4", 32, true), (PROTOCOLS[1], "ipv6", 128, false)]
    {
        let _ = writeln!(text, "\nprotocol static {protocol} {{\n    {channel};");
        for address in addresses.iter().filter(|address| address.is_ipv4() == v4) {
            let _ = writeln!(text, "    route {address}/{length} blackhole;");
        }
        text += "}\n";
    }
    text
}

/// The addresses in a file's text.
fn addresses(text: &str) -> BTreeSet<IpAddr> {
    let address = |line: &str| {
        let (address, _) = line.trim_start().strip_prefix("route ")?.split_once('/')?;
        address.parse().ok()
    };
    text.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    fn set<const N: usize>(addresses: [&str; N]) -> BTreeSet<IpAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn each_family_has_its_protocol_also_when_it_is_empty() {
        let text = render(&set(["198.51.100.10", "2001:db8::10", "198.51.100.9"]), "b-1");
        let protocols = text.split_once("# boot: b-1\n").unwrap().1;
        assert_eq!(
            protocols,
            "\nprotocol static drover_v4 {\n    ipv4;\n    route 198.51.100.9/32 blackhole;\n    \
             route 198.51.100.10/32 blackhole;\n}\n\
             \nprotocol static drover_v6 {\n    ipv6;\n    route 2001:db8::10/128 blackhole;\n}\n"
        );
        let empty = render(&set([]), "b-1");
        assert!(empty.contains("drover_v4 {\n    ipv4;\n}") && empty.contains("drover_v6 {\n    ipv6;\n}"));
    }

    #[tokio::test]
    async fn what_was_written_in_this_boot_is_inherited_and_what_was_written_in_another_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/by/it/bird.conf");
        let file = IncludedFile::new(&path, "boot-1");
        assert_eq!(file.inherited().unwrap(), set([]));
        let addresses = set(["198.51.100.10", "2001:db8::10"]);
        assert!(file.write(&addresses).await.unwrap());
        assert_eq!(file.inherited().unwrap(), addresses);
        let next = IncludedFile::new(&path, "boot-2");
        assert_eq!(next.inherited().unwrap(), set([]));
        assert!(next.write(&addresses).await.unwrap());
        assert_eq!(file.inherited().unwrap(), set([]));
    }

    #[tokio::test]
    async fn writing_the_same_touches_nothing_and_writing_another_leaves_nothing_beside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bird.conf");
        let file = IncludedFile::new(&path, "boot-1");
        assert!(file.write(&set(["198.51.100.10"])).await.unwrap());
        let inode = std::fs::metadata(&path).unwrap().ino();
        assert!(!file.write(&set(["198.51.100.10"])).await.unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
        assert!(file.write(&set([])).await.unwrap());
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o644);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn somebody_elses_file_is_neither_believed_nor_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bird.conf");
        let file = IncludedFile::new(&path, "boot-1");
        for theirs in [&b"router id 1.1.1.1;\n# boot: boot-1\n"[..], b"\xff\xfe"] {
            std::fs::write(&path, theirs).unwrap();
            assert!(matches!(file.inherited(), Err(AnnounceError::Foreign { .. })));
            let error = file.write(&set([])).await.unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "{}: not written by Drover, so it stays as it is; remove it, or name another bird_file",
                    path.display()
                )
            );
            assert_eq!(std::fs::read(&path).unwrap(), theirs);
        }
        std::fs::write(&path, "").unwrap();
        assert!(file.write(&set([])).await.unwrap());
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        let file = IncludedFile::new(&folder.path().join("file/bird.conf"), "boot-1");
        let error = file.write(&set([])).await.unwrap_err().to_string();
        assert!(
            error.contains("file/bird.conf: cannot read it") || error.contains("cannot write"),
            "{error}"
        );
    }
}
