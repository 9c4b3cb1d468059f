//! ZooKeeper servers on hosts.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::host::Host;
use crate::process::Process;
use crate::wait::wait_until;

// Server n (from 0) of an ensemble has the nth port after each of these, so that all can be on one address.
const CLIENT_PORT: u16 = 2181;
const SECURE_PORT: u16 = 2281;
const PEER_PORT: u16 = 2381;
const ELECTION_PORT: u16 = 2481;
/// The most servers that the ports above have room for.
const MOST_SERVERS: usize = 9;

/// What Debian's packages zookeeper and libslf4j-java bring. The first names most of what it needs in its manifest; the
/// Netty parts that it leaves out are needed for TLS.
const CLASSPATH: &str = "/usr/share/java/zookeeper.jar:/usr/share/java/slf4j-simple.jar:\
                         /usr/share/java/netty-codec.jar:/usr/share/java/netty-resolver.jar:\
                         /usr/share/java/netty-transport-native-epoll.jar:\
                         /usr/share/java/netty-transport-native-unix-common.jar";

/// How long an ensemble may take until it serves. A second or three is usual.
const START_LIMIT: Duration = Duration::from_secs(60);
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// ZooKeeper servers that elect a leader among them. Dropping it kills them; their files go with the lab.
#[derive(Debug)]
pub struct Ensemble {
    servers: Vec<Server>,
}

#[derive(Debug)]
struct Server {
    host: Host,
    address: IpAddr,
    number: u16,
    secure: bool,
    arguments: Vec<String>,
    process: Option<Process>,
}

/// What servers are asked for beyond the usual.
#[derive(Clone, Debug, Default)]
pub struct EnsembleBuilder {
    users: Vec<(String, String)>,
    tls: Option<ServerTls>,
}

/// The certificates of servers that listen with TLS as well as without.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// PEM: the private key (PKCS #8) and the certificate.
    pub identity: String,
    /// PEM: what clients' certificates are checked against.
    pub ca: String,
    /// Whether clients must have a certificate.
    pub ask_clients: bool,
}

impl EnsembleBuilder {
    /// Lets servers check this user by SASL DIGEST-MD5.
    #[must_use]
    pub fn user(mut self, name: &str, password: &str) -> Self {
        self.users.push((name.to_owned(), password.to_owned()));
        self
    }

    /// Lets servers listen with TLS too.
    #[must_use]
    pub fn tls(mut self, tls: ServerTls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Starts a server on each of these, which may be one host many times, and waits until all serve. One server alone
    /// is an ensemble too.
    ///
    /// # Errors
    ///
    /// When they do not serve in a minute; with the output of one that does not.
    pub fn start(self, places: &[(Host, IpAddr)]) -> Result<Ensemble> {
        ensure!(
            (1..=MOST_SERVERS).contains(&places.len()),
            "an ensemble has 1 to {MOST_SERVERS} servers, not {}",
            places.len()
        );
        let mut peers = String::new();
        if places.len() > 1 {
            for ((_, address), number) in places.iter().zip(0..) {
                let (peer, election) = (PEER_PORT + number, ELECTION_PORT + number);
                writeln!(peers, "server.{}={}:{peer}:{election}", number + 1, bracketed(*address))?;
            }
        }
        let servers = places
            .iter()
            .zip(0..)
            .map(|((host, address), number)| self.server(host, *address, number, &peers));
        let mut ensemble = Ensemble { servers: servers.collect::<Result<_>>()? };
        for index in 0..places.len() {
            ensemble.servers[index].start()?;
        }
        for index in 0..places.len() {
            ensemble.wait_serving(index)?;
        }
        Ok(ensemble)
    }

    /// Writes a server's files.
    fn server(&self, host: &Host, address: IpAddr, number: u16, peers: &str) -> Result<Server> {
        let server = Server {
            host: host.clone(),
            address,
            number,
            secure: self.tls.is_some(),
            arguments: Vec::new(),
            process: None,
        };
        let dir = server.dir();
        let data = dir.join("data");
        fs::create_dir_all(&data).with_context(|| format!("cannot create {}", data.display()))?;
        // Short ticks: what depends on time is over sooner. Log files are not made 64 MiB long in advance.
        let mut config = format!(
            "tickTime=500\ninitLimit=20\nsyncLimit=8\nmaxClientCnxns=0\npreAllocSize=2048\n\
             4lw.commands.whitelist=*\nadmin.enableServer=false\n\
             dataDir={}\nclientPortAddress={}\nclientPort={}\n{peers}",
            data.display(),
            address,
            CLIENT_PORT + number,
        );
        let mut arguments: Vec<String> = [
            "-Xmx96m",
            "-Xms16m",
            "-Xss256k",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        ]
        .map(str::to_owned)
        .into();
        if !self.users.is_empty() {
            let jaas = dir.join("jaas.conf");
            let mut users = String::new();
            for (name, password) in &self.users {
                write!(users, "\n  user_{name}=\"{password}\"")?;
            }
            let module = "org.apache.zookeeper.server.auth.DigestLoginModule";
            write(&jaas, &format!("Server {{\n  {module} required{users};\n}};\n"))?;
            arguments.push(format!("-Djava.security.auth.login.config={}", jaas.display()));
            config += "authProvider.1=org.apache.zookeeper.server.auth.SASLAuthenticationProvider\n";
        }
        if let Some(tls) = &self.tls {
            let (identity, ca) = (dir.join("identity.pem"), dir.join("ca.pem"));
            write(&identity, &tls.identity)?;
            write(&ca, &tls.ca)?;
            arguments.push(
                "-Dzookeeper.serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory".into(),
            );
            write!(
                config,
                "secureClientPortAddress={address}\nsecureClientPort={}\n\
                 ssl.keyStore.location={}\nssl.keyStore.type=PEM\n\
                 ssl.trustStore.location={}\nssl.trustStore.type=PEM\nssl.clientAuth={}\n",
                SECURE_PORT + number,
                identity.display(),
                ca.display(),
                if tls.ask_clients { "need" } else { "none" },
            )?;
        }
        write(&dir.join("zoo.cfg"), &config)?;
        write(&data.join("myid"), &(number + 1).to_string())?;
        Ok(Server { arguments, ..server })
    }
}

impl Ensemble {
    /// An ensemble with something beyond the usual.
    #[must_use]
    pub fn builder() -> EnsembleBuilder {
        EnsembleBuilder::default()
    }

    /// As [`EnsembleBuilder::start`], with nothing beyond the usual.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn start(places: &[(Host, IpAddr)]) -> Result<Ensemble> {
        Self::builder().start(places)
    }

    /// `count` servers on one host's loopback.
    ///
    /// # Errors
    ///
    /// As [`EnsembleBuilder::start`].
    pub fn on_one_host(host: &Host, count: usize) -> Result<Ensemble> {
        Self::start(&vec![(host.clone(), IpAddr::from([127, 0, 0, 1])); count])
    }

    /// Where clients find them: addresses and ports, for a connect string.
    #[must_use]
    pub fn connect_string(&self) -> String {
        let servers: Vec<String> =
            (0..self.servers.len()).map(|index| self.address(index).to_string()).collect();
        servers.join(",")
    }

    /// Where clients find them with TLS, by the name `name`, to which all of them must answer.
    #[must_use]
    pub fn secure_connect_string(&self, name: &str) -> String {
        let servers: Vec<String> =
            self.servers.iter().map(|server| format!("{name}:{}", SECURE_PORT + server.number)).collect();
        servers.join(",")
    }

    /// Where one server listens for clients.
    #[must_use]
    pub fn address(&self, index: usize) -> SocketAddr {
        self.servers[index].client_address()
    }

    /// How many servers there are, running or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.servers.len()
    }

    /// Whether there are none; never so.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// Sets the ACL of the znode at `path` (`world:anyone:cdwa` for one that nobody may read), as an operator at `from`
    /// does by zkCli.sh. The first server has it then; others may follow.
    ///
    /// # Errors
    ///
    /// When that fails, or takes longer than a minute.
    pub fn set_acl(&self, from: &Host, path: &str, acl: &str) -> Result<()> {
        let command = from.command("java").args(["-Xmx64m", "-cp", CLASSPATH]);
        let command =
            command.args(["org.apache.zookeeper.ZooKeeperMain", "-server", &self.address(0).to_string()]);
        command.args(["setAcl", path, acl]).limit(START_LIMIT).run().map(drop)
    }

    /// A server's process.
    ///
    /// # Errors
    ///
    /// When the server has been killed.
    pub fn process(&mut self, index: usize) -> Result<&mut Process> {
        self.servers[index].process.as_mut().with_context(|| format!("server {index} has been killed"))
    }

    /// A server's process id.
    ///
    /// # Errors
    ///
    /// When the server has been killed.
    pub fn pid(&self, index: usize) -> Result<u32> {
        let process = self.servers[index].process.as_ref();
        Ok(process.with_context(|| format!("server {index} has been killed"))?.pid())
    }

    /// Kills a server, as a crash would. Its data stay.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        self.process(index)?.kill()?;
        self.servers[index].process = None;
        Ok(())
    }

    /// Stops a server where it stands (SIGSTOP): its connections stay open, and nobody answers.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn stop(&mut self, index: usize) -> Result<()> {
        self.process(index)?.signal(Signal::STOP)
    }

    /// Lets a stopped server go on (SIGCONT).
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn cont(&mut self, index: usize) -> Result<()> {
        self.process(index)?.signal(Signal::CONT)
    }

    /// Starts a server that has been killed, with its data. Does not wait: alone it cannot serve.
    ///
    /// # Errors
    ///
    /// When it runs, or does not start.
    pub fn restart(&mut self, index: usize) -> Result<()> {
        self.servers[index].start()
    }

    /// Waits until a server serves, which takes a quorum of servers.
    ///
    /// # Errors
    ///
    /// When it ends, or does not serve in a minute; with its output.
    pub fn wait_serving(&mut self, index: usize) -> Result<()> {
        let server = &mut self.servers[index];
        let (host, address) = (server.host.clone(), server.client_address());
        let process = server.process.as_mut().with_context(|| format!("server {index} has been killed"))?;
        process.wait_ready("srvr to tell its mode", START_LIMIT, || {
            Ok(ask(&host, address, "srvr").ok().filter(|answer| answer.contains("Mode: ")).map(|_| ()))
        })
    }

    /// The server that leads now; the only one if there is but one.
    ///
    /// # Errors
    ///
    /// When none comes to lead in a minute.
    pub fn leader(&self) -> Result<usize> {
        wait_until("a leader of the ZooKeeper servers", START_LIMIT, || {
            Ok((0..self.servers.len()).find(|index| {
                let answer = self.ask(*index, "srvr").unwrap_or_default();
                answer.contains("Mode: leader") || answer.contains("Mode: standalone")
            }))
        })
    }

    /// What a server answers to one of its four-letter words (`srvr`, `mntr`, `wchs`, `cons`).
    ///
    /// # Errors
    ///
    /// When it does not answer in 2 s.
    pub fn ask(&self, index: usize, word: &str) -> Result<String> {
        ask(&self.servers[index].host, self.address(index), word)
    }
}

impl Server {
    fn dir(&self) -> PathBuf {
        self.host.dir().join(format!("zookeeper-{}", self.number + 1))
    }

    fn client_address(&self) -> SocketAddr {
        SocketAddr::new(self.address, CLIENT_PORT + self.number)
    }

    fn start(&mut self) -> Result<()> {
        if self.process.is_some() {
            bail!("the ZooKeeper server {} runs already", self.number + 1);
        }
        let mut command = self.host.command("java").args(&self.arguments);
        if self.secure {
            // Netty would count this against -Xmx.
            command = command.arg("-Dio.netty.allocator.type=unpooled");
        }
        command = command.args(["-cp", CLASSPATH, "org.apache.zookeeper.server.quorum.QuorumPeerMain"]);
        self.process = Some(command.arg(self.dir().join("zoo.cfg")).spawn()?);
        Ok(())
    }
}

fn ask(host: &Host, address: SocketAddr, word: &str) -> Result<String> {
    host.enter(|| {
        let mut stream = TcpStream::connect_timeout(&address, ANSWER_LIMIT)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.write_all(word.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })?
}

fn write(path: &std::path::Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}
