//! Builds the programs of the data plane, and that of its benchmark.

fn main() -> anyhow::Result<()> {
    bpf_build::build(&["drover-lb", "drover-harness"])
}
