//! Marked TCP connections, and what their errors mean.

use super::Fault;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Connects to `address` from a socket with that SO_MARK.
pub(super) async fn connect(address: SocketAddr, mark: Option<u32>) -> Result<TcpStream, Fault> {
    let socket = socket(address, mark)?;
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(at_once(&error)),
    }
    let stream = TcpStream::from_std(socket.into())
        .map_err(|error| Fault::node(format!("cannot wait for a socket: {error}")))?;
    connected(&stream).await.map_err(|error| in_time(&error, "connecting"))?;
    Ok(stream)
}

fn socket(address: SocketAddr, mark: Option<u32>) -> Result<Socket, Fault> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))
        .map_err(|error| Fault::node(format!("cannot open a socket: {error}")))?;
    let options = || {
        socket.set_tcp_nodelay(true)?;
        socket.set_linger(Some(Duration::ZERO))
    };
    options().map_err(|error| Fault::node(format!("cannot set socket options: {error}")))?;
    if let Some(mark) = mark {
        socket
            .set_mark(mark)
            .map_err(|error| Fault::node(format!("cannot mark a socket (needs CAP_NET_ADMIN): {error}")))?;
    }
    Ok(socket)
}

/// Waits until a connection under way is made or has failed.
async fn connected(stream: &TcpStream) -> io::Result<()> {
    loop {
        stream.writable().await?;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        match stream.peer_addr() {
            Ok(_) => return Ok(()),
            // Woken for nothing: wait for the next event.
            Err(error) if error.kind() == ErrorKind::NotConnected => {
                let not_yet: io::Result<()> =
                    stream.try_io(Interest::WRITABLE, || Err(ErrorKind::WouldBlock.into()));
                debug_assert!(not_yet.is_err());
            }
            Err(error) => return Err(error),
        }
    }
}

/// The meaning of an error that `connect` returned at once. Nothing has been heard from the network yet, so all
/// but what an answer could have brought is this node's own doing.
fn at_once(error: &io::Error) -> Fault {
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::TimedOut => {
            Fault::real(words(error))
        }
        _ => Fault::node(format!("cannot connect: {}", words(error))),
    }
}

/// The meaning of an error that came later, while `doing` something.
pub(super) fn in_time(error: &io::Error, doing: &str) -> Fault {
    let node = matches!(
        error.raw_os_error(),
        Some(
            libc::EADDRNOTAVAIL | libc::ENOBUFS | libc::ENOMEM | libc::ENETDOWN | libc::EPERM | libc::EACCES
        )
    );
    let reason = format!("{} while {doing}", words(error));
    if node { Fault::Node(reason) } else { Fault::Real(reason) }
}

/// The error without the number that [`io::Error`] appends.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(errno: i32) -> io::Error {
        io::Error::from_raw_os_error(errno)
    }

    #[test]
    fn an_error_at_once_is_the_nodes_unless_the_real_could_have_caused_it() {
        use libc::{
            EACCES, EADDRNOTAVAIL, ECONNREFUSED, EHOSTUNREACH, EMFILE, ENETUNREACH, ENOBUFS, EPERM, ETIMEDOUT,
        };
        for errno in [EHOSTUNREACH, ENETUNREACH, EADDRNOTAVAIL, EPERM, EACCES, EMFILE, ENOBUFS] {
            assert!(matches!(at_once(&error(errno)), Fault::Node(_)), "{errno}");
        }
        for errno in [ECONNREFUSED, ETIMEDOUT] {
            assert!(matches!(at_once(&error(errno)), Fault::Real(_)), "{errno}");
        }
    }

    #[test]
    fn an_unreachable_real_is_the_reals_fault_when_the_network_says_so() {
        for errno in
            [libc::EHOSTUNREACH, libc::ENETUNREACH, libc::ECONNREFUSED, libc::ECONNRESET, libc::ETIMEDOUT]
        {
            assert!(matches!(in_time(&error(errno), "connecting"), Fault::Real(_)), "{errno}");
        }
        for errno in [libc::ENOBUFS, libc::EADDRNOTAVAIL, libc::EPERM, libc::ENETDOWN] {
            assert!(matches!(in_time(&error(errno), "connecting"), Fault::Node(_)), "{errno}");
        }
        assert_eq!(
            in_time(&error(libc::ECONNREFUSED), "connecting"),
            Fault::real("connection refused while connecting")
        );
    }
}
