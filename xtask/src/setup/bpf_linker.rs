//! bpf-linker, which turns what rustc emits into a BPF object.
//!
//! It must use the LLVM of the compiler, to the version. So it is linked against the libLLVM that rustc itself
//! ships, and built again when the compiler changes; no LLVM has to be installed.

use super::{Step, toolchain::Toolchain};
use crate::{process, workspace::Workspace};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::{fs, io::ErrorKind, path::PathBuf, process::Command};

/// The version that the workspace builds with.
const VERSION: &str = "0.13.0";

pub(super) struct BpfLinker<'a> {
    pub(super) workspace: &'a Workspace,
    pub(super) toolchain: &'a Toolchain,
}

impl BpfLinker<'_> {
    fn llvm_library(&self) -> String {
        format!("LLVM-{}-rust-{}-stable", self.toolchain.llvm, self.toolchain.release)
    }

    fn build_folder(&self) -> PathBuf {
        self.workspace.setup_cache().join("bpf-linker")
    }

    fn cargo_install(&self) -> Command {
        let lib = self.toolchain.sysroot.join("lib");
        let flags = [
            format!("-Lnative={}", lib.display()),
            format!("-ldylib={}", self.llvm_library()),
            format!("-Clink-arg=-Wl,-rpath,{}", lib.display()),
        ];
        let mut cargo = process::cargo(self.workspace);
        cargo
            .args(["install", "bpf-linker", "--version", VERSION, "--locked", "--force"])
            .args(["--no-default-features", "--features"])
            .arg(format!("llvm-{},no-llvm-linking", self.toolchain.llvm))
            .arg("--root")
            .arg(self.workspace.tools())
            .arg("--target-dir")
            .arg(self.build_folder())
            // The encoded form takes precedence over all other flags, and survives spaces in a path.
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        cargo
    }
}

impl Step for BpfLinker<'_> {
    fn name(&self) -> String {
        format!("bpf-linker {VERSION}")
    }

    fn missing(&self) -> Result<Option<String>> {
        let program = self.workspace.tools().join("bin/bpf-linker");
        if !program.is_file() {
            return Ok(Some(format!("{} does not exist", program.display())));
        }
        let says = match process::output(process::command(&program).arg("--version")) {
            Ok(says) => says,
            Err(error) => return Ok(Some(format!("it does not run: {error:#}"))),
        };
        if says.split_whitespace().last() != Some(VERSION) {
            return Ok(Some(format!("{} is `{}`", program.display(), says.trim())));
        }
        // cargo notes beside what it installs which compiler built it.
        let record = self.workspace.tools().join(".crates2.json");
        let builder = match fs::read_to_string(&record) {
            Ok(record) => built_by(&record),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", record.display())),
        };
        // Without a note, a program that runs is taken for what it says it is.
        let stale = builder.filter(|builder| builder.trim() != self.toolchain.verbose_version.trim());
        Ok(stale.map(|builder| {
            let builder = builder.lines().next().unwrap_or_default().to_owned();
            format!("built for {builder}, but the compiler is now {}", self.toolchain.release)
        }))
    }

    fn install(&self, label: &str) -> Result<()> {
        let library = self.toolchain.sysroot.join(format!("lib/lib{}.so", self.llvm_library()));
        ensure!(
            library.is_file(),
            "the compiler does not bring its LLVM as {}: use a toolchain that rustup installed",
            library.display()
        );
        eprintln!("{label}: building it against rustc's own LLVM {}, about two minutes", self.toolchain.llvm);
        let log = self.workspace.setup_cache().join("bpf-linker.log");
        process::logged(&mut self.cargo_install(), label, &log)?;
        // Only an interrupted build is worth keeping, to go on from.
        fs::remove_dir_all(self.build_folder()).context("cannot remove the finished build of bpf-linker")
    }

    fn by_hand(&self) -> String {
        let command = self.cargo_install();
        let flags = command.get_envs().find(|(name, _)| *name == "CARGO_ENCODED_RUSTFLAGS");
        let flags =
            flags.and_then(|(_, value)| value).unwrap_or_default().to_string_lossy().replace('\x1f', " ");
        format!("RUSTFLAGS=\"{flags}\" {}", process::line(&command))
    }
}

/// The `rustc -vV` of the compiler that built bpf-linker, from cargo's record of what it installed in a folder.
fn built_by(record: &str) -> Option<String> {
    let record: Value = serde_json::from_str(record).ok()?;
    let wanted = format!("bpf-linker {VERSION} ");
    let (_, install) = record.get("installs")?.as_object()?.iter().find(|(id, _)| id.starts_with(&wanted))?;
    install.get("rustc")?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_record_tells_which_compiler_built_the_installed_version() {
        let record = format!(r#"{{"installs":{{"bpf-linker {VERSION} (x)":{{"rustc":"rustc 1.95.0\n"}}}}}}"#);
        assert_eq!(built_by(&record).as_deref(), Some("rustc 1.95.0\n"));
    }

    #[test]
    fn a_record_of_another_version_or_no_record_tells_nothing() {
        assert_eq!(built_by(r#"{"installs":{"bpf-linker 0.1.0 (x)":{"rustc":"rustc 1.95.0"}}}"#), None);
        assert_eq!(built_by("not JSON"), None);
    }
}
