//! The parts that both kinds of node have: data plane, probes, control loop, pages, and how they start and stop.

use super::probe_route::keep_probe_route;
use crate::admin::{self, Shown};
use crate::attachment;
use crate::cluster::agent::ClusterView;
use crate::control::forwarding::Shared;
use crate::control::report::Report;
use crate::control::{self, Control, Inputs, Outputs};
use crate::front::FrontStatus;
use crate::metrics::{self, ControlMetrics};
use crate::standalone::FileStatus;
use crate::status::{KeptStatus, Status};
use crate::tree_metrics::TreeMetrics;
use ::admin::auth::{self, Auth};
use anyhow::{Context as _, Result, bail};
use coordination::Snapshot;
use dataplane::attachment::{Attachment, Lost};
use dataplane::nexthop::sources::{self, Sources};
use dataplane::nexthop::{self, pmtu};
use dataplane::{Dataplane, Settings, Start};
use health::metrics::ProbeMetrics;
use health::probe::Prober;
use health::scheduler;
use host::bpffs;
use host::clock::wall;
use host::identity::{self, network_namespace};
use host::notify::Notifier;
use host::supervisor::{Supervisor, Task};
use policy::local::Exclusions;
use prometheus_client::registry::Registry;
use rustix::thread::CapabilitySet;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tracing::info;
use zk_schema::tree::{Member, Mode};
use zk_schema::{Node, fnv1a};

/// The parts that both kinds of node have before they know what to serve.
pub(super) struct Base {
    pub(super) node: Node,
    pub(super) ifindex: u32,
    pub(super) outer: Sources,
    pub(super) supervisor: Supervisor,
    pages: Pages,
}

/// The admin pages, which are there before there is anything to forward by, and what they show.
struct Pages {
    /// Until [`Base::show`].
    closed: Option<(TcpListener, Auth)>,
    serving: Option<Task<Infallible>>,
    status: watch::Sender<Arc<Status>>,
    turned: watch::Sender<Option<Instant>>,
    registry: watch::Sender<Arc<Registry>>,
}

/// The surroundings of a node, before it forwards and then.
pub(super) struct Scene {
    pub(super) in_cluster: Option<ClusterView>,
    pub(super) file: watch::Receiver<FileStatus>,
    pub(super) announced: watch::Receiver<FrontStatus>,
    pub(super) kept: watch::Receiver<KeptStatus>,
    pub(super) tree: TreeMetrics,
}

/// The inputs of a running node.
pub(super) struct Plan<'a> {
    pub(super) bpffs: &'a Path,
    pub(super) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(super) mode: watch::Receiver<Mode>,
    /// The reals that it leaves out by its own judgement, and did before.
    pub(super) exclusions: watch::Sender<Exclusions>,
    pub(super) report: watch::Sender<Arc<Report>>,
    pub(super) scene: Scene,
}

/// A node that forwards.
pub(super) struct Running {
    pub(super) targets: watch::Receiver<Arc<Vec<health::Target>>>,
    pub(super) verdicts: watch::Receiver<Arc<health::Verdicts>>,
    pub(super) status: watch::Receiver<Arc<Status>>,
    pub(super) turned: watch::Receiver<Option<Instant>>,
    pub(super) attachment: watch::Receiver<Attachment>,
    pub(super) stop: oneshot::Sender<()>,
    pub(super) control: Task<()>,
    pub(super) supervisor: Supervisor,
    pub(super) _registry: watch::Sender<Arc<Registry>>,
    pub(super) _pages: Option<Task<Infallible>>,
    pub(super) _tasks: Vec<Task<()>>,
}

impl Base {
    pub(super) async fn prepare(node: Node, supervisor: &Supervisor) -> Result<Self> {
        // Before anything in the kernel is touched: a second daemon ends here.
        let auth = Auth::new(node.admin, &admin_files(&node))?;
        let listener = admin::bind(node.admin).await?;
        let interface =
            sources::interface(&node.interface).await.context("the front interface is not usable")?;
        let outer = Sources {
            v4: node.source_v4.or(interface.sources.v4),
            v6: node.source_v6.or(interface.sources.v6),
        };
        let pages = Pages {
            closed: Some((listener, auth)),
            serving: None,
            status: watch::Sender::default(),
            turned: watch::Sender::new(None),
            registry: watch::Sender::default(),
        };
        Ok(Self { node, ifindex: interface.index, outer, supervisor: supervisor.clone(), pages })
    }

    /// The record that others read of this node.
    pub(super) fn member(&self, boot: &str) -> Result<Member> {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .context("cannot get random bytes")?;
        let namespace = network_namespace().context("cannot tell the network namespace")?;
        Ok(Member {
            instance: random.map(|byte| format!("{byte:02x}")).concat(),
            boot: identity::host_id(boot, namespace),
            source_v4: self.outer.v4,
            source_v6: self.outer.v6,
            admin: self.node.admin,
            software: env!("CARGO_PKG_VERSION").to_owned(),
            started: wall(),
            extra: Default::default(),
        })
    }

    /// Answers on the admin address from now on.
    pub(super) fn show(&mut self, scene: &Scene, bpffs: &Path) {
        let Some((listener, auth)) = self.pages.closed.take() else { return };
        let nothing = self.sources::<Dataplane>(scene, None);
        let registry = metrics::registry(nothing, &ControlMetrics::default(), &ProbeMetrics::default());
        self.pages.registry.send_replace(Arc::new(registry));
        let shown = Shown {
            node: self.node.name.clone(),
            status: self.pages.status.subscribe(),
            file: scene.file.clone(),
            cluster: scene.in_cluster.clone(),
            announced: scene.announced.clone(),
            turned: self.pages.turned.subscribe(),
            tasks: self.supervisor.clone(),
            kept: scene.kept.clone(),
            registry: self.pages.registry.subscribe(),
            pins: Some(bpffs::directory(bpffs, &self.node.interface, "lb")),
        };
        self.pages.serving = Some(self.supervisor.spawn("admin pages", admin::serve(listener, auth, shown)));
    }

    /// The sources of the metrics.
    pub(super) fn sources<D>(&self, scene: &Scene, dataplane: Option<Shared<D>>) -> metrics::Scraped<D> {
        metrics::Scraped {
            dataplane,
            status: self.pages.status.subscribe(),
            file: scene.file.clone(),
            cluster: scene.in_cluster.clone(),
            announced: scene.announced.clone(),
            tree: scene.tree.clone(),
            kept: scene.kept.clone(),
            capacity: self.node.capacity,
        }
    }

    /// Takes up forwarding by what the snapshots say.
    pub(super) async fn start(self, plan: Plan<'_>) -> Result<Running> {
        let Plan { bpffs, snapshots, mode, exclusions, report, scene } = plan;
        let (node, supervisor) = (self.node.clone(), self.supervisor.clone());
        let first = Arc::clone(&snapshots.borrow());
        let (dataplane, start) = open(&node, self.outer, &first, bpffs)?;
        let in_force = control::inherited(&dataplane, start, &first.desired);
        let dataplane = Arc::new(Mutex::new(dataplane));

        let (wanted, wanted_receiver) = watch::channel(control::wanted(&first.desired));
        let path_mtus = pmtu::spawn(self.outer, node.gue_port, wanted_receiver.clone())
            .context("path MTUs towards reals cannot be learnt")?;
        let follower = nexthop::spawn(self.ifindex, wanted_receiver, path_mtus.clone())
            .await
            .context("next hops of reals cannot be learnt")?;

        let (targets, targets_receiver) = watch::channel(Arc::default());
        let settings = scheduler::Options {
            probes_in_flight: usize::try_from(node.probes_in_flight).unwrap_or(usize::MAX),
            seed: seed(&node),
            initially_up: in_force.clone(),
        };
        let scheduler =
            health::scheduler::spawn(Prober::new(node.name.clone()), targets_receiver.clone(), settings);
        let verdicts = scheduler.verdicts();

        let control_metrics = ControlMetrics::default();
        let sources = self.sources(&scene, Some(Arc::clone(&dataplane)));
        let registry = metrics::registry(sources, &control_metrics, scheduler.metrics());
        let Pages { serving, status, turned, registry: shown_registry, .. } = self.pages;
        shown_registry.send_replace(Arc::new(registry));
        let (status_receiver, turned_receiver) = (status.subscribe(), turned.subscribe());
        let mut tasks = vec![
            supervisor.spawn(
                "probe route",
                keep_probe_route(node.interface.clone(), self.outer, snapshots.clone()),
            ),
            supervisor.watch("next hops", follower.next_hops.clone()),
            supervisor.watch("path MTUs", path_mtus),
            supervisor.watch("health checks", verdicts.clone()),
        ];
        if let Some(learnt) = &scene.in_cluster {
            let following = scene.tree.clone().follow(learnt.followed.clone(), status_receiver.clone());
            tasks.push(supervisor.spawn("metrics of the tree", following));
        }
        let attachment = attachment::follow(Arc::clone(&dataplane));
        tasks.push(supervisor.watch("attachment", attachment.clone()));
        let inputs = Inputs {
            snapshots,
            verdicts: verdicts.clone(),
            next_hops: follower.next_hops,
            mode,
            attachment: attachment.clone(),
        };
        let left_out = exclusions.borrow().clone();
        let outputs = Outputs { targets, wanted, status, report, turned, exclusions };
        let prober = scene.in_cluster.is_some().then(|| node.name.clone());
        let control =
            Control::new(dataplane, start, in_force, prober, outputs, control_metrics).remembering(left_out);

        info!(
            node = %node.name,
            interface = node.interface,
            admin = %node.admin,
            vips = first.desired.vips.len(),
            predecessor = ?start,
            "lb-node {} starts",
            env!("CARGO_PKG_VERSION")
        );
        let (stop, stopped) = oneshot::channel::<()>();
        let control = supervisor.spawn("control loop", async move {
            // Dropping the scheduler would end the probes.
            let _scheduler = scheduler;
            let stop = async {
                let _ = stopped.await;
            };
            control.run(inputs, stop).await;
        });
        Ok(Running {
            targets: targets_receiver,
            verdicts,
            status: status_receiver,
            turned: turned_receiver,
            attachment,
            stop,
            control,
            supervisor,
            _registry: shown_registry,
            _pages: serving,
            _tasks: tasks,
        })
    }
}

impl Running {
    /// Tells the service manager how the node is, for as long as it lives: a turn of the control loop is the sign of
    /// life. `announced` is what a node of a cluster announces.
    pub(super) fn tell(
        &self,
        mut notifier: Notifier,
        announced: Option<watch::Receiver<FrontStatus>>,
    ) -> impl Future<Output = ()> + use<> {
        let (mut status, mut turned) = (self.status.clone(), self.turned.clone());
        let supervisor = self.supervisor.clone();
        async move {
            loop {
                let now = Arc::clone(&status.borrow_and_update());
                let count = announced.as_ref().map(|announced| announced.borrow().announced.len());
                if now.not_ready().is_empty() {
                    notifier.ready();
                }
                notifier.status(&now.summary(count));
                if turned.changed().await.is_err() {
                    return;
                }
                let well = status.borrow().not_healthy().is_empty() && supervisor.hung().is_empty();
                notifier.alive(well);
            }
        }
    }

    /// Waits until only a new process can go on, and says why: the interface is gone, or another one has its name.
    pub(super) fn lost(&self) -> impl Future<Output = String> + use<> {
        let mut attachment = self.attachment.clone();
        async move {
            let gone = |now: &Attachment| matches!(now.problem, Some(Lost::Interface(_)));
            let problem = attachment.wait_for(gone).await.ok().and_then(|now| now.problem.clone());
            match problem {
                Some(problem) => problem.to_string(),
                // Nobody looks any more, since the node is being stopped.
                None => std::future::pending().await,
            }
        }
    }

    /// Ends, when what is being applied has been applied.
    pub(super) async fn stop(self) {
        drop(self.stop);
        self.control.ended().await;
    }
}

/// The files that guard the node's admin pages.
fn admin_files(node: &Node) -> auth::ServerFiles {
    auth::ServerFiles {
        token: node.admin_token_file.clone(),
        cert: node.admin_tls_cert.clone(),
        key: node.admin_tls_key.clone(),
        client_ca: node.admin_tls_client_ca.clone(),
    }
}

fn open(node: &Node, outer: Sources, first: &Snapshot, bpffs: &Path) -> Result<(Dataplane, Start)> {
    let settings = Settings {
        interface: node.interface.clone(),
        xdp_mode: node.xdp_mode,
        source_v4: outer.v4,
        source_v6: outer.v6,
        gue_port: node.gue_port,
        unserved: node.unserved,
        accept_macs: node.accept_macs.clone(),
        capacity: node.capacity,
        table_size: first.desired.cluster.table_size,
        bpffs: bpffs.to_owned(),
    };
    Dataplane::open(&settings).with_context(|| format!("cannot take up forwarding on {}", node.interface))
}

/// Loading programs, attaching them and opening raw sockets are privileged.
pub(super) fn check_capabilities() -> Result<()> {
    let effective = rustix::thread::capabilities(None).context("cannot tell this process' rights")?.effective;
    let mut needed =
        vec![(CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"), (CapabilitySet::NET_RAW, "CAP_NET_RAW")];
    // The kernel takes CAP_SYS_ADMIN for these two.
    if !effective.contains(CapabilitySet::SYS_ADMIN) {
        needed.extend([(CapabilitySet::BPF, "CAP_BPF"), (CapabilitySet::PERFMON, "CAP_PERFMON")]);
    }
    needed.retain(|(capability, _)| !effective.contains(*capability));
    let missing: Vec<&str> = needed.iter().map(|(_, name)| *name).collect();
    if !missing.is_empty() {
        bail!(
            "this process lacks {}: run it as root, or grant them to its service or container",
            missing.join(", ")
        );
    }
    Ok(())
}

/// Differs between nodes and starts, so that probes of many nodes drift apart.
fn seed(node: &Node) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    fnv1a(node.name.as_str().bytes()) ^ u64::from(now.subsec_nanos()) ^ now.as_secs().rotate_left(32)
}
