//! Checks that a BPF program is still attached to its interface.
//!
//! A pinned link outlives its interface, and anybody with the right may detach it, so a program that was attached once
//! may not be attached now. [`check`] asks the kernel about the pin itself, which takes no more than CAP_BPF.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// The program is not attached as it should be.
#[derive(Debug, thiserror::Error)]
pub enum NotAttached {
    /// The link cannot be read.
    #[error("its link cannot be read: {0}")]
    Link(#[from] io::Error),
    /// The link is attached to nothing.
    #[error("its link is detached")]
    Detached,
    /// The link is attached to another interface.
    #[error("its link leads to interface number {0}")]
    Elsewhere(u32),
    /// The link runs another program.
    #[error("its link runs program {0}")]
    Other(u32),
}

/// A BPF link as the kernel describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// Kernel's id of the program.
    pub program: u32,
    /// Index of the interface; `None` once the interface is gone or the link was detached.
    pub interface: Option<u32>,
}

/// Checks that the XDP or tcx link pinned at `pin` attaches the program with id `program` to the interface `index`.
///
/// # Errors
///
/// [`NotAttached`], which says what the link does instead.
pub fn check(pin: &Path, program: u32, index: u32) -> Result<(), NotAttached> {
    match link(pin)? {
        LinkInfo { interface: None, .. } => Err(NotAttached::Detached),
        LinkInfo { interface: Some(other), .. } if other != index => Err(NotAttached::Elsewhere(other)),
        LinkInfo { program: other, .. } if other != program => Err(NotAttached::Other(other)),
        LinkInfo { .. } => Ok(()),
    }
}

/// Reads an XDP or tcx link by its pin.
///
/// # Errors
///
/// If the pin is missing, may not be opened, or is another kind of link.
pub fn link(pin: &Path) -> io::Result<LinkInfo> {
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
    // SAFETY: the attributes have the kernel's layout; it writes at most `length` bytes to `info`, whose fields
    // take any.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw mut attributes, size_of::<Attributes>())
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if !matches!(info.kind, BPF_LINK_TYPE_XDP | BPF_LINK_TYPE_TCX) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no link of XDP or tcx"));
    }
    Ok(LinkInfo { program: info.program, interface: (info.interface != 0).then_some(info.interface) })
}

/// Opens a pinned object.
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
