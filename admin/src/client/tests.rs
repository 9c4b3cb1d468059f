//! The client against the server of this crate, and against whatever else may answer.

use super::*;
use crate::testing::{Authority, Folder, TOKEN, open};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const PATIENCE: Duration = Duration::from_secs(5);

/// Answers one request with these bytes, and tells what was asked.
async fn answering(answer: &'static str) -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let length = stream.read(&mut request).await.unwrap();
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8_lossy(&request[..length]).into_owned()
    });
    (address, served)
}

#[tokio::test]
async fn the_token_goes_with_the_request_and_a_refusal_says_what_to_look_at() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "hush-hush\n").unwrap();
    let access = ClientFiles { token: Some(path), ..ClientFiles::default() };
    let client = Client::new(&access, PATIENCE).unwrap();
    let refused = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 5\r\n\r\n\x1b[2Jno";
    let (node, asked) = answering(refused).await;
    let error = format!("{:#}", client.json(node, "/status").await.unwrap_err());
    assert!(error.contains("401") && error.contains("token_file"), "{error}");
    assert!(!error.contains('\x1b') && !error.contains("hush"), "{error}");
    assert!(asked.await.unwrap().contains("authorization: Bearer hush-hush"));
}

#[tokio::test]
async fn nobody_there_is_told_with_the_address() {
    let client = Client::new(&ClientFiles::default(), PATIENCE).unwrap();
    let error = format!("{:#}", client.get(([127, 0, 0, 1], 1).into(), "/healthz").await.unwrap_err());
    assert!(error.starts_with("http://127.0.0.1:1/healthz: cannot connect"), "{error}");
}

#[tokio::test]
async fn who_bears_the_token_gets_all_pages_and_others_the_codes_of_some() {
    let folder = Folder::new();
    let files = folder.token(TOKEN);
    let server = open(&files).await;
    let bearer =
        Client::new(&ClientFiles { token: files.token, ..ClientFiles::default() }, PATIENCE).unwrap();
    assert_eq!(bearer.get(server, "/status").await.unwrap().body, "all of it\n");
    assert_eq!(bearer.json(server, "/json").await.unwrap(), serde_json::json!(["all", "of", "it"]));
    let mut stream = bearer.stream(server, "/status").await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "all of it\n");
    assert_eq!(stream.next().await.unwrap(), None);

    let nobody = Client::new(&ClientFiles::default(), PATIENCE).unwrap();
    assert_eq!(nobody.get(server, "/status").await.unwrap().code, 401);
    assert_eq!(nobody.get(server, "/healthz").await.unwrap().body, "ok\n");
    assert_eq!(nobody.get(server, "/readyz").await.unwrap().code, 503);
    let refused = format!("{:#}", nobody.stream(server, "/status").await.err().unwrap());
    assert!(refused.contains("401") && refused.contains("admin_token_file"), "{refused}");
}

/// A server by TLS, for clients of `clients` if there are to be any.
fn by_tls(folder: &Folder, servers: &Authority, clients: Option<&Authority>) -> auth::ServerFiles {
    let (cert, key) = folder.identity("server", servers);
    let client_ca = clients.map(|clients| folder.authority("clients.pem", clients));
    auth::ServerFiles { token: None, cert: Some(cert), key: Some(key), client_ca }
}

/// A client that trusts `servers` and shows a certificate of `clients`.
fn client(folder: &Folder, servers: &Authority, clients: Option<&Authority>) -> Client {
    let ca = Some(folder.authority("servers.pem", servers));
    let (cert, key) = clients.map(|clients| folder.identity("client", clients)).unzip();
    Client::new(&ClientFiles { token: None, ca, cert, key }, PATIENCE).unwrap()
}

#[tokio::test]
async fn with_an_authority_for_clients_only_its_certificates_get_in() {
    let (servers, clients, others) = (Authority::new(), Authority::new(), Authority::new());
    let folder = Folder::new();
    let server = open(&by_tls(&folder, &servers, Some(&clients))).await;
    let known = client(&folder, &servers, Some(&clients));
    let stranger = client(&folder, &servers, Some(&others));
    let anonymous = client(&folder, &servers, None);
    assert_eq!(known.get(server, "/status").await.unwrap().body, "all of it\n");
    for refused in [&stranger, &anonymous] {
        let error = refused.get(server, "/status").await.unwrap_err();
        assert!(Client::is_turned_away(&error), "{error:#}");
    }
    // Plain HTTP is no way around it.
    let plain = Client::new(&ClientFiles::default(), PATIENCE).unwrap();
    let error = plain.get(server, "/status").await.unwrap_err();
    assert!(!Client::is_turned_away(&error), "{error:#}");

    // Another authority, from the next connection on.
    folder.authority("clients.pem", &others);
    assert!(known.get(server, "/status").await.is_err());
    assert_eq!(stranger.get(server, "/status").await.unwrap().code, 200);
}

#[tokio::test]
async fn a_server_of_another_authority_gets_no_token() {
    let (folder, servers) = (Folder::new(), Authority::new());
    let files = auth::ServerFiles { token: folder.token(TOKEN).token, ..by_tls(&folder, &servers, None) };
    let server = open(&files).await;
    let ca = |authority| Some(folder.authority("ca.pem", authority));
    let trusting = ClientFiles { token: files.token, ca: ca(&servers), ..ClientFiles::default() };
    let page = Client::new(&trusting, PATIENCE).unwrap().get(server, "/status").await.unwrap();
    assert_eq!((page.code, page.body.as_str()), (200, "all of it\n"));
    let wary = ClientFiles { ca: ca(&Authority::new()), ..trusting };
    let error = Client::new(&wary, PATIENCE).unwrap().get(server, "/status").await.unwrap_err();
    assert!(format!("{error:#}").contains("no TLS"), "{error:#}");
}

#[tokio::test]
async fn a_server_is_asked_by_the_files_that_it_uses_itself_and_no_other_passes_for_it() {
    let (folder, servers) = (Folder::new(), Authority::new());
    let files = by_tls(&folder, &servers, Some(&servers));
    let files = auth::ServerFiles { token: folder.token(TOKEN).token, ..files };
    let server = open(&files).await;
    let own = Client::of_server(&files, PATIENCE).unwrap();
    assert_eq!(own.get(server, "/status").await.unwrap().body, "all of it\n");
    let (cert, key) = folder.identity("newer", &servers);
    let newer = auth::ServerFiles { cert: Some(cert), key: Some(key), ..files };
    let error = Client::of_server(&newer, PATIENCE).unwrap().get(server, "/status").await.unwrap_err();
    assert!(format!("{error:#}").contains("not that of admin_tls_cert"), "{error:#}");
}
