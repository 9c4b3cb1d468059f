//! That failures do not turn logs into floods.

use crate::world::{World, lock, real_name, vip_name, vip_state};
use dataplane::compile::TableCache;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::sleep;
use tracing::subscriber::DefaultGuard;

/// Writes to a text that others read.
struct Writer(Arc<Mutex<Vec<u8>>>);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines that this thread logs, at `info` and above.
struct Log {
    text: Arc<Mutex<Vec<u8>>>,
    _guard: DefaultGuard,
}

impl Log {
    fn new() -> Self {
        let text = Arc::new(Mutex::new(Vec::<u8>::new()));
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_ansi(false)
            .with_writer({
                let text = Arc::clone(&text);
                move || Writer(Arc::clone(&text))
            })
            .finish();
        Self { text, _guard: tracing::subscriber::set_default(subscriber) }
    }

    /// What was logged since this was asked last.
    fn lines(&self) -> Vec<String> {
        let text = std::mem::take(&mut *lock(&self.text));
        String::from_utf8(text).expect("text").lines().map(str::to_owned).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_for_half_a_minute_is_a_handful_of_lines_on_each_node() {
    let log = Log::new();
    let world = World::new(3, [(vip_name(1), vip_state(1, 1..=3))].into(), 7, TableCache::default()).await;
    world.rest_within(Duration::from_secs(30)).await.expect("a new cluster comes to rest");
    log.lines();
    world.store.outage(true);
    sleep(Duration::from_secs(30)).await;
    let away = log.lines();
    assert!((3..=3 * 6).contains(&away.len()), "{} lines: {away:#?}", away.len());
    world.store.outage(false);
    world.rest_within(Duration::from_secs(40)).await.expect("it comes to rest again");
    let back = log.lines();
    assert!(back.len() <= 3 * 10, "{} lines: {back:#?}", back.len());
}

#[tokio::test(start_paused = true)]
async fn the_death_of_all_reals_but_some_is_some_lines_of_each_node_and_of_the_leader() {
    const REALS: u8 = 240;
    let log = Log::new();
    let mut state = vip_state(1, 1..=REALS);
    state.vip.panic_threshold = 100;
    let world = World::new(3, [(vip_name(1), state)].into(), 7, TableCache::default()).await;
    world.rest_within(Duration::from_secs(60)).await.expect("a new cluster comes to rest");
    log.lines();
    lock(&world.truth).down.extend((2..=REALS).map(real_name));
    world.rest_within(Duration::from_secs(60)).await.expect("it comes to rest");
    let lines = log.lines();
    let of_probes = lines.iter().filter(|line| line.contains("real is down")).count();
    // Each node tells of twenty at once, and of one more each second.
    assert!((3..=3 * 40).contains(&of_probes), "{of_probes} lines: {lines:#?}");
    let decided: Vec<&String> = lines.iter().filter(|line| line.contains("decided")).collect();
    // The leader tells of fifty at once, and of two more each second.
    assert!((1..=100).contains(&decided.len()), "{decided:#?}");
    assert!(decided.iter().all(|line| line.len() < 700), "{decided:#?}");
}
