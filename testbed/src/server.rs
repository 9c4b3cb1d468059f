//! Small servers that say who they are, so that a client learns which real it has met.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use rustix::net::sockopt;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{oneshot, watch};

use crate::bulk;
use crate::host::Host;

/// Receive buffer of UDP sockets, in bytes: seconds of traffic, so that a busy machine loses none of it.
pub(crate) const DEEP_BUFFER: usize = 8 << 20;

/// Transport protocol of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// What a [`Server`] does at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// TCP on all addresses: sends the server's name and a newline, then returns what it gets.
    TcpEcho(u16),
    /// UDP on one address: returns each datagram behind the server's name and a newline.
    UdpEcho(SocketAddr),
    /// TCP on all addresses, for [`bulk`](crate::bulk) transfers.
    Bulk(u16),
    /// HTTP/1.0 on all addresses: any request is answered with [`Server::set_http_status`]'s code and the body `ok`.
    Http(u16),
}

impl Service {
    /// The echo service that a VIP of this protocol leads to.
    #[must_use]
    pub fn echo(protocol: Protocol, at: SocketAddr) -> Service {
        match protocol {
            Protocol::Tcp => Service::TcpEcho(at.port()),
            Protocol::Udp => Service::UdpEcho(at),
        }
    }

    /// Whether the two want the same port.
    #[must_use]
    pub fn collides(self, other: Service) -> bool {
        match (self, other) {
            (Service::UdpEcho(one), Service::UdpEcho(other)) => one == other,
            (
                Service::TcpEcho(one) | Service::Bulk(one) | Service::Http(one),
                Service::TcpEcho(other) | Service::Bulk(other) | Service::Http(other),
            ) => one == other,
            _ => false,
        }
    }
}

/// Services on one host, on a thread of their own. Dropping it closes all their sockets.
#[derive(Debug)]
pub struct Server {
    http_status: Arc<AtomicU16>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts the services; all are listening when this returns. They call themselves by the host's name.
    ///
    /// # Errors
    ///
    /// When an address cannot be bound.
    pub fn start(host: &Host, services: impl IntoIterator<Item = Service>) -> Result<Server> {
        let services: Vec<Service> = services.into_iter().collect();
        let http_status = Arc::new(AtomicU16::new(200));
        let (stop, stopped) = watch::channel(false);
        let (report, listening) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let identity =
            Identity { name: format!("{}\n", host.name()).into(), http_status: http_status.clone() };
        let inside = host.clone();
        let thread = thread::Builder::new().name(format!("server {}", host.name())).spawn(move || {
            // All sockets of a runtime of one thread belong to the namespace that this thread enters.
            let entered = inside.enter_this_thread();
            runtime.block_on(async {
                let bound = match entered {
                    Ok(()) => bind_all(&services).await,
                    Err(error) => Err(error),
                };
                match bound {
                    Ok(bound) => {
                        let _ = report.send(Ok(()));
                        serve(bound, identity, stopped).await;
                    }
                    Err(error) => drop(report.send(Err(error))),
                }
            });
        })?;
        let server = Server { http_status, stop, thread: Some(thread) };
        listening
            .blocking_recv()
            .unwrap_or_else(|_| Err(anyhow::anyhow!("its thread has ended")))
            .with_context(|| format!("cannot start the servers on {}", host.name()))?;
        Ok(server)
    }

    /// The status code of HTTP answers from now on; 200 at first.
    pub fn set_http_status(&self, status: u16) {
        self.http_status.store(status, Ordering::Relaxed);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Clone)]
struct Identity {
    /// With the newline.
    name: Arc<str>,
    http_status: Arc<AtomicU16>,
}

enum Bound {
    Stream(Service, TcpListener),
    Datagrams(UdpSocket),
}

async fn bind_all(services: &[Service]) -> Result<Vec<Bound>> {
    let mut bound = Vec::new();
    for service in services {
        bound.push(match *service {
            Service::UdpEcho(at) => {
                let socket = UdpSocket::bind(at).await.with_context(|| format!("cannot bind UDP {at}"))?;
                sockopt::set_socket_recv_buffer_size_force(&socket, DEEP_BUFFER)?;
                Bound::Datagrams(socket)
            }
            Service::TcpEcho(port) | Service::Bulk(port) | Service::Http(port) => {
                // Takes IPv4 as well.
                let at = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
                let listener =
                    TcpListener::bind(at).await.with_context(|| format!("cannot listen on {at}"))?;
                Bound::Stream(*service, listener)
            }
        });
    }
    Ok(bound)
}

/// Serves until told to stop; then everything goes with the runtime.
async fn serve(bound: Vec<Bound>, identity: Identity, mut stopped: watch::Receiver<bool>) {
    for one in bound {
        let identity = identity.clone();
        match one {
            Bound::Datagrams(socket) => drop(tokio::spawn(echo_datagrams(socket, identity))),
            Bound::Stream(service, listener) => drop(tokio::spawn(accept(service, listener, identity))),
        }
    }
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn echo_datagrams(socket: UdpSocket, identity: Identity) {
    let name = identity.name.as_bytes();
    let mut buffer = vec![0; name.len() + usize::from(u16::MAX)];
    buffer[..name.len()].copy_from_slice(name);
    loop {
        // Errors are those of earlier answers (ICMP); the client sees that nothing came.
        if let Ok((length, peer)) = socket.recv_from(&mut buffer[name.len()..]).await {
            let _ = socket.send_to(&buffer[..name.len() + length], peer).await;
        }
    }
}

async fn accept(service: Service, listener: TcpListener, identity: Identity) {
    while let Ok((stream, _)) = listener.accept().await {
        let identity = identity.clone();
        tokio::spawn(async move {
            // A connection that breaks is its client's to notice.
            let _ = match service {
                Service::Bulk(_) => bulk::serve(stream).await,
                Service::Http(_) => answer_http(stream, &identity).await,
                Service::TcpEcho(_) | Service::UdpEcho(_) => echo(stream, &identity).await,
            };
        });
    }
}

async fn echo(mut stream: TcpStream, identity: &Identity) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(identity.name.as_bytes()).await?;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length]).await?;
    }
}

async fn answer_http(stream: TcpStream, identity: &Identity) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 && line != "\r\n" {
        line.clear();
    }
    let status = identity.http_status.load(Ordering::Relaxed);
    let answer = format!("HTTP/1.0 {status} Whatever\r\nContent-Length: 2\r\n\r\nok");
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}
