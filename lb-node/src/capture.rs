//! `lb-node capture`: samples of the packets that the data plane forwards, as a pcap file.
//!
//! Needs nothing of the daemon but its pinned maps. Sampling is armed for a limited time and renewed
//! while this runs, so that a capture that is killed disarms itself.

use crate::bpffs;
use crate::dataplane::{Mapped, vip_id};
use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Map, MapData, RingBuf};
use lb_ebpf::lb::{CAPTURE_LENGTH, Capture, Config, VipEntry};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use zk_schema::VipName;

/// Samples packets on their way to reals and writes them as a pcap file.
///
/// What is written is the packet as it arrived, before encapsulation, at most 256 bytes of it. Open the
/// file with Wireshark, or read it at once: `lb-node capture --interface eth0 --write - | tcpdump -r -`.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Interface that the node's data plane is on.
    #[arg(long)]
    interface: String,
    /// VIP to watch, by name; all if absent.
    #[arg(long)]
    vip: Option<VipName>,
    /// Take one packet in this many, on average: a power of two.
    #[arg(long, default_value_t = 1)]
    one_in: u32,
    /// Stop after this many packets.
    #[arg(long, default_value_t = 1000)]
    count: u64,
    /// Stop after this many seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// File to write, or `-` for standard output.
    #[arg(long, short)]
    write: PathBuf,
    /// Directory on a BPF file system that the node's pins are below.
    #[arg(long, default_value = "/sys/fs/bpf/drover")]
    bpffs: PathBuf,
}

/// How long sampling stays on without being renewed.
const ARMED: Duration = Duration::from_secs(2);

/// Captures until enough was seen or the time is up; returns the number of packets.
///
/// # Errors
/// If no data plane is on the interface, the VIP is not known to it, or the file cannot be written.
pub async fn run(options: Options) -> Result<u64> {
    ensure!(options.one_in.is_power_of_two(), "--one-in {}: give a power of two, such as 64", options.one_in);
    let maps = bpffs::directory(&options.bpffs, &options.interface, "lb").join("maps");
    let open = |name: &str| {
        MapData::from_pin(maps.join(name)).with_context(|| {
            format!(
                "no data plane of Drover on {}: {} is missing",
                options.interface,
                maps.join(name).display()
            )
        })
    };
    let config = Mapped::<Config>::new("CONFIG", &open("CONFIG")?)?;
    let vip = match &options.vip {
        Some(name) => find(&Mapped::new("VIPS", &open("VIPS")?)?, name)?,
        None => 0,
    };
    let ring = RingBuf::try_from(Map::RingBuf(open("CAPTURES")?)).context("map CAPTURES")?;
    // SAFETY: the descriptor is the ring's own, which stays open for as long as it is registered.
    let mut ring = unsafe { AsyncFd::register(ring) }.context("cannot wait for samples")?;
    let mut file = Pcap::create(&options.write)?;

    let sampling = Sampling { config: &config };
    sampling.arm(vip, options.one_in - 1);
    let mut renew = tokio::time::interval(ARMED / 2);
    let end = tokio::time::sleep(Duration::from_secs(options.seconds));
    tokio::pin!(end);
    let mut seen = 0;
    while seen < options.count {
        tokio::select! {
            () = &mut end => break,
            _ = tokio::signal::ctrl_c() => break,
            _ = renew.tick() => sampling.arm(vip, options.one_in - 1),
            ready = ring.readable_mut() => {
                let mut ready = ready.context("cannot wait for samples")?;
                let ring = ready.get_inner_mut();
                while seen < options.count && let Some(item) = ring.next() {
                    if let Some(capture) = decode(&item) {
                        file.write(&capture)?;
                        seen += 1;
                    }
                }
                ready.clear_ready();
            }
        }
    }
    file.out.flush().context("cannot write the capture")?;
    Ok(seen)
}

/// The VIP's index in the maps.
fn find(vips: &Mapped<VipEntry>, name: &VipName) -> Result<u32> {
    let id = vip_id(name);
    match (1..vips.entries()).find(|&index| vips.read(index).id == id) {
        Some(index) => Ok(index),
        None => {
            bail!("the data plane knows no VIP named {name}: `lb-node check` and `/status` list those it has")
        }
    }
}

/// Sampling, switched off when this goes.
struct Sampling<'a> {
    config: &'a Mapped<Config>,
}

impl Sampling<'_> {
    fn arm(&self, vip: u32, mask: u32) {
        let until = monotonic() + ARMED;
        let nanos = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
        let what = u64::from(vip) << 32 | u64::from(mask);
        self.config.word64(0, offset_of!(Config, capture)).store(what, Ordering::SeqCst);
        self.config.word64(0, offset_of!(Config, capture_until)).store(nanos, Ordering::SeqCst);
    }
}

impl Drop for Sampling<'_> {
    fn drop(&mut self) {
        self.config.word64(0, offset_of!(Config, capture_until)).store(0, Ordering::SeqCst);
    }
}

/// The clock of `bpf_ktime_get_ns`.
fn monotonic() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
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

/// A pcap file with times in nanoseconds (draft-ietf-opsawg-pcap).
struct Pcap {
    out: BufWriter<Box<dyn Write + Send>>,
    /// Wall-clock time at monotonic time 0.
    boot: Duration,
}

impl Pcap {
    const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
    const LINKTYPE_ETHERNET: u32 = 1;

    fn create(path: &Path) -> Result<Self> {
        let out: Box<dyn Write + Send> = if path == Path::new("-") {
            Box::new(io::stdout())
        } else {
            Box::new(File::create(path).with_context(|| format!("cannot write {}", path.display()))?)
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let mut pcap = Self { out: BufWriter::new(out), boot: now.saturating_sub(monotonic()) };
        let (major, minor) = (2_u16, 4_u16);
        let mut header = Vec::with_capacity(24);
        header.extend_from_slice(&Self::MAGIC_NANOSECONDS.to_le_bytes());
        header.extend_from_slice(&major.to_le_bytes());
        header.extend_from_slice(&minor.to_le_bytes());
        header.extend_from_slice(&[0; 8]);
        header.extend_from_slice(&u32::try_from(CAPTURE_LENGTH).unwrap_or(u32::MAX).to_le_bytes());
        header.extend_from_slice(&Self::LINKTYPE_ETHERNET.to_le_bytes());
        pcap.out.write_all(&header).context("cannot write the capture")?;
        Ok(pcap)
    }

    fn write(&mut self, capture: &Capture) -> Result<()> {
        let time = self.boot + Duration::from_nanos(capture.time);
        let seconds = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        for word in [seconds, time.subsec_nanos(), capture.kept, capture.length] {
            self.out.write_all(&word.to_le_bytes()).context("cannot write the capture")?;
        }
        let kept = (capture.kept as usize).min(CAPTURE_LENGTH);
        self.out.write_all(&capture.data[..kept]).context("cannot write the capture")
    }
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
    fn a_capture_file_starts_as_pcap_and_keeps_the_packet() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pcap");
        let mut pcap = Pcap::create(&path).unwrap();
        let capture = Capture { time: 1, vip: 1, real: 1, length: 300, kept: 4, data: [5; CAPTURE_LENGTH] };
        pcap.write(&capture).unwrap();
        drop(pcap);
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(bytes.len(), 24 + 16 + 4);
        assert_eq!(&bytes[..4], &[0x4d, 0x3c, 0xb2, 0xa1]);
        assert_eq!(&bytes[32..40], &[4, 0, 0, 0, 44, 1, 0, 0]);
    }
}
