//! The compiler in use: its version, its LLVM, its folder.

use crate::{process, workspace::Workspace};
use anyhow::{Context as _, Result};
use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Toolchain {
    /// The version alone, as `1.95.0`.
    pub(crate) release: String,
    /// All that `rustc -vV` says, which changes whenever the compiler does.
    pub(crate) verbose_version: String,
    /// Major version of the LLVM inside, as `22`.
    pub(crate) llvm: String,
    /// The folder that `rustc --print sysroot` names.
    pub(crate) sysroot: PathBuf,
}

impl Toolchain {
    /// Asks the `rustc` of the work tree.
    pub(crate) fn detect(workspace: &Workspace) -> Result<Self> {
        let rustc = |args: &[&str]| {
            let mut rustc = process::command("rustc");
            process::output(rustc.args(args).current_dir(&workspace.root))
                .context("cannot ask the compiler for its version: is the toolchain of rust-toolchain.toml installed (`rustup toolchain install`)?")
        };
        let verbose_version = rustc(&["-vV"])?;
        let sysroot = PathBuf::from(rustc(&["--print", "sysroot"])?.trim());
        Self::parse(verbose_version, sysroot)
    }

    fn parse(verbose_version: String, sysroot: PathBuf) -> Result<Self> {
        let field = |name: &str| {
            let value = verbose_version.lines().find_map(|line| line.strip_prefix(name));
            value
                .map(str::trim)
                .with_context(|| format!("`rustc -vV` has no line `{name}`: {verbose_version:?}"))
        };
        let release = field("release:")?.to_owned();
        let llvm = field("LLVM version:")?;
        let llvm = llvm.split('.').next().unwrap_or(llvm).to_owned();
        Ok(Self { release, verbose_version, llvm, sysroot })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_and_llvm_are_read_from_what_rustc_says() {
        let text = "rustc 1.95.0 (59807616e 2026-04-14)\nhost: x86_64-unknown-linux-gnu\nrelease: 1.95.0\nLLVM version: 22.1.2\n";
        let toolchain = Toolchain::parse(text.into(), "/s".into()).unwrap();
        assert_eq!((toolchain.release.as_str(), toolchain.llvm.as_str()), ("1.95.0", "22"));
    }

    #[test]
    fn a_compiler_that_names_no_llvm_is_refused() {
        assert!(Toolchain::parse("release: 1.95.0\n".into(), "/s".into()).is_err());
    }
}
