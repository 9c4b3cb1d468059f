//! ZooKeeper.
