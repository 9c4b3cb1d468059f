//! ZooKeeper: each server by itself, then the session that a node would have, then the tree, then the clock.

use super::report::Finding;
use crate::host::Here;
use crate::tree::Tree;
use coordination::zookeeper::{self, ZooKeeperSession};
use coordination::{Change, Error, Session as _, Store as _};
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use zk_schema::picture::Found;
use zk_schema::tree::{Applied, paths};
use zk_schema::{NodeName, ZookeeperSettings};

const SERVER: &str = "zookeeper.server";
const QUORUM: &str = "zookeeper.quorum";
const CHROOT: &str = "zookeeper.chroot";
const CREDENTIALS: &str = "zookeeper.credentials";
const SESSION: &str = "zookeeper.session";
const RIGHTS: &str = "zookeeper.rights";
const OFFSET: &str = "clock.offset";
const MADE: &str = "tree.made";
const RECORDS: &str = "tree.records";
const NAME: &str = "tree.name";
const DECISION: &str = "tree.decision";

/// Time that a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest time that a session is tried for.
const SESSION_LIMIT: u32 = 4000;
/// A round trip that leaves little of a session.
const SLOW: Duration = Duration::from_millis(250);
/// Clocks that differ so much are told.
const CLOCK_WARNING: f64 = 0.5;
/// Clocks that differ so much make flags and records of others wrong.
const CLOCK_FAULT: f64 = 5.0;

/// The findings, and the tree, if it could be read.
pub(super) struct Outcome {
    pub(super) findings: Vec<Finding>,
    pub(super) tree: Option<Tree>,
}

/// One server as seen from here.
struct Seen {
    connected: Result<Duration, String>,
    /// Its own words about itself, if there are any.
    mode: Option<String>,
    /// A session with it alone, or why there is none.
    session: Result<Duration, Error>,
    /// True if the subtree's znode is there; `None`: not asked.
    chroot: Option<bool>,
}

/// Looks at all of it.
pub(super) async fn zookeeper(settings: &ZookeeperSettings, node: &NodeName, daemon_runs: bool) -> Outcome {
    let mut findings = Vec::new();
    let store = match zookeeper::store(settings) {
        Ok(store) => store,
        Err(error) => {
            let all = [QUORUM, CHROOT, CREDENTIALS, SESSION, RIGHTS, OFFSET, MADE, RECORDS, NAME, DECISION];
            let why = format!("the settings cannot be used: {error}");
            let findings = all.iter().map(|check| Finding::skipped(check, &why)).collect();
            return Outcome { findings, tree: None };
        }
    };
    let (servers, chroot) = match settings.servers.split_once('/') {
        Some((servers, chroot)) => (servers, format!("/{chroot}")),
        None => (settings.servers.as_str(), String::new()),
    };
    let servers: Vec<&str> = servers.split(',').collect();
    let seen =
        futures_util::future::join_all(servers.iter().map(|name| server(settings, name, &chroot))).await;
    findings.extend(servers.iter().zip(&seen).map(|(name, seen)| of_server(name, seen)));
    let serving = seen.iter().filter(|seen| seen.session.is_ok()).count();
    let refused = seen.iter().find_map(|seen| match &seen.session {
        Err(Error::AuthFailed(why)) => Some(why.clone()),
        _ => None,
    });
    findings.push(match serving {
        0 if refused.is_some() => Finding::skipped(QUORUM, "the servers refuse the credentials"),
        0 => Finding::fault(
            QUORUM,
            format!("none of {} servers begins a session", servers.len()),
            "more than half of the servers must run and reach each other; do both ends use TLS (tls_ca), or both none? \
             What nodes have in force stays in force meanwhile",
        ),
        _ => Finding::ok(QUORUM, format!("{serving} of {} servers serve", servers.len())),
    });
    findings.push(match refused {
        Some(why) => Finding::fault(
            CREDENTIALS,
            format!("refused: {why}"),
            "correct the line user:password in credentials_file, or the servers' JAAS configuration",
        ),
        None if serving == 0 => Finding::skipped(CREDENTIALS, "no server serves"),
        None => match &settings.credentials_file {
            None => Finding::ok(CREDENTIALS, "none are used"),
            Some(path) => Finding::ok(CREDENTIALS, format!("those of {} are taken", path.display())),
        },
    });
    let missing = |findings: &mut Vec<Finding>, checks: &[&'static str], why: &str| {
        findings.extend(checks.iter().map(|check| Finding::skipped(check, why)));
    };
    if serving == 0 {
        missing(
            &mut findings,
            &[CHROOT, SESSION, RIGHTS, OFFSET, MADE, RECORDS, NAME, DECISION],
            "no server serves",
        );
        return Outcome { findings, tree: None };
    }
    if chroot.is_empty() {
        findings.push(Finding::ok(CHROOT, "none is used"));
    } else if seen.iter().any(|seen| seen.chroot == Some(true)) {
        findings.push(Finding::ok(CHROOT, format!("{chroot} is there")));
    } else {
        findings.push(Finding::fault(
            CHROOT,
            format!("there is no znode {chroot}, below which the connect string says that all is"),
            format!("correct `servers`, or zkCli.sh -server {} create {chroot}", servers[0]),
        ));
        missing(
            &mut findings,
            &[SESSION, RIGHTS, OFFSET, MADE, RECORDS, NAME, DECISION],
            "there is no chroot",
        );
        return Outcome { findings, tree: None };
    }
    let session = match store.connect().await {
        Ok(session) => session,
        Err(error) => {
            let fix = "the servers' logs tell more; try again";
            findings.push(Finding::fault(SESSION, error.to_string(), fix));
            missing(&mut findings, &[RIGHTS, OFFSET, MADE, RECORDS, NAME, DECISION], "there is no session");
            return Outcome { findings, tree: None };
        }
    };
    findings.push(latency(&session, settings).await);
    let tree = in_session(&session, settings, node, daemon_runs, &mut findings).await;
    session.close().await;
    Outcome { findings, tree }
}

async fn server(settings: &ZookeeperSettings, name: &str, chroot: &str) -> Seen {
    let address =
        if name.contains(':') && !name.ends_with(']') { name.to_owned() } else { format!("{name}:2181") };
    let start = Instant::now();
    let connected = match timeout(PATIENCE, TcpStream::connect(&address)).await {
        Ok(Ok(stream)) => Ok((start.elapsed(), stream)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer in {PATIENCE:?}")),
    };
    let (connected, mode) = match connected {
        // What is not TLS would only look odd in the server's log.
        Ok((took, _)) if settings.tls_ca.is_some() => (Ok(took), None),
        Ok((took, stream)) => (Ok(took), timeout(PATIENCE, mode(stream)).await.ok().flatten()),
        Err(error) => (Err(error), None),
    };
    let alone = ZookeeperSettings {
        servers: name.to_owned(),
        session_timeout_ms: settings.session_timeout_ms.min(SESSION_LIMIT),
        ..settings.clone()
    };
    let start = Instant::now();
    let mut seen = Seen { connected, mode, session: Ok(Duration::ZERO), chroot: None };
    if let Err(error) = &seen.connected {
        seen.session = Err(Error::Lost(error.clone()));
        return seen;
    }
    let session = match zookeeper::store(&alone) {
        Ok(store) => store.connect().await,
        Err(error) => Err(error),
    };
    seen.session = match session {
        Ok(session) => {
            let took = start.elapsed();
            if !chroot.is_empty() {
                let found = session.read(&[chroot.to_owned()]).await;
                // A znode that may not be read is there.
                seen.chroot = match found {
                    Ok(found) => Some(found.first().is_some_and(Option::is_some)),
                    Err(Error::NoAuth(_)) => Some(true),
                    Err(_) => None,
                };
            }
            session.close().await;
            Ok(took)
        }
        Err(error) => Err(error),
    };
    seen
}

/// The server's role, by its four-letter word `srvr`, if it is allowed to tell.
async fn mode(mut stream: TcpStream) -> Option<String> {
    stream.write_all(b"srvr").await.ok()?;
    let mut answer = Vec::new();
    stream.take(16 * 1024).read_to_end(&mut answer).await.ok()?;
    told_mode(&String::from_utf8_lossy(&answer))
}

fn told_mode(answer: &str) -> Option<String> {
    if answer.contains("not currently serving") {
        return Some("not serving".to_owned());
    }
    let mode = answer.lines().find_map(|line| line.strip_prefix("Mode: "))?;
    Some(mode.trim().to_owned())
}

fn of_server(name: &str, seen: &Seen) -> Finding {
    let mode = seen.mode.as_ref().map_or_else(String::new, |mode| format!("{mode}, "));
    let finding = match (&seen.connected, &seen.session) {
        (Err(error), _) => Finding::warning(
            SERVER,
            format!("cannot be connected to: {error}"),
            "is it running, and does a firewall let its client port pass? The others bear its load meanwhile",
        ),
        (Ok(_), Err(Error::AuthFailed(_))) => {
            Finding::skipped(SERVER, format!("{mode}refuses the credentials"))
        }
        (Ok(_), Err(error)) => Finding::warning(
            SERVER,
            format!("{mode}takes connections but begins no session: {}", brief(error)),
            "has it lost the other servers? Its log tells; srvr by `echo srvr | nc` too",
        ),
        (Ok(connected), Ok(session)) => {
            Finding::ok(SERVER, format!("{mode}connected in {connected:.1?}, session in {session:.1?}"))
        }
    };
    finding.of(name)
}

/// The beginning of an error that goes on about each server.
fn brief(error: &Error) -> String {
    error.to_string().chars().take(200).collect()
}

async fn latency(session: &ZooKeeperSession, settings: &ZookeeperSettings) -> Finding {
    let start = Instant::now();
    if let Err(error) = session.sync().await {
        return Finding::fault(SESSION, error.to_string(), "the servers' logs tell more; try again");
    }
    let took = start.elapsed();
    if took > SLOW {
        return Finding::warning(
            SESSION,
            format!("a round trip to ZooKeeper's leader takes {took:.1?}"),
            format!(
                "look at the servers' disks (fsync in their logs) and at the network; sessions last {} ms",
                settings.session_timeout_ms
            ),
        );
    }
    Finding::ok(SESSION, format!("a round trip to ZooKeeper's leader takes {took:.1?}"))
}

/// All that takes a session. Gives the tree, if there is one.
async fn in_session(
    session: &ZooKeeperSession,
    settings: &ZookeeperSettings,
    node: &NodeName,
    daemon_runs: bool,
    findings: &mut Vec<Finding>,
) -> Option<Tree> {
    let tree = match Tree::read_in_part(session).await {
        Ok(tree) if !tree.unreadable.contains_key(paths::CLUSTER) => tree,
        Ok(_) => {
            findings.push(no_rights(settings, &Error::NoAuth(paths::VIPS.to_owned())));
            let rest = [OFFSET, MADE, RECORDS, NAME, DECISION];
            findings.extend(rest.map(|check| Finding::skipped(check, "the tree may not be read")));
            return None;
        }
        Err(error) => {
            let rest = [RIGHTS, OFFSET, MADE, RECORDS, NAME, DECISION];
            findings.extend(rest.map(|check| Finding::skipped(check, error.to_string())));
            return None;
        }
    };
    if tree.cluster.is_none() {
        let fix = "lbctl init makes it; or correct the chroot at the end of `servers`";
        findings.push(Finding::fault(
            MADE,
            format!("there is no znode {}: no cluster was made", paths::CLUSTER),
            fix,
        ));
        let rest = [RIGHTS, OFFSET, RECORDS, NAME, DECISION];
        findings.extend(rest.map(|check| Finding::skipped(check, "there is no tree")));
        return None;
    }
    findings.push(rights(session, settings).await);
    findings.push(clock(session).await);
    findings.push(Finding::ok(MADE, format!("{} VIPs, {} nodes", tree.vips.len(), tree.nodes.len())));
    let problems = tree.problems();
    // Probes like this one come and go.
    let problems: Vec<&String> = problems.iter().filter(|problem| !problem.contains("/_doctor-")).collect();
    findings.push(match problems.as_slice() {
        [] => Finding::ok(RECORDS, "all can be read"),
        some => {
            let lines: Vec<&str> = some.iter().map(|line| line.as_str()).collect();
            let fix = "correct each (lbctl, or zkCli.sh set); until then the last good record stays in force";
            Finding::fault(RECORDS, lines.join("; "), fix)
        }
    });
    findings.push(name(&tree, node, daemon_runs));
    findings.push(decision(&tree, node));
    Some(tree)
}

/// The parents in which a node creates znodes.
const WRITTEN: [&str; 6] =
    [paths::NODES, paths::APPLIED, paths::HEALTH, paths::ELECTION, paths::ASSIGNMENTS, paths::EVENTS];

/// Asks for all that a node does, in a transaction that cannot succeed: nothing is written.
async fn rights(session: &ZooKeeperSession, settings: &ZookeeperSettings) -> Finding {
    let mut changes: Vec<Change> = WRITTEN
        .iter()
        .map(|parent| Change::Create {
            path: format!("{parent}/_doctor-rights"),
            data: Vec::new(),
            ephemeral: true,
        })
        .collect();
    changes.push(Change::Check { path: format!("{}/_doctor-nothing", paths::HEALTH), version: None });
    match session.commit(changes).await {
        Err(error @ Error::NoAuth(_)) => no_rights(settings, &error),
        Err(Error::NoNode(path)) if path.ends_with("_doctor-nothing") => {
            Finding::ok(RIGHTS, "this node may write what nodes write")
        }
        Err(Error::NoNode(path)) => {
            Finding::skipped(RIGHTS, format!("{path} cannot be there yet: nodes make its parent"))
        }
        Err(error) => Finding::skipped(RIGHTS, error.to_string()),
        // A znode of that name is nobody's.
        Ok(()) => Finding::skipped(RIGHTS, "not told"),
    }
}

fn no_rights(settings: &ZookeeperSettings, error: &Error) -> Finding {
    let path = match error {
        Error::NoAuth(path) => path.rsplit_once('/').map_or(path.as_str(), |(parent, _)| parent),
        _ => paths::CLUSTER,
    };
    let with = match &settings.credentials_file {
        None => "without credentials".to_owned(),
        Some(file) => format!("with the credentials of {}", file.display()),
    };
    Finding::fault(
        RIGHTS,
        format!("below {path} this node may not do what nodes do, {with}"),
        format!(
            "give it credentials that the ACL names (zkCli.sh: getAcl {path}), by credentials_file; with the scheme \
             digest a wrong password shows here and nowhere else"
        ),
    )
}

/// Compares clocks with ZooKeeper's leader, by the time that it writes into an ephemeral znode.
async fn clock(session: &ZooKeeperSession) -> Finding {
    let path = format!("{}/_doctor-{:x}", paths::HEALTH, session.id());
    let create = Change::Create { path: path.clone(), data: Vec::new(), ephemeral: true };
    let before = SystemTime::now();
    if let Err(error) = session.commit(vec![create]).await {
        return Finding::skipped(OFFSET, format!("no znode to compare clocks by: {error}"));
    }
    let after = SystemTime::now();
    let created = session.created_at(&path).await;
    // It would go with the session anyway.
    let _ = session.commit(vec![Change::Delete { path, version: None }]).await;
    match created {
        Ok(Some(created)) => judge_clock(seconds(created), seconds(before), seconds(after)),
        Ok(None) => Finding::skipped(OFFSET, "the znode to compare clocks by has vanished"),
        Err(error) => Finding::skipped(OFFSET, error.to_string()),
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// All in seconds since 1970. The servers tell whole milliseconds.
fn judge_clock(theirs: f64, before: f64, after: f64) -> Finding {
    // Negative if theirs is between the two.
    let off = (before - theirs).max(theirs - after).max(0.0);
    let offset = theirs - f64::midpoint(before, after);
    let ahead = if offset < 0.0 { "ahead of" } else { "behind" };
    let seen = format!("this clock is {:.3} s {ahead} that of ZooKeeper's leader", offset.abs());
    let fix = "have both hosts take their time from the same source (chrony, systemd-timesyncd): flags end, and decisions are \
                dated, by these clocks";
    if off >= CLOCK_FAULT {
        Finding::fault(OFFSET, seen, fix)
    } else if off >= CLOCK_WARNING {
        Finding::warning(OFFSET, seen, fix)
    } else {
        Finding::ok(OFFSET, seen)
    }
}

/// Checks that the node's name is free, or its own.
fn name(tree: &Tree, node: &NodeName, daemon_runs: bool) -> Finding {
    match tree.nodes.get(node).map(|found| &found.record) {
        None if daemon_runs => Finding::warning(
            NAME,
            format!("lb-node runs here, but {} is not in the tree", paths::node(node)),
            "a node enters when all is in force and its self-test has passed: see /readyz and the log of lb-node",
        ),
        None => Finding::ok(NAME, format!("{node} is free")),
        Some(Ok(member)) if Here::look().is(&member.boot) => {
            Finding::ok(NAME, format!("{node} is this host"))
        }
        Some(Ok(member)) => Finding::fault(
            NAME,
            format!("{node} is the name of another host (admin {}, boot {})", member.admin, member.boot),
            "give this node another `name` in its node file; if the host was rebooted, the old one's session ends by itself",
        ),
        Some(Err(problem)) => {
            Finding::warning(NAME, format!("its record cannot be read: {problem}"), "restart lb-node")
        }
    }
}

/// Checks what the leader says of this node, and of what it refuses.
fn decision(tree: &Tree, node: &NodeName) -> Finding {
    let Some(head) = tree.head.as_ref().and_then(Found::ok) else {
        let seen = "no leader has decided anything yet";
        return Finding::warning(DECISION, seen, "start lb-node on at least one node; it leads then");
    };
    let applied = tree.applied.get(node).and_then(Found::ok);
    if head.lagging.contains(node) {
        let problem = applied.and_then(|applied: &Applied| applied.problem.clone()).unwrap_or_default();
        let fix = "see the log of lb-node here; restarting it loses no packet";
        return Finding::warning(
            DECISION,
            format!("this node lags behind epoch {}: {problem}", head.epoch),
            fix,
        );
    }
    if !head.problems.is_empty() {
        let problems: Vec<&str> = head.problems.iter().map(String::as_str).collect();
        return Finding::warning(
            DECISION,
            format!("the leader refuses or holds back: {}", problems.join("; ")),
            "correct the records that it names, or confirm what it holds (docs/znodes.md)",
        );
    }
    Finding::ok(DECISION, format!("epoch {} of term {} is decided", head.epoch, head.term))
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    #[test]
    fn a_server_tells_its_mode_unless_it_may_not() {
        assert_eq!(
            told_mode("Zookeeper version: 3.8\nMode: follower\nNode count: 5\n").as_deref(),
            Some("follower")
        );
        let refused = "srvr is not executed because it is not in the whitelist.";
        assert_eq!(told_mode(refused), None);
        let alone = "This ZooKeeper instance is not currently serving requests";
        assert_eq!(told_mode(alone).as_deref(), Some("not serving"));
    }

    #[test]
    fn a_clock_is_as_far_off_as_it_is_outside_of_the_moment_that_was_possible() {
        assert_eq!(judge_clock(100.5, 100.0, 101.0).level, Level::Ok);
        assert_eq!(judge_clock(99.7, 100.0, 101.0).level, Level::Ok);
        let behind = judge_clock(102.0, 100.0, 101.0);
        assert!(behind.level == Level::Warning && behind.seen.contains("behind"), "{behind:?}");
        let ahead = judge_clock(90.0, 100.0, 101.0);
        assert!(ahead.level == Level::Fault && ahead.seen.contains("10.500 s ahead"), "{ahead:?}");
    }
}
