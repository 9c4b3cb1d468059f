//! See `drover_fuzz::files`.
#![no_main]

use drover_fuzz::{files, seeds};

libfuzzer_sys::fuzz_target!(
    init: seeds::write_if_asked(files::seeds),
    |input: &[u8]| files::run(input)
);
