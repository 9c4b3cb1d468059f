//! Errors of the data plane, each with its fix.

use std::io;
use std::path::PathBuf;
use zk_schema::{OLDEST_KERNEL, VipName};

/// Errors name the map, program or file at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The BPF file system cannot be used.
    #[error("{0:#}")]
    Bpffs(anyhow::Error),
    /// The front interface cannot be found.
    #[error("interface {interface}: {source} (`ip link` lists those there are)")]
    Interface {
        /// The interface.
        interface: String,
        /// Cause.
        source: io::Error,
    },
    /// A pin cannot be made or removed.
    #[error("pin {}: {source}", path.display())]
    Pin {
        /// The pin.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A link cannot be pinned.
    #[error("pin of a link at {}: {source}", path.display())]
    PinLink {
        /// The pin.
        path: PathBuf,
        /// Cause.
        source: aya::pin::PinError,
    },
    /// The kernel lacks what the programs need.
    #[error(
        "Linux {release} is too old: lb-node needs {}.{} or later, where a program on an interface's egress can \
         outlive the daemon; nothing was changed",
        OLDEST_KERNEL.0, OLDEST_KERNEL.1
    )]
    OldKernel {
        /// Release of the running kernel.
        release: String,
    },
    /// A program forwards, but nothing is known of its maps.
    #[error(
        "program {program} is attached and forwards, but its maps are not pinned in {}, so they cannot be taken \
         over: `lb-node detach` takes it off, then start again", root.display()
    )]
    NoMapsOf {
        /// The kernel's number of the program.
        program: u32,
        /// The folder that they should be in.
        root: PathBuf,
    },
    /// A program forwards, and which of the pinned maps it uses cannot be told.
    #[error(
        "program {program} is attached and forwards; which of the maps in {} it uses cannot be told: {source}. \
         Start lb-node once with CAP_SYS_ADMIN, or take the program off by `lb-node detach` and start again",
        root.display()
    )]
    UnknownMapsOf {
        /// The kernel's number of the program.
        program: u32,
        /// The folder that the maps are pinned in.
        root: PathBuf,
        /// The reason why the kernel does not tell.
        source: Box<aya::programs::ProgramError>,
    },
    /// A link is of a kind that the kernel cannot pin.
    #[error("the kernel gives no pinnable link for this program (Linux 5.9 for XDP, 6.6 for tc): {source}")]
    Link {
        /// Cause.
        source: aya::programs::links::LinkError,
    },
    /// The object cannot be loaded.
    #[error("loading the BPF object failed (is CAP_BPF there, and memory for the maps?): {source}")]
    Load {
        /// Cause.
        source: Box<aya::EbpfError>,
    },
    /// The kernel refuses a program.
    #[error("the kernel refuses program {program}: {source}")]
    Verify {
        /// The program.
        program: String,
        /// Cause, with the verifier's last words.
        source: Box<aya::programs::ProgramError>,
    },
    /// A program cannot be attached.
    #[error(
        "cannot attach to {interface}: {source} (does the interface exist, is another XDP program on it? \
         `ip link show dev {interface}` tells)"
    )]
    Attach {
        /// The interface.
        interface: String,
        /// Cause.
        source: Box<aya::programs::ProgramError>,
    },
    /// The object lacks a program.
    #[error("the BPF object has no program {name}: the build is broken")]
    NoProgram {
        /// The program.
        name: &'static str,
    },
    /// The object lacks a map.
    #[error("the BPF object has no map {name}: the build is broken")]
    NoMap {
        /// The map.
        name: &'static str,
    },
    /// A map cannot be used.
    #[error("map {name}: {source}")]
    Map {
        /// The map.
        name: &'static str,
        /// Cause.
        source: Box<aya::maps::MapError>,
    },
    /// A map cannot be mapped into memory.
    #[error("map {name} cannot be mapped into memory: {source}")]
    Mmap {
        /// The map.
        name: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// A map's elements are of another size.
    #[error("map {name} has elements of {found} bytes instead of {wanted}")]
    ValueSize {
        /// The map.
        name: &'static str,
        /// Size found.
        found: usize,
        /// Size wanted.
        wanted: usize,
    },
    /// More of something than the maps hold.
    #[error(
        "{wanted} {what} do not fit the {room} that the maps have room for: raise node.capacity.{field} and restart"
    )]
    Capacity {
        /// The things that there are too many of.
        what: &'static str,
        /// Their number.
        wanted: usize,
        /// Room.
        room: usize,
        /// Field of the node's configuration.
        field: &'static str,
    },
    /// The cluster's table size changed.
    #[error(
        "the cluster's table size is {wanted} slots now, the maps were made for {room}: restart this node"
    )]
    TableSize {
        /// Slots asked for.
        wanted: u32,
        /// Slots that the maps were made for.
        room: u32,
    },
    /// A real needs an outer source address that the node does not have.
    #[error(
        "VIP {vip} has a real at {real}, but this node has no {family} address to send from: give {interface} \
         one, or set node.source_{field}"
    )]
    NoSource {
        /// The VIP.
        vip: VipName,
        /// The real's address.
        real: std::net::IpAddr,
        /// Address family.
        family: &'static str,
        /// The field's ending.
        field: &'static str,
        /// The interface.
        interface: String,
    },
}
