//! What the demo does, and what it looks at. Everything is judged by what clients and brokers see; the node under
//! test is not asked.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use drover_tests::{Broker, Fleet, Host, Session, SessionState, interrupt, wait_until};

use crate::observe::{Waves, family, placement, shown_shares, socket};
use crate::report::Report;
use crate::stage::{Stage, VIP4, VIP6, broker_name};

/// Long-lived connections of each client to each VIP.
const HELD: usize = 15;
/// New connections in a wave, half of them to each VIP, while waiting for a change.
const WAVE: usize = 12;
const BETWEEN_WAVES: Duration = Duration::from_millis(200);
/// So many waves in a row without a failure, and the dead broker is out. While one of three brokers refuses, either
/// VIP passes this by chance once in 190,000 times.
const CLEAN_WAVES: usize = 5;
/// New connections that show how the brokers share them once the change is through.
const SHOW: usize = 60;
/// How long the health check may take to notice what happened, in either direction. It probes twice a second.
const HEALTH_LIMIT: Duration = Duration::from_secs(20);
/// How long it may take until a dead broker's clients know.
const DISCONNECT_LIMIT: Duration = Duration::from_secs(5);
/// The broker that dies.
const VICTIM: usize = 1;

/// A connection that must not break.
#[derive(Debug)]
struct Survivor {
    /// The client's MQTT identifier.
    id: String,
    /// The broker's number.
    broker: usize,
    /// The client's address and port.
    peer: SocketAddr,
}

/// A broker's death.
#[derive(Debug)]
struct Death {
    time: Instant,
    /// The connections that must not break: those to the other brokers.
    survivors: Vec<Survivor>,
}

/// Plays it all. Errors are for what keeps the demo from going on; a promise not kept is a finding.
pub(crate) fn perform(stage: &mut Stage, report: &mut Report) -> Result<()> {
    let fleets = hold_connections(stage, report)?;
    publish_and_subscribe(stage, report)?;
    let death = kill_a_broker(stage, report, &fleets)?;
    let mut waves = Waves::default();
    wait_for_the_health_check(stage, report, &mut waves, death.time)?;
    check_survivors(stage, report, &fleets, &death.survivors, "out")?;
    bring_it_back(stage, report, &mut waves)?;
    check_survivors(stage, report, &fleets, &death.survivors, "back")
}

fn hold_connections(stage: &Stage, report: &mut Report) -> Result<Vec<Fleet>> {
    let total = HELD * 2 * stage.net.clients.len();
    report.step(format_args!("{total} MQTT clients connect through the VIP, and stay"));
    let mut fleets = Vec::new();
    let mut columns = Vec::new();
    for client in &stage.net.clients {
        for vip in [VIP4, VIP6] {
            let column = format!("{} {}", client.host.name(), family(vip));
            let ids = (1..=HELD).map(|n| format!("demo-{}-{}-{n}", client.host.name(), family(vip)));
            fleets.push(Fleet::connect(&client.host, socket(vip), ids)?);
            columns.push(column);
        }
    }
    let sessions: Vec<Vec<Session>> = fleets.iter().map(Fleet::sessions).collect();
    let placed = placement(&stage.brokers)?;

    report.note("who is where, by the brokers' own logs:");
    let head: String = columns.iter().map(|column| format!("{column:>14}")).collect();
    report.line(format_args!("{:9}{head}{:>8}", "", "sum"));
    let mut shares = Vec::new();
    for broker in 0..stage.brokers.len() {
        let here = |session: &&Session| placed.get(&session.id).is_some_and(|(at, _)| *at == broker);
        let counts: Vec<usize> = sessions.iter().map(|fleet| fleet.iter().filter(here).count()).collect();
        let sum: usize = counts.iter().sum();
        let cells: String = counts.iter().map(|count| format!("{count:>14}")).collect();
        report.line(format_args!("{:9}{cells}{sum:>8}", broker_name(broker)));
        shares.push(sum);
    }

    let alive: usize = fleets.iter().map(|fleet| fleet.alive().len()).sum();
    for session in sessions.iter().flatten() {
        if let SessionState::Broken { why, .. } = &session.state {
            report.line(format_args!("{} could not connect to {}: {why}", session.id, session.vip));
        }
    }
    report.finding(
        "clients get their messages back, over IPv4 and IPv6",
        format_args!("{alive} of {total} clients"),
        alive == total,
    );
    report.finding(
        "every broker gets its share",
        shown_shares(&shares),
        shares.iter().all(|share| *share > 0) && shares.iter().sum::<usize>() == total,
    );
    let own: BTreeSet<IpAddr> =
        stage.net.clients.iter().flat_map(|client| [client.v4.into(), client.v6.into()]).collect();
    let seen = sessions
        .iter()
        .flatten()
        .filter(|session| placed.get(&session.id).is_some_and(|(_, peer)| own.contains(&peer.ip())))
        .count();
    report.finding(
        "brokers see the clients' own addresses",
        format_args!("for {seen} of {total} clients"),
        seen == total,
    );
    Ok(fleets)
}

fn publish_and_subscribe(stage: &Stage, report: &mut Report) -> Result<()> {
    report.step("mosquitto_sub and mosquitto_pub, as anyone would use them");
    let (listener, speaker) = (&stage.net.clients[0].host, &stage.net.clients[1].host);
    for vip in [VIP4, VIP6] {
        let (seen, kept) = one_message(stage, report, vip, listener, speaker)?;
        report.finding(
            format_args!("mosquitto_sub gets what mosquitto_pub sends, {}", family(vip)),
            seen,
            kept,
        );
    }
    Ok(())
}

/// The brokers know nothing of each other, so the publisher tries until it meets the subscriber's broker.
fn one_message(
    stage: &Stage,
    report: &Report,
    vip: IpAddr,
    listener: &Host,
    speaker: &Host,
) -> Result<(String, bool)> {
    const ATTEMPTS: usize = 60;
    let address = vip.to_string();
    let subscriber_id = format!("demo-sub-{}", family(vip));
    let mut subscriber = listener
        .command("mosquitto_sub")
        .args(["-h", &address, "-t", "drover/hello", "-C", "1", "-i", &subscriber_id])
        .spawn()?;
    let home = wait_until(format_args!("mosquitto_sub to reach a broker by {vip}"), HEALTH_LIMIT, || {
        ensure!(subscriber.is_running()?, "mosquitto_sub ended: {}", subscriber.log()?);
        Ok(placement(&stage.brokers)?.get(&subscriber_id).map(|(broker, _)| *broker))
    })?;
    report.note(format_args!("mosquitto_sub on {} meets {}", listener.name(), broker_name(home)));

    let message = format!("hello over {}", family(vip));
    for attempt in 1..=ATTEMPTS {
        let id = format!("demo-pub-{}-{attempt}", family(vip));
        speaker
            .command("mosquitto_pub")
            .args(["-h", &address, "-t", "drover/hello", "-m", &message, "-q", "1", "-i", &id])
            .run()?;
        let at = placement(&stage.brokers)?.get(&id).map(|(broker, _)| *broker);
        let at = at.with_context(|| format!("mosquitto_pub succeeded, but no broker has seen {id}"))?;
        if at != home {
            continue;
        }
        // The subscription may come a moment after the connection; then the next attempt delivers.
        if subscriber.wait(Duration::from_secs(1)).is_ok() {
            report.note(format_args!(
                "mosquitto_pub on {} meets {} at attempt {attempt}",
                speaker.name(),
                broker_name(home)
            ));
            let got = subscriber.log()?;
            return Ok((format!("\"{}\", by {}", got.trim(), broker_name(home)), got.trim() == message));
        }
    }
    Ok((format!("nothing, after {ATTEMPTS} messages"), false))
}

fn kill_a_broker(stage: &mut Stage, report: &mut Report, fleets: &[Fleet]) -> Result<Death> {
    let victim = broker_name(VICTIM);
    report.step(format_args!("{victim} is killed (SIGKILL)"));
    let placed = placement(&stage.brokers)?;
    let mut doomed = BTreeSet::new();
    let mut survivors = Vec::new();
    for id in fleets.iter().flat_map(Fleet::alive) {
        match placed.get(&id) {
            Some((VICTIM, _)) => {
                doomed.insert(id);
            }
            Some((broker, peer)) => survivors.push(Survivor { id, broker: *broker, peer: *peer }),
            None => {}
        }
    }
    let process = stage.brokers[VICTIM].process();
    report.note(format_args!("process {} holds {} of the connections", process.pid(), doomed.len()));
    let time = Instant::now();
    process.kill()?;

    let broken = || {
        let sessions = fleets.iter().flat_map(Fleet::sessions).filter(|session| doomed.contains(&session.id));
        sessions.filter_map(|session| match session.state {
            SessionState::Broken { at, .. } => Some(at.saturating_duration_since(time)),
            _ => None,
        })
    };
    let all = wait_until("the dead broker's clients to be disconnected", DISCONNECT_LIMIT, || {
        Ok((broken().count() == doomed.len()).then_some(()))
    });
    interrupt::check()?;
    report.finding(
        format_args!("the clients of {victim} are disconnected"),
        format_args!(
            "{} of {}, after {:.1} ms at most",
            broken().count(),
            doomed.len(),
            broken().max().unwrap_or_default().as_secs_f64() * 1e3
        ),
        all.is_ok() && !doomed.is_empty(),
    );
    Ok(Death { time, survivors })
}

/// Until the node has noticed, new connections still go to the dead broker, and are refused by its host.
fn wait_for_the_health_check(
    stage: &Stage,
    report: &mut Report,
    waves: &mut Waves,
    killed: Instant,
) -> Result<()> {
    let victim = broker_name(VICTIM);
    report.step(format_args!("New clients keep coming; the health check takes {victim} out"));
    let mut clean = 0;
    let mut last_refused = None;
    while clean < CLEAN_WAVES && killed.elapsed() < HEALTH_LIMIT {
        let wave = waves.send(stage, WAVE)?;
        report.note(wave.shown());
        if wave.failed() == 0 {
            clean += 1;
        } else {
            clean = 0;
            last_refused = Some(killed.elapsed());
        }
        sleep(BETWEEN_WAVES);
    }
    let wave = waves.send(stage, SHOW)?;
    report.note(wave.shown());
    let noticed = match last_refused {
        Some(after) => format!("last refused {:.1} s after the kill", after.as_secs_f64()),
        None => "nobody was refused".to_owned(),
    };
    report.finding(
        "after the health check, all new clients go to the others",
        format_args!("{} of {SHOW}; {noticed}", wave.served()),
        clean == CLEAN_WAVES && wave.failed() == 0 && wave.met(VICTIM) == [false; 2],
    );
    Ok(())
}

fn bring_it_back(stage: &mut Stage, report: &mut Report, waves: &mut Waves) -> Result<()> {
    let victim = broker_name(VICTIM);
    report.step(format_args!("{victim} is started again"));
    stage.brokers[VICTIM] = Broker::start(&stage.net.reals[VICTIM].host)?;
    let started = Instant::now();
    let mut cut = 0;
    let mut met = [false; 2];
    while met != [true; 2] && started.elapsed() < HEALTH_LIMIT {
        sleep(BETWEEN_WAVES);
        let wave = waves.send(stage, WAVE)?;
        report.note(wave.shown());
        cut += wave.failed();
        let [v4, v6] = wave.met(VICTIM);
        met = [met[0] || v4, met[1] || v6];
    }
    let back = started.elapsed();
    if cut > 0 {
        // Not promised before nodes know the earlier owners of a slot; the README says so.
        report.note(format_args!(
            "{cut} of them were cut: their slots went back to {victim} while they were connected"
        ));
    }
    let wave = waves.send(stage, SHOW)?;
    report.note(wave.shown());
    let shares = wave.shares();
    report.finding(
        format_args!("{victim} gets its share of new clients again"),
        format_args!(
            "{} of {SHOW}, after {:.1} s; {} refused",
            shares[VICTIM],
            back.as_secs_f64(),
            wave.failed()
        ),
        met == [true; 2] && wave.failed() == 0 && shares.iter().all(|share| *share > 0),
    );
    Ok(())
}

/// The same connections, by the brokers' kernels as well as by the clients. `now` says where the victim is.
fn check_survivors(
    stage: &Stage,
    report: &mut Report,
    fleets: &[Fleet],
    survivors: &[Survivor],
    now: &str,
) -> Result<()> {
    for fleet in fleets {
        fleet.settle(1)?;
    }
    let sessions: HashMap<String, SessionState> =
        fleets.iter().flat_map(Fleet::sessions).map(|session| (session.id, session.state)).collect();
    let mut established = Vec::new();
    for broker in &stage.brokers {
        established.push(broker.established()?);
    }
    let mut same = 0;
    for one in survivors {
        match sessions.get(&one.id) {
            Some(SessionState::Broken { why, .. }) => {
                report.line(format_args!("{} lost {}: {why}", one.id, broker_name(one.broker)));
            }
            _ if established[one.broker].contains(&one.peer) => same += 1,
            _ => report.line(format_args!(
                "{} has no longer {} as its peer",
                broker_name(one.broker),
                one.peer
            )),
        }
    }
    report.finding(
        format_args!("{} {now}: the others' clients keep their connections", broker_name(VICTIM)),
        format_args!("{same} of {}: same broker, address, port", survivors.len()),
        same == survivors.len(),
    );
    Ok(())
}
