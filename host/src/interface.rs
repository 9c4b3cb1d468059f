//! Looks up network interfaces by name, without a netlink socket.

use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType, socket};
use std::io;

/// Returns the index of the interface `name` in this thread's network namespace; `None` if there is no such interface.
///
/// # Errors
///
/// If the kernel cannot be asked.
pub fn index(name: &str) -> io::Result<Option<u32>> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    match name_to_index(socket, name) {
        Ok(index) => Ok(Some(index)),
        Err(rustix::io::Errno::NODEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_has_a_number_and_a_name_that_nothing_has_none() {
        assert_eq!(index("lo").unwrap(), Some(1));
        assert_eq!(index("drover-none").unwrap(), None);
    }
}
