//! `lbctl doctor` finds nothing on a node that is well, and each planted fault by the check that is for it, and by no other.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::REALS;
use drover_tests::{Host, SERVICES, Settings, Site, wait_until};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

/// `lbctl`, built beside this test.
fn lbctl() -> PathBuf {
    let own = env::current_exe().unwrap();
    let found =
        own.ancestors().skip(1).take(2).map(|folder| folder.join("lbctl")).find(|path| path.is_file());
    found.expect("lbctl is built beside the tests (`cargo xtask build`)")
}

/// Where a doctor is called to: a node of the site, by a file of its own.
struct Visit<'a> {
    host: &'a Host,
    file: PathBuf,
    bpffs: PathBuf,
    /// What runs `lbctl`, if it does not run by itself.
    by: Vec<&'a str>,
}

impl<'a> Visit<'a> {
    /// A node of the site, by its node file with changes.
    fn to(site: &'a Site, node: usize, changes: &[(&str, &str)]) -> Self {
        let host = &site.net.nodes[node].host;
        let first = &site.net.nodes[0].host;
        let mut text = fs::read_to_string(first.dir().join("node.toml")).unwrap();
        // The second node has no daemon, and so no file of its own.
        text = text.replace(&first.dir().display().to_string(), &host.dir().display().to_string());
        text = text.replace(&format!("name = \"{}\"", first.name()), &format!("name = \"{}\"", host.name()));
        for (from, to) in changes {
            assert!(text.contains(from), "{from} is not in\n{text}");
            text = text.replace(from, to);
        }
        let file = host.dir().join("doctor.toml");
        fs::write(&file, text).unwrap();
        Self { host, file, bpffs: host.bpffs().to_owned(), by: Vec::new() }
    }

    fn by(mut self, words: &[&'a str]) -> Self {
        self.by = words.to_vec();
        self
    }

    fn with_bpffs(mut self, path: &Path) -> Self {
        self.bpffs = path.to_owned();
        self
    }

    /// What the doctor finds, and its exit code.
    fn examine(&self) -> (i32, Value) {
        let program = lbctl();
        let command = match self.by.as_slice() {
            [] => self.host.command(&program),
            [first, rest @ ..] => self.host.command(first).args(rest).arg(&program),
        };
        let command = command.args(["-o", "json", "doctor", "--config"]).arg(&self.file);
        let answer = command.arg("--bpffs").arg(&self.bpffs).limit(LIMIT).output().unwrap();
        let report = serde_json::from_str(&answer.stdout);
        (answer.status.code().unwrap(), report.unwrap_or_else(|error| panic!("{error}: {answer:?}")))
    }

    /// The checks that find a fault, all with a fix, are these.
    fn finds(&self, expected: &[&str]) -> Value {
        let (code, report) = self.examine();
        let checks = report["checks"].as_array().unwrap();
        let faults: Vec<&Value> = checks.iter().filter(|check| check["level"] == "fault").collect();
        let found: BTreeSet<&str> = faults.iter().map(|fault| fault["check"].as_str().unwrap()).collect();
        assert_eq!(found, expected.iter().copied().collect(), "{report:#}");
        assert!(
            faults.iter().all(|fault| fault["fix"].as_str().is_some_and(|fix| !fix.is_empty())),
            "{report:#}"
        );
        assert_eq!(code, i32::from(!expected.is_empty()), "{report:#}");
        report
    }
}

/// The level at which a check found something of a subject that contains `subject`.
fn level(report: &Value, check: &str, subject: &str) -> String {
    let checks = report["checks"].as_array().unwrap();
    let found = checks.iter().find(|found| {
        found["check"] == check && found["subject"].as_str().unwrap_or_default().contains(subject)
    });
    found.unwrap_or_else(|| panic!("no {check} of {subject} in {report:#}"))["level"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn each_planted_fault_is_found_by_its_own_check_and_no_other() {
    // The last node has no daemon: what would end one can be planted there.
    let settings = Settings { late: 1, ..Settings::default() };
    let mut site = Site::of_two_services(2, settings).unwrap();
    site.wait_agreed(&[("publish", REALS)]).unwrap();
    let zookeeper = site.ensemble.connect_string();
    let servers = format!("servers = \"{zookeeper}\"");

    let well = Visit::to(&site, 0, &[]).finds(&[]);
    assert_eq!(level(&well, "daemon.health", ""), "ok", "{well:#}");
    assert_eq!(level(&well, "clock.offset", ""), "ok", "{well:#}");
    assert_eq!(level(&well, "real.reach", "publish/real-1"), "ok", "{well:#}");
    // The lab's links take 1500 bytes, and no tunnel's headers with them.
    assert_eq!(level(&well, "real.mtu", "publish/real-1"), "warning", "{well:#}");
    let bare = Visit::to(&site, 1, &[]).finds(&[]);
    assert_eq!(level(&bare, "daemon.running", ""), "warning", "{bare:#}");

    // What is wrong in the node file, or where it points.
    Visit::to(&site, 0, &[("session_timeout_ms = 4000", "session_timeout = 4000")]).finds(&["node.file"]);
    Visit::to(&site, 0, &[("interface = \"eth0\"", "interface = \"eth9\"")]).finds(&["interface.link"]);
    let chroot = format!("servers = \"{zookeeper}/nowhere\"");
    Visit::to(&site, 0, &[(&servers, &chroot)]).finds(&["zookeeper.chroot"]);
    let stranger = ("name = \"node-2\"", "name = \"node-1\"");
    Visit::to(&site, 1, &[stranger]).finds(&["tree.name"]);
    // As in a container of systemd-nspawn, whose boot id only a process with the daemon's view of /proc does not see.
    let boot = site.net.nodes[0].host.dir().join("boot_id");
    fs::write(&boot, "01234567-89ab-cdef-0123-456789abcdef\n").unwrap();
    let mount = format!("mount --bind {} /proc/sys/kernel/random/boot_id && exec \"$@\"", boot.display());
    Visit::to(&site, 0, &[]).by(&["unshare", "--mount", "sh", "-c", &mount, "sh"]).finds(&[]);
    let secret = site.net.nodes[0].host.dir().join("credentials");
    fs::write(&secret, "drover:hush").unwrap();
    let credentials = format!("{servers}\ncredentials_file = \"{}\"", secret.display());
    for (mode, expected) in [(0o644, &["node.secrets"][..]), (0o600, &[])] {
        fs::set_permissions(&secret, fs::Permissions::from_mode(mode)).unwrap();
        Visit::to(&site, 0, &[(&servers, &credentials)]).finds(expected);
    }

    // The machine.
    let elsewhere = site.net.nodes[0].host.dir().join("pins");
    Visit::to(&site, 0, &[]).with_bpffs(&elsewhere).finds(&["kernel.bpffs"]);
    let dropped = ["setpriv", "--bounding-set=-bpf,-perfmon,-sys_admin"];
    Visit::to(&site, 1, &[]).by(&dropped).finds(&["kernel.capabilities"]);
    let state = site.net.nodes[0].host.dir().join("tiny");
    fs::create_dir(&state).unwrap();
    let own_state = format!("state_dir = \"{}\"", site.net.nodes[0].host.dir().join("state").display());
    let tiny_state = format!("state_dir = \"{}\"", state.display());
    for options in ["size=64k", "ro"] {
        // The mount is seen by the doctor alone, and goes with it.
        let mount = format!("mount -t tmpfs -o {options} tmpfs {} && exec \"$@\"", state.display());
        let by = ["unshare", "--mount", "sh", "-c", &mount, "sh"];
        Visit::to(&site, 0, &[(&own_state, &tiny_state)]).by(&by).finds(&["node.state_dir"]);
    }
    Visit::to(&site, 0, &[]).by(&["faketime", "-f", "+30s"]).finds(&["clock.offset"]);
    let node = site.net.nodes[0].host.clone();
    let _other = node.enter(|| std::net::TcpListener::bind("127.0.0.1:9950")).unwrap().unwrap();
    let admin = ("interface = \"eth0\"", "interface = \"eth0\"\nadmin = \"127.0.0.1:9950\"");
    Visit::to(&site, 0, &[admin]).finds(&["node.admin"]);

    // The network.
    node.sysctl("net.ipv4.conf.eth0.rp_filter", "1").unwrap();
    Visit::to(&site, 0, &[]).finds(&["interface.rp_filter"]);
    node.sysctl("net.ipv4.conf.eth0.rp_filter", "0").unwrap();
    let bare = site.net.nodes[1].host.clone();
    let real = site.net.reals[0].v4;
    bare.ip(&format!("address add {SERVICES}/32 dev lo")).unwrap();
    Visit::to(&site, 1, &[]).finds(&["vip.local"]);
    bare.ip(&format!("address del {SERVICES}/32 dev lo")).unwrap();
    bare.ip(&format!("route add unreachable {real}/32")).unwrap();
    let report = Visit::to(&site, 1, &[]).finds(&["real.route"]);
    assert_eq!(level(&report, "real.route", "real-2"), "ok", "{report:#}");
    bare.ip(&format!("route del unreachable {real}/32")).unwrap();
    site.net.router.ip("link set r1 mtu 1300").unwrap();
    let report = Visit::to(&site, 1, &[]).finds(&["real.mtu"]);
    assert_eq!(level(&report, "real.mtu", "real-1"), "fault", "{report:#}");
    assert_eq!(level(&report, "real.mtu", "real-2"), "warning", "{report:#}");
    assert!(report.to_string().contains("only packets of up to 1300 bytes"), "{report:#}");
    site.net.router.ip("link set r1 mtu 1500").unwrap();
    site.net.cut(&site.net.reals[0], true).unwrap();
    Visit::to(&site, 1, &[]).finds(&["real.reach"]);
    site.net.cut(&site.net.reals[0], false).unwrap();

    // BIRD.
    let front = site.net.front.as_mut().unwrap();
    front.nodes[1].process().kill().unwrap();
    Visit::to(&site, 1, &[]).finds(&["bird.socket"]);
    let front = site.net.front.as_mut().unwrap();
    front.nodes[1].restart().unwrap();
    wait_until("BIRD's sessions to be up again", LIMIT, || {
        let protocols = front.nodes[1].ask("show protocols")?;
        Ok((protocols.matches("Established").count() == 2).then_some(()))
    })
    .unwrap();
    let bird = &site.net.front.as_ref().unwrap().nodes[0];
    let config = fs::read_to_string(bird.config()).unwrap();
    fs::write(bird.config(), config.replace("include ", "# include ")).unwrap();
    bird.ask("configure").unwrap();
    Visit::to(&site, 0, &[]).finds(&["bird.include"]);
    fs::write(bird.config(), config).unwrap();
    bird.ask("configure").unwrap();

    // The tree, and those who keep it.
    site.operator.put("/drover/vips/publish/reals/real-9", "{").unwrap();
    Visit::to(&site, 1, &[]).finds(&["tree.records"]);
    site.operator.delete("/drover/vips/publish/reals/real-9").unwrap();
    site.ensemble.set_acl(&site.net.router, "/drover/health", "world:anyone:ra").unwrap();
    Visit::to(&site, 1, &[]).finds(&["zookeeper.rights"]);
    site.ensemble.set_acl(&site.net.router, "/drover/health", "world:anyone:cdrwa").unwrap();
    let leader = site.ensemble.leader().unwrap();
    let follower = (leader + 1) % 3;
    site.ensemble.kill(follower).unwrap();
    let report = Visit::to(&site, 1, &[]).finds(&[]);
    let address = site.ensemble.address(follower).to_string();
    assert_eq!(level(&report, "zookeeper.server", &address), "warning", "{report:#}");
    for index in (0..3).filter(|index| *index != follower) {
        site.ensemble.kill(index).unwrap();
    }
    Visit::to(&site, 1, &[]).finds(&["zookeeper.quorum"]);
    for index in 0..3 {
        site.ensemble.restart(index).unwrap();
    }
    for index in 0..3 {
        site.ensemble.wait_serving(index).unwrap();
    }

    // All has been undone.
    wait_until("nothing to be at fault any more", LIMIT, || {
        let (code, _) = Visit::to(&site, 0, &[]).examine();
        Ok((code == 0).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}: {:#}", Visit::to(&site, 0, &[]).examine().1));
}

#[test]
fn a_file_that_is_named_and_not_there_is_a_fault_like_others() {
    let answer =
        std::process::Command::new(lbctl()).args(["doctor", "--config", "/nonexistent.toml"]).output();
    let answer = answer.unwrap();
    assert_eq!(answer.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&answer.stdout).contains("/nonexistent.toml cannot be read"),
        "{answer:?}"
    );
}
