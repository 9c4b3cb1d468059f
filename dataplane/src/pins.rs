//! The pins of programs, links and maps on the bpffs, by which one daemon takes over from another.
//!
//! ```text
//! <bpffs>/<interface>/lb/maps/<MAP>   the maps in use
//! <bpffs>/<interface>/lb/maps/program-<number>  the XDP program that uses them
//! <bpffs>/<interface>/lb/next/<MAP>   maps of another layout, filled but not in use yet
//! <bpffs>/<interface>/lb/xdp-native   link of drover_lb in the driver, or
//! <bpffs>/<interface>/lb/xdp-generic  in the network stack
//! <bpffs>/<interface>/lb/probe        link of drover_probe
//! ```
//!
//! A daemon that finds maps of its own layout and size uses them and replaces the programs through the
//! pinned links, which the kernel does atomically. Otherwise it builds `next` beside them, fills it, and
//! only then replaces the programs; `next` becomes `maps` by a rename. A crash between the two steps is
//! found at the next start: each program is pinned beside its maps before it is attached, and the link
//! tells the number of the program behind it. So the live folder is known without the kernel's list of
//! programs, which takes CAP_SYS_ADMIN. Where it cannot be known, nothing is touched: empty maps must
//! never replace those of a program that forwards.

use super::Error;
use aya::maps::{Array, Map, MapData, MapInfo};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{Program, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode as AyaMode};
use aya::{Ebpf, EbpfLoader};
use host::attached::{self, LinkInfo};
use host::bpffs;
use lb_ebpf::lb::Config;
use std::collections::BTreeMap;
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

/// The name of an XDP program's pin, before its number.
const PROGRAM_PIN: &str = "program-";

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
        [true, false].map(|native| (self.xdp_link(native), native))
    }

    /// The link of the XDP program, in the driver (native) or in the network stack.
    pub(super) fn xdp_link(&self, native: bool) -> PathBuf {
        self.root.join(if native { "xdp-native" } else { "xdp-generic" })
    }

    /// The link of the tc program.
    pub(super) fn probe_link(&self) -> PathBuf {
        self.root.join("probe")
    }

    /// Finishes or undoes what a crashed daemon began.
    ///
    /// # Errors
    /// If a program is attached and its maps cannot be told.
    pub(super) fn recover(&self) -> Result<(), Error> {
        let (maps, next) = (self.maps(), self.next());
        let Some(live) = self.attached_program()? else { return self.remove(&next) };
        if self.programs(&next)?.contains_key(&live) {
            return self.adopt_next();
        }
        if !self.programs(&maps)?.contains_key(&live) {
            // A predecessor that pinned no programs.
            if next.exists() && self.uses(live, &next)? {
                return self.adopt_next();
            }
            if !maps.join("CONFIG").exists() {
                return Err(Error::NoMapsOf { program: live, root: self.root.clone() });
            }
        }
        self.remove(&next)
    }

    /// Makes `next` the maps in use.
    pub(super) fn adopt_next(&self) -> Result<(), Error> {
        let (maps, next) = (self.maps(), self.next());
        self.remove(&maps)?;
        fs::rename(&next, &maps).map_err(|source| self.error(&next, source))
    }

    /// The number of the XDP program that is attached by a pinned link.
    fn attached_program(&self) -> Result<Option<u32>, Error> {
        for (path, _) in self.xdp_links() {
            match attached::link(&path) {
                Ok(LinkInfo { program, interface: Some(_) }) => return Ok(Some(program)),
                // Its interface is gone, or somebody took it off.
                Ok(LinkInfo { interface: None, .. }) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(self.error(&path, source)),
            }
        }
        Ok(None)
    }

    /// The XDP programs that are pinned beside their maps in `folder`, by number.
    fn programs(&self, folder: &Path) -> Result<BTreeMap<u32, PathBuf>, Error> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(source) => return Err(self.error(folder, source)),
        };
        let mut programs = BTreeMap::new();
        for entry in entries {
            let path = entry.map_err(|source| self.error(folder, source))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if let Some(number) = name.and_then(|name| name.strip_prefix(PROGRAM_PIN)?.parse().ok()) {
                programs.insert(number, path);
            }
        }
        Ok(programs)
    }

    /// Pins the XDP program beside its maps in `folder`; returns its number.
    fn pin_program(&self, program: &mut Xdp, folder: &Path) -> Result<u32, Error> {
        let info = program
            .info()
            .map_err(|source| Error::Verify { program: XDP_PROGRAM.to_owned(), source: Box::new(source) })?;
        let path = folder.join(format!("{PROGRAM_PIN}{}", info.id()));
        if !path.exists() {
            program.pin(&path).map_err(|source| Error::PinLink { path, source })?;
        }
        Ok(info.id())
    }

    /// Returns whether a program uses the maps in `folder`, by the kernel's list of programs.
    fn uses(&self, program: u32, folder: &Path) -> Result<bool, Error> {
        let Ok(config) = MapInfo::from_pin(folder.join("CONFIG")) else { return Ok(false) };
        let unknown =
            |source| Error::UnknownMapsOf { program, root: self.root.clone(), source: Box::new(source) };
        for loaded in aya::programs::loaded_programs() {
            let loaded = loaded.map_err(unknown)?;
            if loaded.id() == program {
                let maps = loaded.map_ids().map_err(unknown)?.unwrap_or_default();
                return Ok(maps.contains(&config.id()));
            }
        }
        Ok(false)
    }

    /// Returns whether the maps in use have the layout and sizes wanted; `None`: there are no maps.
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

    /// Attaches the XDP program, whose maps are in `folder`, or puts it in place of a predecessor's.
    /// Returns whether it runs in the driver.
    pub(super) fn attach_xdp(
        &self,
        program: &mut Xdp,
        folder: &Path,
        interface: &str,
        mode: XdpMode,
    ) -> Result<bool, Error> {
        let own = self.pin_program(program, folder)?;
        let native = self.link_xdp(program, interface, mode)?;
        for (number, path) in self.programs(folder)? {
            if number != own {
                fs::remove_file(&path).map_err(|source| self.error(&path, source))?;
            }
        }
        Ok(native)
    }

    fn link_xdp(&self, program: &mut Xdp, interface: &str, mode: XdpMode) -> Result<bool, Error> {
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

/// Returns the configuration of the maps in use; `None` if there are no maps, or their layout is another.
pub(super) fn pinned_config(bpffs: &Path, interface: &str) -> Option<Config> {
    let root = bpffs::directory(bpffs, interface, "lb");
    // A crash inside `adopt_next` leaves only the latter.
    config(&root.join("maps")).or_else(|| config(&root.join("next")))
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
