use super::*;

#[tokio::test(start_paused = true)]
async fn what_is_committed_can_be_read() {
    let store = MemoryStore::new();
    let session = store.client("a").connect().await.unwrap();
    let create = Change::Create { path: "/x".to_owned(), data: vec![1], ephemeral: false };
    session.commit(vec![create]).await.unwrap();
    let (znode, watch) = session.watch("/x").await.unwrap();
    assert_eq!(znode.unwrap().data, [1]);
    session.commit(vec![Change::Set { path: "/x".to_owned(), data: vec![], version: None }]).await.unwrap();
    watch.await;
}
