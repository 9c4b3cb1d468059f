//! The cluster that drills are played on, its clients, and how a step is played and measured.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use drover_tests::crowd::{Crowd, Survivors, Way, broker_name, shown_shares};
use drover_tests::{
    Broker, Cluster, Lbctl, MQTT_PORT, Observer, Process, Protocol, Server, Service, Settings, Site, Station,
    Steady, Topology, Vip, interrupt, wait_until,
};
use serde_json::Value;

use crate::faults::{Fault, State};
use crate::judge::{Allowed, Check, Seen};
use crate::narrator::Narrator;
use crate::newcomers::Newcomers;
use crate::report::{StepDone, Voice};

/// Nodes, and hosts of brokers, and servers of ZooKeeper.
pub(crate) const THREE: u8 = 3;
/// How long anything may take that the cluster does by itself.
pub(crate) const LIMIT: Duration = Duration::from_secs(40);
/// The time without ZooKeeper after which a node judges brokers by itself.
pub(crate) const AUTONOMY_AFTER: Duration = Duration::from_secs(10);

const CLIENTS: u8 = 2;
/// Long-lived connections, as many by each way that clients go.
const HELD: usize = 300;
/// Where a scene has more VIPs, clients connect to so many of them, evenly spread.
const VISITED: usize = 10;
/// Reals of weight 0 that each of those VIPs has beside the brokers.
const SPARE: u16 = 7;
/// Counted packets, in requests a second by so many flows.
const RATE: u32 = 500;
const FLOWS: u16 = 64;
/// So many new connections in a row must be served when all is steady.
const SERVED: usize = 12;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 0x10));
/// The VIPs of MQTT, by their address.
const MQTT: [(&str, IpAddr); 2] = [("mqtt", V4), ("mqtt-6", V6)];
/// Every VIP that each drill has.
pub(crate) const VIPS: [&str; 3] = [MQTT[0].0, MQTT[1].0, PACKETS.0];
/// The service of counted packets, which is behind the same address and served by the same hosts.
const PACKETS: (&str, SocketAddr) = ("packets", SocketAddr::new(V4, 7000));

/// What a drill wants on stage beyond what all have.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scene {
    /// What nodes and reals run at first; the `lb-node` beside this program if it is not said.
    pub(crate) binary: Option<PathBuf>,
    /// So many VIPs more, which every broker serves. Clients connect to some of them.
    pub(crate) more_vips: u16,
    /// The broker, counted from 0, that is a real since the agent on its host registers it.
    pub(crate) registered: Option<usize>,
    /// How long after its daemon has ceased to follow a node's guard withdraws it; where it is not said, none has a guard.
    pub(crate) withdraw_after: Option<Duration>,
}

impl Scene {
    /// The VIPs beyond those that every drill has: name and address.
    fn more(&self) -> Vec<(String, SocketAddr)> {
        let at = |number: u16| {
            let address = if number.is_multiple_of(2) { V6 } else { V4 };
            (format!("mqtt-more-{number:03}"), SocketAddr::new(address, MQTT_PORT + number))
        };
        (1..=self.more_vips).map(at).collect()
    }

    /// Where clients connect.
    fn visited(&self) -> Vec<(String, SocketAddr)> {
        let base = MQTT.map(|(name, address)| (name.to_owned(), SocketAddr::new(address, MQTT_PORT)));
        let more = self.more();
        let every = more.len().div_ceil(VISITED).max(1);
        base.into_iter().chain(more.into_iter().step_by(every)).collect()
    }
}

/// A cluster, its clients, and what is known of the drill so far.
#[derive(Debug)]
pub(crate) struct Stage {
    newcomers: Newcomers,
    steady: Steady,
    crowd: Crowd,
    /// How clients go.
    ways: Vec<Way>,
    /// How often connections were made anew.
    refills: usize,
    narrator: Narrator,
    pub(crate) observer: Observer,
    /// `ip monitor` on the router: a line for each change of a route.
    routes: Process,
    /// On each broker's host what answers the counted packets, whatever becomes of the broker.
    _echoes: Vec<Server>,
    pub(crate) site: Site<Broker>,
    pub(crate) voice: Voice,
    /// When the current step began, and what it has found so far.
    begun: Instant,
    checks: Vec<Check>,
    /// The steps that are over.
    pub(crate) done: Vec<StepDone>,
    /// What else is to be told of the drill, by name.
    pub(crate) facts: Vec<(&'static str, Value)>,
}

/// Something that is done to the cluster, and what it may cost. Made by [`step`].
#[derive(Clone, Debug)]
pub(crate) struct Step {
    what: String,
    allowed: Allowed,
    hold: Duration,
}

/// A step that may cost nothing.
pub(crate) fn step(what: impl Into<String>) -> Step {
    Step { what: what.into(), allowed: Allowed::default(), hold: Duration::ZERO }
}

impl Step {
    /// The connections that this broker holds will break, and new ones may be refused until all is steady.
    pub(crate) fn ends_broker(mut self, broker: usize) -> Step {
        self.allowed.dead_broker = Some(broker);
        self.may_refuse()
    }

    /// New connections may be refused until all is steady.
    pub(crate) fn may_refuse(mut self) -> Step {
        self.allowed.refusals = true;
        self
    }

    /// This node is gone: packets may be lost until the router has moved on from it.
    pub(crate) fn loses_node(mut self, node: usize) -> Step {
        self.allowed.lost_node = Some(node);
        self.may_move_routes()
    }

    /// The router may change its routes.
    pub(crate) fn may_move_routes(mut self) -> Step {
        self.allowed.route_changes = true;
        self
    }

    /// Both at once: each may cost what it may alone.
    pub(crate) fn and(self, other: Step) -> Step {
        Step {
            what: format!("{}; {}", self.what, other.what),
            allowed: self.allowed.and(other.allowed),
            hold: self.hold.max(other.hold),
        }
    }

    /// Once all is steady, clients are watched for this much longer.
    pub(crate) fn hold(mut self, time: Duration) -> Step {
        self.hold = time;
        self
    }
}

/// What a step is compared with.
struct Before {
    survivors: Survivors,
    doomed: BTreeSet<String>,
    packets: usize,
    route_changes: usize,
}

impl Stage {
    /// Starts everything: the cluster, connections, packets.
    pub(crate) fn set(voice: Voice, scene: &Scene) -> Result<Stage> {
        let topology = Topology::builder().clients(CLIENTS).nodes(THREE).reals(THREE);
        let settings = Settings {
            cluster: format!(
                "autonomy_after_ms = {}\ndrain_wait_ms = 1000\nack_timeout_ms = 3000\n",
                AUTONOMY_AFTER.as_millis()
            ),
            binary: scene.binary.clone(),
            withdraw_after: scene.withdraw_after,
            ..Settings::default()
        };
        let ports = MQTT_PORT..=MQTT_PORT + scene.more_vips;
        let mut site = Site::serving(
            topology,
            |net| cluster(net, scene),
            settings,
            |_, station| Broker::start_on(&station.host, ports.clone()),
        )?;
        let echo = Service::echo(Protocol::Udp, PACKETS.1);
        let echoes = site.net.reals.iter().map(|station| Server::start(&station.host, [echo]));
        let echoes = echoes.collect::<Result<_>>()?;
        if let Some(broker) = scene.registered {
            site.register_real(broker, &broker_name(broker), &VIPS)?;
            let brokers: Vec<String> = (0..site.servers.len()).map(broker_name).collect();
            let brokers: Vec<&str> = brokers.iter().map(String::as_str).collect();
            site.wait_agreed(&VIPS.map(|vip| (vip, brokers.as_slice())))?;
        }
        let routes = site.net.router.command("ip").args(["-o", "monitor", "route"]).spawn()?;
        let ways = site.net.clients.iter().flat_map(|client| {
            let way = |(name, to)| Way { from: client.host.clone(), to, name };
            scene.visited().into_iter().map(way).collect::<Vec<_>>()
        });
        let ways: Vec<Way> = ways.collect();
        let mut crowd = Crowd::default();
        let each = HELD.div_ceil(ways.len());
        crowd.connect(&ways, each, "held")?;
        let connected = crowd.alive().len();
        ensure!(connected == each * ways.len(), "only {connected} of {} clients connect", each * ways.len());
        let steady = Steady::start(&site.net.clients[0].host, PACKETS.1, FLOWS, RATE)?;
        let newcomers = Newcomers::start(&ways)?;
        let mut stage = Stage {
            newcomers,
            steady,
            crowd,
            ways,
            refills: 0,
            narrator: Narrator::default(),
            observer: Observer::start(&site)?,
            routes,
            _echoes: echoes,
            site,
            voice,
            begun: Instant::now(),
            checks: Vec::new(),
            done: Vec::new(),
            facts: Vec::new(),
        };
        let nodes = stage.all();
        stage.calm(&nodes, None)?;
        stage.begin_to_tell()?;
        Ok(stage)
    }

    /// Makes as many connections as broke so far, so that there is something at stake again.
    pub(crate) fn refill(&mut self) -> Result<()> {
        let missing = HELD.saturating_sub(self.crowd.alive().len());
        if missing > 0 {
            self.refills += 1;
            let each = missing.div_ceil(self.ways.len());
            self.crowd.connect(&self.ways, each, &format!("held-{}", self.refills))?;
            self.note(format_args!("{} connections are made anew", each * self.ways.len()));
        }
        Ok(())
    }

    fn begin_to_tell(&mut self) -> Result<()> {
        let (leader, term) = self.site.leader()?;
        let survivors = Survivors::all(&self.crowd, &self.site.servers)?;
        let brokers = self.site.servers.len();
        let shares: Vec<usize> = (0..brokers).map(|broker| survivors.held_by(broker)).collect();
        self.voice.note(format_args!(
            "{} nodes behind ECMP, {} leads (term {term}); {} servers of ZooKeeper; {brokers} brokers",
            self.site.nodes.len(),
            self.site.node_name(leader),
            self.site.ensemble.len(),
        ));
        self.voice.note(format_args!(
            "{} MQTT connections exchange messages ({}); {RATE} counted packets and some 20 new connections a second",
            survivors.len(),
            shown_shares(&shares)
        ));
        self.narrator.skip(&self.observer.so_far());
        Ok(())
    }

    /// Plays a step: `act` does something, `settle` waits until all is steady. A promise that is not kept is noted, and is no
    /// error unless the drill cannot go on.
    pub(crate) fn play(
        &mut self,
        step: Step,
        act: impl FnOnce(&mut Stage) -> Result<()>,
        settle: impl FnOnce(&mut Stage) -> Result<()>,
    ) -> Result<()> {
        let Step { what, allowed, hold } = step;
        self.voice.heading(format_args!(" {}. {what}", self.done.len() + 1));
        let before = self.before(&allowed)?;
        let at = Instant::now();
        self.begun = at;
        self.voice.act(at);
        act(self).with_context(|| format!("cannot do this: {what}"))?;
        let settled = settle(self).and_then(|()| self.wait_served());
        interrupt::check()?;
        self.tell();
        let steady = match &settled {
            Ok(steady) => Some(steady.saturating_duration_since(at)),
            Err(error) => {
                self.voice.note(format_args!("not steady: {error:#}"));
                None
            }
        };
        if let Some(steady) = steady {
            self.voice.event(at + steady, "steady");
            self.watch(hold)?;
        }
        if let (Some(node), Some(_)) = (allowed.lost_node, steady) {
            self.wait("the observer of routes", |stage| Ok(stage.moved_on(node, at)))?;
        }
        let mut seen = self.seen(&before, &allowed, at)?;
        seen.steady = steady;
        self.tell_result(&seen);
        let wrong = allowed.judge(&seen);
        for wrong in &wrong {
            self.voice.note(format_args!("NOT KEPT: {wrong}"));
        }
        self.done.push(StepDone { what, allowed, seen });
        settled.map(|_| ()).context("the cluster did not become steady, so the rest was not played")
    }

    fn before(&mut self, allowed: &Allowed) -> Result<Before> {
        self.checks.clear();
        let survivors = Survivors::all(&self.crowd, &self.site.servers)?;
        let (survivors, doomed) = match allowed.dead_broker {
            Some(broker) => survivors.parted(broker),
            None => (survivors, BTreeSet::new()),
        };
        let _ = self.crowd.take_slowest();
        Ok(Before { survivors, doomed, packets: self.steady.sent(), route_changes: self.route_changes()? })
    }

    /// What clients and the router have seen since.
    fn seen(&mut self, before: &Before, allowed: &Allowed, at: Instant) -> Result<Seen> {
        let after = |moment: Instant| moment.saturating_duration_since(at);
        let held = before.survivors.count(&self.crowd, &self.site.servers)?;
        let packets = self.steady.since(before.packets)?;
        let newcomers = self.newcomers.since(at);
        if let Some(error) = packets.errors.last().filter(|_| !packets.lost.is_empty()) {
            self.voice.note(format_args!("a sender of packets: {error}"));
        }
        let (served, refused): (Vec<_>, Vec<_>) =
            newcomers.into_iter().partition(|newcomer| newcomer.failed.is_none());
        for newcomer in refused.iter().filter_map(|newcomer| newcomer.failed.as_ref()).take(2) {
            self.voice.note(format_args!("a new client: {newcomer}"));
        }
        Ok(Seen {
            connections: before.survivors.len() + before.doomed.len(),
            doomed: before.doomed.len(),
            doomed_broken: self.crowd.broken_after(&before.doomed, at).len(),
            others_broken: held.lost,
            packets: packets.sent,
            lost: packets.lost.into_iter().map(after).collect(),
            longest_gap: packets.longest_wait.max(self.crowd.slowest_of(&before.survivors.ids())),
            new: served.len() + refused.len(),
            refused: refused.iter().map(|newcomer| after(newcomer.at)).collect(),
            slowest_new: served.iter().map(|newcomer| newcomer.took).max().unwrap_or_default(),
            route_changes: self.route_changes()? - before.route_changes,
            moved: allowed.lost_node.and_then(|node| self.moved_on(node, at)).map(after),
            steady: None,
            checks: std::mem::take(&mut self.checks),
        })
    }

    fn tell_result(&self, seen: &Seen) {
        self.voice.note(format_args!(
            "{} of {} connections broke ({} expected); {} of {} packets lost; longest gap {} ms; {} of {} new connections \
             refused{}, the slowest of the others took {} ms",
            seen.doomed_broken + seen.others_broken.len(),
            seen.connections,
            seen.doomed,
            seen.lost.len(),
            seen.packets,
            seen.longest_gap.as_millis(),
            seen.refused.len(),
            seen.new,
            seen.refused.iter().max().map(|last| format!(" until {} ms", last.as_millis())).unwrap_or_default(),
            seen.slowest_new.as_millis(),
        ));
    }

    /// Waits until as many new connections in a row as it takes are served, and tells since when.
    fn wait_served(&mut self) -> Result<Instant> {
        let mut since = Instant::now();
        self.wait("the new connections to be served", |stage| {
            let newcomers = stage.newcomers.since(since);
            if newcomers.iter().any(|newcomer| newcomer.failed.is_some()) {
                since = Instant::now();
                return Ok(None);
            }
            Ok((newcomers.len() >= SERVED).then_some(since))
        })
    }

    /// A line of the timeline.
    pub(crate) fn note(&mut self, text: impl Display) {
        self.tell();
        self.voice.note(text);
    }

    /// Notes a promise of the step's own.
    pub(crate) fn check(&mut self, promise: impl Into<String>, seen: impl Into<String>, kept: bool) {
        self.tell();
        let check = Check { promise: promise.into(), seen: seen.into(), kept };
        let verdict = if kept { "ok" } else { "NOT SO" };
        self.voice.note(format_args!("{verdict}: {}: {}", check.promise, check.seen));
        self.checks.push(check);
    }

    /// Promises that the nodes have the tables that they had before.
    pub(crate) fn check_tables(&mut self, before: &BTreeSet<String>) -> Result<()> {
        let now = self.digests()?;
        let shown: Vec<&str> = now.iter().map(String::as_str).collect();
        self.check("all nodes have the tables that they had before", shown.join(", "), now == *before);
        Ok(())
    }

    /// Notes a promise of the whole drill, at its end: it counts with the last step.
    pub(crate) fn check_after(&mut self, promise: impl Into<String>, seen: impl Into<String>, kept: bool) {
        self.check(promise, seen, kept);
        if let Some(last) = self.done.last_mut() {
            last.seen.checks.append(&mut self.checks);
        }
    }

    /// Waits for something that takes no longer than [`LIMIT`], and tells what happens meanwhile.
    pub(crate) fn wait<T>(
        &mut self,
        what: &str,
        mut ready: impl FnMut(&Stage) -> Result<Option<T>>,
    ) -> Result<T> {
        let waited = wait_until(what, LIMIT, || {
            self.tell();
            ready(self)
        });
        waited.with_context(|| self.site.report())
    }

    /// Lets time pass, and tells what happens meanwhile.
    pub(crate) fn watch(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            interrupt::check()?;
            self.tell();
            sleep(end.saturating_duration_since(Instant::now()).min(Duration::from_millis(50)));
        }
        Ok(())
    }

    /// Tells what the observer has seen and is not told yet.
    fn tell(&mut self) {
        self.narrator.tell(&self.observer.so_far(), self.site.servers.len(), &self.voice);
    }

    /// Waits until the cluster is whole, as far as its nodes run: the router sends every VIP to just these nodes; all nodes
    /// that run have the tree's newest decision in force, equal tables in their maps, with every broker but `without` in
    /// them; one node leads, and has settled.
    pub(crate) fn calm(&mut self, carriers: &[usize], without: Option<usize>) -> Result<()> {
        self.calm_among(&self.site.running(), carriers, without)
    }

    /// As [`Stage::calm`], where not all nodes that run can know of the others.
    pub(crate) fn calm_among(
        &mut self,
        nodes: &[usize],
        carriers: &[usize],
        without: Option<usize>,
    ) -> Result<()> {
        self.carried_by(carriers)?;
        self.wait_leader(0)?;
        self.site.wait_settled()?;
        let brokers: Vec<String> =
            (0..self.site.servers.len()).filter(|broker| Some(*broker) != without).map(broker_name).collect();
        let brokers: Vec<&str> = brokers.iter().map(String::as_str).collect();
        self.site.wait_agreed_among(nodes, &VIPS.map(|vip| (vip, brokers.as_slice())))
    }

    /// Waits until the cluster is as it should be while these faults last. As [`Stage::calm`] where there is somebody who
    /// decides; else all nodes have noticed, and left a dead broker out by themselves.
    pub(crate) fn steady_with(&mut self, faults: &[Fault]) -> Result<()> {
        let mut state = State {
            carriers: self.all(),
            followers: self.all(),
            silent: Vec::new(),
            cut_off: Vec::new(),
            dead_broker: None,
            decides: true,
        };
        for fault in faults {
            fault.change(&mut state);
        }
        let State { mut carriers, followers, silent, cut_off, dead_broker, decides } = state;
        if self.guarded() {
            carriers.retain(|node| !silent.contains(node));
        }
        // Who is cut off withdraws unless that leaves less than half of those that hear each other.
        if followers.len() >= cut_off.len() {
            carriers.retain(|node| !cut_off.contains(node));
        }
        if decides {
            self.connected(&followers)?;
            return self.calm_among(&followers, &carriers, dead_broker);
        }
        if faults.contains(&Fault::ZookeeperDown) {
            self.wait("every node to notice", |stage| {
                let noticed = |status: &Value| status["cluster"]["connected"] == false;
                Ok(stage.statuses(&followers).filter(|all| all.iter().all(noticed)).map(|_| ()))
            })?;
        }
        if let Some(broker) = dead_broker.map(broker_name) {
            self.wait("every node to leave the broker out by itself", |stage| {
                let has =
                    |vip: &Value| vip["reals"][&broker]["weight"].as_u64().is_some_and(|weight| weight > 0);
                let left_out = |status: &Value| {
                    let vips = status["vips"].as_object();
                    vips.is_some_and(|vips| !vips.is_empty() && !vips.values().any(has))
                };
                Ok(stage.statuses(&followers).filter(|all| all.iter().all(left_out)).map(|_| ()))
            })?;
        }
        self.carried_by(&carriers)
    }

    /// Whether nodes have guards, which withdraw those that give no sign of life.
    pub(crate) fn guarded(&self) -> bool {
        !self.site.guards.is_empty()
    }

    /// Waits until the router sends every VIP to just these nodes.
    pub(crate) fn carried_by(&mut self, nodes: &[usize]) -> Result<()> {
        self.site.wait_for_carriers(nodes)
    }

    /// When, at this moment or after it, the router sent no VIP's packets to a node any more.
    fn moved_on(&self, node: usize, after: Instant) -> Option<Instant> {
        let name = self.site.node_name(node);
        let observed = self.observer.so_far();
        let left = observed.carriers.values().map(|history| {
            let then = history.iter().rposition(|(at, _)| *at <= after).unwrap_or(0);
            let gone = history[then..].iter().find(|(_, carriers)| !carriers.contains(name));
            gone.map(|(at, _)| after.max(*at))
        });
        left.collect::<Option<Vec<Instant>>>()?.into_iter().max()
    }

    /// Waits until a node leads by a term greater than this one: which, and its term.
    pub(crate) fn wait_leader(&mut self, above: u64) -> Result<(usize, u64)> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let (leader, term) = self.site.leader()?;
            if term > above {
                return Ok((leader, term));
            }
            if Instant::now() > deadline {
                bail!("waited {LIMIT:?} in vain for a leader of a term above {above}");
            }
            self.watch(Duration::from_millis(50))?;
        }
    }

    /// Waits until each of these nodes that runs has a session with ZooKeeper.
    pub(crate) fn connected(&mut self, nodes: &[usize]) -> Result<()> {
        self.wait("every node to have ZooKeeper again", |stage| {
            let connected =
                |status: &Value| status["cluster"]["connected"] == true && status["mode"] == "live";
            Ok(stage.statuses(nodes).filter(|all| all.iter().all(connected)).map(|_| ()))
        })
    }

    /// Waits until there is no such znode.
    pub(crate) fn wait_gone(&mut self, path: &str) -> Result<()> {
        self.wait(&format!("{path} to go"), |stage| {
            Ok(stage.site.operator.get(path)?.is_none().then_some(()))
        })
    }

    /// Promises that another node than this one, which led by this term, leads by a greater one.
    pub(crate) fn check_succession(&mut self, leader: usize, term: u64) -> Result<()> {
        let (next, now) = self.wait_leader(term)?;
        let seen = format!("{}, term {now} after {term}", self.site.node_name(next));
        self.check("another node leads, by a greater term", seen, next != leader && now > term);
        Ok(())
    }

    /// Promises that so long after the step's beginning the router sends nothing to a node any more.
    pub(crate) fn check_withdrawn(&mut self, node: usize, limit: Duration) -> Result<()> {
        let (name, begun) = (self.site.node_name(node).to_owned(), self.begun);
        let moved = wait_until(format_args!("{name} to be withdrawn"), limit + LIMIT / 2, || {
            self.tell();
            Ok(self.moved_on(node, begun))
        });
        interrupt::check()?;
        let seen = match &moved {
            Ok(at) => format!("after {} ms", at.saturating_duration_since(begun).as_millis()),
            Err(_) => "never".to_owned(),
        };
        let kept = moved.is_ok_and(|at| at <= begun + limit);
        self.check(format!("{name} is withdrawn within {} ms", limit.as_millis()), seen, kept);
        Ok(())
    }

    /// Promises that something, which is so now, has taken no longer than this since the step's beginning.
    pub(crate) fn check_over_within(&mut self, what: &str, limit: Duration) {
        let took = self.begun.elapsed();
        let promise = format!("{what} within {} ms", limit.as_millis());
        self.check(promise, format!("after {} ms", took.as_millis()), took <= limit);
    }

    /// Promises that `lbctl status` says that something is wrong with a node.
    pub(crate) fn check_known(&mut self, node: usize) -> Result<()> {
        let name = self.site.node_name(node).to_owned();
        let status = self.lbctl().json(&["status"])?;
        let problems = status["problems"].as_array().into_iter().flatten();
        let told: Vec<&str> = problems
            .filter(|one| one["node"] == name.as_str())
            .filter_map(|one| one["text"].as_str())
            .collect();
        self.check(format!("lbctl status tells of {name}"), told.join("; "), !told.is_empty());
        Ok(())
    }

    /// Promises that `lbctl status` finds nothing wrong, as soon as it has had a moment.
    pub(crate) fn check_content(&mut self) -> Result<()> {
        let lbctl = self.lbctl();
        let mut said = String::new();
        let content = wait_until("lbctl status to be content", LIMIT, || {
            self.tell();
            let answer = lbctl.run(&["status", "--quiet"])?;
            said = answer.stdout + &answer.stderr;
            Ok((answer.code == 0).then_some(()))
        });
        interrupt::check()?;
        let seen = if content.is_ok() { "it is" } else { said.trim() };
        self.check("lbctl status is content", seen, content.is_ok());
        Ok(())
    }

    /// Promises of the last step that no new connection was refused later than this.
    pub(crate) fn check_refused_until(&mut self, limit: Duration) {
        let last = self.done.last().and_then(|step| step.seen.refused.iter().max().copied());
        let seen = last.map_or("none was".to_owned(), |last| format!("the last at {} ms", last.as_millis()));
        let promise = format!("no new connection is refused that begins later than {} ms", limit.as_millis());
        self.check_after(promise, seen, last.is_none_or(|last| last <= limit));
    }

    /// `lbctl` where the operator is.
    pub(crate) fn lbctl(&self) -> Lbctl {
        Lbctl::new(&self.site.net.router, &self.site.ensemble.connect_string())
    }

    /// A node that follows, and the leader.
    pub(crate) fn follower(&self) -> Result<(usize, usize)> {
        let (leader, _) = self.site.leader()?;
        let follower = self.site.running().into_iter().find(|node| *node != leader);
        Ok((follower.context("a node that follows")?, leader))
    }

    /// All nodes, counted from 0.
    pub(crate) fn all(&self) -> Vec<usize> {
        (0..self.site.nodes.len()).collect()
    }

    /// All nodes but this one.
    pub(crate) fn others(&self, node: usize) -> Vec<usize> {
        self.all().into_iter().filter(|other| *other != node).collect()
    }

    /// What those of these nodes that run say of themselves, unless one does not answer.
    fn statuses(&self, nodes: &[usize]) -> Option<Vec<Value>> {
        let running = nodes.iter().filter_map(|node| self.site.nodes[*node].as_ref());
        running.map(|node| node.status().ok()).collect()
    }

    /// The digests of a VIP's tables that the nodes that run have in their maps; one if they are all alike.
    pub(crate) fn digests(&self) -> Result<BTreeSet<String>> {
        let tables = self.site.tables()?;
        let told = tables
            .into_iter()
            .flat_map(|(vip, tables)| tables.into_iter().map(move |(_, digest)| format!("{vip} {digest}")));
        Ok(told.collect())
    }

    /// Waits until the clients of a dead broker know.
    pub(crate) fn wait_disconnected(&self, broker: usize) -> Result<()> {
        wait_until(format_args!("the clients of {} to be disconnected", broker_name(broker)), LIMIT, || {
            let left = Survivors::all(&self.crowd, &self.site.servers)?.held_by(broker);
            Ok((left == 0).then_some(()))
        })
    }

    /// How often the router's routes to VIPs have changed so far.
    fn route_changes(&self) -> Result<usize> {
        let vips = [V4.to_string(), V6.to_string()];
        let is_of_a_vip = |line: &&str| vips.iter().any(|vip| line.contains(vip));
        Ok(self.routes.log()?.lines().filter(is_of_a_vip).count())
    }
}

fn cluster(net: &Topology, scene: &Scene) -> Cluster {
    const PACE: &str = "interval_ms = 500\ntimeout_ms = 400\nunhealthy_threshold = 2";
    let with_brokers = |mut vip: Vip| {
        let brokers = net.reals.iter().enumerate().filter(|(number, _)| Some(*number) != scene.registered);
        let real = |(number, station): (usize, &Station)| {
            (broker_name(number), station.address_like(vip.at.ip()), 100)
        };
        vip.reals = brokers.map(real).collect();
        vip
    };
    let mqtt = MQTT.map(|(name, address)| {
        Vip::new(name, SocketAddr::new(address, MQTT_PORT)).health(&format!("type = \"mqtt\"\n{PACE}"))
    });
    // The broker is what is asked: where it is dead, so is the host for other services.
    let packets = Vip::new(PACKETS.0, PACKETS.1).protocol(Protocol::Udp);
    let packets = packets.health(&format!("type = \"tcp\"\nport = {MQTT_PORT}\n{PACE}"));
    let usual = mqtt.into_iter().chain([packets]).map(with_brokers);
    let more = scene.more().into_iter().map(|(name, at)| {
        let mut vip = with_brokers(Vip::new(name, at));
        vip.reals.extend((1..=SPARE).map(|number| (format!("spare-{number}"), spare(number), 0)));
        vip
    });
    Cluster::new(usual.chain(more))
}

/// An address that nobody has.
fn spare(number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 9, high, low).into()
}
