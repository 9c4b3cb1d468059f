//! Builds the program that a real's agent loads.

fn main() -> anyhow::Result<()> {
    bpf_build::build(&["drover-real"])
}
