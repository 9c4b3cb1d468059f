//! Looks after a node's programs on their interface: [`follow`] looks after its data plane for as long as it runs.

use crate::control::forwarding::{Forwarding, Shared, locked};
use dataplane::attachment::Attachment;
use host::netlink::{self, Changes, MulticastGroup};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tracing::{error, info, warn};

/// Time between a node's looks whether its programs are attached. The kernel tells of interfaces that come and go, but
/// not of a link that somebody detaches.
const EVERY: Duration = Duration::from_secs(1);

/// Looks after the place of a node's programs: every second, and whenever the kernel tells that an interface changed.
/// Ends with the last receiver.
pub(crate) fn follow<D: Forwarding>(dataplane: Shared<D>) -> watch::Receiver<Attachment> {
    let (attachment, receiver) = watch::channel(Attachment::default());
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut changes = match netlink::with_changes(&[MulticastGroup::Link]) {
            Ok((connection, _, changes)) => {
                tokio::spawn(connection);
                Some(changes)
            }
            Err(error) => {
                warn!(%error, "the kernel does not tell of interfaces that come and go: looking every {EVERY:?}");
                None
            }
        };
        loop {
            let looked = {
                let dataplane = dataplane.clone();
                tokio::task::spawn_blocking(move || locked(&dataplane).look_after_attachment()).await
            };
            match looked {
                Ok(now) => publish(&attachment, now),
                Err(panic) => error!("a fault of this program: {panic}"),
            }
            tokio::select! {
                () = attachment.closed() => return,
                _ = ticks.tick() => {}
                () = changed(&mut changes), if changes.is_some() => {}
            }
        }
    });
    receiver
}

/// Waits for a change of an interface, unless no more will be told.
async fn changed(changes: &mut Option<Changes>) {
    let Some(told) = changes else { return };
    match told.next().await {
        true => told.clear(),
        false => *changes = None,
    }
}

/// Publishes how it is now, and tells what is new of that.
fn publish(attachment: &watch::Sender<Attachment>, now: Attachment) {
    attachment.send_if_modified(|before| {
        match (&before.problem, &now.problem) {
            (before, Some(problem)) if before.as_ref() != Some(problem) => {
                error!(%problem, "this node's programs are not on their interface: it serves nothing");
            }
            (Some(_), None) => info!("this node's programs are on their interface again"),
            _ => {}
        }
        let differs = *before != now;
        *before = now;
        differs
    });
}
