//! The real thing: sessions with an ensemble of ZooKeeper servers.
//!
//! Over the crate `zookeeper-client`, of which only what holds is used: one-shot watches (its persistent ones die at
//! every reconnect), names rather than addresses (see [`Servers::for_library`]), and no operation while disconnected
//! (it would queue them without bound and run them later).

mod access;
mod error;
mod observer;
mod servers;
mod session;
mod settings;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::warn;
use zookeeper_client as zk;

use crate::{Error, Session as _, Store};
pub use observer::{Observer, Operation};
use servers::{Server, Servers};
pub use session::ZooKeeperSession;
pub use settings::{login, store};

/// The shortest session that can be asked for.
const MIN_SESSION: Duration = Duration::from_secs(1);
/// The longest one.
const MAX_SESSION: Duration = Duration::from_secs(600);
/// Time limit for asking a server that could not be used for the reason.
const DIAGNOSIS_LIMIT: Duration = Duration::from_secs(1);

/// The address of an ensemble, and the credentials for it. No secret in it is ever printed.
#[derive(Clone, Debug)]
pub struct Options {
    /// Connect string: servers, and the subtree that all paths are in: `zk1:2181,zk2:2181,zk3:2181/drover`. The
    /// subtree's znode must exist.
    pub servers: String,
    /// Time for which a session outlives its connection, 1 s to 10 min. Servers may grant another, between 2 and 20 of
    /// their ticks. Longer: nodes learn later that another has died. Below 4 s, elections among the servers end sessions.
    pub session_timeout: Duration,
    /// User and password of ZooKeeper's scheme `digest`, as zkCli.sh `addauth digest user:password`. Servers accept
    /// any; a wrong password shows as a missing right to a znode.
    pub digest: Option<Login>,
    /// User and password for SASL DIGEST-MD5, which servers check at once.
    pub sasl: Option<Login>,
    /// TLS to all servers; without it, none.
    pub tls: Option<Tls>,
    /// The rights of znodes that are created. A closed tree says so itself.
    pub acl: Acl,
}

/// A user and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// User.
    pub user: String,
    /// Password.
    pub password: String,
}

/// The certificates by which servers are recognised, and this node by them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Certificates of the authorities that servers' certificates are checked against, in PEM. Servers must have
    /// certificates for the names in the connect string.
    pub ca: String,
    /// This node's own certificate, if servers ask for one.
    pub identity: Option<Identity>,
}

/// A certificate and its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, followed by those between it and the authority's; PEM.
    pub certificates: String,
    /// The private key, PEM.
    pub key: String,
}

/// The rights of the znodes that a session creates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acl {
    /// Anybody anything (`world:anyone:cdrwa`).
    #[default]
    Open,
    /// Anybody may read; all else is for sessions with the same credentials (`auth::cdrwa`, `world:anyone:r`).
    Creator,
    /// The rights that the tree names, which must be closed: see [`crate::access`].
    Groups,
}

impl Options {
    /// A session of 6 s with these servers, without credentials and TLS, and with open znodes.
    #[must_use]
    pub fn new(servers: impl Into<String>) -> Self {
        Self {
            servers: servers.into(),
            session_timeout: Duration::from_secs(6),
            digest: None,
            sasl: None,
            tls: None,
            acl: Acl::Open,
        }
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Identity").field("certificates", &self.certificates).finish_non_exhaustive()
    }
}

/// An ensemble of ZooKeeper servers.
#[derive(Clone, Debug)]
pub struct ZooKeeper {
    options: Options,
    servers: Servers,
    tls: Option<zk::TlsOptions>,
    observer: Option<Arc<dyn Observer>>,
}

impl ZooKeeper {
    /// Checks the options; connects to nothing yet.
    ///
    /// # Errors
    /// [`Error::Other`] if the connect string, the session's timeout, the certificates or the ACL cannot be used.
    pub fn new(options: Options) -> Result<Self, Error> {
        let servers = Servers::parse(&options.servers)?;
        if !(MIN_SESSION..=MAX_SESSION).contains(&options.session_timeout) {
            return Err(Error::Other(format!(
                "a ZooKeeper session of {:?} is not possible; choose {MIN_SESSION:?} to {MAX_SESSION:?}, such as 6s",
                options.session_timeout
            )));
        }
        for login in options.digest.iter().chain(&options.sasl) {
            if login.user.is_empty() || login.user.contains(':') {
                return Err(Error::Other(format!(
                    "ZooKeeper user \"{}\": a user's name is not empty and has no colon",
                    login.user
                )));
            }
        }
        let identified = options.tls.as_ref().is_some_and(|tls| tls.identity.is_some());
        if options.acl != Acl::Open && options.digest.is_none() && options.sasl.is_none() && !identified {
            return Err(Error::Other(
                "znodes that are not open need credentials by which ZooKeeper knows who creates them; give a digest \
                 or SASL login or a TLS identity, or choose open znodes"
                    .to_owned(),
            ));
        }
        let tls = options.tls.as_ref().map(|tls| tls_options(tls, &servers)).transpose()?;
        Ok(Self { options, servers, tls, observer: None })
    }

    /// Has `observer` told of each operation of the sessions to come.
    #[must_use]
    pub fn with_observer(self, observer: Arc<dyn Observer>) -> Self {
        Self { observer: Some(observer), ..self }
    }

    /// Not to be printed: the library would show the SASL password.
    fn connector(&self) -> zk::Connector {
        let Options { session_timeout, digest, sasl, .. } = &self.options;
        let mut connector = zk::Client::connector().with_session_timeout(*session_timeout);
        if let Some(Login { user, password }) = digest {
            connector = connector.with_auth("digest", format!("{user}:{password}").as_bytes());
        }
        if let Some(Login { user, password }) = sasl {
            connector = connector.with_sasl(zk::SaslOptions::digest_md5(user.clone(), password.clone()));
        }
        if let Some(tls) = &self.tls {
            connector = connector.with_tls(tls.clone());
        }
        connector
    }

    /// The error of a connect that came to nothing, after asking each server what ails it.
    async fn unreachable(&self, why: &str) -> Error {
        let mut asked = JoinSet::new();
        for (index, server) in self.servers.iter().cloned().enumerate() {
            asked.spawn(async move { (index, diagnosis(&server).await) });
        }
        let mut answers = asked.join_all().await;
        answers.sort();
        let answers: Vec<String> = answers.into_iter().map(|(_, answer)| answer).collect();
        Error::Lost(format!("no session with {} ({why}): {}", self.servers, answers.join("; ")))
    }

    /// Refuses to work in a subtree that is not there: all would fail, one by one, with less telling errors.
    async fn check_chroot(&self, session: &ZooKeeperSession) -> Result<(), Error> {
        let chroot = self.servers.chroot();
        if chroot.is_empty() || session.exists("/").await? {
            return Ok(());
        }
        Err(Error::Other(format!(
            "the znode {chroot}, which the connect string names as the subtree to work in, does not exist; create it \
             with `zkCli.sh -server {} create {chroot}`, or correct the connect string",
            self.servers
        )))
    }
}

impl Store for ZooKeeper {
    type Session = ZooKeeperSession;

    async fn connect(&self) -> Result<ZooKeeperSession, Error> {
        let (connector, servers) = (self.connector(), self.servers.for_library());
        let limit = self.options.session_timeout;
        let connect = async {
            match self.tls {
                Some(_) => connector.secure_connect(&servers).await,
                None => connector.connect(&servers).await,
            }
        };
        let client = match timeout(limit, connect).await {
            Ok(Ok(client)) => client,
            Ok(Err(zk::Error::AuthFailed)) => {
                let user = self.options.sasl.as_ref().map_or_else(
                    || "the servers ask for SASL credentials, and none are set".to_owned(),
                    |login| format!("check user \"{}\" and its password (SASL DIGEST-MD5)", login.user),
                );
                return Err(Error::AuthFailed(user));
            }
            // Only what is wrong with the TLS options arrives so; troubles with connections are tried again.
            Ok(Err(error @ (zk::Error::Custom(_) | zk::Error::BadArguments(_)))) => {
                return Err(Error::Other(format!("cannot use ZooKeeper {}: {error}", self.servers)));
            }
            Ok(Err(error)) => return Err(self.unreachable(&error.to_string()).await),
            Err(_) => return Err(self.unreachable(&format!("tried for {limit:?}")).await),
        };
        if client.session_timeout() != limit {
            warn!(
                asked = ?limit,
                granted = ?client.session_timeout(),
                "ZooKeeper grants sessions of another length; see minSessionTimeout and maxSessionTimeout of its servers"
            );
        }
        let session = ZooKeeperSession::new(
            client,
            self.options.acl,
            self.servers.chroot().len(),
            self.observer.clone(),
        );
        let learnt = async {
            self.check_chroot(&session).await?;
            session.learn_access().await
        };
        if let Err(error) = learnt.await {
            session.close().await;
            return Err(error);
        }
        Ok(session)
    }
}

/// One server, and what can be seen of its trouble from here.
async fn diagnosis(server: &Server) -> String {
    match timeout(DIAGNOSIS_LIMIT, TcpStream::connect((server.host.as_str(), server.port))).await {
        Ok(Ok(_)) => format!(
            "{server} takes connections but begins no session (is a quorum of servers up, and do both ends use TLS, or \
             both none?)"
        ),
        Ok(Err(error)) => format!("{server}: {error}"),
        Err(_) => format!("{server} does not answer"),
    }
}

fn tls_options(tls: &Tls, servers: &Servers) -> Result<zk::TlsOptions, Error> {
    for server in servers.iter() {
        let name = rustls::pki_types::ServerName::try_from(server.host.as_str());
        if server.is_address() || !matches!(name, Ok(rustls::pki_types::ServerName::DnsName(_))) {
            return Err(Error::Other(format!(
                "ZooKeeper server {server}: with TLS, servers are known by name; write the name that its certificate \
                 is for, and let DNS or /etc/hosts resolve it"
            )));
        }
    }
    // The library takes the process's provider of cryptography, and panics where there are several to choose from and
    // none has been chosen. If somebody has chosen already, all the better.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let wrong = |what: &str, error: zk::Error| {
        Error::Other(format!("TLS to ZooKeeper: {what} cannot be used ({error}); it must be PEM"))
    };
    let mut options = zk::TlsOptions::new()
        .with_pem_ca(&tls.ca)
        .map_err(|error| wrong("the authority's certificate", error))?;
    if let Some(Identity { certificates, key }) = &tls.identity {
        options = options
            .with_pem_identity(certificates, key)
            .map_err(|error| wrong("this node's certificate or key", error))?;
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(options: Options) -> String {
        ZooKeeper::new(options).unwrap_err().to_string()
    }

    #[test]
    fn secrets_are_not_printed() {
        let login = |user: &str| Login { user: user.into(), password: "hush-hush".into() };
        let identity = Identity { certificates: "certs".into(), key: "hush-hush".into() };
        let options = Options {
            digest: Some(login("ann")),
            sasl: Some(login("bob")),
            tls: Some(Tls { ca: "ca".into(), identity: Some(identity) }),
            ..Options::new("zk1")
        };
        let printed = format!("{options:?}");
        assert!(!printed.contains("hush"), "{printed}");
        assert!(printed.contains("ann") && printed.contains("bob"), "{printed}");

        let store = ZooKeeper::new(Options { tls: None, ..options }).unwrap();
        assert!(!format!("{store:?}").contains("hush"));
    }

    #[test]
    fn options_that_cannot_work_are_refused_before_anything_is_tried() {
        let new = || Options::new("zk1");
        assert!(refusal(Options { session_timeout: Duration::ZERO, ..new() }).contains("1s to 600s"));
        let login = Login { user: "a:b".into(), password: String::new() };
        assert!(refusal(Options { digest: Some(login), ..new() }).contains("no colon"));
        assert!(refusal(Options { acl: Acl::Creator, ..new() }).contains("credentials"));
        let tls = Tls { ca: "not PEM".into(), identity: None };
        assert!(refusal(Options { tls: Some(tls), ..new() }).contains("must be PEM"));
    }

    #[test]
    fn with_tls_a_server_needs_a_name() {
        let tls = || Some(Tls { ca: String::new(), identity: None });
        for servers in ["10.0.0.1:2281", "zk1:2281,[2001:db8::1]:2281", "[fe80::1%eth0]:2281", "a..b:2281"] {
            let error = refusal(Options { tls: tls(), ..Options::new(servers) });
            assert!(error.contains("known by name"), "{servers}: {error}");
        }
    }

    #[tokio::test]
    async fn a_connect_in_vain_names_each_server_and_what_ails_it() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let servers = format!("127.0.0.1:1,{}", silent.local_addr().unwrap());
        let options = Options { session_timeout: MIN_SESSION, ..Options::new(servers.clone()) };
        let error = ZooKeeper::new(options).unwrap().connect().await.unwrap_err();
        assert!(error.is_lost(), "{error}");
        let error = error.to_string();
        assert!(error.contains(&servers) && error.contains("127.0.0.1:1: Connection refused"), "{error}");
        assert!(error.contains("takes connections but begins no session"), "{error}");
    }
}
