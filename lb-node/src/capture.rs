//! Samples of the packets that the data plane forwards, as pcapng: by `lb-node capture`, and by the page `/capture`.
//!
//! Needs nothing of the daemon but its pinned maps.

use anyhow::{Context as _, Result, ensure};
use dataplane::capture::{Sample, Source};
use host::bpffs;
use lb_ebpf::lb::CAPTURE_LENGTH;
use pcapng::{Block, Interface, Packet};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use zk_schema::VipName;

/// Samples packets on their way to reals and writes them as pcapng.
///
/// What is written is the packet as it arrived, before encapsulation, at most 256 bytes of it, with the real that it went to
/// as its comment. Open the file with Wireshark, or read it at once: `lb-node capture --interface eth0 --write - | tshark -r -`.
/// `lbctl capture` does the same for several nodes at once.
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
    #[arg(long, default_value = bpffs::DEFAULT)]
    bpffs: PathBuf,
}

/// Captures until enough was seen or the time is up; returns the number of packets.
///
/// # Errors
/// If no data plane is on the interface, the VIP is not known to it, another capture is under way, or the file cannot be
/// written.
pub async fn run(options: Options) -> Result<u64> {
    ensure!(options.one_in.is_power_of_two(), "--one-in {}: give a power of two, such as 64", options.one_in);
    let pins = bpffs::directory(&options.bpffs, &options.interface, "lb");
    let mut source = Source::open(&pins, options.vip.as_ref(), options.one_in)?;
    let mut out = create(&options.write)?;
    let mut write = |bytes: &[u8]| out.write_all(bytes).and_then(|()| out.flush());
    write(&preamble(&options.interface, options.vip.as_ref())).context("cannot write the capture")?;

    let end = tokio::time::sleep(Duration::from_secs(options.seconds));
    tokio::pin!(end);
    let mut seen = 0;
    while seen < options.count {
        let wanted = usize::try_from(options.count - seen).unwrap_or(usize::MAX);
        let samples = tokio::select! {
            () = &mut end => break,
            _ = tokio::signal::ctrl_c() => break,
            samples = source.next(wanted) => samples.context("cannot wait for samples")?,
        };
        let mut bytes = Vec::new();
        for sample in samples {
            let comment = format!("real={}", sample.real);
            emit(&sample, comment, &mut bytes);
            seen += 1;
        }
        match write(&bytes) {
            // Nobody reads on, as behind `head`.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            outcome => outcome.context("cannot write the capture")?,
        }
    }
    Ok(seen)
}

fn create(path: &Path) -> Result<BufWriter<Box<dyn Write + Send>>> {
    let out: Box<dyn Write + Send> = if path == Path::new("-") {
        Box::new(io::stdout())
    } else {
        Box::new(File::create(path).with_context(|| format!("cannot write {}", path.display()))?)
    };
    Ok(BufWriter::new(out))
}

/// The beginning of a stream. `name` is where its packets are from.
pub(crate) fn preamble(name: &str, vip: Option<&VipName>) -> Vec<u8> {
    let mut bytes = Vec::new();
    pcapng::emit(&Block::Section, &mut bytes);
    let interface = Interface {
        name: name.to_owned(),
        description: vip.map_or_else(|| "all VIPs".to_owned(), |vip| format!("VIP {vip}")),
        snap_length: u32::try_from(CAPTURE_LENGTH).unwrap_or(u32::MAX),
    };
    pcapng::emit(&Block::Interface(interface), &mut bytes);
    bytes
}

/// A sample as a packet of the stream.
pub(crate) fn emit(sample: &Sample, comment: String, bytes: &mut Vec<u8>) {
    let packet = Packet {
        interface: 0,
        time: u64::try_from(sample.time.as_nanos()).unwrap_or(u64::MAX),
        length: sample.length,
        data: sample.data.clone(),
        comment,
    };
    pcapng::emit(&Block::Packet(packet), bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::name;

    #[test]
    fn a_stream_names_where_it_is_from_and_the_real_of_each_packet() {
        let vip: VipName = name("mqtt");
        let mut bytes = preamble("lb-1", Some(&vip));
        let sample = Sample {
            time: Duration::new(1_700_000_000, 5),
            vip: 1,
            real: [10, 0, 0, 7].into(),
            length: 300,
            data: vec![5; 4],
        };
        emit(&sample, "real=broker-1".into(), &mut bytes);
        let mut parser = pcapng::Parser::new();
        parser.push(&bytes);
        assert_eq!(parser.next_block(), Ok(Some(Block::Section)));
        let Ok(Some(Block::Interface(interface))) = parser.next_block() else { panic!("no interface") };
        assert_eq!((interface.name.as_str(), interface.description.as_str()), ("lb-1", "VIP mqtt"));
        let Ok(Some(Block::Packet(packet))) = parser.next_block() else { panic!("no packet") };
        assert_eq!((packet.length, packet.data.len(), packet.time), (300, 4, 1_700_000_000_000_000_005));
        assert_eq!(packet.comment, "real=broker-1");
    }
}
