//! The daemon under test.

use std::env;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::access::Member;
use crate::cluster::replace;
use testbed::{Host, HostCommand, Process, Station};

const NODE_ADMIN_PORT: u16 = 9940;
const REAL_ADMIN_PORT: u16 = 9941;
const START_LIMIT: Duration = Duration::from_secs(20);
const HTTP_LIMIT: Duration = Duration::from_secs(5);

/// `lb-node run` on a node.
#[derive(Debug)]
pub struct LbNode {
    station: Station,
    process: Process,
}

impl LbNode {
    /// Starts the daemon on this cluster file, which must leave `admin` at its default, and waits until it is
    /// ready: its tables are in the kernel.
    ///
    /// # Errors
    ///
    /// When the binary is missing or the daemon is not ready in 20 s; with its output.
    pub fn start(station: &Station, cluster: &Path) -> Result<LbNode> {
        let mut node = LbNode::spawn(&[], &binary()?, station, "--standalone", cluster)?;
        node.wait_ready()?;
        Ok(node)
    }

    /// Starts the daemon as a node of a cluster on this node file, which must leave `admin` at its default. It is not
    /// ready yet.
    ///
    /// # Errors
    ///
    /// When the binary is missing.
    pub fn launch(station: &Station, node_file: &Path) -> Result<LbNode> {
        LbNode::launch_from(&binary()?, station, node_file)
    }

    /// As [`LbNode::launch`], from this binary.
    ///
    /// # Errors
    ///
    /// When it is missing.
    pub fn launch_from(binary: &Path, station: &Station, node_file: &Path) -> Result<LbNode> {
        LbNode::spawn(&[], binary, station, "--config", node_file)
    }

    /// As [`LbNode::start`], by way of a command that starts the daemon: `under` are its words, which those of the daemon
    /// follow. The daemon is not ready yet.
    ///
    /// # Errors
    ///
    /// When the binary is missing.
    pub fn launch_under(under: &[&str], station: &Station, cluster: &Path) -> Result<LbNode> {
        LbNode::spawn(under, &binary()?, station, "--standalone", cluster)
    }

    fn spawn(under: &[&str], binary: &Path, station: &Station, kind: &str, file: &Path) -> Result<LbNode> {
        let host = &station.host;
        let command = match under.split_first() {
            Some((program, words)) => host.command(program).args(words).arg(binary),
            None => host.command(binary),
        };
        let command = command.args(["run", kind]).arg(file);
        let process = command.arg("--bpffs").arg(host.bpffs()).spawn()?;
        Ok(LbNode { station: station.clone(), process })
    }

    /// Starts the guard of a node that has been launched by a file of its host's, and runs or ran.
    ///
    /// # Errors
    ///
    /// When the binary is missing.
    pub fn guard(station: &Station) -> Result<Process> {
        let file = station.host.dir().join("node.toml");
        station.host.command(binary()?).args(["guard", "--config"]).arg(file).spawn()
    }

    /// Waits until the daemon is ready: its tables are in the kernel.
    ///
    /// # Errors
    ///
    /// When it is not in 20 s; with its output.
    pub fn wait_ready(&mut self) -> Result<()> {
        let host = self.station.host.clone();
        self.process.wait_ready("/readyz to answer 200", START_LIMIT, || {
            answers_well(&host, NODE_ADMIN_PORT, "/readyz")
        })
    }

    /// What `/status` says now.
    ///
    /// # Errors
    ///
    /// When the daemon does not answer in JSON.
    pub fn status(&self) -> Result<serde_json::Value> {
        status(&self.station.host)
    }

    /// The process, to kill or to signal.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What `/metrics` says now.
    ///
    /// # Errors
    ///
    /// When the daemon does not answer.
    pub fn metrics(&self) -> Result<Metrics> {
        metrics(&self.station.host, NODE_ADMIN_PORT)
    }

    /// Status code and body of a page of the admin server, such as `/healthz`.
    ///
    /// # Errors
    ///
    /// When the daemon does not answer.
    pub fn get(&self, page: &str) -> Result<(u16, String)> {
        get(&self.station.host, NODE_ADMIN_PORT, page)
    }

    /// Takes programs and pins away, and a real's VIPs, as an operator does who takes the node or real out of service.
    ///
    /// # Errors
    ///
    /// When `lb-node detach` fails.
    pub fn detach(station: &Station) -> Result<()> {
        let detach = station.host.command(binary()?).args(["detach", "--interface", station.interface]);
        detach.arg("--bpffs").arg(station.host.bpffs()).run()?;
        Ok(())
    }
}

/// `lb-node real` on a real.
#[derive(Debug)]
pub struct RealDaemon {
    host: Host,
    process: Process,
}

impl RealDaemon {
    /// Starts the daemon, which takes what the `nodes` send through tunnels for the `vips`, and waits until it is
    /// ready.
    ///
    /// # Errors
    ///
    /// When the binary is missing or the daemon is not ready in 20 s; with its output.
    pub fn start(station: &Station, vips: &[IpAddr], nodes: &[Station]) -> Result<RealDaemon> {
        RealDaemon::start_from(&binary()?, station, vips, nodes)
    }

    /// As [`RealDaemon::start`], from this binary.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn start_from(
        binary: &Path,
        station: &Station,
        vips: &[IpAddr],
        nodes: &[Station],
    ) -> Result<RealDaemon> {
        let host = &station.host;
        let mut command = host.command(binary).args(["real", "--interface", station.interface]);
        for vip in vips {
            command = command.arg("--vip").arg(vip.to_string());
        }
        for node in nodes {
            command = command.arg("--from").arg(node.v4.to_string()).arg("--from").arg(node.v6.to_string());
        }
        RealDaemon::spawn(host, command, "/healthz")
    }

    /// Starts the daemon, which registers its host as a real of the `vips` in the tree at `zookeeper`, by the host's
    /// name, and waits until it is ready: registered, and able to take packets.
    ///
    /// # Errors
    ///
    /// When the binary is missing or the daemon is not ready in 20 s; with its output.
    pub fn register(station: &Station, vips: &[&str], zookeeper: &str) -> Result<RealDaemon> {
        RealDaemon::register_as(station.host.name(), station, vips, zookeeper)
    }

    /// As [`RealDaemon::register`], by this name.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn register_as(name: &str, station: &Station, vips: &[&str], zookeeper: &str) -> Result<RealDaemon> {
        RealDaemon::register_by(name, station, vips, &["--zookeeper", zookeeper])
    }

    /// The same in a closed tree, with an agent's credentials.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn register_in_closed_tree(station: &Station, vips: &[&str], zookeeper: &str) -> Result<RealDaemon> {
        let folder = station.host.dir();
        let credentials = Member::Agent.credentials(folder)?;
        let file = folder.join("real.toml");
        let text = format!(
            "[zookeeper]\nservers = \"{zookeeper}\"\ncredentials_file = {:?}\nacl = \"groups\"\n",
            credentials.display()
        );
        replace(&file, &text)?;
        let how = ["--config", &file.display().to_string()];
        RealDaemon::register_by(station.host.name(), station, vips, &how)
    }

    fn register_by(name: &str, station: &Station, vips: &[&str], how: &[&str]) -> Result<RealDaemon> {
        let host = &station.host;
        let mut command = host.command(binary()?).args(["real", "--interface", station.interface]);
        for vip in vips {
            command = command.args(["--register", vip]);
        }
        command = command.args(how.iter().copied()).args(["--name", name]);
        command = command.arg("--address").arg(station.v4.to_string());
        RealDaemon::spawn(host, command, "/readyz")
    }

    /// Starts the daemon, and waits until this page says that all is well.
    fn spawn(host: &Host, command: HostCommand, page: &str) -> Result<RealDaemon> {
        let mut process = command.arg("--bpffs").arg(host.bpffs()).spawn()?;
        process.wait_ready(&format!("{page} to answer 200"), START_LIMIT, || {
            answers_well(host, REAL_ADMIN_PORT, page)
        })?;
        Ok(RealDaemon { host: host.clone(), process })
    }

    /// Status code and body of a page of the admin server, such as `/readyz`.
    ///
    /// # Errors
    ///
    /// When the daemon does not answer.
    pub fn get(&self, page: &str) -> Result<(u16, String)> {
        get(&self.host, REAL_ADMIN_PORT, page)
    }

    /// The process, to kill or to signal.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What `/metrics` says now.
    ///
    /// # Errors
    ///
    /// When the daemon does not answer.
    pub fn metrics(&self) -> Result<Metrics> {
        metrics(&self.host, REAL_ADMIN_PORT)
    }
}

/// A scrape in Prometheus' text format.
#[derive(Clone, Debug)]
pub struct Metrics(String);

impl Metrics {
    /// The sum of the samples of this name that have all of these labels; `None` when there is no such sample.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let wanted: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        let samples = self.0.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, labels) = series.split_once('{').unwrap_or((series, ""));
            let labels: Vec<&str> = labels.trim_end_matches('}').split(',').collect();
            let matches = found == name && wanted.iter().all(|label| labels.contains(&label.as_str()));
            matches.then(|| value.parse::<f64>().ok()).flatten()
        });
        samples.fold(None, |sum, sample| Some(sum.unwrap_or(0.0) + sample))
    }

    /// The text as it came.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }
}

/// `lb-node`, built beside the running program.
pub(crate) fn binary() -> Result<PathBuf> {
    let own = env::current_exe().context("cannot tell where this program is")?;
    // Tests run from target/<profile>/deps, programs from target/<profile>.
    let found =
        own.ancestors().skip(1).take(2).map(|folder| folder.join("lb-node")).find(|path| path.is_file());
    found
        .with_context(|| format!("no lb-node beside {}: build it first (`cargo xtask build`)", own.display()))
}

fn answers_well(host: &Host, port: u16, page: &str) -> Result<Option<()>> {
    // Refused until the daemon listens.
    Ok(matches!(get(host, port, page), Ok((200, _))).then_some(()))
}

/// What `/status` says on a node.
pub(crate) fn status(host: &Host) -> Result<serde_json::Value> {
    let (_, body) = get(host, NODE_ADMIN_PORT, "/status")?;
    serde_json::from_str(&body).context("/status is not JSON")
}

fn metrics(host: &Host, port: u16) -> Result<Metrics> {
    let (status, body) = get(host, port, "/metrics")?;
    ensure!(status == 200, "/metrics on {} answered {status}: {body}", host.name());
    Ok(Metrics(body))
}

fn get(host: &Host, port: u16, page: &str) -> Result<(u16, String)> {
    let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    let exchange = || -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, HTTP_LIMIT)?;
        stream.set_read_timeout(Some(HTTP_LIMIT))?;
        stream.set_write_timeout(Some(HTTP_LIMIT))?;
        // HTTP/1.0: the answer ends with the connection and is never chunked.
        write!(stream, "GET {page} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = host
        .enter(exchange)?
        .with_context(|| format!("no answer from http://{address}{page} on {}", host.name()))?;
    parse_response(&answer)
}

fn parse_response(answer: &str) -> Result<(u16, String)> {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        bail!("not an HTTP answer: {answer:?}");
    };
    let status = head.split_whitespace().nth(1).and_then(|status| status.parse().ok());
    Ok((status.with_context(|| format!("not an HTTP status: {head:?}"))?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_over_the_labels_that_were_not_asked_for() {
        let metrics = Metrics(
            "# TYPE packets counter\n\
             packets_total{vip=\"a\",real=\"x\"} 3\n\
             packets_total{vip=\"b\",real=\"x\"} 4\n\
             packets_total{vip=\"b\",real=\"y\"} 5\n\
             up 1\n"
                .into(),
        );
        assert_eq!(metrics.sum("packets_total", &[("real", "x")]), Some(7.0));
        assert_eq!(metrics.sum("packets_total", &[("real", "x"), ("vip", "b")]), Some(4.0));
        assert_eq!(metrics.sum("packets_total", &[("real", "z")]), None);
        assert_eq!(metrics.sum("packets", &[]), None);
        assert_eq!(metrics.sum("up", &[]), Some(1.0));
    }

    #[test]
    fn an_http_answer_splits_into_status_and_body() {
        let answer = "HTTP/1.0 503 Service Unavailable\r\ncontent-length: 3\r\n\r\nno\n";
        assert_eq!(parse_response(answer).unwrap(), (503, "no\n".to_owned()));
        assert!(parse_response("hello").is_err());
    }
}
