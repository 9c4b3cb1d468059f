//! Draws a screen.

use super::screen::Screen;
use super::watcher::Sample;
use crate::commands::history;
use crate::overview::text::{grouped, header, nodes, real_row, vip_line};
use crate::overview::{Health, VipView};
use crate::paint::{Align, Line, Sheet, Span, Tone, wrap};
use crate::time::span;
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line as Drawn, Span as Piece, Text};
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row, Table, TableState};

/// Columns of a bar, where there is room.
const BAR: usize = 12;
/// Columns of the reals' pane from which on there is room for addresses and long bars.
const WIDE: usize = 88;
/// Rows of the terminal from which on there is room for decisions.
const HIGH: u16 = 24;

/// The help on keys.
const HELP: &str = "\
 up, k      the VIP before     down, j   the next VIP
 home, g    the first VIP      end, G    the last VIP
 /          list only VIPs whose name, or a real's, contains
            what is typed; enter keeps it, esc lists all again
 ?          this               q         end";

/// Draws `screen` at `now_ms`, in milliseconds since 1970.
pub(super) fn draw(frame: &mut Frame<'_>, screen: &Screen, now_ms: u64) {
    let Some(sample) = &screen.sample else { return };
    let overview = &*sample.overview;
    let heading = heading(sample, now_ms);
    let rows = |count: usize| u16::try_from(count).unwrap_or(u16::MAX);
    let area = frame.area();
    let of_nodes = rows(overview.nodes.len()).saturating_add(3).min((area.height / 4).max(4));
    let attention = attention(sample, usize::from(area.width).saturating_sub(4));
    let of_attention = match attention.len() {
        0 => 0,
        lines => rows(lines).saturating_add(2).min((area.height / 6).clamp(3, 8)),
    };
    let of_decisions = if area.height >= HIGH { (area.height / 5).min(10) } else { 0 };
    let [top, members, vips, problems, decisions, bottom] = Layout::vertical([
        Constraint::Length(rows(heading.len())),
        Constraint::Length(of_nodes),
        Constraint::Min(5),
        Constraint::Length(of_attention),
        Constraint::Length(of_decisions),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(drawn(&heading)), top);
    draw_nodes(frame, sample, members);
    let [list, reals] = Layout::horizontal([Constraint::Length(30), Constraint::Min(40)]).areas(vips);
    draw_vips(frame, screen, list);
    draw_reals(frame, screen, reals);
    if of_attention > 0 {
        let hidden = attention.len().saturating_sub(usize::from(of_attention) - 2);
        let title = match hidden {
            0 => " needs attention ".to_owned(),
            _ => format!(" needs attention; {hidden} more lines: lbctl status "),
        };
        let block = Block::bordered().title(title).border_style(style(Tone::Bad));
        frame.render_widget(Paragraph::new(drawn(&attention)).block(block), problems);
    }
    if of_decisions > 0 {
        draw_decisions(frame, sample, decisions);
    }
    frame.render_widget(footer(screen), bottom);
    if screen.help {
        draw_help(frame, area);
    }
}

/// Leader, epoch, ZooKeeper, and how old all this is.
fn heading(sample: &Sample, now_ms: u64) -> Vec<Line> {
    let mut lines = header(&sample.overview);
    if let Some(away) = &sample.away {
        let since = span(now_ms.saturating_sub(away.since_ms) / 1000);
        let age = span(now_ms.saturating_sub(sample.at_ms) / 1000);
        let text = format!("ZooKeeper away for {since}; what is shown is {age} old ({})", away.why);
        lines.push(vec![Span::new(text, Tone::Bad)]);
    }
    lines
}

fn draw_nodes(frame: &mut Frame<'_>, sample: &Sample, area: Rect) {
    let lines = nodes(&sample.overview, usize::from(area.width).saturating_sub(2));
    frame.render_widget(Paragraph::new(drawn(&lines)).block(Block::bordered().title(" nodes ")), area);
}

/// The VIPs, with how many of their reals take connections.
fn draw_vips(frame: &mut Frame<'_>, screen: &Screen, area: Rect) {
    let vips = screen.vips();
    let row = |(name, vip): &(&zk_schema::VipName, &VipView)| {
        let in_table = vip.reals.values().filter(|real| real.weight > 0).count();
        let down = vip.reals.values().any(|real| real.health == Health::Down);
        let tone = match () {
            () if in_table == 0 || vip.held.is_some() => Tone::Bad,
            () if down || in_table < vip.reals.len() => Tone::Warn,
            () => Tone::Good,
        };
        let connections = connections(vip).map_or("-".to_owned(), grouped);
        cells([
            Span::from(name.as_str()),
            Span::new(format!("{in_table}/{}", vip.reals.len()), tone),
            Span::from(connections),
        ])
    };
    let filter = if screen.filter.is_empty() { String::new() } else { format!("with {:?} ", screen.filter) };
    let title = format!(" {} {} {filter}", vips.len(), if vips.len() == 1 { "VIP" } else { "VIPs" });
    let widths = [Constraint::Min(10), Constraint::Length(6), Constraint::Length(9)];
    let table = Table::new(vips.iter().map(row), widths)
        .header(headings(["VIP", "IN USE", "CONNS"]))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .block(Block::bordered().title(title));
    let mut state = TableState::default().with_selected((!vips.is_empty()).then(|| screen.place()));
    frame.render_stateful_widget(table, area, &mut state);
}

/// Connections of a VIP's reals that tell of theirs; `None`: none does.
fn connections(vip: &VipView) -> Option<u64> {
    let told = vip.reals.values().filter_map(|real| real.connections);
    told.fold(None, |sum, connections| Some(sum.unwrap_or(0).saturating_add(connections)))
}

/// The selected VIP's reals, with bars.
fn draw_reals(frame: &mut Frame<'_>, screen: &Screen, area: Rect) {
    let Some((name, vip)) = screen.vips().get(screen.place()).copied() else {
        let text =
            if screen.filter.is_empty() { "No VIPs: `lbctl vip add` makes one." } else { "No such VIP." };
        frame.render_widget(Paragraph::new(text).block(Block::bordered()), area);
        return;
    };
    let mut remarks = Vec::new();
    if let Some(held) = &vip.held {
        remarks.push((format!("held: {held}"), Tone::Bad));
    }
    if let Some(next) = &vip.next {
        let waits = crate::overview::words(&next.waits_for).unwrap_or_else(|| "nobody".to_owned());
        remarks.push((format!("announced at epoch {}: waits for {waits}", next.epoch), Tone::Warn));
    }
    let width = usize::from(area.width).saturating_sub(2);
    let wrapped = |(text, tone): (String, Tone)| {
        wrap(&text, width).into_iter().map(move |part| vec![Span::new(part, tone)])
    };
    let mut lines: Vec<Line> = remarks.into_iter().flat_map(wrapped).collect();
    lines.extend(reals(vip, width));
    let room = usize::from(area.height).saturating_sub(2);
    let mut block = Block::bordered().title(line(&vip_line(name.as_str(), vip)));
    if lines.len() > room {
        block = block.title_bottom(format!(" {} more lines: lbctl status {name} ", lines.len() - room));
    }
    frame.render_widget(Paragraph::new(drawn(&lines)).block(block), area);
}

/// Each real on a line, and below it why it has its weight, where there is something to say.
fn reals(vip: &VipView, width: usize) -> Vec<Line> {
    let is_wide = width >= WIDE;
    let columns = if is_wide { BAR } else { BAR / 2 };
    let share = vip.reals.values().map(|real| real.share).fold(0.0, f64::max);
    let most = vip.reals.values().filter_map(|real| real.connections).max().unwrap_or(0);
    let mut sheet = Sheet::new([
        ("REAL", Align::Left),
        (if is_wide { "ADDRESS" } else { "" }, Align::Left),
        ("HEALTH", Align::Left),
        ("WEIGHT", Align::Right),
        ("SHARE", Align::Left),
        ("CONNS", Align::Left),
        ("", Align::Left),
    ]);
    for (name, real) in &vip.reals {
        let [name, address, health, weight, percent, connections, _] = real_row(name.as_str(), real);
        let relative = if share > 0.0 { real.share / share } else { 0.0 };
        let connections = match real.connections {
            Some(count) => format!("{} {}", bar(part(count, most), columns), connections.text()),
            None => "-".to_owned(),
        };
        sheet.row([
            name,
            if is_wide { address } else { "".into() },
            health,
            weight,
            format!("{} {}", bar(relative, columns), percent.text()).into(),
            connections.into(),
            "".into(),
        ]);
    }
    let mut rows = sheet.lines(0, width).into_iter();
    let mut lines: Vec<Line> = rows.next().into_iter().collect();
    for (row, (name, real)) in rows.zip(&vip.reals) {
        lines.push(row);
        let [.., why] = real_row(name.as_str(), real);
        if !why.text().is_empty() {
            let parts = wrap(why.text(), width.saturating_sub(2));
            lines.extend(parts.into_iter().map(|part| vec!["  ".into(), Span::new(part, why.tone())]));
        }
    }
    lines
}

/// `count` of `most`, 0 to 1.
#[expect(clippy::cast_precision_loss, reason = "a bar has a hundred steps")]
fn part(count: u64, most: u64) -> f64 {
    if most == 0 { 0.0 } else { count as f64 / most as f64 }
}

/// A bar of so many columns that is filled so far, in eighths of a column.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "clamped to 0..=8 * columns before, and columns are few"
)]
fn bar(part: f64, columns: usize) -> String {
    const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let most = columns * 8;
    let mut filled = (part.clamp(0.0, 1.0) * most as f64).round() as usize;
    if part > 0.0 {
        filled = filled.max(1);
    }
    let mut bar = "█".repeat(filled / 8);
    if !filled.is_multiple_of(8) {
        bar.push(EIGHTHS[filled % 8]);
    }
    let blanks = columns - bar.chars().count();
    bar + &" ".repeat(blanks)
}

fn attention(sample: &Sample, width: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    for problem in &sample.overview.problems {
        for (number, part) in wrap(&problem.text, width.saturating_sub(2)).into_iter().enumerate() {
            lines.push(vec![if number == 0 { "- " } else { "  " }.into(), Span::from(part)]);
        }
    }
    lines
}

fn draw_decisions(frame: &mut Frame<'_>, sample: &Sample, area: Rect) {
    let width = usize::from(area.width).saturating_sub(2);
    let mut lines: Vec<Line> = Vec::new();
    for event in sample.events.iter().rev() {
        let mut of_event = history::lines(event, width);
        of_event.append(&mut lines);
        lines = of_event;
        if lines.len() >= usize::from(area.height) {
            break;
        }
    }
    let room = usize::from(area.height).saturating_sub(2);
    let first = lines.len().saturating_sub(room);
    let shown = if lines.is_empty() { vec![vec!["none yet".into()]] } else { lines.split_off(first) };
    let block = Block::bordered().title(" last decisions ");
    frame.render_widget(Paragraph::new(drawn(&shown)).block(block), area);
}

fn footer(screen: &Screen) -> Paragraph<'static> {
    let text = match (screen.typing, screen.filter.is_empty()) {
        (true, _) => format!("/{}_   enter: keep   esc: all", screen.filter),
        (false, false) => format!("/{}   esc: all   ? help   q end", screen.filter),
        (false, true) => "j k select   / filter   ? help   q end".to_owned(),
    };
    Paragraph::new(text).style(style(Tone::Dim))
}

fn draw_help(frame: &mut Frame<'_>, area: Rect) {
    let (width, height) = (64.min(area.width), 7.min(area.height));
    let place = Rect { x: (area.width - width) / 2, y: (area.height - height) / 2, width, height };
    let block = Block::bordered().title(" keys ").title_alignment(Alignment::Center);
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(HELP).block(block), place);
}

fn headings<const N: usize>(names: [&'static str; N]) -> Row<'static> {
    Row::new(names).style(style(Tone::Dim))
}

fn cells<const N: usize>(spans: [Span; N]) -> Row<'static> {
    Row::new(spans.map(|span| Cell::from(piece(&span))))
}

fn drawn(lines: &[Line]) -> Text<'static> {
    Text::from(lines.iter().map(line).collect::<Vec<_>>())
}

fn line(spans: &Line) -> Drawn<'static> {
    Drawn::from(spans.iter().map(piece).collect::<Vec<_>>())
}

fn piece(span: &Span) -> Piece<'static> {
    Piece::styled(span.text().to_owned(), style(span.tone()))
}

const fn style(tone: Tone) -> Style {
    match tone {
        Tone::Plain => Style::new(),
        Tone::Strong => Style::new().add_modifier(Modifier::BOLD),
        Tone::Dim => Style::new().add_modifier(Modifier::DIM),
        Tone::Good => Style::new().fg(Color::Green),
        Tone::Warn => Style::new().fg(Color::Yellow),
        Tone::Bad => Style::new().fg(Color::Red),
    }
}
