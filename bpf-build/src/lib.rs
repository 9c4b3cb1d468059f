//! Builds BPF programs of `lb-ebpf`, for the build scripts of the crates that load them.
//!
//! A nested cargo with a target folder of its own, shared by all those crates, their profiles and features, so that the
//! programs (and `core` for the BPF target) are compiled once. Its output is shown only if it fails.

use anyhow::{Context as _, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Builds these programs (binaries of `lb-ebpf`, such as `drover-lb`) and leaves an object of the same name for each in
/// `OUT_DIR`. To be called by the build script of a crate that lies beside `lb-ebpf`.
///
/// # Errors
/// If bpf-linker is missing, a program does not compile, or this is not called by a build script.
pub fn build(programs: &[&str]) -> Result<()> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("..").canonicalize()?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let linker = root.join("target/tools/bin/bpf-linker");
    for input in
        ["lb-ebpf", "slot-table/src", "slot-table/Cargo.toml", "Cargo.lock", "target/tools/bin/bpf-linker"]
    {
        println!("cargo:rerun-if-changed={}", root.join(input).display());
    }
    ensure!(
        linker.exists() || on_path("bpf-linker"),
        "bpf-linker is missing: run `cargo xtask setup` once in {}",
        root.display()
    );
    // OUT_DIR is <target>/<profile>/build/<crate>/out.
    let target = out.ancestors().nth(4).context("OUT_DIR is not where cargo puts it")?.join("bpf");
    let triple = match env::var("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
        "big" => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    compile(&root, &target, triple, programs)?;
    for program in programs {
        let object = target.join(triple).join("release").join(program);
        fs::copy(&object, out.join(program)).with_context(|| format!("cannot copy {}", object.display()))?;
    }
    Ok(())
}

fn compile(root: &Path, target: &Path, triple: &str, programs: &[&str]) -> Result<()> {
    let tools = root.join("target/tools/bin");
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(std::iter::once(tools).chain(env::split_paths(&path)))?;
    // aya-ebpf chooses its bindings by the architecture that the programs run on; bpf-linker makes BTF out
    // of the debug information.
    let flags = [
        format!("--cfg=bpf_target_arch=\"{}\"", env::var("CARGO_CFG_TARGET_ARCH")?),
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
    ];
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let build = Command::new(cargo)
        .current_dir(root)
        .args(["build", "--package", "lb-ebpf", "--release", "--locked", "--color=never"])
        .args(programs.iter().flat_map(|program| ["--bin", program]))
        .args(["--no-default-features", "--features", "bpf", "-Zbuild-std=core", "--target", triple])
        .arg("--target-dir")
        .arg(target)
        .env("PATH", path)
        // The stable compiler builds `core`; for this nested build alone.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        // What clippy and others put around the compiler is not for BPF.
        .env_remove("RUSTC")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CARGO_TARGET_DIR")
        .output()
        .context("cannot run cargo")?;
    let output = String::from_utf8_lossy(&build.stderr);
    if !build.status.success() {
        bail!("building the BPF programs failed:\n{output}");
    }
    let mut lines = output.lines();
    while let Some(line) = lines.find(|line| line.starts_with("warning: ")) {
        println!("cargo:warning=lb-ebpf: {line} {}", lines.next().unwrap_or_default().trim());
    }
    Ok(())
}

fn on_path(program: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|dir| dir.join(program).exists()))
}
