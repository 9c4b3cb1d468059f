//! The demo's clients, as they are shown.

use std::net::IpAddr;

use anyhow::Result;
use drover_tests::crowd::{Crowd, Survivors, broker_name, placement};
use drover_tests::{Broker, Session, SessionState};

use crate::report::Report;

/// Prints who is at which broker, and who could not connect. Returns the clients that each broker has.
pub(crate) fn show(crowd: &Crowd, brokers: &[Broker], report: &Report) -> Result<Vec<usize>> {
    let placed = placement(brokers)?;
    let columns = crowd.by_way().map(|(way, _)| format!("{} {}", way.from.name(), way.name));
    let head: String = columns.map(|column| format!("{column:>19}")).collect();
    report.line(format_args!("{:9}{head}{:>8}", "", "sum"));
    let mut shares = Vec::new();
    for broker in 0..brokers.len() {
        let is_here = |session: &&Session| placed.get(&session.id).is_some_and(|(at, _)| *at == broker);
        let counts = crowd.by_way().map(|(_, fleet)| fleet.sessions().iter().filter(is_here).count());
        let counts: Vec<usize> = counts.collect();
        let cells: String = counts.iter().map(|count| format!("{count:>19}")).collect();
        let sum = counts.iter().sum();
        report.line(format_args!("{:9}{cells}{sum:>8}", broker_name(broker)));
        shares.push(sum);
    }
    for session in crowd.sessions() {
        if let SessionState::Broken { why, .. } = &session.state {
            report.line(format_args!("{} could not connect to {}: {why}", session.id, session.vip));
        }
    }
    Ok(shares)
}

/// How many are the same connections still. The others are printed.
pub(crate) fn count(
    survivors: &Survivors,
    crowd: &Crowd,
    brokers: &[Broker],
    report: &Report,
) -> Result<usize> {
    let held = survivors.count(crowd, brokers)?;
    held.lost.iter().for_each(|lost| report.line(lost));
    Ok(held.same)
}

pub(crate) fn family(vip: IpAddr) -> &'static str {
    if vip.is_ipv4() { "IPv4" } else { "IPv6" }
}
