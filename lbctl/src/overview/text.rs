//! An overview as lines of text: what `lbctl status` prints.

use super::model::{Health, LeaderView, NodeView, Overview, RealView, Standing, VipView};
use super::real::words;
use crate::paint::{Align, Line, Paper, Sheet, Span, Tone, wrap};
use crate::time::span;
use std::net::{IpAddr, SocketAddr};
use zk_schema::NodeName;
use zk_schema::tree::Mode;

/// One screen.
#[must_use]
pub fn screen(overview: &Overview, paper: Paper) -> Vec<Line> {
    let mut lines = header(overview);
    lines.push(Line::new());
    lines.extend(nodes(overview, paper.width));
    for (name, vip) in &overview.vips {
        lines.push(Line::new());
        lines.extend(self::vip(name.as_str(), vip, paper.width));
    }
    lines.push(Line::new());
    lines.extend(problems(overview, paper.width));
    lines
}

/// Prints who leads, what is in force, and how ZooKeeper is.
#[must_use]
pub fn header(overview: &Overview) -> Vec<Line> {
    let label = |text: &str| Span::new(format!("{text:<10} "), Tone::Dim);
    let mut leader = vec![label("Leader")];
    match &overview.leader {
        Some(view) => leader.extend(leader_words(view, overview.at)),
        None => leader.push(Span::new("none yet", Tone::Bad)),
    }
    let head = match overview.head {
        Some(head) => format!("epoch {} of term {}", head.epoch, head.term),
        None => "nothing yet".to_owned(),
    };
    let link = &overview.zookeeper;
    let zookeeper = format!("{}, session {}, read in {} ms", link.servers, link.session, link.read_ms);
    let mut lines =
        vec![leader, vec![label("In force"), head.into()], vec![label("ZooKeeper"), zookeeper.into()]];
    if let Some(frozen) = &overview.frozen {
        lines.push(vec![label("Frozen"), Span::new(format!("yes{}", frozen.words()), Tone::Bad)]);
    }
    lines
}

fn leader_words(leader: &LeaderView, now: u64) -> Vec<Span> {
    let since = span(now.saturating_sub(leader.since));
    if leader.present && !leader.leads {
        let last = format!(" ({} led last, term {}, begun {since} ago)", leader.node, leader.term);
        return vec![Span::new("none", Tone::Bad), last.into()];
    }
    let mut spans = vec![
        Span::new(leader.node.as_str(), if leader.present { Tone::Strong } else { Tone::Bad }),
        format!(", term {}, for {since}", leader.term).into(),
    ];
    if !leader.present {
        spans.push(Span::new(" (gone)", Tone::Bad));
    }
    if leader.settling {
        spans.push(Span::new(" (settling: it removes nothing for a while)", Tone::Warn));
    }
    spans
}

/// The nodes, a row for each.
#[must_use]
pub fn nodes(overview: &Overview, width: usize) -> Vec<Line> {
    let mut sheet = Sheet::new([
        ("NODE", Align::Left),
        ("STATE", Align::Left),
        ("TERM", Align::Right),
        ("EPOCH", Align::Right),
        ("BEHIND", Align::Right),
        ("SOFTWARE", Align::Left),
        ("UP FOR", Align::Left),
        ("REMARKS", Align::Left),
    ]);
    for (name, node) in &overview.nodes {
        sheet.row(node_row(name, node, overview.at));
    }
    if overview.nodes.is_empty() {
        return vec![vec![Span::new("No nodes.", Tone::Bad)]];
    }
    sheet.lines(0, width)
}

/// A node's row: name, state, term, epoch, lag, version, age, remarks.
fn node_row(name: &NodeName, node: &NodeView, now: u64) -> [Span; 8] {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let (state, tone) = match (node.present, node.mode) {
        (false, _) => ("gone", Tone::Bad),
        (true, Some(Mode::Live)) => ("live", Tone::Good),
        (true, Some(Mode::Static)) => ("static", Tone::Warn),
        (true, Some(Mode::Autonomous)) => ("autonomous", Tone::Bad),
        (true, None) => ("starting", Tone::Warn),
    };
    let mut remarks = Vec::new();
    if node.leader {
        remarks.push("leads".to_owned());
    }
    if let Some(flag) = &node.maintenance {
        remarks.push(format!("in maintenance{}", flag.words()));
    }
    if node.lagging {
        remarks.push("not waited for any more".to_owned());
    }
    if node.cut_off {
        remarks.push("forwards, as told last, and does not follow".to_owned());
    }
    if let Some(replaced) = &node.replaced {
        let age = span(now.saturating_sub(replaced.at));
        remarks.push(format!("another machine had this name until {age} ago"));
    }
    if node.differs {
        remarks.push("its tables differ".to_owned());
    }
    let behind = node.behind.unwrap_or(0);
    let behind = Span::new(behind.to_string(), if behind > 0 { Tone::Warn } else { Tone::Plain });
    let bad = node.replaced.is_some() || node.lagging || node.cut_off || node.differs;
    [
        Span::new(name.as_str(), if node.present { Tone::Plain } else { Tone::Bad }),
        Span::new(state, tone),
        or_dash(node.applied.map(|applied| applied.term.to_string())).into(),
        or_dash(node.applied.map(|applied| applied.epoch.to_string())).into(),
        if node.applied.is_some() { behind } else { "-".into() },
        or_dash(node.software.clone()).into(),
        or_dash(node.started.map(|started| span(now.saturating_sub(started)))).into(),
        Span::new(remarks.join("; "), if bad { Tone::Warn } else { Tone::Plain }),
    ]
}

/// A VIP and its reals.
#[must_use]
pub fn vip(name: &str, vip: &VipView, width: usize) -> Vec<Line> {
    let mut lines = vec![vip_line(name, vip)];
    let remark = |text: &str, tone| {
        let parts = wrap(text, width.saturating_sub(2));
        parts.into_iter().map(move |part| vec!["  ".into(), Span::new(part, tone)])
    };
    if let Some(held) = &vip.held {
        lines.extend(remark(&format!("held: {held}"), Tone::Bad));
    }
    if let Some(next) = &vip.next {
        let waits = words(&next.waits_for);
        let waits =
            waits.map_or("acknowledged by all nodes".to_owned(), |nodes| format!("waits for {nodes}"));
        lines.extend(remark(&format!("next: announced at epoch {}, {waits}", next.epoch), Tone::Warn));
    }
    if vip.reals.is_empty() {
        lines.extend(remark("no reals", Tone::Bad));
        return lines;
    }
    let mut sheet = Sheet::new([
        ("REAL", Align::Left),
        ("ADDRESS", Align::Left),
        ("HEALTH", Align::Left),
        ("WEIGHT", Align::Right),
        ("SHARE", Align::Right),
        ("CONNS", Align::Right),
        ("WHY", Align::Left),
    ]);
    for (name, real) in &vip.reals {
        sheet.row(real_row(name.as_str(), real));
    }
    lines.extend(sheet.lines(2, width));
    lines
}

/// A VIP's heading.
#[must_use]
pub fn vip_line(name: &str, vip: &VipView) -> Line {
    let mut line = vec![
        Span::new(name, Tone::Strong),
        format!("  {}/{}", service(vip.address, vip.port), vip.protocol).into(),
        Span::new(format!("  {}, {} affinity", vip.encapsulation, vip.affinity), Tone::Dim),
    ];
    if let Some(epoch) = vip.epoch {
        line.push(Span::new(format!(", epoch {epoch}"), Tone::Dim));
    }
    match vip.standing {
        Standing::Served => {}
        Standing::New => line.push(Span::new("  (new: not served yet)", Tone::Warn)),
        Standing::Edited => line.push(Span::new("  (edited: not accepted yet)", Tone::Warn)),
        Standing::Deleted => line.push(Span::new("  (deleted: still served)", Tone::Warn)),
    }
    line
}

/// A real's row: name, address, health, weight, share, connections, why.
#[must_use]
pub fn real_row(name: &str, real: &RealView) -> [Span; 7] {
    let tone = match real.health {
        Health::Up => Tone::Good,
        Health::Down => Tone::Bad,
        Health::Unknown => Tone::Warn,
        Health::Unchecked => Tone::Plain,
    };
    let why_tone = match (real.health, &real.drain) {
        (Health::Down, _) => Tone::Bad,
        (_, Some(_)) => Tone::Warn,
        _ => Tone::Plain,
    };
    let own = if real.self_registered { " (self)" } else { "" };
    [
        format!("{name}{own}").into(),
        real.address.to_string().into(),
        Span::new(real.health.as_str(), tone),
        weight(real).into(),
        format!("{:.1} %", real.share * 100.0).into(),
        real.connections.map_or("-".to_owned(), grouped).into(),
        Span::new(real.why.as_str(), why_tone),
    ]
}

/// The weight in force, and the one that it is to be: `100`, `0 of 100`, `100 to 50`.
fn weight(real: &RealView) -> String {
    match (real.next_weight, real.operator_weight) {
        (Some(next), _) => format!("{} to {next}", real.weight),
        (None, Some(asked)) if asked != real.weight => format!("{} of {asked}", real.weight),
        _ => real.weight.to_string(),
    }
}

/// Prints what needs attention.
#[must_use]
pub fn problems(overview: &Overview, width: usize) -> Vec<Line> {
    let count = overview.problems.len();
    if count == 0 {
        return vec![vec![Span::new("All is well.", Tone::Good)]];
    }
    let heading = format!("{count} {} attention:", if count == 1 { "thing needs" } else { "things need" });
    let mut lines = vec![vec![Span::new(heading, Tone::Bad)]];
    for problem in &overview.problems {
        for (number, part) in wrap(&problem.text, width.saturating_sub(4)).into_iter().enumerate() {
            lines.push(vec![if number == 0 { "  - " } else { "    " }.into(), part.into()]);
        }
    }
    lines
}

/// Address and port as they are typed: `198.51.100.10:1883`, `[2001:db8::1]:1883`, `198.51.100.10:*` for all ports.
#[must_use]
pub fn service(address: IpAddr, port: u16) -> String {
    match (port, address) {
        (0, IpAddr::V4(address)) => format!("{address}:*"),
        (0, IpAddr::V6(address)) => format!("[{address}]:*"),
        _ => SocketAddr::new(address, port).to_string(),
    }
}

/// A number in groups of three digits: `1,234,567`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
