//! docs/systemd.md on a machine with a systemd of its own, line by line, and what systemd does to a node under traffic.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use drover_tests::long::{Surroundings, Test, lacking, main as run, repository};
use drover_tests::{Booted, Operator, Steady, Topology, desired, wait_until};

const VIP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10)), 7000);
/// What the document's lines may take each. `systemctl start` waits for the daemon.
const LINE: Duration = Duration::from_secs(100);
const LIMIT: Duration = Duration::from_secs(60);
/// The shortest that docs/systemd.md allows, so that a test need not wait for a minute.
const WATCHDOG: u64 = 20;
/// A second more than the watchdog, the restart, and a busy machine's delays.
const WATCHDOG_LIMIT: Duration = Duration::from_secs(WATCHDOG + 60);

fn main() -> ExitCode {
    run(&[Test {
        name: "the_document_makes_a_node_and_systemd_restarts_it_without_loss",
        cannot: || lacking(&["systemd-nspawn", "nsenter"]),
        run: the_document_makes_a_node_and_systemd_restarts_it_without_loss,
    }])
}

/// The commands of a section of docs/systemd.md: of its first block of lines without a language.
fn commands(section: &str) -> Result<Vec<String>> {
    let document = fs::read_to_string(repository().join("docs/systemd.md"))?;
    let lines = document.lines().skip_while(|line| *line != section);
    let block = lines.skip_while(|line| *line != "```").skip(1).take_while(|line| *line != "```");
    let commands: Vec<String> = block.map(str::to_owned).collect();
    ensure!(!commands.is_empty(), "docs/systemd.md has no commands below {section:?}");
    Ok(commands)
}

/// The folder of the programs under test: that of this program's folder, or the one above.
fn programs() -> Result<std::path::PathBuf> {
    let own = std::env::current_exe()?;
    let found = own.ancestors().skip(1).take(2).find(|folder| folder.join("lb-node").is_file());
    Ok(found.context("lb-node is built beside the tests (`cargo xtask build`)")?.to_owned())
}

fn the_document_makes_a_node_and_systemd_restarts_it_without_loss() -> Result<()> {
    let net = Topology::builder().nodes(1).reals(2).zookeepers(1).build()?;
    let Surroundings { ensemble, cluster, reals: _reals } = Surroundings::start(&net, VIP)?;

    let programs = programs()?;
    let units = repository().join("systemd");
    let folders: [(&Path, &str); 2] =
        [(&programs, "/root/drover/target/release"), (&units, "/root/drover/systemd")];
    let machine = Booted::start(&net.nodes[0].host, &folders)?;
    let node_file = format!(
        "[node]\nname = \"lb-1\"\ninterface = \"{}\"\n\n[zookeeper]\nservers = \"{}\"\nsession_timeout_ms = 4000\n\n\
         [cluster]\ndrain_wait_ms = 1000\n",
        net.nodes[0].interface,
        ensemble.connect_string()
    );
    // What a host of systemd has and this machine lacks: a bpffs. What is there already: the node file, and what was built.
    machine.shell("mkdir -p /sys/fs/bpf && mount -t bpf bpf /sys/fs/bpf", LINE)?;
    machine
        .shell(&format!("mkdir -p /etc/drover && printf '%s' '{node_file}' > /etc/drover/node.toml"), LINE)?;
    let cargo = "#!/bin/sh\n[ \"$*\" = \"xtask build\" ] && [ -x target/release/lb-node ]\n";
    machine.shell(
        &format!("printf '%s' '{cargo}' > /usr/local/bin/cargo && chmod +x /usr/local/bin/cargo"),
        LINE,
    )?;

    for line in commands("## Install")? {
        machine.shell(&format!("cd /root/drover && {line}"), LINE)?;
    }
    // There is no tree yet: it lives, and waits.
    let active = machine.attempt("systemctl is-active lb-node", LINE)?;
    ensure!(active.stdout.trim() == "active", "{}", journal(&machine));
    let failed = machine.shell("systemctl list-units --failed --plain --no-legend 'lb-node*'", LINE)?;
    ensure!(failed.trim().is_empty(), "{failed}{}", journal(&machine));

    let operator = Operator::new(&net.router, &ensemble.connect_string())?;
    operator.write(&desired(&cluster, &net)?)?;
    announced(&machine)?;
    // The daemon sees another boot id than this shell, and is this host's all the same.
    let doctor = machine.attempt("lbctl -o json doctor --bpffs /sys/fs/bpf/drover", LINE)?;
    ensure!(!doctor.stdout.contains("the name of another host"), "{}", doctor.stdout);

    let traffic = Steady::start(&net.clients[0].host, VIP, 64, 500)?;
    unbroken(&traffic, "restart", || {
        machine.shell("systemctl restart lb-node", LINE)?;
        announced(&machine)
    })?;
    unbroken(&traffic, "upgrade", || {
        for line in commands("## Upgrade, stop, remove")? {
            machine.shell(&format!("cd /root/drover/target/release && {line}"), LINE)?;
        }
        Ok(())
    })?;
    unbroken(&traffic, "kill", || {
        let before = main_pid(&machine)?;
        machine.shell("systemctl kill --signal=KILL lb-node", LINE)?;
        replaced(&machine, &before, LIMIT)
    })?;
    let drop_in = format!(
        "mkdir -p /etc/systemd/system/lb-node.service.d && printf '[Service]\\nWatchdogSec={WATCHDOG}\\n' > \
         /etc/systemd/system/lb-node.service.d/watchdog.conf && systemctl daemon-reload && systemctl restart lb-node"
    );
    machine.shell(&drop_in, LINE)?;
    announced(&machine)?;
    unbroken(&traffic, "watchdog", || {
        let before = main_pid(&machine)?;
        machine.shell("systemctl kill --kill-whom=main --signal=STOP lb-node", LINE)?;
        replaced(&machine, &before, WATCHDOG_LIMIT)
    })?;
    let told = machine.shell("journalctl --unit lb-node --no-pager", LINE)?;
    ensure!(told.contains("Watchdog timeout"), "{told}");
    unbroken(&traffic, "stop", || {
        machine.shell("systemctl stop lb-node", LINE)?;
        let state = machine.attempt("systemctl is-active lb-node", LINE)?;
        ensure!(state.stdout.trim() == "inactive", "{}: {}", state.stdout, journal(&machine));
        traffic.pass(500)
    })?;
    machine.shell("systemctl start lb-node", LINE)?;
    announced(&machine)?;
    traffic.stop()?;
    Ok(())
}

/// Does something to the node, and holds it against the traffic: each request is answered.
fn unbroken(traffic: &Steady, what: &str, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let first = traffic.sent();
    act().with_context(|| what.to_owned())?;
    traffic.pass(250)?;
    let span = traffic.since(first)?;
    ensure!(span.lost.is_empty(), "{what}: {} of {} requests were lost", span.lost.len(), span.sent);
    Ok(())
}

/// Waits until the page of which the document says that 200 means to go on says so.
fn announced(machine: &Booted) -> Result<()> {
    wait_until("the node to announce, as far as there is somebody to announce to", LIMIT, || {
        let page = machine.attempt("curl -sf 127.0.0.1:9940/announced", LINE)?;
        Ok(page.status.success().then_some(()))
    })
    .with_context(|| journal(machine))
}

fn main_pid(machine: &Booted) -> Result<String> {
    Ok(machine.shell("systemctl show --property=MainPID --value lb-node", LINE)?.trim().to_owned())
}

/// Waits until another process serves.
fn replaced(machine: &Booted, before: &str, limit: Duration) -> Result<()> {
    wait_until("systemd to start another lb-node", limit, || {
        let now = main_pid(machine)?;
        Ok((now != before && now != "0").then_some(()))
    })
    .with_context(|| journal(machine))?;
    announced(machine)
}

fn journal(machine: &Booted) -> String {
    let told = machine
        .attempt("systemctl status --no-pager --full 'lb-node*'; journalctl -b --no-pager -n 80", LINE);
    told.map_or_else(|error| format!("{error:#}"), |told| told.stdout)
}
