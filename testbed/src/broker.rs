//! mosquitto on a host.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::host::Host;
use crate::process::Process;

/// Where brokers listen.
pub const MQTT_PORT: u16 = 1883;

const START_LIMIT: Duration = Duration::from_secs(10);

/// A mosquitto that listens on all addresses of its host and lets anyone in.
#[derive(Debug)]
pub struct Broker {
    host: Host,
    ports: RangeInclusive<u16>,
    process: Process,
}

/// A connection that a broker has accepted, as its log tells.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Accepted {
    /// The MQTT client identifier.
    pub client: String,
    /// The client's address and port, as the broker sees them.
    pub peer: SocketAddr,
}

impl Broker {
    /// Starts it and waits until it accepts connections.
    ///
    /// # Errors
    ///
    /// When it does not come up in 10 s; with its output.
    pub fn start(host: &Host) -> Result<Broker> {
        Broker::start_on(host, MQTT_PORT..=MQTT_PORT)
    }

    /// As [`Broker::start`], with a listener on each of these ports.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn start_on(host: &Host, ports: RangeInclusive<u16>) -> Result<Broker> {
        let process = launch(host, &ports)?;
        Ok(Broker { host: host.clone(), ports, process })
    }

    /// Starts it again after its end, on the same ports.
    ///
    /// # Errors
    ///
    /// As [`Broker::start`], and when it still runs.
    pub fn restart(&mut self) -> Result<()> {
        ensure!(!self.process.is_running()?, "{} still runs", self.process.name());
        self.process = launch(&self.host, &self.ports)?;
        Ok(())
    }

    /// The process, to kill or to signal.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The connections that it has accepted since it started, in order, by its own log.
    ///
    /// # Errors
    ///
    /// When the log cannot be read.
    pub fn accepted(&self) -> Result<Vec<Accepted>> {
        Ok(self.process.log()?.lines().filter_map(accepted).collect())
    }

    /// The peers of the TCP connections to the broker's ports that are established now, by the host's kernel.
    ///
    /// # Errors
    ///
    /// When `ss` fails, or its output is not understood.
    pub fn established(&self) -> Result<BTreeSet<SocketAddr>> {
        let filter = format!("( sport >= :{} and sport <= :{} )", self.ports.start(), self.ports.end());
        let sockets = self.host.run(["ss", "-Htn", "state", "established", &filter])?;
        sockets
            .lines()
            .map(|line| {
                let peer = line.split_whitespace().nth(3).and_then(|peer| peer.parse::<SocketAddr>().ok());
                peer.map(canonical).with_context(|| format!("not a socket as `ss` prints it: {line}"))
            })
            .collect()
    }
}

fn launch(host: &Host, ports: &RangeInclusive<u16>) -> Result<Process> {
    let config = host.dir().join("mosquitto.conf");
    let mut settings = String::new();
    for port in ports.clone() {
        let _ = writeln!(settings, "listener {port}");
    }
    settings += "allow_anonymous true\n\
                 persistence false\n\
                 log_dest stderr\n\
                 log_type error\n\
                 log_type warning\n\
                 log_type notice\n\
                 log_type information\n\
                 connection_messages true\n";
    fs::write(&config, settings).with_context(|| format!("cannot write {}", config.display()))?;
    let mut process = host.command("mosquitto").arg("-c").arg(&config).spawn()?;
    process.wait_for_line("running", START_LIMIT)?;
    Ok(process)
}

/// `1700000000: New client connected from 10.1.1.2:45678 as some-client (p2, c1, k60).`
fn accepted(line: &str) -> Option<Accepted> {
    let (_, rest) = line.split_once(": New client connected from ")?;
    let (peer, rest) = rest.split_once(" as ")?;
    let (client, _) = rest.rsplit_once(" (")?;
    let (address, port) = peer.rsplit_once(':')?;
    let peer = SocketAddr::new(address.parse().ok()?, port.parse().ok()?);
    Some(Accepted { client: client.to_owned(), peer: canonical(peer) })
}

/// A v4 peer of a v6 socket (`::ffff:10.0.0.1`) in its own form.
fn canonical(peer: SocketAddr) -> SocketAddr {
    let address: IpAddr = peer.ip().to_canonical();
    SocketAddr::new(address, peer.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_line_of_a_connection_is_understood_for_both_families() {
        let line = "1700000000: New client connected from 10.1.1.2:45678 as demo 1 (p2, c1, k60).";
        let expected = Accepted { client: "demo 1".into(), peer: "10.1.1.2:45678".parse().unwrap() };
        assert_eq!(accepted(line), Some(expected));

        let line = "1700000000: New client connected from 2001:db8:1:1::2:45678 as x (p2, c1, k60, u'me').";
        let expected = Accepted { client: "x".into(), peer: "[2001:db8:1:1::2]:45678".parse().unwrap() };
        assert_eq!(accepted(line), Some(expected));
    }

    #[test]
    fn other_lines_of_the_log_are_not_connections() {
        assert_eq!(accepted("1700000000: New connection from 10.1.1.2:45678 on port 1883."), None);
        assert_eq!(accepted("1700000000: Client demo disconnected."), None);
    }
}
