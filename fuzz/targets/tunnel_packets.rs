//! See `drover_fuzz::tunnel`.
#![no_main]

use drover_fuzz::{frames, seeds, tunnel};
use std::sync::LazyLock;

static WORDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(tunnel::words);

libfuzzer_sys::fuzz_target!(
    init: seeds::write_if_asked(tunnel::seeds),
    |input: &[u8]| tunnel::run(input)
);

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, most: usize, seed: u32| {
    frames::mutate(data, size, most, seed, &WORDS)
});
