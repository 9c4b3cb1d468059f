//! See `drover_fuzz::tree`.
#![no_main]

use drover_fuzz::{seeds, tree};

libfuzzer_sys::fuzz_target!(
    init: seeds::write_if_asked(tree::seeds),
    |input: &[u8]| tree::run(input)
);
