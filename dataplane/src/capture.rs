//! The source of samples: the data plane's ring, through the pinned maps.
//!
//! Sampling is armed for a moment and renewed while somebody waits for samples, so that a capture that is killed, or whose
//! reader sleeps, disarms itself.

use crate::{CLIENT_V4, CLIENT_V6, Mapped, vip_id};
use aya::maps::{Map, MapData, RingBuf};
use lb_ebpf::lb::{CAPTURE_LENGTH, Capture, Config, RealEntry, VipEntry};
use lb_ebpf::wire::ETHERNET_LENGTH;
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::unix::AsyncFd;
use tokio::time::{Interval, MissedTickBehavior, interval};
use zk_schema::VipName;

/// Time for which sampling stays on without being renewed.
const ARMED: Duration = Duration::from_secs(2);
/// Samples that are handed over at once.
const AT_ONCE: usize = 64;

/// The reason why there are no samples.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No pins.
    #[error("no data plane of Drover here: {} is missing", .0.display())]
    Missing(PathBuf),
    /// No such VIP.
    #[error("the data plane knows no VIP named {0}: `/status` lists those it has")]
    UnknownVip(VipName),
    /// The ring has one reader at a time.
    #[error("another capture is under way on this node: wait for its end (they end by themselves)")]
    Busy,
    /// Anything else.
    #[error("cannot read samples: {0}")]
    Other(String),
}

/// A packet that the data plane has sent on.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When, since 1970.
    pub time: Duration,
    /// Its VIP's index.
    pub vip: u32,
    /// Address of the real that it went to.
    pub real: IpAddr,
    /// Bytes on the wire.
    pub length: u32,
    /// The frame's first bytes, as it arrived.
    pub data: Vec<u8>,
}

/// Samples of one VIP, or of all. Sampling is switched off when this goes.
pub struct Source {
    config: Mapped<Config>,
    vips: Mapped<VipEntry>,
    reals: Mapped<RealEntry>,
    ring: AsyncFd<RingBuf<MapData>>,
    /// The packets to sample, as [`Config::capture`] has it.
    what: u64,
    renew: Interval,
    /// Wall-clock time at monotonic time 0.
    boot: Duration,
    /// Held against a second reader of the ring, in this process or in another.
    _lock: File,
}

impl Source {
    /// Samples of `vip` (all VIPs if `None`) from the data plane whose pins are in `pins`, one packet in `one_in`, which
    /// is a power of two. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If no data plane has its pins there, it does not know the VIP, another capture is under way, or the kernel refuses
    /// a map: see [`SourceError`].
    pub fn open(pins: &Path, vip: Option<&VipName>, one_in: u32) -> Result<Self, SourceError> {
        let other = |error: &dyn std::fmt::Display| SourceError::Other(error.to_string());
        let maps = pins.join("maps");
        let lock = File::open(&maps).map_err(|_| SourceError::Missing(maps.clone()))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(SourceError::Busy),
            outcome => outcome.map_err(|error| other(&error))?,
        }
        let open = |name: &str| {
            let path = maps.join(name);
            MapData::from_pin(&path).map_err(|error| match path.exists() {
                true => other(&error),
                false => SourceError::Missing(path),
            })
        };
        let config = Mapped::new("CONFIG", &open("CONFIG")?).map_err(|error| other(&error))?;
        let vips = Mapped::<VipEntry>::new("VIPS", &open("VIPS")?).map_err(|error| other(&error))?;
        let reals = Mapped::new("REALS", &open("REALS")?).map_err(|error| other(&error))?;
        let index = match vip {
            Some(name) => {
                let id = vip_id(name);
                let found = (1..vips.entries()).find(|&index| vips.read(index).id == id);
                found.ok_or_else(|| SourceError::UnknownVip(name.clone()))?
            }
            None => 0,
        };
        let mut ring = RingBuf::try_from(Map::RingBuf(open("CAPTURES")?)).map_err(|error| other(&error))?;
        // What an earlier capture has left.
        while ring.next().is_some() {}
        // SAFETY: the descriptor is the ring's own, which stays open for as long as it is registered.
        let ring = unsafe { AsyncFd::register(ring) }.map_err(|error| other(&error))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut renew = interval(ARMED / 2);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            config,
            vips,
            reals,
            ring,
            what: u64::from(index) << 32 | u64::from(one_in.saturating_sub(1)),
            renew,
            boot: now.saturating_sub(monotonic()),
            _lock: lock,
        })
    }

    /// Waits for samples; at least one and at most `limit` come. Cancel-safe. Sampling is on for as long as somebody waits,
    /// and a moment longer.
    ///
    /// # Errors
    /// If the runtime's I/O driver is gone.
    pub async fn next(&mut self, limit: usize) -> io::Result<Vec<Sample>> {
        loop {
            tokio::select! {
                _ = self.renew.tick() => self.arm(),
                ready = self.ring.readable_mut() => {
                    let mut ready = ready?;
                    let ring = ready.get_inner_mut();
                    let mut captures = Vec::new();
                    while captures.len() < limit.min(AT_ONCE) && let Some(item) = ring.next() {
                        captures.extend(decode(&item).filter(|capture| !is_self_test(&capture.data)));
                    }
                    if captures.is_empty() {
                        ready.clear_ready();
                        continue;
                    }
                    return Ok(captures.iter().map(|capture| self.sample(capture)).collect());
                }
            }
        }
    }

    /// Returns whether a sample is of this VIP.
    #[must_use]
    pub fn is_of(&self, sample: &Sample, vip: &VipName) -> bool {
        sample.vip < self.vips.entries() && self.vips.read(sample.vip).id == vip_id(vip)
    }

    fn sample(&self, capture: &Capture) -> Sample {
        let kept = usize::try_from(capture.kept).unwrap_or(usize::MAX).min(CAPTURE_LENGTH);
        let known = capture.real < self.reals.entries();
        Sample {
            time: self.boot + Duration::from_nanos(capture.time),
            vip: capture.vip,
            real: if known {
                address(self.reals.read(capture.real).destination)
            } else {
                Ipv4Addr::UNSPECIFIED.into()
            },
            length: capture.length,
            data: capture.data[..kept].to_vec(),
        }
    }

    fn arm(&self) {
        let until = monotonic() + ARMED;
        let nanos = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
        self.config.word64(0, offset_of!(Config, capture)).store(self.what, Ordering::SeqCst);
        self.config.word64(0, offset_of!(Config, capture_until)).store(nanos, Ordering::SeqCst);
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.config.word64(0, offset_of!(Config, capture_until)).store(0, Ordering::SeqCst);
    }
}

/// The clock of `bpf_ktime_get_ns`.
fn monotonic() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// The address behind an outer destination. No unicast IPv6 address has its last twelve bytes zero.
fn address(destination: [u64; 2]) -> IpAddr {
    match (u32::try_from(destination[0]), destination[1]) {
        (Ok(v4), 0) => Ipv4Addr::from(v4.to_le_bytes()).into(),
        _ => {
            let bits = u128::from(destination[0]) | u128::from(destination[1]) << 64;
            Ipv6Addr::from(bits.to_le_bytes()).into()
        }
    }
}

/// Returns whether a frame is of the daemon's self-test: nobody else has its source address.
fn is_self_test(frame: &[u8]) -> bool {
    let at = |start: usize, bytes: &[u8]| frame.get(start..start + bytes.len()) == Some(bytes);
    // The source's place in the headers of IPv4 and of IPv6.
    let v4 = at(12, &[0x08, 0x00]) && at(ETHERNET_LENGTH + 12, &CLIENT_V4.octets());
    v4 || at(12, &[0x86, 0xdd]) && at(ETHERNET_LENGTH + 8, &CLIENT_V6.octets())
}

/// A record of the ring; `None` if its size is not that of a record.
fn decode(bytes: &[u8]) -> Option<Capture> {
    let number = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    Some(Capture {
        time: u64::from_ne_bytes(bytes.get(..8)?.try_into().ok()?),
        vip: number(offset_of!(Capture, vip))?,
        real: number(offset_of!(Capture, real))?,
        length: number(offset_of!(Capture, length))?,
        kept: number(offset_of!(Capture, kept))?,
        data: bytes.get(offset_of!(Capture, data)..)?.get(..CAPTURE_LENGTH)?.try_into().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_the_way_through_the_ring() {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&7_u64.to_ne_bytes());
        for word in [1_u32, 2, 60, 60] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(&[9; CAPTURE_LENGTH]);
        let capture = decode(&bytes).unwrap();
        assert_eq!(
            (capture.time, capture.vip, capture.real, capture.length, capture.kept),
            (7, 1, 2, 60, 60)
        );
        assert_eq!(capture.data, [9; CAPTURE_LENGTH]);
        assert!(decode(&bytes[..bytes.len() - 1]).is_none());
    }

    #[test]
    fn packets_of_the_self_test_are_no_samples() {
        let mut frame = vec![0; 64];
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        frame[26..30].copy_from_slice(&[192, 0, 2, 1]);
        assert!(is_self_test(&frame));
        frame[29] = 2;
        assert!(!is_self_test(&frame) && !is_self_test(&frame[..20]));
    }

    #[test]
    fn a_reals_address_is_read_from_its_entry() {
        let v4 = u64::from(u32::from_le_bytes([10, 3, 1, 2]));
        assert_eq!(address([v4, 0]), IpAddr::from([10, 3, 1, 2]));
        let v6: Ipv6Addr = "2001:db8::7".parse().unwrap();
        let bits = u128::from_le_bytes(v6.octets());
        let halves =
            [u64::try_from(bits & u128::from(u64::MAX)).unwrap(), u64::try_from(bits >> 64).unwrap()];
        assert_eq!(address(halves), IpAddr::from(v6));
    }
}
