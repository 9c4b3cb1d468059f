//! The node file, and what it names on this host.

use super::report::Finding;
use admin::client::Client;
use admin::{auth, files};
use rustix::fs::{Access, access, statvfs};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zk_schema::{
    ClusterFile, ClusterSettings, Desired, FrontSettings, Node, NodeFile, NodeOverrides, ZookeeperSettings,
};

const FILE: &str = "node.file";
const SECRETS: &str = "node.secrets";
const STATE: &str = "node.state_dir";
const ADMIN: &str = "node.admin";
const RUNNING: &str = "daemon.running";
const HEALTH: &str = "daemon.health";
const READY: &str = "daemon.ready";
const DROPS: &str = "daemon.drops";

/// Room that the last decision, twice, may take.
const ROOM_NEEDED: u64 = 1024 * 1024;
/// Room below which a disk is as good as full.
const ROOM_WARNING: u64 = 64 * 1024 * 1024;

/// The file's content: a node file, or the cluster file of a node that stands alone.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) node: Node,
    pub(super) zookeeper: Option<ZookeeperSettings>,
    pub(super) front: Option<FrontSettings>,
    pub(super) cluster: Option<ClusterSettings>,
    pub(super) desired: Option<Desired>,
}

impl Told {
    fn parse(text: &str, name: &str, instead: &NodeOverrides) -> Result<Self, zk_schema::FileErrors> {
        if NodeFile::is_meant_by(text) {
            let NodeFile { node, zookeeper, front, cluster } = NodeFile::parse_with(text, name, instead)?;
            let (zookeeper, front, cluster) = (Some(zookeeper), Some(front), Some(cluster));
            return Ok(Self { node, zookeeper, front, cluster, desired: None });
        }
        let ClusterFile { node, desired } = ClusterFile::parse(text, name)?;
        Ok(Self { node, zookeeper: None, front: None, cluster: None, desired: Some(desired) })
    }
}

/// Reads the node's file; what its daemon has from its command line is `instead`.
pub(super) fn file(path: &Path, instead: &NodeOverrides) -> (Finding, Option<Told>) {
    let name = path.display().to_string();
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            let fix = "name the node's file by --config; docs/node-file.md says what is in it";
            return (Finding::fault(FILE, format!("{name} cannot be read: {error}"), fix), None);
        }
    };
    match Told::parse(&text, &name, instead) {
        Ok(file) => (Finding::ok(FILE, format!("{name} is valid")), Some(file)),
        Err(problems) => {
            let fix = format!(
                "correct it; `lb-node check {name}` tells whether it is right. What lb-node has from its command line (--name, \
                 --interface, --admin), give here as well"
            );
            (Finding::fault(FILE, problems.to_string(), fix), None)
        }
    }
}

/// The files that guard the node's admin pages.
fn admin_files(node: &Node) -> auth::ServerFiles {
    auth::ServerFiles {
        token: node.admin_token_file.clone(),
        cert: node.admin_tls_cert.clone(),
        key: node.admin_tls_key.clone(),
        client_ca: node.admin_tls_client_ca.clone(),
    }
}

/// Files that nobody else may read.
pub(super) fn secrets(told: &Told) -> Vec<Finding> {
    let of = |settings: &'_ ZookeeperSettings| [settings.credentials_file.clone(), settings.tls_key.clone()];
    let of_admin = [told.node.admin_token_file.clone(), told.node.admin_tls_key.clone()];
    let of_zookeeper = told.zookeeper.iter().flat_map(of);
    let secrets: Vec<PathBuf> = of_zookeeper.chain(of_admin).flatten().collect();
    if secrets.is_empty() {
        return vec![Finding::ok(SECRETS, "the node file names none")];
    }
    secrets.iter().map(|path| secret(path)).collect()
}

fn secret(path: &Path) -> Finding {
    let name = path.display();
    let finding = match fs::metadata(path) {
        Err(error) => {
            Finding::fault(SECRETS, format!("cannot be read: {error}"), format!("put the secret into {name}"))
        }
        Ok(found) if found.mode() & files::OTHERS != 0 => Finding::fault(
            SECRETS,
            format!("others than its owner may use it (mode {:03o})", found.mode() & 0o777),
            format!("chmod 600 {name}; and if others were on this host, change the secret"),
        ),
        Ok(_) => Finding::ok(SECRETS, "its owner alone may read it"),
    };
    finding.of(name)
}

/// Checks the folder in which the last decision is kept.
pub(super) fn state_dir(path: &Path) -> Finding {
    let name = path.display();
    // lb-node makes what is missing of it.
    let Some(there) = path.ancestors().find(|path| path.exists()) else {
        return Finding::skipped(STATE, format!("{name} cannot be looked at"));
    };
    if !there.is_dir() {
        let fix = format!("move {} away, or name another state_dir", there.display());
        return Finding::fault(STATE, format!("{} is not a directory", there.display()), fix);
    }
    if let Err(error) = access(there, Access::WRITE_OK | Access::EXEC_OK) {
        let fix = "make it writable for the user that lb-node runs as (StateDirectory= in a unit, a volume in \
                    Kubernetes), or name another state_dir; a reboot without ZooKeeper would not find the last decision";
        return Finding::fault(STATE, format!("{} is not writable: {error}", there.display()), fix);
    }
    match statvfs(there) {
        Ok(disk) => judge_room(path, disk.f_bavail.saturating_mul(disk.f_frsize)),
        Err(error) => Finding::skipped(STATE, format!("{name}: the room on its disk is not told: {error}")),
    }
}

fn judge_room(path: &Path, free: u64) -> Finding {
    let name = path.display();
    let fix = "make room there, or name another state_dir: the last decision is kept in it, for a boot without ZooKeeper";
    let seen = format!("{name} is writable, {} KiB are free", free / 1024);
    if free < ROOM_NEEDED {
        Finding::fault(STATE, seen, fix)
    } else if free < ROOM_WARNING {
        Finding::warning(STATE, seen, fix)
    } else {
        Finding::ok(STATE, seen)
    }
}

/// Checks who answers at the admin address, and what the daemon says there.
pub(super) async fn daemon(node: &Node, patience: Duration, process: Option<u32>) -> Vec<Finding> {
    let (name, address) = (&node.name, node.admin);
    let rest = |checks: &[&'static str], why: &str| {
        checks.iter().map(|check| Finding::skipped(check, why)).collect::<Vec<_>>()
    };
    // A node that listens everywhere answers on loopback, too.
    let own = match address.ip() {
        ip if ip.is_unspecified() && ip.is_ipv4() => SocketAddr::from(([127, 0, 0, 1], address.port())),
        ip if ip.is_unspecified() => SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1u16], address.port())),
        _ => address,
    };
    if let Ok(listener) = std::net::TcpListener::bind(address) {
        drop(listener);
        let mut findings = vec![Finding::ok(ADMIN, format!("{address} is free"))];
        findings.push(match process {
            None => Finding::warning(
                RUNNING,
                "no lb-node runs here",
                "start it (systemctl start lb-node); what is pinned forwards on meanwhile, but nobody looks after it",
            ),
            Some(pid) => Finding::warning(
                RUNNING,
                format!("lb-node (process {pid}) runs, but does not listen on {address}"),
                "is it another node's, or has its file been changed since? Restarting it loses no packet",
            ),
        });
        return [findings, rest(&[HEALTH, READY, DROPS], "no lb-node answers")].concat();
    }
    let client = match Client::of_server(&admin_files(node), patience) {
        Ok(client) => client,
        Err(error) => {
            let fix = "correct admin_token_file, admin_tls_cert and admin_tls_key, or run this as who may read them";
            let fault = Finding::fault(ADMIN, format!("{address} cannot be asked: {error:#}"), fix);
            return [vec![fault], rest(&[RUNNING, HEALTH, READY, DROPS], "its pages cannot be asked")]
                .concat();
        }
    };
    let answer = client.get(own, "/status").await;
    if let Err(error) = &answer
        && Client::is_turned_away(error)
    {
        let seen = format!(
            "who answers on {address} wants the certificate of a client that admin_tls_client_ca knows"
        );
        return [vec![Finding::ok(ADMIN, seen)], rest(&[RUNNING, HEALTH, READY, DROPS], "not let in")]
            .concat();
    }
    if let Ok(page) = &answer
        && matches!(page.code, 401 | 403)
    {
        let seen = format!("who answers on {address} asks for a token or a certificate (HTTP {})", page.code);
        return [vec![Finding::ok(ADMIN, seen)], rest(&[RUNNING, HEALTH, READY, DROPS], "not let in")]
            .concat();
    }
    let status = match answer.map(|page| serde_json::from_str::<serde_json::Value>(&page.body)) {
        Ok(Ok(status)) => status,
        other => {
            let error = match other {
                Err(error) => format!("{error:#}"),
                _ => "what it answers for /status is no status of a node".to_owned(),
            };
            let (seen, fix) = match process {
                Some(pid) => (
                    format!(
                        "lb-node (process {pid}) runs, but nothing like it answers on {address}: {error}"
                    ),
                    "if it hangs, restart it: that loses no packet; else free the address, or set another `admin`",
                ),
                None => (
                    format!("{address} cannot be listened on, and who has it is no lb-node: {error}"),
                    "ss -ltnp shows who; stop that, or set `admin` in the table [node] to a free port of an address of \
                     this machine",
                ),
            };
            let fault = Finding::fault(ADMIN, seen, fix);
            return [vec![fault], rest(&[RUNNING, HEALTH, READY, DROPS], "no lb-node answers")].concat();
        }
    };
    if status["node"] != name.as_str() {
        let fault = Finding::fault(
            ADMIN,
            format!("{address} is the node {}'s, and this file is {name}'s", status["node"]),
            "set another `admin` in the table [node], or name that node's file by --config",
        );
        return [vec![fault], rest(&[RUNNING, HEALTH, READY, DROPS], "no lb-node of this name answers")]
            .concat();
    }
    let version = status["version"].as_str().unwrap_or("of unknown version");
    let mut findings = vec![
        Finding::ok(ADMIN, format!("lb-node answers on {address}")),
        Finding::ok(RUNNING, format!("lb-node {version}, epoch {}, {}", status["epoch"], mode(&status))),
    ];
    let pages = [
        (
            HEALTH,
            "/healthz",
            "packets are not forwarded as they should be, so the node withdraws: restart lb-node; if that \
                  does not help, lb-node detach, then start it",
        ),
        (READY, "/readyz", "each line says what is missing; the other checks say why"),
    ];
    for (check, page, fix) in pages {
        findings.push(match client.get(own, page).await {
            Ok(answer) if answer.code == 200 => Finding::ok(check, answer.body.trim().to_owned()),
            Ok(answer) => {
                Finding::fault(check, format!("{page} answers {}: {}", answer.code, answer.body.trim()), fix)
            }
            Err(error) => {
                Finding::fault(check, format!("{error:#}"), "restart lb-node: that loses no packet")
            }
        });
    }
    findings.push(match client.get(own, "/metrics").await {
        Ok(page) => drops(&page.body),
        Err(error) => Finding::skipped(DROPS, format!("{error:#}")),
    });
    findings
}

fn mode(status: &serde_json::Value) -> &str {
    match status["mode"].as_str() {
        Some("live") | None => "live",
        Some("static") => "cut off from ZooKeeper: what is in force stays",
        Some(_) => "cut off from ZooKeeper for long: it judges reals by itself",
    }
}

/// Checks what the data plane has dropped: much of it is a fault of somebody's.
fn drops(metrics: &str) -> Finding {
    let sum = |name: &str| {
        let samples = metrics.lines().filter(|line| line.starts_with(name));
        samples.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum::<f64>()
    };
    let mut reasons = std::collections::BTreeMap::<&str, f64>::new();
    for line in metrics.lines().filter(|line| line.starts_with("drover_drops_total{")) {
        let reason = line.split("reason=\"").nth(1).and_then(|rest| rest.split('"').next());
        let count = line.rsplit_once(' ').and_then(|(_, count)| count.parse::<f64>().ok());
        if let (Some(reason), Some(count)) = (reason, count)
            && count > 0.0
        {
            *reasons.entry(reason).or_default() += count;
        }
    }
    let (sent, dropped) = (sum("drover_real_packets_total{"), reasons.values().sum::<f64>());
    let shown: Vec<String> = reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    let shown = if shown.is_empty() { "none".to_owned() } else { shown.join(", ") };
    let seen = format!("{sent} packets sent on, dropped: {shown}");
    if dropped > 100.0 && dropped > (sent + dropped) / 100.0 {
        return Finding::warning(
            DROPS,
            seen,
            "docs/metrics.md says what each reason means, and whose fault it is",
        );
    }
    Finding::ok(DROPS, seen)
}

#[cfg(test)]
mod guarded;

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_mistake_in_the_file_is_told_by_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.toml");
        fs::write(&path, "[node]\nname = \"lb-1\"\ninterface = \"eth0\"\n[zookeeper]\nserver = \"zk-1\"\n")
            .unwrap();
        let (finding, file) = file(&path, &NodeOverrides::default());
        assert!(file.is_none() && finding.level == Level::Fault);
        assert!(finding.seen.contains("node.toml:5:1") && finding.seen.contains("server"), "{finding:?}");
    }

    #[test]
    fn what_a_pods_daemon_has_from_its_command_line_is_given_here_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.toml");
        fs::write(&path, "[node]\ninterface = \"eth0\"\n[zookeeper]\nservers = \"zk-1:2181\"\n").unwrap();
        let (finding, _) = file(&path, &NodeOverrides::default());
        assert!(finding.seen.contains("node.name: missing") && finding.fix.contains("--name"), "{finding:?}");
        let instead = NodeOverrides { name: Some("lb-0".parse().unwrap()), ..NodeOverrides::default() };
        assert_eq!(file(&path, &instead).1.unwrap().node.name.as_str(), "lb-0");
    }

    #[test]
    fn a_secret_that_others_may_read_is_a_fault() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credentials");
        fs::write(&path, "anna:swordfish").unwrap();
        let level = |mode| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            secret(&path).level
        };
        assert_eq!([level(0o600), level(0o640), level(0o604)], [Level::Ok, Level::Fault, Level::Fault]);
        assert_eq!(secret(Path::new("/nonexistent/secret")).level, Level::Fault);
    }

    #[test]
    fn a_full_disk_is_a_fault_and_a_file_is_no_directory() {
        let path = Path::new("/state");
        let levels = [judge_room(path, 0), judge_room(path, 2 << 20), judge_room(path, 1 << 30)]
            .map(|found| found.level);
        assert_eq!(levels, [Level::Fault, Level::Warning, Level::Ok]);
        assert_eq!(state_dir(Path::new("/proc/version/state")).level, Level::Fault);
    }

    #[test]
    fn drops_are_told_by_reason_and_many_are_a_warning() {
        let metrics = "drover_real_packets_total{vip=\"a\",real=\"x\"} 1000\n\
                       drover_drops_total{vip=\"a\",reason=\"no_owner\"} 7\n\
                       drover_drops_total{vip=\"\",reason=\"malformed\"} 0\n";
        let few = drops(metrics);
        assert_eq!((few.level, few.seen.as_str()), (Level::Ok, "1000 packets sent on, dropped: no_owner 7"));
        assert_eq!(drops(&metrics.replace(" 7", " 700")).level, Level::Warning);
    }
}
