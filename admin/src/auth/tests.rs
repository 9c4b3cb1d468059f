//! Tests of addresses and files that are refused.

use super::{Auth, ServerFiles};
use crate::testing::{Authority, Folder, LOOPBACK, TOKEN};

#[test]
fn an_address_beyond_the_loopback_without_a_x() {
    for address in ["0.0.0.0:9940", "10.0.0.7:9940", "[::]:9940"] {
        let error = Auth::new(address.parse().unwrap(), &ServerFiles::default()).unwrap_err().to_string();
        assert!(error.contains("admin_token_file") && error.contains("127.0.0.1:9940"), "{error}");
    }
    Auth::new("[::1]:9940".parse().unwrap(), &ServerFiles::default()).unwrap();
    let folder = Folder::new();
    Auth::new("0.0.0.0:9940".parse().unwrap(), &folder.token(TOKEN)).unwrap();
}

#[test]
fn a_token_that_others_read_or_can_guess_is_refused_and_not_shown() {
    let folder = Folder::new();
    for (text, mode, expected) in [
        (TOKEN, 0o640, "chmod 600"),
        (TOKEN, 0o604, "chmod 600"),
        ("hunter2", 0o600, "openssl rand"),
        ("", 0o600, "openssl rand"),
    ] {
        let files = ServerFiles { token: Some(folder.write("t", text, mode)), ..ServerFiles::default() };
        let error = format!("{:#}", Auth::new(LOOPBACK, &files).unwrap_err());
        assert!(error.contains(expected) && (text.is_empty() || !error.contains(text)), "{error}");
    }
}

#[test]
fn a_key_that_others_may_read_or_of_another_certificate_is_refused() {
    let (folder, authority) = (Folder::new(), Authority::new());
    let ((cert, key), (_, other)) =
        (folder.identity("own", &authority), folder.identity("other", &authority));
    let refusal = |key: &std::path::Path| {
        let files =
            ServerFiles { cert: Some(cert.clone()), key: Some(key.to_owned()), ..ServerFiles::default() };
        format!("{:#}", Auth::new(LOOPBACK, &files).unwrap_err())
    };
    assert!(refusal(&other).contains("do not go together"));
    let readable = folder.write("readable", &std::fs::read_to_string(&key).unwrap(), 0o644);
    assert!(refusal(&readable).contains("chmod 600"));
    let none = folder.write("none", "", 0o600);
    assert!(refusal(&none).contains("holds no private key"));
}
