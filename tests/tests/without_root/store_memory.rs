//! The store in this process does what every store must do.

use coordination::memory::MemoryStore;
use drover_tests::store_suite;
use std::time::Duration;

async fn run_all(store: MemoryStore) -> anyhow::Result<()> {
    let clients = (store.client("one"), store.client("two"));
    let forbid = move |path: &str, forbid| {
        store.forbid(path, forbid);
        Ok(())
    };
    store_suite::run_all(clients, forbid).await
}

#[tokio::test]
async fn the_memory_store_passes_the_suite() -> anyhow::Result<()> {
    let store = MemoryStore::new();
    run_all(store).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_memory_store_passes_the_suite_over_a_slow_network_and_on_many_threads() -> anyhow::Result<()> {
    let store = MemoryStore::new();
    store.latency(Duration::from_millis(1));
    run_all(store).await
}
