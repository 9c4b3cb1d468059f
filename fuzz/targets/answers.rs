//! See `drover_fuzz::answers`.
#![no_main]

use drover_fuzz::{answers, seeds};

libfuzzer_sys::fuzz_target!(
    init: seeds::write_if_asked(answers::seeds),
    |input: &[u8]| answers::run(input)
);
