//! A broker dies and comes back, and what its clients and those of the others see of that.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use drover_tests::crowd::{Crowd, Survivors, Waves, broker_name};
use drover_tests::{Broker, Host, interrupt, wait_until};

use crate::clients;
use crate::report::Report;

/// New connections in a wave while waiting for a change.
pub(crate) const WAVE: usize = 12;
pub(crate) const BETWEEN_WAVES: Duration = Duration::from_millis(200);
/// New connections that show how the brokers share them once a change is through.
pub(crate) const SHOW: usize = 60;
/// How long the health checks may take to notice what happened, in either direction. They probe twice a second.
pub(crate) const HEALTH_LIMIT: Duration = Duration::from_secs(20);
/// How long it may take until a dead broker's clients know.
const DISCONNECT_LIMIT: Duration = Duration::from_secs(5);

/// A broker's death.
#[derive(Debug)]
pub(crate) struct Death {
    /// Whose.
    pub(crate) victim: usize,
    pub(crate) time: Instant,
    /// The connections that must not break: those to the other brokers.
    survivors: Survivors,
    /// The clients that were at the victim.
    doomed: BTreeSet<String>,
}

impl Death {
    /// Kills a broker.
    pub(crate) fn of(
        victim: usize,
        brokers: &mut [Broker],
        crowd: &Crowd,
        report: &mut Report,
    ) -> Result<Death> {
        let (survivors, doomed) = Survivors::all(crowd, brokers)?.parted(victim);
        let process = brokers[victim].process();
        report.note(format_args!("process {} holds {} of the connections", process.pid(), doomed.len()));
        let time = Instant::now();
        process.kill()?;
        Ok(Death { victim, time, survivors, doomed })
    }

    /// Its clients know at once, since its host tells them.
    pub(crate) fn check_doomed(&self, crowd: &Crowd, report: &mut Report) -> Result<()> {
        let all = wait_until("the dead broker's clients to be disconnected", DISCONNECT_LIMIT, || {
            Ok((crowd.broken_after(&self.doomed, self.time).len() == self.doomed.len()).then_some(()))
        });
        interrupt::check()?;
        let broken = crowd.broken_after(&self.doomed, self.time);
        report.finding(
            format_args!("the clients of {} are disconnected", broker_name(self.victim)),
            format_args!(
                "{} of {}, after {:.1} ms at most",
                broken.len(),
                self.doomed.len(),
                broken.iter().max().copied().unwrap_or_default().as_secs_f64() * 1e3
            ),
            all.is_ok() && !self.doomed.is_empty(),
        );
        Ok(())
    }

    /// The others' clients have lost nothing. `now` says where the victim is.
    pub(crate) fn check_survivors(
        &self,
        crowd: &Crowd,
        brokers: &[Broker],
        now: &str,
        report: &mut Report,
    ) -> Result<()> {
        let same = clients::count(&self.survivors, crowd, brokers, report)?;
        report.finding(
            format_args!("{} {now}: the others' clients keep their connections", broker_name(self.victim)),
            format_args!("{same} of {}: same broker, address, port", self.survivors.len()),
            same == self.survivors.len() && same > 0,
        );
        Ok(())
    }

    /// Starts the broker again on its host, and waits until new clients have met it by every way. Returns how long that
    /// took; `None` if it does not come about.
    pub(crate) fn undo(
        &self,
        host: &Host,
        brokers: &mut [Broker],
        waves: &mut Waves,
        report: &Report,
    ) -> Result<Option<Duration>> {
        let victim = broker_name(self.victim);
        brokers[self.victim] = Broker::start(host)?;
        let started = Instant::now();
        let mut cut = 0;
        let mut met = Vec::new();
        let mut is_back = false;
        while !is_back && started.elapsed() < HEALTH_LIMIT {
            sleep(BETWEEN_WAVES);
            let wave = waves.send(brokers, WAVE)?;
            report.note(wave.shown());
            cut += wave.failed();
            let now = wave.met(self.victim);
            met.resize(now.len(), false);
            met.iter_mut().zip(now).for_each(|(met, now)| *met |= now);
            is_back = met.iter().all(|met| *met);
        }
        let back = started.elapsed();
        if cut > 0 {
            // Not promised before nodes know the earlier owners of a slot; the FAQ says so.
            report.note(format_args!(
                "{cut} of them were cut: their slots went back to {victim} while they were connected"
            ));
        }
        Ok(is_back.then_some(back))
    }

    /// It has its share again, after [`Death::undo`] took `back`.
    pub(crate) fn check_share(
        &self,
        back: Option<Duration>,
        brokers: &[Broker],
        waves: &mut Waves,
        report: &mut Report,
    ) -> Result<()> {
        let victim = broker_name(self.victim);
        let wave = waves.send(brokers, SHOW)?;
        report.note(wave.shown());
        let shares = wave.shares();
        report.finding(
            format_args!("{victim} gets its share of new clients again"),
            format_args!(
                "{} of {}, after {:.1} s; {} refused",
                shares[self.victim],
                wave.size(),
                back.unwrap_or(HEALTH_LIMIT).as_secs_f64(),
                wave.failed()
            ),
            back.is_some() && wave.failed() == 0 && shares.iter().all(|share| *share > 0),
        );
        Ok(())
    }
}
