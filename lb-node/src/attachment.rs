//! Whether a program is still on its interface.
//!
//! A pinned link outlives its interface, and anybody with the right may detach it: that a program was attached once says
//! nothing of now. [`check`] asks the kernel about one link; [`follow`] looks after a node's data plane for as long as it
//! runs. The answers come from the pin itself, so neither needs more than CAP_BPF.

use crate::control::{Forwarding, Shared, locked};
use futures_util::StreamExt as _;
use rtnetlink::MulticastGroup;
use rustix::net::netdevice::name_to_index;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tracing::{error, info, warn};

/// How often a node looks whether its programs are attached. The kernel tells of interfaces that come and go, but not of
/// a link that somebody detaches.
const EVERY: Duration = Duration::from_secs(1);

/// What a node's data plane knows of its programs' place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachment {
    /// Why packets do not meet the programs, if so.
    pub problem: Option<Lost>,
    /// How often a program that had been taken off was put back.
    pub restored: u64,
}

/// Why packets do not meet a node's programs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The interface is gone, or another one has its name. Addresses, routes and next hops were learnt for the one that
    /// was there, so only a new process can go on.
    #[error("{0}")]
    Interface(String),
    /// A program was taken off and could not be put back yet; it is tried again.
    #[error("{0}")]
    Program(String),
}

/// Why a program is not where its link should have it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotAttached {
    /// The link cannot be looked at.
    #[error("its link cannot be read: {0}")]
    Link(#[from] io::Error),
    /// The link leads nowhere.
    #[error("its link is detached")]
    Detached,
    /// The link leads to another interface.
    #[error("its link leads to interface number {0}")]
    Elsewhere(u32),
    /// The link runs another program.
    #[error("its link runs program {0}")]
    Other(u32),
}

/// A pinned link as the kernel describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// The kernel's number of the program behind it.
    pub(crate) program: u32,
    /// The interface that it leads to; `None` once that is gone or the link was detached.
    pub(crate) interface: Option<u32>,
}

/// Whether `program` is on the interface with number `index` by the link of XDP or tcx that is pinned at `pin`.
pub(crate) fn check(pin: &Path, program: u32, index: u32) -> Result<(), NotAttached> {
    match link(pin)? {
        Link { interface: None, .. } => Err(NotAttached::Detached),
        Link { interface: Some(other), .. } if other != index => Err(NotAttached::Elsewhere(other)),
        Link { program: other, .. } if other != program => Err(NotAttached::Other(other)),
        Link { .. } => Ok(()),
    }
}

/// The number of an interface of this thread's network namespace; `None` where there is none of that name.
pub(crate) fn interface_index(name: &str) -> io::Result<Option<u32>> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    match name_to_index(socket, name) {
        Ok(index) => Ok(Some(index)),
        Err(rustix::io::Errno::NODEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Reads a link of XDP or tcx by its pin.
pub(crate) fn link(pin: &Path) -> io::Result<Link> {
    /// The part of `struct bpf_link_info` that is common to these two (linux/bpf.h).
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        program: u32,
        padding: u32,
        interface: u32,
        attach_type: u32,
    }
    /// `union bpf_attr` of BPF_OBJ_GET_INFO_BY_FD.
    #[repr(C)]
    struct Attributes {
        fd: u32,
        length: u32,
        info: u64,
    }
    const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    const BPF_LINK_TYPE_XDP: u32 = 6;
    const BPF_LINK_TYPE_TCX: u32 = 11;
    let fd = open(pin)?;
    let mut info = Info::default();
    let mut attributes = Attributes {
        fd: u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)?,
        length: u32::try_from(size_of::<Info>()).map_err(io::Error::other)?,
        info: &raw mut info as u64,
    };
    // SAFETY: the attributes have the kernel's layout; it writes at most `length` bytes to `info`, whose fields take any.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw mut attributes, size_of::<Attributes>())
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if !matches!(info.kind, BPF_LINK_TYPE_XDP | BPF_LINK_TYPE_TCX) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no link of XDP or tcx"));
    }
    Ok(Link { program: info.program, interface: (info.interface != 0).then_some(info.interface) })
}

/// Opens what is pinned.
fn open(pin: &Path) -> io::Result<OwnedFd> {
    /// `union bpf_attr` of BPF_OBJ_GET.
    #[repr(C)]
    struct Attributes {
        path: u64,
        fd: u32,
        flags: u32,
    }
    const BPF_OBJ_GET: libc::c_long = 7;
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut attributes = Attributes { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the attributes have the kernel's layout, and the path is a C string that lives until the call is over.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw mut attributes, size_of::<Attributes>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Looks after the place of a node's programs: every second, and whenever the kernel tells that an interface changed.
/// Ends with the last receiver.
pub(crate) fn follow<D: Forwarding>(dataplane: Shared<D>) -> watch::Receiver<Attachment> {
    let (attachment, receiver) = watch::channel(Attachment::default());
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut news = match rtnetlink::new_multicast_connection(&[MulticastGroup::Link]) {
            Ok((connection, _, news)) => {
                tokio::spawn(connection);
                Some(news)
            }
            Err(error) => {
                warn!(%error, "the kernel does not tell of interfaces that come and go: looking every {EVERY:?}");
                None
            }
        };
        loop {
            let looked = {
                let dataplane = dataplane.clone();
                tokio::task::spawn_blocking(move || locked(&dataplane).look_after_attachment()).await
            };
            match looked {
                Ok(now) => publish(&attachment, now),
                Err(panic) => error!("a fault of this program: {panic}"),
            }
            tokio::select! {
                () = attachment.closed() => return,
                _ = ticks.tick() => {}
                told = async { news.as_mut()?.next().await }, if news.is_some() => match told {
                    Some(_) => while news.as_mut().is_some_and(|news| news.try_recv().is_ok()) {},
                    None => news = None,
                },
            }
        }
    });
    receiver
}

/// Publishes how it is now, and tells what is new of that.
fn publish(attachment: &watch::Sender<Attachment>, now: Attachment) {
    attachment.send_if_modified(|before| {
        match (&before.problem, &now.problem) {
            (before, Some(problem)) if before.as_ref() != Some(problem) => {
                error!(%problem, "this node's programs are not on their interface: it serves nothing");
            }
            (Some(_), None) => info!("this node's programs are on their interface again"),
            _ => {}
        }
        let differs = *before != now;
        *before = now;
        differs
    });
}
