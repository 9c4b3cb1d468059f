//! See `drover_fuzz::packets`.
#![no_main]

use drover_fuzz::{frames, packets, seeds};
use std::sync::LazyLock;

static WORDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(packets::words);

libfuzzer_sys::fuzz_target!(
    init: seeds::write_if_asked(packets::seeds),
    |input: &[u8]| packets::run(input)
);

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, most: usize, seed: u32| {
    frames::mutate(data, size, most, seed, &WORDS)
});
