//! `lbctl history`.

use crate::context::Context;
use crate::output::{self, Format};
use crate::paint::{Line, Paper, Span, Tone, wrap};
use crate::time::{parse_span, rfc3339};
use anyhow::{Result, bail};
use coordination::{Error, Session};
use host::clock::wall_ms;
use std::process::ExitCode;
use std::time::Duration;
use zk_schema::VipName;
use zk_schema::tree::{Event, StateRecord as _, paths};

/// Events that are read at once.
const AT_ONCE: usize = 200;

/// Pause before another session is begun while ZooKeeper is away.
const AGAIN: Duration = Duration::from_secs(1);

/// Options of `lbctl history`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Each line: time (UTC), term/epoch, who led, what kind of decision, VIP or real, what and why.

Examples:
  lbctl history --since 1h
  lbctl history --vip mqtt --limit 5
  lbctl history --follow -o json     one JSON object a line"
)]
pub struct Options {
    /// Only decisions of the last 30s, 15m, 2h, 7d.
    #[arg(long, value_name = "SPAN", value_parser = parse_span)]
    since: Option<Duration>,

    /// Only decisions about this VIP.
    #[arg(long)]
    vip: Option<VipName>,

    /// The last so many epochs at most.
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,

    /// Go on with what is decided from now on, until interrupted.
    #[arg(long, short)]
    follow: bool,
}

/// Prints what was decided, the oldest first.
///
/// # Errors
/// If ZooKeeper cannot be reached at first, or there is no cluster.
pub async fn run(context: &Context, options: &Options) -> Result<ExitCode> {
    let wanted = Wanted {
        since_ms: options.since.map_or(0, |since| {
            wall_ms().saturating_sub(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
        }),
        vip: options.vip.clone(),
    };
    let session = context.connect().await?;
    let first = events(&session, None, options.limit, &wanted).await;
    if !options.follow {
        session.close().await;
        let (events, _) = first?;
        match context.format() {
            Format::Json => output::print_json(&events)?,
            Format::Text => show(&events, context.format())?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let (events, mut last) = first?;
    show(&events, context.format())?;
    let mut session = Some(session);
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let mut away = false;
    loop {
        let step = async {
            let current = match session.take() {
                Some(current) => current,
                None => context.connect().await?,
            };
            let outcome = next(&current, last, &wanted).await;
            session = Some(current);
            anyhow::Ok(outcome?)
        };
        let stepped = tokio::select! {
            stepped = step => stepped,
            _ = &mut interrupted => break,
        };
        match stepped {
            Ok((events, newest)) => {
                show(&events, context.format())?;
                last = newest;
                away = false;
            }
            Err(error) => {
                if !std::mem::replace(&mut away, true) {
                    tracing::error!("{error:#}; trying again until it is there");
                }
                if error.downcast_ref::<Error>().is_none_or(|error| !error.is_lost()) {
                    session = None;
                }
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
    if let Some(session) = session {
        session.close().await;
    }
    Ok(ExitCode::SUCCESS)
}

/// The events to show.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    since_ms: u64,
    vip: Option<VipName>,
}

impl Wanted {
    /// The event with those of its decisions that are wanted, if there are any.
    fn of(&self, mut event: Event) -> Option<Event> {
        if let Some(vip) = &self.vip {
            event.decisions.retain(|decision| decision.vip.as_ref() == Some(vip));
        }
        (event.at_ms >= self.since_ms && !event.decisions.is_empty()).then_some(event)
    }
}

/// The `limit` newest events behind `after` that are wanted, the oldest first, and the newest epoch there is.
///
/// # Errors
/// If the store fails, or there is no cluster.
pub(crate) async fn events<S: Session>(
    session: &S,
    after: Option<u64>,
    limit: usize,
    wanted: &Wanted,
) -> Result<(Vec<Event>, Option<u64>)> {
    session.sync().await?;
    let Some(names) = session.children(paths::EVENTS).await? else {
        bail!(
            "{}: no such znode: there is no cluster, or it is of a version without a history",
            paths::EVENTS
        );
    };
    Ok(read(session, names, after, limit, wanted).await?)
}

/// Waits for events behind `after`.
async fn next<S: Session>(
    session: &S,
    after: Option<u64>,
    wanted: &Wanted,
) -> Result<(Vec<Event>, Option<u64>), Error> {
    loop {
        let (names, changed) = session.watch_children(paths::EVENTS).await?;
        let (events, newest) = read(session, names.unwrap_or_default(), after, usize::MAX, wanted).await?;
        if newest > after {
            return Ok((events, newest));
        }
        changed.await;
    }
}

async fn read<S: Session>(
    session: &S,
    names: Vec<String>,
    after: Option<u64>,
    limit: usize,
    wanted: &Wanted,
) -> Result<(Vec<Event>, Option<u64>), Error> {
    // Names that are no epochs are not the leader's.
    let mut epochs: Vec<u64> = names.iter().filter_map(|name| name.parse().ok()).collect();
    epochs.sort_unstable();
    let newest = epochs.last().copied().max(after);
    epochs.retain(|epoch| Some(*epoch) > after);
    let mut events = Vec::new();
    // The newest first, so that no more is read than will be shown.
    for epochs in epochs.rchunks(AT_ONCE) {
        let paths: Vec<String> = epochs.iter().map(|epoch| paths::event(*epoch)).collect();
        let znodes = session.read(&paths).await?;
        let mut too_old = false;
        for (path, znode) in paths.iter().zip(znodes).rev() {
            // The oldest are trimmed all the while.
            let Some(znode) = znode else { continue };
            match Event::parse(&znode.data) {
                Ok(event) => {
                    too_old = event.at_ms < wanted.since_ms;
                    events.extend(wanted.of(event));
                }
                Err(error) => tracing::warn!("{path}: {error}"),
            }
            if events.len() >= limit {
                break;
            }
        }
        if too_old || events.len() >= limit {
            break;
        }
    }
    events.truncate(limit);
    events.reverse();
    Ok((events, newest))
}

/// Prints events as they come: lines of text, or a JSON object a line.
fn show(events: &[Event], format: Format) -> Result<()> {
    match format {
        Format::Json => events.iter().try_for_each(output::print_json_line),
        Format::Text => {
            let paper = Paper::stdout();
            let lines: Vec<Line> = events.iter().flat_map(|event| lines(event, paper.width)).collect();
            output::write(paper.print(&lines).as_bytes())
        }
    }
}

/// An event's lines, at least one for each decision.
#[must_use]
pub(crate) fn lines(event: &Event, width: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    for decision in &event.decisions {
        let about = match (&decision.vip, &decision.real) {
            (Some(vip), Some(real)) => format!("{vip}/{real}"),
            (Some(vip), None) => vip.to_string(),
            (None, Some(real)) => real.to_string(),
            (None, None) => String::new(),
        };
        let mut line = vec![
            Span::new(format!("{}  ", rfc3339(event.at_ms)), Tone::Dim),
            format!("{}/{:<5} {:<7} ", event.term, event.epoch, event.node).into(),
            Span::new(format!("{:<9} ", decision.kind), tone(&decision.kind)),
            Span::new(format!("{about:<16} "), Tone::Strong),
        ];
        let before: usize = line.iter().map(Span::width).sum();
        // Where little room is left the text goes below, where there is some.
        let (indent, room) = match width.saturating_sub(before) {
            room if room >= 30 => (before, room),
            _ => (26, width.saturating_sub(26).max(30)),
        };
        let below = indent != before;
        for (number, part) in wrap(&decision.text, room).into_iter().enumerate() {
            if number > 0 || below {
                lines.push(std::mem::replace(&mut line, vec![Span::from(" ".repeat(indent))]));
            }
            line.push(part.into());
        }
        lines.push(line);
    }
    lines
}

fn tone(kind: &str) -> Tone {
    match kind {
        "held" | "refused" | "lagging" => Tone::Bad,
        "leader" | "verdict" | "nodes" => Tone::Warn,
        _ => Tone::Plain,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;
    use coordination::memory::MemoryStore;
    use coordination::{Change, Store as _, setup};
    use zk_schema::Cluster;
    use zk_schema::tree::Decision;

    fn event(epoch: u64, vips: &[&str]) -> Event {
        let decision = |vip: &&str| Decision {
            kind: "weights".into(),
            vip: Some(vip.parse().unwrap()),
            real: None,
            text: "real-1 from 100 to 50".into(),
            extra: Default::default(),
        };
        Event {
            term: 2,
            epoch,
            node: "lb-1".parse().unwrap(),
            at_ms: epoch * 1000,
            decisions: vips.iter().map(decision).collect(),
            extra: Default::default(),
        }
    }

    fn create(event: &Event) -> Change {
        let path = paths::event(event.epoch);
        Change::Create { path, data: event.bytes().unwrap(), ephemeral: false }
    }

    async fn session(events: impl IntoIterator<Item = Event>) -> impl Session {
        let session = MemoryStore::new().client("lbctl").connect().await.unwrap();
        setup::init(&session, &Cluster::default()).await.unwrap();
        let changes = events.into_iter().map(|event| create(&event)).collect();
        session.commit(changes).await.unwrap();
        session
    }

    fn epochs(events: &[Event]) -> Vec<u64> {
        events.iter().map(|event| event.epoch).collect()
    }

    #[tokio::test]
    async fn the_newest_are_shown_the_oldest_of_them_first() {
        let session = session((1..=450).map(|epoch| event(epoch, &["mqtt"]))).await;
        let (found, newest) = events(&session, None, 3, &Wanted::default()).await.unwrap();
        assert_eq!((epochs(&found), newest), (vec![448, 449, 450], Some(450)));
        let (found, _) = events(&session, None, 250, &Wanted::default()).await.unwrap();
        assert_eq!(epochs(&found), (201..=450).collect::<Vec<_>>());
        let (found, _) = events(&session, Some(448), 250, &Wanted::default()).await.unwrap();
        assert_eq!(epochs(&found), [449, 450]);
    }

    #[tokio::test]
    async fn the_limit_counts_what_is_wanted() {
        let vips = |epoch: u64| if epoch.is_multiple_of(10) { &["mqtt", "other"][..] } else { &["other"] };
        let session = session((1..=450).map(|epoch| event(epoch, vips(epoch)))).await;
        let mut wanted = Wanted { since_ms: 0, vip: Some("mqtt".parse().unwrap()) };
        let (found, _) = events(&session, None, 30, &wanted).await.unwrap();
        assert_eq!((found.len(), found[0].epoch, found[29].epoch), (30, 160, 450));
        assert!(found.iter().all(|event| event.decisions.len() == 1), "those of others are left out");
        wanted.since_ms = 425_000;
        let (found, _) = events(&session, None, 30, &wanted).await.unwrap();
        assert_eq!(epochs(&found), [430, 440, 450]);
    }

    #[tokio::test]
    async fn who_follows_is_told_what_comes_and_a_broken_record_is_passed_over() {
        let session = session([event(7, &["mqtt"])]).await;
        let broken = Change::Create { path: paths::event(8), data: b"{".to_vec(), ephemeral: false };
        session.commit(vec![broken]).await.unwrap();
        let wanted = Wanted::default();
        let (found, newest) = events(&session, None, 10, &wanted).await.unwrap();
        assert_eq!((epochs(&found), newest), (vec![7], Some(8)));
        let writer = session.clone();
        let follow = next(&session, newest, &wanted);
        let write = async {
            tokio::task::yield_now().await;
            writer.commit(vec![create(&event(9, &["mqtt"]))]).await.unwrap();
        };
        let (followed, ()) = tokio::join!(follow, write);
        let (found, newest) = followed.unwrap();
        assert_eq!((epochs(&found), newest), (vec![9], Some(9)));
    }

    #[test]
    fn a_decision_is_a_line_with_time_epoch_leader_kind_vip_and_reason() {
        let lines = lines(&event(1_795_233_979, &["mqtt"]), 200);
        let text = Paper::default().print(&lines);
        let expected = "2026-11-21T04:06:19.000Z  2/1795233979 lb-1    weights   mqtt             real-1 from 100 to 50\n";
        assert_eq!(text, expected);
    }
}
