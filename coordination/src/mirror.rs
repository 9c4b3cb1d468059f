//! placeholder
use crate::{Session, Znode};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
#[derive(Clone, Debug, Default, PartialEq)]
/// x
pub struct Contents { /// x
 pub znodes: std::collections::BTreeMap<String, Znode>, /// x
 pub complete: bool }
/// x
#[derive(Clone, Debug)]
pub struct Pattern;
impl Pattern { /// x
 pub fn new(_: &str) -> Self { Self } }
/// x
#[derive(Debug)]
pub struct Mirror;
impl Mirror { /// x
 pub fn new<S: Session>(_: S, _: Vec<Pattern>, _: Duration) -> Self { Self }
 /// x
 pub fn contents(&self) -> watch::Receiver<Arc<Contents>> { watch::channel(Arc::default()).1 } }
