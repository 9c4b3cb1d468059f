//! The front interface's MAC address, by which the program knows frames that are for this host.

use std::io;
use std::os::fd::AsRawFd as _;

/// The MAC address that an Ethernet interface has now; `None` for an interface of another kind.
///
/// # Errors
/// If there is no such interface.
pub(super) fn of(interface: &str) -> io::Result<Option<[u8; 6]>> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: all zeros are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *place = byte.cast_signed();
    }
    // SAFETY: the request has the kernel's layout, and a name that ends with a zero byte.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has written this part of the union.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr };
    if address.sa_family != libc::ARPHRD_ETHER {
        return Ok(None);
    }
    let mut mac = [0; 6];
    for (octet, byte) in mac.iter_mut().zip(address.sa_data) {
        *octet = byte.cast_unsigned();
    }
    Ok(Some(mac))
}
