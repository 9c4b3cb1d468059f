//! The images that k8s/Dockerfile makes, run as the rendered manifests say: image, arguments, user, capabilities, seccomp
//! profile, read-only root and mounts. What a cluster adds around that is not here.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use drover_tests::long::{Surroundings, Test, debian, lacking, main as run, repository};
use drover_tests::{Finished, Host, Operator, Steady, Topology, desired, wait_until};
use serde_json::{Value, json};

const VIP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10)), 7000);
const LIMIT: Duration = Duration::from_secs(60);
/// What one program may take; copying a file system is the longest.
const STEP: Duration = Duration::from_secs(300);
const NODE_IMAGE: &str = "localhost/drover/lb-node:0.1.0";
/// The seccomp profile of container engines, from Debian's package of their common files.
const PROFILE: &str = "/usr/share/containers/seccomp.json";

fn main() -> ExitCode {
    run(&[Test {
        name: "the_images_are_built_and_a_pods_container_serves_as_the_manifest_says",
        cannot,
        run: the_images_are_built_and_a_pods_container_serves_as_the_manifest_says,
    }])
}

fn cannot() -> Option<String> {
    let tools = [python(), PathBuf::from(PROFILE)];
    let missing = tools.iter().find(|tool| !tool.is_file());
    lacking(&["buildah", "runc"])
        .or_else(|| missing.map(|tool| format!("there is no {}: `cargo xtask setup --all`", tool.display())))
}

/// The Python of the checker of manifests, which reads YAML.
fn python() -> PathBuf {
    repository().join("target/tools/kubernetes-validate/bin/python")
}

/// Runs a program of this machine, and returns what it prints.
fn tool(host: &Host, words: &[&str]) -> Result<String> {
    let (program, rest) = words.split_first().context("a command has a program")?;
    host.command(program).args(rest).limit(STEP).run()
}

/// Images in a store of their own, which goes with the lab.
struct Images<'a> {
    host: &'a Host,
    store: PathBuf,
}

impl Images<'_> {
    fn buildah(&self, words: &[&str]) -> Result<String> {
        let (root, run) = (self.store.join("root"), self.store.join("run"));
        let (root, run) = (root.display().to_string(), run.display().to_string());
        let options = ["env", "BUILDAH_ISOLATION=chroot", "buildah", "--root", &root, "--runroot", &run];
        tool(self.host, &[&options[..], &["--storage-driver", "vfs"], words].concat())
    }

    /// The images that the Dockerfile begins from, from a small Debian. In place of a compiler, programs that put there what
    /// was built; in place of apt-get, one that finds BIRD there already.
    fn stand_ins(&self) -> Result<()> {
        let folder = self.store.join("stand-in");
        let scripts = [
            ("rustc", "#!/bin/sh\n[ \"$*\" = \"--print sysroot\" ] && echo /stand-in\n"),
            ("rustup", "#!/bin/sh\n[ \"$*\" = \"component add rust-src\" ]\n"),
            (
                "cargo",
                "#!/bin/sh\ncase \"$1 $2\" in\n'install bpf-linker') ;;\n'build --release') mkdir -p target/release && cp \
                 /stand-in/lb-node /stand-in/lbctl target/release/ ;;\n*) exit 1 ;;\nesac\n",
            ),
            ("apt-get", "#!/bin/sh\n[ -x /usr/sbin/bird ]\n"),
        ];
        let (programs, files) = (folder.join("usr/local/bin"), folder.join("stand-in"));
        fs::create_dir_all(&programs)?;
        fs::create_dir_all(files.join("lib"))?;
        for (name, script) in scripts {
            let path = programs.join(name);
            fs::write(&path, script)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        fs::write(files.join("lib/libLLVM-22-rust-1.95.0-stable.so"), "")?;
        for program in ["lb-node", "lbctl"] {
            fs::copy(built()?.join(program), files.join(program))?;
        }
        let container = self.buildah(&["from", "scratch"])?;
        let container = container.trim();
        self.buildah(&["add", "-q", container, &debian().display().to_string(), "/"])?;
        self.buildah(&["add", "-q", container, &folder.display().to_string(), "/"])?;
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        self.buildah(&["config", "--env", path, container])?;
        let bases: Vec<String> = dockerfile()?
            .lines()
            .filter_map(|line| line.strip_prefix("FROM ")?.split(' ').next().map(str::to_owned))
            .filter(|base| base != "scratch")
            .map(|base| format!("docker.io/library/{base}"))
            .collect();
        for base in &bases {
            self.buildah(&["commit", "-q", container, base])?;
        }
        Ok(())
    }

    /// Builds by the command of docs/kubernetes.md that makes `target`.
    fn build(&self, target: &str) -> Result<()> {
        let document = fs::read_to_string(repository().join("docs/kubernetes.md"))?;
        let wanted = format!("--target {target} ");
        let line = document.lines().find(|line| line.starts_with("buildah build ") && line.contains(&wanted));
        let line = line.with_context(|| format!("docs/kubernetes.md does not build {target}"))?;
        let words: Vec<&str> = line.split_whitespace().skip(2).collect();
        let (context, options) = words.split_last().context("a build has a context")?;
        ensure!(*context == ".", "{line}: built from the repository's root");
        let file = repository().join("k8s/Dockerfile").display().to_string();
        let options: Vec<&str> =
            options.iter().map(|word| if *word == "k8s/Dockerfile" { file.as_str() } else { word }).collect();
        let here = repository().display().to_string();
        let quiet = ["build", "--quiet", "--pull-never", "--network", "host"];
        self.buildah(&[&quiet[..], &options, &[&here]].concat())?;
        Ok(())
    }

    /// A container's file system, of an image.
    fn root(&self, image: &str) -> Result<PathBuf> {
        let container = self.buildah(&["from", "--pull-never", image])?;
        Ok(PathBuf::from(self.buildah(&["mount", container.trim()])?.trim()))
    }
}

fn dockerfile() -> Result<String> {
    Ok(fs::read_to_string(repository().join("k8s/Dockerfile"))?)
}

/// The folder of the programs under test: that of this program's folder, or the one above.
fn built() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let found = own.ancestors().skip(1).take(2).find(|folder| folder.join("lb-node").is_file());
    Ok(found.context("lb-node is built beside the tests (`cargo xtask build`)")?.to_owned())
}

/// The documents of an overlay.
fn rendered(overlay: &str) -> Result<Vec<Value>> {
    const READ: &str = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))";
    let ours = repository().join("target/tools/bin/kubectl");
    let kubectl = if ours.is_file() { ours } else { "kubectl".into() };
    let mut render = Command::new(kubectl);
    render.arg("kustomize").arg(repository().join("k8s/overlays").join(overlay));
    let mut render = render.stdout(std::process::Stdio::piped()).spawn().context("cannot run kubectl")?;
    let text = render.stdout.take().context("its output is piped")?;
    let read = Command::new(python()).args(["-c", READ]).stdin(text).output()?;
    ensure!(render.wait()?.success(), "kubectl kustomize failed for {overlay}");
    Ok(serde_json::from_slice(&read.stdout)?)
}

/// A pod's specification, by kind and name.
fn pod(documents: &[Value], kind: &str, name: &str) -> Result<Value> {
    let is_it = |document: &&Value| document["kind"] == kind && document["metadata"]["name"] == name;
    let found = documents.iter().find(is_it).with_context(|| format!("no {kind} {name}"))?;
    Ok(found["spec"]["template"]["spec"].clone())
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// What runc is told of a container: `folders` are what the pod's volumes are on this machine.
fn bundle(
    container: &Value,
    root: &Path,
    host: &Host,
    folders: &BTreeMap<&str, PathBuf>,
    environment: &[(&str, &str)],
) -> Result<Value> {
    let security = &container["securityContext"];
    let capabilities: Vec<String> =
        texts(&security["capabilities"]["add"]).iter().map(|name| format!("CAP_{name}")).collect();
    ensure!(texts(&security["capabilities"]["drop"]) == ["ALL"], "all capabilities are dropped first");
    ensure!(security["privileged"] == false, "it is not privileged");
    let mut arguments = vec!["/usr/bin/lb-node".to_owned()];
    for argument in texts(&container["args"]) {
        let mut argument = argument.to_owned();
        for (name, value) in environment {
            argument = argument.replace(&format!("$({name})"), value);
        }
        arguments.push(argument);
    }
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}),
        json!({"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", "ro"]}),
    ];
    for mount in container["volumeMounts"].as_array().into_iter().flatten() {
        let name = mount["name"].as_str().context("a mount has a name")?;
        let source = folders.get(name).with_context(|| format!("the volume {name} is not known here"))?;
        let mut options = vec!["rbind"];
        options.push(if mount["readOnly"] == true { "ro" } else { "rw" });
        options.push(if mount["mountPropagation"] == "HostToContainer" { "rslave" } else { "rprivate" });
        mounts.push(
            json!({"destination": mount["mountPath"], "type": "none", "source": source, "options": options}),
        );
    }
    let namespace = format!("/run/netns/{}", host.namespace());
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": security["runAsUser"], "gid": security["runAsGroup"]},
            "args": arguments,
            "env": ["PATH=/usr/bin"],
            "cwd": "/",
            "noNewPrivileges": security["allowPrivilegeEscalation"] == false,
            // As container engines grant them to user 0.
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        },
        "root": {"path": root, "readonly": security["readOnlyRootFilesystem"] == true},
        "hostname": "pod",
        "mounts": mounts,
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "network", "path": namespace},
            ],
            "cgroupsPath": format!("/drover-runc-{}", host.namespace()),
            "seccomp": seccomp(&capabilities)?,
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
        },
    }))
}

/// The engines' default profile, for a container with these capabilities, in runc's terms.
fn seccomp(capabilities: &[String]) -> Result<Value> {
    let profile: Value = serde_json::from_str(&fs::read_to_string(PROFILE)?)?;
    let has =
        |list: &Value| texts(list).iter().all(|capability| capabilities.iter().any(|own| own == capability));
    let has_any =
        |list: &Value| texts(list).iter().any(|capability| capabilities.iter().any(|own| own == capability));
    let rules = profile["syscalls"].as_array().context("a profile has rules")?.iter();
    let counts = rules.filter(|rule| {
        let for_us = texts(&rule["includes"]["arches"]);
        has(&rule["includes"]["caps"])
            && !has_any(&rule["excludes"]["caps"])
            && (for_us.is_empty() || for_us.contains(&"amd64"))
            && !texts(&rule["excludes"]["arches"]).contains(&"amd64")
    });
    let told = counts.map(|rule| {
        let mut told = json!({"names": rule["names"], "action": rule["action"]});
        for field in ["args", "errnoRet"] {
            if rule[field].as_array().is_none_or(|list| !list.is_empty()) && !rule[field].is_null() {
                told[field] = rule[field].clone();
            }
        }
        told
    });
    let mut rules: Vec<Value> = told.collect();
    // Debian 12's profile is of 2022. What containerd 1.6 and CRI-O 1.21 let through besides, for who has these capabilities:
    for (capability, call) in [("CAP_BPF", "bpf"), ("CAP_PERFMON", "perf_event_open")] {
        if capabilities.iter().any(|own| own == capability) {
            rules.retain(|rule| {
                !(rule["action"] == "SCMP_ACT_ERRNO" && texts(&rule["names"]).contains(&call))
            });
            rules.push(json!({"names": [call], "action": "SCMP_ACT_ALLOW"}));
        }
    }
    Ok(json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": rules,
    }))
}

/// A container that runs. It ends with the handle.
struct Container<'a> {
    host: &'a Host,
    name: String,
    bundle: PathBuf,
    process: drover_tests::Process,
}

impl<'a> Container<'a> {
    fn start(host: &'a Host, name: &str, told: &Value) -> Result<Self> {
        let name = format!("{}-{name}", host.namespace());
        let bundle = host.dir().join(&name);
        fs::create_dir_all(&bundle)?;
        fs::write(bundle.join("config.json"), serde_json::to_string_pretty(told)?)?;
        let state = host.dir().join("runc").display().to_string();
        let place = bundle.display().to_string();
        let process =
            host.command("runc").args(["--root", &state, "run", "--bundle", &place, &name]).spawn()?;
        Ok(Self { host, name, bundle, process })
    }

    fn runc(&self, words: &[&str]) -> Result<Finished> {
        let state = self.host.dir().join("runc").display().to_string();
        self.host.command("runc").args(["--root", &state]).args(words).limit(LIMIT).output()
    }

    /// What `kubectl exec` does: another process in the container.
    fn exec(&self, words: &[&str]) -> Result<String> {
        let done = self.runc(&[&["exec", &self.name], words].concat())?;
        ensure!(done.status.success(), "{words:?}: {}{}\n{}", done.stdout, done.stderr, self.process.log()?);
        Ok(done.stdout)
    }

    /// Ends it as a kubelet does, by SIGTERM, and waits until it has ended well.
    fn end(mut self) -> Result<()> {
        self.runc(&["kill", &self.name, "TERM"])?;
        let status = self.process.wait(LIMIT)?;
        ensure!(status.success(), "it ended with {status}:\n{}", self.process.log()?);
        Ok(())
    }

    fn wait_page(&self, page: &str, code: &str) -> Result<()> {
        let address = format!("http://127.0.0.1:9940{page}");
        wait_until(format_args!("{page} to answer {code}"), LIMIT, || {
            let asked = ["-s", "-o", "/dev/null", "-w", "%{http_code}", &address];
            let answer = self.host.command("curl").args(asked).output()?;
            Ok((answer.stdout == code).then_some(()))
        })
        .with_context(|| self.process.log().unwrap_or_default())
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let _ = self.runc(&["delete", "--force", &self.name]);
        let _ = fs::remove_dir_all(&self.bundle);
    }
}

fn the_images_are_built_and_a_pods_container_serves_as_the_manifest_says() -> Result<()> {
    let net = Topology::builder().nodes(1).reals(2).zookeepers(1).build()?;
    let host = &net.nodes[0].host;
    let images = Images { host: &net.router, store: net.router.dir().join("images") };
    images.stand_ins()?;
    images.build("lb-node")?;
    images.build("bird")?;
    let bird = images.root("localhost/drover/bird:0.1.0")?;
    for program in ["usr/sbin/bird", "usr/sbin/birdcl"] {
        ensure!(bird.join(program).is_file(), "the image of BIRD has no {program}");
    }

    let Surroundings { ensemble, cluster, reals: _reals } = Surroundings::start(&net, VIP)?;

    // The demo's node file, with this network's interface and servers in it; its name is on the command line.
    let documents = rendered("demo")?;
    let pod = pod(&documents, "StatefulSet", "lb-node")?;
    let container = &pod["containers"][0];
    ensure!(container["image"] == NODE_IMAGE, "the demo runs {}", container["image"]);
    let folder = |name: &str| -> Result<PathBuf> {
        let path = host.dir().join("volumes").join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    };
    let mut folders = BTreeMap::new();
    for volume in pod["volumes"].as_array().into_iter().flatten() {
        let name = volume["name"].as_str().context("a volume has a name")?;
        // On the lab's bpffs, in place of the host's.
        let is_bpffs = volume["hostPath"]["path"] == "/sys/fs/bpf";
        folders.insert(name, if is_bpffs { host.bpffs().to_owned() } else { folder(name)? });
    }
    fs::create_dir_all(host.bpffs())?;
    let node_file = fs::read_to_string(repository().join("k8s/overlays/demo/node.toml"))?
        .replace("zookeeper-0.zookeeper:2181", &ensemble.connect_string());
    fs::write(folders["config"].join("node.toml"), node_file)?;
    let root = images.root(NODE_IMAGE)?;
    let told = bundle(container, &root, host, &folders, &[("POD_NAME", "lb-node-0")])?;

    let first = Container::start(host, "first", &told)?;
    first.wait_page("/livez", "200")?;
    first.wait_page("/readyz", "503")?;
    // As docs/kubernetes.md has it, in the pod: lbctl finds ZooKeeper by the node file, which has no name.
    first.exec(&["lbctl", "init"])?;
    Operator::new(&net.router, &ensemble.connect_string())?.write(&desired(&cluster, &net)?)?;
    first.wait_page("/announced", "200")?;
    let status = first.exec(&["lbctl", "status"])?;
    ensure!(status.contains("lb-node-0") && status.contains("echo"), "{status}");

    let traffic = Steady::start(&net.clients[0].host, VIP, 64, 500)?;
    first.end()?;
    traffic.pass(500)?;
    let second = Container::start(host, "second", &told)?;
    second.wait_page("/announced", "200")?;
    traffic.pass(500)?;
    let span = traffic.since(0)?;
    ensure!(span.lost.is_empty(), "{} of {} requests were lost", span.lost.len(), span.sent);
    traffic.stop()?;
    second.end()
}
