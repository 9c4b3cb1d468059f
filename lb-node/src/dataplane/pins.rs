//! Where programs, links and maps live on the bpffs, and how one daemon takes over from another.
//!
//! ```text
//! <bpffs>/<interface>/lb/maps/<MAP>   the maps in use
//! <bpffs>/<interface>/lb/next/<MAP>   maps of another layout, filled but not in use yet
//! <bpffs>/<interface>/lb/xdp-native   link of drover_lb in the driver, or
//! <bpffs>/<interface>/lb/xdp-generic  in the network stack
//! <bpffs>/<interface>/lb/probe        link of drover_probe
//! ```
//!
//! A daemon that finds maps of its own layout and size uses them and replaces the programs through the
//! pinned links, which the kernel does atomically. Otherwise it builds `next` beside them, fills it, and
//! only then replaces the programs; `next` becomes `maps` by a rename. A crash between the two steps is
//! found at the next start: the program that is attached tells by its maps which folder is live.

use super::Error;
use crate::bpffs;
use aya::maps::{Array, Map, MapData, MapInfo};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{Program, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode as AyaMode};
use aya::{Ebpf, EbpfLoader};
use lb_ebpf::lb::Config;
use std::error::Error as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use zk_schema::XdpMode;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/drover-lb"));

/// Name of the XDP program.
pub(super) const XDP_PROGRAM: &str = "drover_lb";
/// Name of the tc program.
pub(super) const PROBE_PROGRAM: &str = "drover_probe";

/// A map's name and the size it must have; `None`: the size in the object.
pub(super) type Size = (&'static str, Option<u32>);

/// The pins of one interface.
pub(super) struct Pins {
    root: PathBuf,
    _lock: fs::File,
}

impl Pins {
    /// The pins below `bpffs` for `interface`; makes the folder, and locks it against a second daemon.
    pub(super) fn open(bpffs: &Path, interface: &str) -> Result<Self, Error> {
        bpffs::ensure(bpffs).map_err(Error::Bpffs)?;
        let root = bpffs::directory(bpffs, interface, "lb");
        fs::create_dir_all(&root).map_err(|source| Error::Pin { path: root.clone(), source })?;
        Self::lock(root, interface)
    }

    /// The pins, if there are any.
    pub(super) fn open_existing(bpffs: &Path, interface: &str) -> Result<Option<Self>, Error> {
        let root = bpffs::directory(bpffs, interface, "lb");
        if root.is_dir() { Self::lock(root, interface).map(Some) } else { Ok(None) }
    }

    fn lock(root: PathBuf, interface: &str) -> Result<Self, Error> {
        let lock = bpffs::lock(&root, "lb-node run", interface).map_err(Error::Bpffs)?;
        Ok(Self { root, _lock: lock })
    }

    fn error(&self, path: &Path, source: io::Error) -> Error {
        Error::Pin { path: path.to_owned(), source }
    }

    /// The maps in use.
    pub(super) fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// The maps being built.
    pub(super) fn next(&self) -> PathBuf {
        self.root.join("next")
    }

    /// Links of the XDP program by whether it runs in the driver; at most one of them exists.
    fn xdp_links(&self) -> [(PathBuf, bool); 2] {
        [(self.root.join("xdp-native"), true), (self.root.join("xdp-generic"), false)]
    }

    fn probe_link(&self) -> PathBuf {
        self.root.join("probe")
    }

    /// Finishes or undoes what a crashed daemon began.
    pub(super) fn recover(&self) -> Result<(), Error> {
        let next = self.next();
        if !next.exists() {
            return Ok(());
        }
        let live = self.live_maps();
        let config = MapInfo::from_pin(next.join("CONFIG")).map(|info| info.id()).ok();
        if config.is_some_and(|id| live.contains(&id)) { self.adopt_next() } else { self.remove(&next) }
    }

    /// Makes `next` the maps in use.
    pub(super) fn adopt_next(&self) -> Result<(), Error> {
        let (maps, next) = (self.maps(), self.next());
        self.remove(&maps)?;
        fs::rename(&next, &maps).map_err(|source| self.error(&next, source))
    }

    /// Identifiers of the maps that the attached program uses.
    fn live_maps(&self) -> Vec<u32> {
        let program = self.xdp_links().into_iter().find_map(|(path, _)| {
            let info = FdLink::from(PinnedLink::from_pin(path).ok()?).info().ok()?;
            aya::programs::loaded_programs().flatten().find(|program| program.id() == info.program_id())
        });
        program.and_then(|program| program.map_ids().ok().flatten()).unwrap_or_default()
    }

    /// Whether the maps in use have the layout and sizes wanted; `None`: there are none.
    pub(super) fn matches(&self, sizes: &[Size], config_size: u32) -> Option<bool> {
        let maps = self.maps();
        if !maps.join("CONFIG").exists() {
            return None;
        }
        let fits = |&(name, entries): &Size| {
            MapInfo::from_pin(maps.join(name)).is_ok_and(|info| {
                entries.is_none_or(|entries| info.max_entries() == entries)
                    && (name != "CONFIG" || info.value_size() == config_size)
            })
        };
        Some(sizes.iter().all(fits))
    }

    /// Layout version of the maps in use.
    pub(super) fn layout(&self) -> Option<u32> {
        config(&self.maps()).map(|config| config.layout)
    }

    /// Loads the object, with maps pinned in `folder` or taken from there.
    pub(super) fn load(&self, folder: &Path, sizes: &[Size]) -> Result<Ebpf, Error> {
        fs::create_dir_all(folder).map_err(|source| self.error(folder, source))?;
        let mut loader = EbpfLoader::new();
        for &(name, entries) in sizes {
            loader.map_pin_path(name, folder.join(name));
            if let Some(entries) = entries {
                loader.map_max_entries(name, entries);
            }
        }
        let mut object = loader.load(OBJECT).map_err(|source| Error::Load { source: Box::new(source) })?;
        for (name, program) in object.programs_mut() {
            match program {
                Program::Xdp(program) => program.load(),
                Program::SchedClassifier(program) => program.load(),
                _ => continue,
            }
            .map_err(|source| Error::Verify { program: name.to_owned(), source: Box::new(source) })?;
        }
        Ok(object)
    }

    /// Attaches the XDP program, or puts it in place of a predecessor's. Returns whether it runs in
    /// the driver.
    pub(super) fn attach_xdp(
        &self,
        program: &mut Xdp,
        interface: &str,
        mode: XdpMode,
    ) -> Result<bool, Error> {
        for (path, native) in self.xdp_links() {
            let Ok(pinned) = PinnedLink::from_pin(&path) else { continue };
            let wanted = match mode {
                XdpMode::Auto => true,
                XdpMode::Native => native,
                XdpMode::Generic => !native,
            };
            let link = FdLink::from(pinned).try_into().map_err(|source| Error::Link { source })?;
            if wanted && let Ok(id) = program.attach_to_link(link) {
                // The pin keeps the link; this handle may go.
                drop(program.take_link(id));
                if mode == XdpMode::Auto && !native {
                    warn_of_generic(interface, "found by the predecessor");
                }
                return Ok(native);
            }
            // Another mode than wanted, or the interface that the link belonged to is gone.
            fs::remove_file(&path).map_err(|source| self.error(&path, source))?;
        }
        let mut last: Option<ProgramError> = None;
        for (path, native) in self.xdp_links() {
            if mode == if native { XdpMode::Generic } else { XdpMode::Native } {
                continue;
            }
            match program.attach(interface, if native { AyaMode::Driver } else { AyaMode::Skb }) {
                Ok(id) => {
                    let link = program.take_link(id).map_err(|source| attach_error(interface, source))?;
                    let link: FdLink = link.try_into().map_err(|source| Error::Link { source })?;
                    link.pin(&path).map_err(|source| Error::PinLink { path, source })?;
                    if let Some(refusal) = last {
                        let why = refusal.source().map_or_else(|| refusal.to_string(), ToString::to_string);
                        warn_of_generic(interface, &why);
                    }
                    return Ok(native);
                }
                Err(source) => last = Some(source),
            }
        }
        Err(last.map_or(Error::NoProgram { name: XDP_PROGRAM }, |source| attach_error(interface, source)))
    }

    /// The same for the tc program.
    pub(super) fn attach_probe(&self, program: &mut SchedClassifier, interface: &str) -> Result<(), Error> {
        let path = self.probe_link();
        if let Ok(pinned) = PinnedLink::from_pin(&path) {
            let link = FdLink::from(pinned).try_into().map_err(|source| Error::Link { source })?;
            match program.attach_to_link(link) {
                Ok(id) => {
                    drop(program.take_link(id));
                    return Ok(());
                }
                Err(_) => fs::remove_file(&path).map_err(|source| self.error(&path, source))?,
            }
        }
        let id = program
            .attach(interface, TcAttachType::Egress)
            .map_err(|source| attach_error(interface, source))?;
        let link = program.take_link(id).map_err(|source| attach_error(interface, source))?;
        let link: FdLink = link.try_into().map_err(|source| Error::Link { source })?;
        link.pin(&path).map_err(|source| Error::PinLink { path: path.clone(), source })?;
        Ok(())
    }

    /// Removes links, maps and folders.
    pub(super) fn clear(self) -> Result<(), Error> {
        self.remove(&self.root)?;
        // The folder above may hold another agent's pins; only an empty one goes.
        if let Some(interface) = self.root.parent() {
            let _ = fs::remove_dir(interface);
        }
        Ok(())
    }

    fn remove(&self, folder: &Path) -> Result<(), Error> {
        bpffs::remove_tree(folder).map_err(Error::Bpffs)
    }
}

/// What the maps in use are configured with; `None` where there are none, or their layout is another.
pub(super) fn pinned_config(bpffs: &Path, interface: &str) -> Option<Config> {
    config(&bpffs::directory(bpffs, interface, "lb").join("maps"))
}

fn config(maps: &Path) -> Option<Config> {
    let data = MapData::from_pin(maps.join("CONFIG")).ok()?;
    // Also of maps of another version: where the value is of another size, this refuses to read it.
    let config: Array<_, Config> = Array::try_from(Map::Array(data)).ok()?;
    config.get(&0, 0).ok()
}

fn attach_error(interface: &str, source: ProgramError) -> Error {
    Error::Attach { interface: interface.to_owned(), source: Box::new(source) }
}

/// Generic mode was not asked for, but is what there is.
fn warn_of_generic(interface: &str, why: &str) {
    tracing::warn!(
        interface,
        "no native XDP on this interface ({why}): running in generic mode, which is slower"
    );
}
