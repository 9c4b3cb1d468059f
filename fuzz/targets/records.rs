//! See `drover_fuzz::records`.
#![no_main]

use drover_fuzz::{records, seeds};

libfuzzer_sys::fuzz_target!(
    init: seeds::write_if_asked(records::seeds),
    |input: &[u8]| records::run(input)
);
