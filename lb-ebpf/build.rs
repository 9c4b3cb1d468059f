//! Tells bpf-linker how to generate code. Packet headers are read with unaligned loads, which the
//! kernel's JIT targets support; without the feature LLVM would split each into single bytes.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("bpf") {
        println!("cargo:rustc-link-arg-bins=--cpu-features=+allows-misaligned-mem-access");
    }
}
