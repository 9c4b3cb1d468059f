//! `lbctl top`: the cluster as it changes.
//!
//! - [`watcher`] reads the tree again and again, and tells what it finds, or since when it finds nothing.
//! - [`screen`] is what there is to show, and what keys do to it; [`render`] draws it. Both are pure.
//! - [`run`] owns the terminal, and gives it back however it ends.

mod render;
mod screen;
#[cfg(test)]
mod tests;
mod watcher;

use crate::context::Context;
use crate::time::parse_span;
use anyhow::{Context as _, Result, ensure};
use host::clock::wall_ms;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use screen::{Key, Screen};
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

/// Time between looks for keys, and redraws of ages.
const POLL: Duration = Duration::from_millis(100);
const REDRAW: Duration = Duration::from_millis(500);

/// Options of `lbctl top`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Keys: up, down, j, k select a VIP; / filters; ? explains; q ends.")]
pub struct Options {
    /// Time between looks: 200ms to 1h.
    #[arg(long, short, value_name = "SPAN", default_value = "1s", value_parser = interval)]
    interval: Duration,
}

fn interval(text: &str) -> Result<Duration, String> {
    let allowed = Duration::from_millis(200)..=Duration::from_secs(3600);
    let interval = parse_span(text)?;
    if allowed.contains(&interval) { Ok(interval) } else { Err(format!("{text} is not in 200ms..=1h")) }
}

/// Shows the cluster until the operator has seen enough.
///
/// # Errors
/// If there is no terminal, or the tree cannot be read at first.
pub async fn run(context: &Context, options: &Options) -> Result<ExitCode> {
    let is_terminal = std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    ensure!(is_terminal, "top needs a terminal; for scripts there is `lbctl status -o json`");
    let servers = context.settings()?.zookeeper.servers;
    // What is wrong at first is told on a terminal that is still as it was.
    let watcher = watcher::Watcher::start(context.clone(), servers).await?;
    let (samples, sampled) = watch::channel(watcher.sample());
    let (stop, stopped) = oneshot::channel();
    let watching = tokio::spawn(watcher.watch(options.interval, samples, stopped));

    let outcome = match Terminal::take() {
        Ok(mut terminal) => show(&mut terminal, sampled).await,
        Err(error) => Err(error),
    };
    drop(stop);
    let _ = watching.await;
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Draws what was found, and does what keys say, until one of them or a signal ends it.
async fn show(terminal: &mut Terminal, mut sampled: watch::Receiver<watcher::Sample>) -> Result<()> {
    let mut ends = Ends::new()?;
    let mut keys = keys();
    let mut screen = Screen::default();
    let mut redraw = tokio::time::interval(REDRAW);
    loop {
        screen.show(sampled.borrow_and_update().clone());
        terminal.draw(&screen)?;
        tokio::select! {
            changed = sampled.changed() => changed.context("the reader of the tree has ended")?,
            _ = redraw.tick() => {}
            key = keys.recv() => match key {
                Some(Some(key)) => if screen.press(key) { return Ok(()) },
                // The terminal has another size.
                Some(None) => {}
                None => return Ok(()),
            },
            () = ends.wait() => return Ok(()),
        }
    }
}

/// The terminal while it is this program's. It is given back when this is dropped, and when the program panics.
struct Terminal(DefaultTerminal);

impl Terminal {
    fn take() -> Result<Self> {
        ratatui::try_init().map(Self).context("the terminal cannot be used")
    }

    fn draw(&mut self, screen: &Screen) -> Result<()> {
        self.0
            .draw(|frame| render::draw(frame, screen, wall_ms()))
            .context("the terminal cannot be written")?;
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// The signals that end it.
struct Ends([Signal; 3]);

impl Ends {
    fn new() -> Result<Self> {
        let on = |kind| signal(kind).context("signals cannot be listened to");
        Ok(Self([on(SignalKind::terminate())?, on(SignalKind::hangup())?, on(SignalKind::interrupt())?]))
    }

    async fn wait(&mut self) {
        let [terminate, hangup, interrupt] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

/// Keys as they are pressed; `None`: the terminal has another size. Ends when the terminal is gone.
fn keys() -> mpsc::Receiver<Option<Key>> {
    let (sender, receiver) = mpsc::channel(16);
    thread::spawn(move || {
        while !sender.is_closed() {
            let read =
                event::poll(POLL).and_then(|ready| if ready { event::read().map(Some) } else { Ok(None) });
            let told = match read {
                Ok(Some(Event::Key(key))) if key.kind != KeyEventKind::Release => {
                    Key::of(key).map_or(Ok(()), |key| sender.blocking_send(Some(key)))
                }
                Ok(Some(Event::Resize(..))) => sender.blocking_send(None),
                Ok(_) => Ok(()),
                Err(_) => return,
            };
            if told.is_err() {
                return;
            }
        }
    });
    receiver
}
