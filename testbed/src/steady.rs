//! A steady flow of numbered UDP requests, of which each answer is noted.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::net::sockopt;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::host::Host;
use crate::server::DEEP_BUFFER;
use crate::visit::{split_answer, unspecified_like};
use crate::wait::wait_until;

/// Source port of the first flow. They are the same in every run, so that every run meets the same slots.
const FIRST_PORT: u16 = 20_000;
/// An answer that takes longer after the last request has been lost.
const STRAGGLERS: Duration = Duration::from_secs(3);
const START_LIMIT: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(1);
/// Most requests that are sent in one tick.
const AT_ONCE: usize = 8;

/// Requests under way at a fixed rate, spread evenly over a number of flows (source ports).
#[derive(Debug)]
pub struct Steady {
    seen: Arc<Mutex<Seen>>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<Result<()>>>,
    flows: usize,
}

#[derive(Debug, Default)]
struct Seen {
    sent: usize,
    /// By number: when it was sent.
    sent_at: Vec<Instant>,
    /// By number: who answered, each time.
    answers: Vec<Vec<u8>>,
    /// By number: when it was answered first.
    answered_at: Vec<Option<Instant>>,
    /// The names behind the numbers in `answers`.
    servers: Vec<String>,
    errors: Vec<String>,
}

impl Steady {
    /// Begins to send `rate` requests a second from `client` to the UDP echo service at `at`, by `flows` flows, and
    /// waits for the first answer.
    ///
    /// # Errors
    ///
    /// When the sockets cannot be had, or nothing comes back.
    pub fn start(client: &Host, at: SocketAddr, flows: u16, rate: u32) -> Result<Steady> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (stop, stopped) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = {
            let (host, seen) = (client.clone(), seen.clone());
            thread::Builder::new().name(format!("steady {}", client.name())).spawn(move || {
                host.enter_this_thread()?;
                runtime.block_on(run(at, flows, rate, &seen, stopped))
            })?
        };
        let steady = Steady { seen, stop, thread: Some(thread), flows: flows.into() };
        wait_until(format_args!("the first answer from {at}"), START_LIMIT, || {
            let ended = steady.thread.as_ref().is_none_or(JoinHandle::is_finished);
            let answered = locked(&steady.seen).answers.iter().any(|answers| !answers.is_empty());
            Ok((answered || ended).then_some(()))
        })?;
        Ok(steady)
    }

    /// Who answered the last request of each flow that has been answered.
    #[must_use]
    pub fn now(&self) -> BTreeMap<String, usize> {
        let seen = locked(&self.seen);
        let mut now = BTreeMap::new();
        for flow in 0..self.flows {
            let of_flow = seen.answers.iter().enumerate().filter(|(number, _)| number % self.flows == flow);
            if let Some(server) = of_flow.rev().find_map(|(_, answers)| answers.last()) {
                *now.entry(seen.servers[usize::from(*server)].clone()).or_default() += 1;
            }
        }
        now
    }

    /// How many have been sent so far.
    #[must_use]
    pub fn sent(&self) -> usize {
        locked(&self.seen).sent
    }

    /// What became of the requests from the `first` on, counted from 0, up to now. Waits for answers that are still under
    /// way, some seconds if any do not come.
    ///
    /// # Errors
    ///
    /// When the run is interrupted.
    pub fn since(&self, first: usize) -> Result<Span> {
        let end = self.sent();
        let deadline = Instant::now() + STRAGGLERS;
        wait_until("answers that are under way", STRAGGLERS * 2, || {
            let all = locked(&self.seen).answered_at[first..end].iter().all(Option::is_some);
            Ok((all || Instant::now() >= deadline).then_some(()))
        })?;
        let seen = locked(&self.seen);
        let lost = (first..end).filter(|number| seen.answered_at[*number].is_none());
        Ok(Span {
            sent: end - first,
            lost: lost.map(|number| seen.sent_at[number]).collect(),
            longest_wait: longest_wait(
                &seen.sent_at,
                &seen.answered_at,
                self.flows,
                first..end,
                Instant::now(),
            ),
            errors: seen.errors.clone(),
        })
    }

    /// Waits until `count` more requests have been sent.
    ///
    /// # Errors
    ///
    /// When they are not sent in time.
    pub fn pass(&self, count: usize) -> Result<()> {
        let goal = locked(&self.seen).sent + count;
        wait_until(format_args!("{count} more requests"), Duration::from_secs(30), || {
            Ok((locked(&self.seen).sent >= goal).then_some(()))
        })
    }

    /// Stops sending, waits for the answers that are still under way, and tells what was seen.
    ///
    /// # Errors
    ///
    /// When the sockets failed.
    pub fn stop(mut self) -> Result<Record> {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the sender does not panic").context("the sender of steady requests")?;
        }
        let Seen { sent, answers, servers, errors, .. } = std::mem::take(&mut *locked(&self.seen));
        let mut flows = vec![Vec::new(); self.flows];
        for (number, answers) in answers.iter().enumerate() {
            flows[number % self.flows]
                .extend(answers.iter().map(|server| servers[usize::from(*server)].clone()));
        }
        let lost: Vec<usize> = (0..sent).filter(|number| answers[*number].is_empty()).collect();
        let last_before = |number: &usize| {
            let earlier = (0..*number).rev().filter(|earlier| earlier % self.flows == number % self.flows);
            let server = earlier.filter_map(|earlier| answers[earlier].last()).next()?;
            Some(servers[usize::from(*server)].clone())
        };
        let lost_after = lost.iter().map(last_before).collect();
        let doubled = answers.iter().filter(|answers| answers.len() > 1).count();
        Ok(Record { sent, lost, lost_after, doubled, errors, flows })
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What became of some of the requests, while more are sent.
#[derive(Clone, Debug)]
pub struct Span {
    /// How many were sent.
    pub sent: usize,
    /// When those without an answer were sent.
    pub lost: Vec<Instant>,
    /// The longest that a flow waited for an answer: from when a request was sent until an answer to it, or to a later
    /// one of its flow, came.
    pub longest_wait: Duration,
    /// What the sockets said since the beginning, if something went wrong.
    pub errors: Vec<String>,
}

/// The longest wait of requests in `span`, of which `flows` flows send in turn.
fn longest_wait(
    sent_at: &[Instant],
    answered_at: &[Option<Instant>],
    flows: usize,
    span: Range<usize>,
    now: Instant,
) -> Duration {
    let mut longest = Duration::ZERO;
    for flow in 0..flows {
        let mut next = now;
        let of_flow = (0..sent_at.len()).rev().filter(|number| number % flows == flow);
        for number in of_flow.take_while(|number| *number >= span.start) {
            next = answered_at[number].map_or(next, |answered| answered.min(next));
            if number < span.end {
                longest = longest.max(next.saturating_duration_since(sent_at[number]));
            }
        }
    }
    longest
}

/// What became of the requests.
#[derive(Clone, Debug)]
pub struct Record {
    /// How many were sent.
    pub sent: usize,
    /// The numbers of those without an answer.
    pub lost: Vec<usize>,
    /// For each of those, who had answered its flow last before; `None` where nobody had.
    pub lost_after: Vec<Option<String>>,
    /// How many were answered more than once.
    pub doubled: usize,
    /// What sockets complained about.
    pub errors: Vec<String>,
    /// For each flow, who answered its requests, in the order of sending.
    pub flows: Vec<Vec<String>>,
}

impl Record {
    /// Who answered each flow, without repetitions: one name where one server answered all along, two where the
    /// flow moved once.
    #[must_use]
    pub fn owners(&self) -> Vec<Vec<&str>> {
        let owners = self.flows.iter().map(|answers| {
            let mut owners: Vec<&str> = answers.iter().map(String::as_str).collect();
            owners.dedup();
            owners
        });
        owners.collect()
    }

    /// Panics unless each request was answered exactly once.
    ///
    /// # Panics
    ///
    /// As it says, with figures.
    pub fn assert_nothing_lost(&self) {
        let Record { sent, lost, doubled, errors, .. } = self;
        assert!(
            lost.is_empty() && *doubled == 0 && errors.is_empty(),
            "of {sent} requests {} were lost ({:?}...), {doubled} answered twice; errors: {errors:?}",
            lost.len(),
            &lost[..lost.len().min(10)],
        );
    }

    /// Panics unless each request was answered exactly once, but for those of flows that `real` had, sent while it was
    /// dead: with one of these numbers.
    ///
    /// # Panics
    ///
    /// As it says, with figures.
    pub fn assert_lost_only_with(&self, real: &str, while_dead: &[Range<usize>]) {
        let Record { sent, lost, lost_after, doubled, errors, .. } = self;
        let is_due = |(number, server): &(&usize, &Option<String>)| {
            server.as_deref() == Some(real) && while_dead.iter().any(|range| range.contains(number))
        };
        let others: Vec<_> = lost.iter().zip(lost_after).filter(|pair| !is_due(pair)).collect();
        assert!(
            others.is_empty() && *doubled == 0 && errors.is_empty(),
            "of {sent} requests {} were lost for another reason than that {real} was dead while {while_dead:?}: \
             {:?}...; {doubled} answered twice; errors: {errors:?}",
            others.len(),
            &others[..others.len().min(10)],
        );
    }
}

async fn run(
    at: SocketAddr,
    flows: u16,
    rate: u32,
    seen: &Arc<Mutex<Seen>>,
    mut stopped: watch::Receiver<bool>,
) -> Result<()> {
    let mut sockets = Vec::new();
    for flow in 0..flows {
        let own = SocketAddr::new(unspecified_like(at.ip()), FIRST_PORT + flow);
        let socket = UdpSocket::bind(own).await.with_context(|| format!("cannot bind {own}"))?;
        sockopt::set_socket_recv_buffer_size_force(&socket, DEEP_BUFFER)?;
        socket.connect(at).await?;
        let socket = Arc::new(socket);
        tokio::spawn(receive(socket.clone(), seen.clone()));
        sockets.push(socket);
    }
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let started = Instant::now();
    let mut number = 0_usize;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stopped.wait_for(|stop| *stop) => break,
        }
        // The mean rate is kept, but a pause is made up for little by little: all at once would overflow the queues
        // of the lab's links.
        let due = (started.elapsed().as_secs_f64() * f64::from(rate)).ceil();
        for _ in 0..AT_ONCE {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            if number as f64 >= due {
                break;
            }
            {
                let mut seen = locked(seen);
                seen.sent = number + 1;
                seen.sent_at.push(Instant::now());
                seen.answers.push(Vec::new());
                seen.answered_at.push(None);
            }
            if let Err(error) = sockets[number % sockets.len()].send(&number.to_be_bytes()).await {
                locked(seen).errors.push(format!("sending {number}: {error}"));
            }
            number += 1;
        }
    }
    let _ = tokio::time::timeout(STRAGGLERS, async {
        while locked(seen).answers.iter().any(Vec::is_empty) {
            tokio::time::sleep(TICK * 10).await;
        }
    })
    .await;
    Ok(())
}

async fn receive(socket: Arc<UdpSocket>, seen: Arc<Mutex<Seen>>) {
    let mut buffer = [0; 256];
    loop {
        let received = socket.recv(&mut buffer).await;
        let mut seen = locked(&seen);
        let length = match received {
            Ok(length) => length,
            Err(error) => {
                seen.errors.push(format!("receiving: {error}"));
                continue;
            }
        };
        let answer = split_answer(&buffer[..length])
            .and_then(|(server, number)| Some((server, usize::from_be_bytes(number.try_into().ok()?))));
        let Some((server, number)) = answer.filter(|(_, number)| *number < seen.sent) else {
            seen.errors.push(format!("not an answer: {:?}", &buffer[..length]));
            continue;
        };
        let known = seen.servers.iter().position(|name| *name == server).unwrap_or_else(|| {
            seen.servers.push(server);
            seen.servers.len() - 1
        });
        seen.answered_at[number].get_or_insert_with(Instant::now);
        seen.answers[number].push(u8::try_from(known).expect("a lab has fewer than 256 reals"));
    }
}

fn locked(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_request_waits_for_the_next_answer_of_its_own_flow() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        // Two flows in turn, a request every 10 ms. The second flow loses its first two.
        let sent: Vec<Instant> = (0..6).map(|number| at(number * 10)).collect();
        let answered = [Some(at(1)), None, Some(at(24)), None, Some(at(41)), Some(at(52))];
        let longest = |span| longest_wait(&sent, &answered, 2, span, at(100));
        assert_eq!(longest(0..6), Duration::from_millis(42), "from 10 to 52");
        assert_eq!(longest(2..6), Duration::from_millis(22), "from 30 to 52");
        assert_eq!(longest(4..6), Duration::from_millis(2));
        assert_eq!(longest(0..1), Duration::from_millis(1));
    }

    #[test]
    fn a_flow_without_any_later_answer_still_waits() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let longest = longest_wait(&[at(0), at(10)], &[Some(at(1)), None], 1, 0..2, at(70));
        assert_eq!(longest, Duration::from_millis(60));
    }
}
