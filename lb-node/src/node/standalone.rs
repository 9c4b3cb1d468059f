//! A node that serves what a cluster file says.

use super::base::{Base, Plan, Scene, check_capabilities};
use crate::control;
use crate::front::FrontStatus;
use crate::standalone::FileStore;
use crate::status::KeptStatus;
use crate::tree_metrics::TreeMetrics;
use anyhow::{Context as _, Result, bail};
use host::notify::Notifier;
use host::signals::Signals;
use host::supervisor::Supervisor;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::info;
use zk_schema::tree::Mode;

/// Runs a node from a cluster file until SIGTERM or SIGINT. Forwarding goes on when this returns.
///
/// # Errors
/// If the node cannot start; each says what to fix. Once it runs, nothing that can be tried again ends it; that its
/// interface is gone does.
pub async fn run_standalone(file: &Path, bpffs: &Path) -> Result<()> {
    let signals = Signals::new()?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot wait for SIGHUP")?;
    check_capabilities()?;
    dataplane::check_kernel(&dataplane::kernel_release())?;

    let notifier = Notifier::from_env(control::SELF_TEST_EVERY);
    let supervisor = Supervisor::default();
    let store = FileStore::open(file)?;
    let mut base = Base::prepare(store.node().clone(), &supervisor).await?;
    let scene = Scene {
        in_cluster: None,
        file: store.status(),
        announced: watch::channel(FrontStatus::default()).1,
        kept: watch::channel(KeptStatus::default()).1,
        tree: TreeMetrics::default(),
    };
    base.show(&scene, bpffs);
    let (report, _) = watch::channel(Arc::default());
    let plan = Plan {
        bpffs,
        snapshots: store.snapshots(),
        mode: watch::channel(Mode::Live).1,
        exclusions: watch::Sender::default(),
        report,
        scene,
    };
    let running = base.start(plan).await?;
    let teller = supervisor.spawn("service manager", running.tell(notifier, None));
    let _file = supervisor.spawn(
        "cluster file",
        store.follow(async move || {
            if hangup.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
        }),
    );
    let lost = tokio::select! {
        biased;
        () = signals.wait() => None,
        lost = running.lost() => Some(lost),
        fault = supervisor.fault() => return Err(fault.into()),
    };
    drop(teller);
    Notifier::from_env(control::SELF_TEST_EVERY).stopping(Duration::ZERO, "stopping; forwarding goes on");
    running.stop().await;
    if let Some(lost) = lost {
        bail!("{lost}");
    }
    info!("stopping; forwarding goes on as it is until the next lb-node, or `lb-node detach`");
    Ok(())
}
