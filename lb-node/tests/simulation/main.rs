//! Whole clusters under a clock that is ours: real leaders, followers, probes' schedules and tables, on a store in this
//! process that fails on command.
//!
//! Three hundred lives by chance are part of every test run, a thousand of `cargo xtask test --all`. `DROVER_SEEDS=<count>`
//! sets how many; `DROVER_SEED=<seed>` lives one of them again and tells all that happens in it.

mod chaos;
mod logs;
mod observer;
mod smoke;
mod world;

use dataplane::compile::TableCache;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Lives of every test run.
const SEEDS: u64 = 300;
/// Lives of a run of the long forms, which `DROVER_LONG` asks for.
const SEEDS_LONG: u64 = 1000;

/// Most failures that are told.
const TOLD: usize = 10;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}: not a number")))
}

#[test]
fn whatever_happens_no_sound_real_is_lost_and_all_nodes_come_to_agree() {
    if let Some(seed) = number("DROVER_SEED") {
        let logs = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(logs).with_test_writer().try_init();
        println!("{:?}", chaos::run(seed, &TableCache::default(), true).unwrap());
        return;
    }
    let usual = if std::env::var_os("DROVER_LONG").is_some() { SEEDS_LONG } else { SEEDS };
    let seeds = number("DROVER_SEEDS").unwrap_or(usual);
    let (next, failures) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let tables = TableCache::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    if let Err(failure) = chaos::run(seed, &tables, false) {
                        world::lock(&failures).push((seed, failure));
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap();
    failures.sort();
    let told = failures.iter().take(TOLD).map(|(seed, failure)| {
        format!("DROVER_SEED={seed} cargo test -p lb-node --test simulation -- whatever --nocapture\n    {failure}\n")
    });
    let told: String = told.collect();
    assert!(failures.is_empty(), "{} of {seeds} lives went wrong:\n{told}", failures.len());
}

#[test]
fn the_same_seed_gives_the_same_life() {
    for seed in [1, 2, 3, 5, 8] {
        let live = || chaos::run(seed, &TableCache::default(), false).unwrap();
        let (first, second) = (live(), live());
        assert_eq!(first, second, "seed {seed}");
        assert!(first.lines > 100, "{first:?}");
    }
}
