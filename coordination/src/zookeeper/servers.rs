//! The connect string: where the servers are, and which subtree is ours.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::Error;

/// The port that ZooKeeper's own tools assume.
const DEFAULT_PORT: u16 = 2181;

/// A connect string that has been understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Servers {
    servers: Vec<Server>,
    /// Absolute path of the znode that paths begin at; empty for the whole tree.
    chroot: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    /// A name, or an address without brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

impl Servers {
    /// Understands `host:port,host:port/chroot`. IPv6 addresses are in brackets; a missing port is 2181.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let wrong = |what: &str| {
            Error::Other(format!(
                "ZooKeeper servers \"{text}\": {what}; expected is something like \
                 \"zk1:2181,zk2:2181,zk3:2181\", or with a subtree \"zk1:2181,zk2:2181/drover\""
            ))
        };
        if text.contains("://") {
            return Err(wrong("no scheme belongs here, TLS is a setting of its own"));
        }
        let (servers, chroot) = match text.find('/') {
            Some(at) => text.split_at(at),
            None => (text, ""),
        };
        if chroot.contains(',') {
            return Err(wrong("the subtree is named once, after the last server"));
        }
        let chroot = if chroot == "/" { "" } else { chroot };
        if chroot.ends_with('/') || chroot.contains("//") || chroot.contains(char::is_whitespace) {
            return Err(wrong(&format!(
                "{chroot} is no path of a znode (no blanks, no empty name, no slash at the end)"
            )));
        }
        let servers = servers.split(',').map(|server| Server::parse(server).map_err(|what| wrong(&what)));
        Ok(Self { servers: servers.collect::<Result<_, _>>()?, chroot: chroot.to_owned() })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Server> {
        self.servers.iter()
    }

    /// The subtree's path, or an empty string.
    pub(super) fn chroot(&self) -> &str {
        &self.chroot
    }

    /// The connect string for the client library, which sees names only.
    ///
    /// If `connect()` fails at once, as it does without a route, version 0.11.2 of the library tries again in a loop
    /// that takes a full core, never yields to other tasks and never ends, though the session has long expired. It
    /// waits for nothing else there but for the resolution of names. So addresses are written in a form that only the
    /// resolver understands: `10.0.0.0x1` (as `inet_aton`(3) has it) and `2001:db8::1%0` (a scope identifier of 0 is
    /// none, RFC 4007, section 11.2).
    pub(super) fn for_library(&self) -> String {
        let servers: Vec<String> = self.servers.iter().map(Server::for_library).collect();
        servers.join(",") + &self.chroot
    }
}

/// Only the servers.
impl fmt::Display for Servers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, server) in self.servers.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(formatter, "{comma}{server}")?;
        }
        Ok(())
    }
}

impl Server {
    fn parse(text: &str) -> Result<Self, String> {
        let (host, port) = match text.strip_prefix('[').map(|rest| rest.split_once(']')) {
            Some(None) => return Err(format!("{text} has no closing bracket")),
            Some(Some((host, rest))) => (host, rest),
            None => text.find(':').map_or((text, ""), |at| text.split_at(at)),
        };
        if text.is_empty() || host.is_empty() {
            return Err("a server's name is missing".into());
        }
        let in_brackets = text.starts_with('[');
        if !in_brackets && port[port.len().min(1)..].contains(':') {
            return Err(format!("an IPv6 address belongs in brackets ({text})"));
        }
        let address = host.split_once('%').map_or(host, |(address, _)| address);
        if in_brackets && address.parse::<Ipv6Addr>().is_err() {
            return Err(format!("{host} is no IPv6 address"));
        }
        let of_a_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if !in_brackets && !host.chars().all(of_a_name) {
            return Err(format!("{host} is no host's name"));
        }
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => DEFAULT_PORT,
            Some(number) if number.bytes().all(|digit| digit.is_ascii_digit()) => {
                number.parse().ok().filter(|port| *port != 0).ok_or(format!("{text} has no valid port"))?
            }
            _ => return Err(format!("{text} has no valid port")),
        };
        Ok(Self { host: host.to_owned(), port })
    }

    /// Returns whether it is an address rather than a name.
    pub(super) fn is_address(&self) -> bool {
        self.host.contains(':') || self.host.parse::<Ipv4Addr>().is_ok()
    }

    fn for_library(&self) -> String {
        let port = self.port;
        if let Ok(address) = self.host.parse::<Ipv4Addr>() {
            let [a, b, c, d] = address.octets();
            return format!("{a}.{b}.{c}.{d:#x}:{port}");
        }
        match self.host.parse::<Ipv6Addr>() {
            Ok(address) => format!("[{address}%0]:{port}"),
            Err(_) => self.to_string(),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') {
            write!(formatter, "[{host}]:{port}")
        } else {
            write!(formatter, "{host}:{port}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

    #[test]
    fn a_connect_string_has_servers_and_a_subtree() {
        let servers = Servers::parse("zk1:2181,zk2,[2001:db8::1]:2183/drover/a").unwrap();
        assert_eq!(servers.to_string(), "zk1:2181,zk2:2181,[2001:db8::1]:2183");
        assert_eq!(servers.chroot(), "/drover/a");
        assert_eq!(Servers::parse("zk1/").unwrap().chroot(), "");
    }

    #[test]
    fn a_wrong_connect_string_is_refused_with_the_reason_and_an_example() {
        for (text, reason) in [
            ("", "name is missing"),
            ("a,,b", "name is missing"),
            ("a:2181,", "name is missing"),
            ("a:0", "no valid port"),
            ("a:+5", "no valid port"),
            ("a:x", "no valid port"),
            ("a:70000", "no valid port"),
            ("tcp://a", "no scheme"),
            ("2001:db8::1", "belongs in brackets"),
            ("[2001:db8::1", "no closing bracket"),
            ("[zk1]:2181", "no IPv6 address"),
            ("a b:1", "no host's name"),
            ("a/x,b/x", "named once"),
            ("a/x/", "no path of a znode"),
            ("a//x", "no path of a znode"),
        ] {
            let error = Servers::parse(text).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("zk1:2181,"), "{text}: {error}");
        }
    }

    #[test]
    fn the_library_sees_no_address_and_the_resolver_finds_it_all_the_same() {
        for address in ["127.0.0.1:1", "10.255.0.77:2181", "[::1]:65535", "[2001:db8::a]:2181"] {
            let shown = Servers::parse(address).unwrap().for_library();
            // This is how the library takes it apart.
            let (host, port) = shown.rsplit_once(':').unwrap();
            let host = host.trim_matches(['[', ']']);
            assert!(host.parse::<IpAddr>().is_err(), "{host}");
            let found: Vec<SocketAddr> = (host, port.parse().unwrap()).to_socket_addrs().unwrap().collect();
            assert_eq!(found, [address.parse().unwrap()], "{shown}");
        }
        assert_eq!(Servers::parse("zk1:1,zk2/x").unwrap().for_library(), "zk1:1,zk2:2181/x");
    }
}
