//! See `drover_fuzz::icmp`.
#![no_main]

use drover_fuzz::{icmp, seeds};

libfuzzer_sys::fuzz_target!(
    init: seeds::write_if_asked(icmp::seeds),
    |input: &[u8]| icmp::run(input)
);
