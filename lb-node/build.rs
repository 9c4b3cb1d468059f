//! Builds the BPF programs of `lb-ebpf` and leaves the objects in `OUT_DIR`.

use anyhow::{Context as _, Result, ensure};
use std::{env, path::PathBuf};

fn main() -> Result<()> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("..").canonicalize()?;
    let tools = root.join("target/tools/bin");
    println!("cargo:rerun-if-changed={}", tools.join("bpf-linker").display());
    println!("cargo:rerun-if-changed={}", root.join("slot-table/src").display());
    ensure!(
        tools.join("bpf-linker").exists() || on_path("bpf-linker"),
        "bpf-linker is missing: run `cargo xtask setup` once in {}",
        root.display()
    );
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(std::iter::once(tools).chain(env::split_paths(&path)))?;
    // SAFETY: the build script has not started any thread yet.
    unsafe {
        env::set_var("PATH", path);
        // The stable compiler builds `core` for the BPF target; only for this nested build.
        env::set_var("RUSTC_BOOTSTRAP", "1");
    }
    let toolchain = env::var("RUSTUP_TOOLCHAIN").unwrap_or_else(|_| "1.95.0".into());
    let lb_ebpf = root.join("lb-ebpf");
    aya_build::build_ebpf(
        [aya_build::Package {
            name: "lb-ebpf",
            root_dir: lb_ebpf.to_str().context("the path of the work tree is not UTF-8")?,
            no_default_features: true,
            features: &["bpf"],
        }],
        aya_build::Toolchain::Custom(&toolchain),
    )
}

fn on_path(program: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|dir| dir.join(program).exists()))
}
