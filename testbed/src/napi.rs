//! An XDP program that lets everything pass, for the ends of links whose other end sends by `XDP_TX`.
//!
//! A veth that gets frames by `XDP_TX` is told to poll for them only if it has an XDP program itself
//! (`veth_xdp_flush` of the kernel's drivers/net/veth.c). With receive offload alone the frames are queued, and wait
//! for the next one that comes the ordinary way: for seconds, on a quiet link.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::host::Host;

// Commands and constants of linux/bpf.h and linux/if_link.h.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// `r0 = XDP_PASS; exit`, as eight bytes each: opcode, registers, offset, immediate.
const PASS: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];

/// Puts the program on an interface. It stays as long as the interface, or until the host's bpffs folder goes.
pub(crate) fn keep_polling(host: &Host, interface: &str) -> Result<()> {
    let pin = host.bpffs().join(format!("pass-{interface}"));
    // Interfaces are looked up in the namespace of the thread that asks.
    host.enter(|| attach(interface, &pin))?
        .with_context(|| format!("cannot put an XDP program on {interface} of {}", host.name()))
}

fn attach(interface: &str, pin: &Path) -> Result<()> {
    let name = CString::new(interface)?;
    // SAFETY: a C string that lives through the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    ensure!(index != 0, "no such interface");
    let program = load().context("loading it")?;
    let link = bpf_fd(BPF_LINK_CREATE, &[raw(&program), index, BPF_XDP, XDP_FLAGS_DRV_MODE])
        .context("attaching it")?;
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let [low, high] = address(path.as_ptr() as usize);
    bpf(BPF_OBJ_PIN, &[low, high, raw(&link), 0])
        .with_context(|| format!("pinning it at {}", pin.display()))?;
    Ok(())
}

fn load() -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let [code_low, code_high] = address(PASS.as_ptr() as usize);
    let [license_low, license_high] = address(license.as_ptr() as usize);
    let count = u32::try_from(PASS.len()).map_err(io::Error::other)?;
    bpf_fd(BPF_PROG_LOAD, &[BPF_PROG_TYPE_XDP, count, code_low, code_high, license_low, license_high])
}

/// The two words of an address in `union bpf_attr`, which always has 64 bits for one.
fn address(pointer: usize) -> [u32; 2] {
    let bytes = (pointer as u64).to_ne_bytes();
    let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    [word(0), word(4)]
}

fn raw(fd: &OwnedFd) -> u32 {
    u32::try_from(fd.as_raw_fd()).expect("an open descriptor is not negative")
}

fn bpf_fd(command: libc::c_int, attributes: &[u32]) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(bpf(command, attributes)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened it for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Calls bpf(2). `attributes` are the words that `union bpf_attr` begins with; the kernel takes the rest as zero.
/// Addresses among them must be valid for what the command does with them.
fn bpf(command: libc::c_int, attributes: &[u32]) -> io::Result<libc::c_long> {
    // Room for the union's alignment.
    let mut words = [0_u64; 16];
    for (word, pair) in words.iter_mut().zip(attributes.chunks(2)) {
        let (first, second) = (pair[0].to_ne_bytes(), pair.get(1).copied().unwrap_or(0).to_ne_bytes());
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&first);
        bytes[4..].copy_from_slice(&second);
        *word = u64::from_ne_bytes(bytes);
    }
    let size = libc::c_uint::try_from(size_of_val(attributes)).map_err(io::Error::other)?;
    // SAFETY: `words` has at least `size` bytes, and callers in this module pass addresses of constants and of
    // strings that outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, words.as_mut_ptr(), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
