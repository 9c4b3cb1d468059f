//! What the demo does, and what it looks at. Everything is judged by what clients and brokers see; the node under
//! test is not asked.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use drover_tests::crowd::{Crowd, Waves, Way, broker_name, placement, shown_shares};
use drover_tests::{Host, MQTT_PORT, Station, wait_until};

use crate::broker_death::{BETWEEN_WAVES, Death, HEALTH_LIMIT, SHOW, WAVE};
use crate::clients::{self, family};
use crate::report::Report;
use crate::standalone::stage::{Stage, VIP4, VIP6};

/// Long-lived connections of each client to each VIP.
const HELD: usize = 15;
/// So many waves in a row without a failure, and the dead broker is out. While one of three brokers refuses, either
/// VIP passes this by chance once in 190,000 times.
const CLEAN_WAVES: usize = 5;
/// The broker that dies.
const VICTIM: usize = 1;

/// Plays it all. Errors are for what keeps the demo from going on; a promise not kept is a finding.
pub(crate) fn perform(stage: &mut Stage, report: &mut Report) -> Result<()> {
    let crowd = hold_connections(stage, report)?;
    publish_and_subscribe(stage, report)?;

    let victim = broker_name(VICTIM);
    report.step(format_args!("{victim} is killed (SIGKILL)"));
    let death = Death::of(VICTIM, &mut stage.brokers, &crowd, report)?;
    death.check_doomed(&crowd, report)?;

    let clients = &stage.net.clients;
    let mut waves = Waves::new(vec![way(&clients[0], VIP4), way(&clients[1], VIP6)]);
    wait_for_the_health_check(stage, report, &mut waves, death.time)?;
    death.check_survivors(&crowd, &stage.brokers, "out", report)?;

    report.step(format_args!("{victim} is started again"));
    let back = death.undo(&stage.net.reals[VICTIM].host, &mut stage.brokers, &mut waves, report)?;
    death.check_share(back, &stage.brokers, &mut waves, report)?;
    death.check_survivors(&crowd, &stage.brokers, "back", report)
}

fn way(client: &Station, vip: IpAddr) -> Way {
    Way { from: client.host.clone(), to: SocketAddr::new(vip, MQTT_PORT), name: family(vip).to_owned() }
}

fn hold_connections(stage: &Stage, report: &mut Report) -> Result<Crowd> {
    let total = HELD * 2 * stage.net.clients.len();
    report.step(format_args!("{total} MQTT clients connect through the VIP, and stay"));
    let ways: Vec<Way> =
        stage.net.clients.iter().flat_map(|client| [VIP4, VIP6].map(|vip| way(client, vip))).collect();
    let mut crowd = Crowd::default();
    crowd.connect(&ways, HELD, "demo")?;
    report.note("who is where, by the brokers' own logs:");
    let shares = clients::show(&crowd, &stage.brokers, report)?;

    let alive = crowd.alive().len();
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
    let placed = placement(&stage.brokers)?;
    let own: BTreeSet<IpAddr> =
        stage.net.clients.iter().flat_map(|client| [client.v4.into(), client.v6.into()]).collect();
    let is_seen = |id: &str| placed.get(id).is_some_and(|(_, peer)| own.contains(&peer.ip()));
    let seen = crowd.sessions().filter(|session| is_seen(&session.id)).count();
    report.finding(
        "brokers see the clients' own addresses",
        format_args!("for {seen} of {total} clients"),
        seen == total,
    );
    Ok(crowd)
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
        let wave = waves.send(&stage.brokers, WAVE)?;
        report.note(wave.shown());
        if wave.failed() == 0 {
            clean += 1;
        } else {
            clean = 0;
            last_refused = Some(killed.elapsed());
        }
        sleep(BETWEEN_WAVES);
    }
    let wave = waves.send(&stage.brokers, SHOW)?;
    report.note(wave.shown());
    let noticed = match last_refused {
        Some(after) => format!("last refused {:.1} s after the kill", after.as_secs_f64()),
        None => "nobody was refused".to_owned(),
    };
    report.finding(
        "after the health check, all new clients go to the others",
        format_args!("{} of {}; {noticed}", wave.served(), wave.size()),
        clean == CLEAN_WAVES && wave.failed() == 0 && wave.shares()[VICTIM] == 0,
    );
    Ok(())
}
