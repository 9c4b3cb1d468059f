//! Tests that take long, or need more of a machine than others: `cargo xtask test --all`.
//!
//! Such a test is a test program without libtest (`harness = false`, `required-features = ["e2e", "long"]`), since libtest
//! cannot skip a test once it runs. Its `main` calls [`main`], which speaks as libtest does. What a machine cannot run is
//! `ignored` with the reason, and so never counts as passed.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use crate::cluster::{Cluster, Family, Vip};
use crate::lb_node::RealDaemon;
use testbed::{Ensemble, Protocol, Server, Service, Topology};

/// Whether tests that have a short and a long form take the long one, as `cargo xtask test --all` asks for.
#[must_use]
pub fn is_wanted() -> bool {
    std::env::var_os("DROVER_LONG").is_some()
}

/// A test of such a program.
#[derive(Clone, Copy, Debug)]
pub struct Test {
    /// The fact that it proves.
    pub name: &'static str,
    /// Why this machine cannot run it, if it cannot.
    pub cannot: fn() -> Option<String>,
    /// Proves it.
    pub run: fn() -> Result<()>,
}

/// What a node of a cluster needs around it.
#[derive(Debug)]
pub struct Surroundings {
    /// ZooKeeper, on the network's hosts for it; without a tree.
    pub ensemble: Ensemble,
    /// One VIP of all reals, by UDP.
    pub cluster: Cluster,
    /// On each real its agent, and a server that echoes at the VIP.
    pub reals: Vec<(RealDaemon, Server)>,
}

impl Surroundings {
    /// Starts them all, with the VIP at this place.
    ///
    /// # Errors
    ///
    /// When something does not start.
    pub fn start(net: &Topology, vip: SocketAddr) -> Result<Self> {
        let places: Vec<_> =
            net.zookeepers.iter().map(|station| (station.host.clone(), station.v4.into())).collect();
        let ensemble = Ensemble::start(&places)?;
        let echo = Vip::new("echo", vip).protocol(Protocol::Udp).reals(&net.reals, Family::V4);
        net.route_vip(vip.ip())?;
        let mut reals = Vec::new();
        for station in &net.reals {
            let agent = RealDaemon::start(station, &[vip.ip()], &net.nodes)?;
            reals.push((agent, Server::start(&station.host, [Service::echo(Protocol::Udp, vip)])?));
        }
        Ok(Self { ensemble, cluster: Cluster::new([echo]), reals })
    }
}

/// Runs the tests whose names contain one of the arguments that are no options, or all, one after the other.
#[must_use]
pub fn main(tests: &[Test]) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Not locked: what tests start may print, too.
    let mut out = io::stdout();
    let outcome = if arguments.iter().any(|argument| argument == "--list") {
        let mut chosen = chosen(tests, &arguments).into_iter();
        chosen.try_for_each(|test| say(&mut out, &format!("{}: test\n", test.name))).map(|()| true)
    } else {
        run(tests, &arguments, &mut out)
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn chosen<'a>(tests: &'a [Test], arguments: &[String]) -> Vec<&'a Test> {
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |test: &&Test| wanted.is_empty() || wanted.iter().any(|part| test.name.contains(*part));
    tests.iter().filter(is_wanted).collect()
}

fn run(tests: &[Test], arguments: &[String], out: &mut impl Write) -> io::Result<bool> {
    let started = Instant::now();
    let chosen = chosen(tests, arguments);
    say(out, &format!("\nrunning {} tests\n", chosen.len()))?;
    let (mut passed, mut failed, mut ignored) = (0, 0, 0);
    for test in &chosen {
        let outcome = match (test.cannot)() {
            Some(reason) => {
                ignored += 1;
                format!("ignored, {reason}")
            }
            None => match catch_unwind(AssertUnwindSafe(test.run)) {
                Ok(Ok(())) => {
                    passed += 1;
                    "ok".to_owned()
                }
                failure => {
                    failed += 1;
                    match failure {
                        Ok(Err(error)) => format!("FAILED\n{error:#}"),
                        // The panic's hook has told.
                        _ => "FAILED".to_owned(),
                    }
                }
            },
        };
        say(out, &format!("test {} ... {outcome}\n", test.name))?;
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    let filtered = tests.len() - chosen.len();
    let took = started.elapsed().as_secs_f64();
    say(
        out,
        &format!(
            "\ntest result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; {filtered} filtered \
         out; finished in {took:.2}s\n\n"
        ),
    )?;
    Ok(failed == 0)
}

fn say(out: &mut impl Write, text: &str) -> io::Result<()> {
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// The repository.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are in a folder of the repository")
}

/// The file system of a small Debian with systemd and BIRD, which `cargo xtask setup --all` makes once. It is never
/// changed.
#[must_use]
pub fn debian() -> PathBuf {
    repository().join("target/debian/bookworm")
}

/// Why a test cannot run that needs that file system, and these programs.
#[must_use]
pub fn lacking(programs: &[&str]) -> Option<String> {
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(Path::new);
    let there = |program: &&&str| folders.iter().any(|folder| folder.join(**program).is_file());
    let lacking: Vec<&&str> = programs.iter().filter(|program| !there(program)).collect();
    match lacking.as_slice() {
        [] if debian().join("usr/sbin/bird").is_file() => None,
        [] => Some(format!("there is no {}: `cargo xtask setup --all` makes it", debian().display())),
        some => Some(format!("there is no {some:?}: `cargo xtask setup --all` installs it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn test(name: &'static str, cannot: fn() -> Option<String>, run: fn() -> Result<()>) -> Test {
        Test { name, cannot, run }
    }

    #[test]
    fn what_fails_panics_or_is_not_chosen_is_told_from_what_cannot_run() {
        let tests = [
            test("one", || None, || Ok(())),
            test("two", || Some("no such device".to_owned()), || anyhow::bail!("must not run")),
        ];
        // What is said goes elsewhere, or it would count among the results of this program.
        let said = |tests: &[Test], arguments: &[String]| {
            let mut out = Vec::new();
            let passed = run(tests, arguments, &mut out).unwrap();
            (passed, String::from_utf8(out).unwrap())
        };
        let (passed, told) = said(&tests, &[]);
        assert!(passed && told.contains("test two ... ignored, no such device"), "{told}");
        assert!(told.contains("ok. 1 passed; 0 failed; 1 ignored;"), "{told}");
        let bad = test("three", || None, || anyhow::bail!("no"));
        assert!(!said(&[tests[0], bad], &[]).0);
        assert!(said(&[tests[0], bad], &["one".to_owned()]).0);
        assert!(!said(&[test("four", || None, || panic!("expected here"))], &[]).0);
    }
}
