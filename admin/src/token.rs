//! Tokens that requests bear (RFC 6750).

use crate::files;
use anyhow::{Result, bail, ensure};
use axum::http::{HeaderMap, header};
use std::path::Path;
use subtle::ConstantTimeEq as _;

/// Shortest token that a server takes: 16 random characters cannot be guessed over a network.
const SHORTEST: usize = 16;

/// A server's token. Only its hash is kept in memory.
#[derive(Clone)]
pub(crate) struct Token([u8; 32]);

impl Token {
    /// Reads the token from a file that only its owner may use.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = files::secret(path)?;
        let token = text.trim_ascii();
        ensure!(
            token.len() >= SHORTEST && is_visible(token),
            "{}: not a valid token; it needs at least {SHORTEST} visible ASCII characters, such as those of \
             `openssl rand -hex 32`",
            path.display()
        );
        Ok(Self(hash(token)))
    }

    /// Returns whether a request bears this token, in constant time.
    pub(crate) fn is_borne(&self, headers: &HeaderMap) -> bool {
        borne(headers).is_some_and(|given| self.0.ct_eq(&hash(given)).into())
    }
}

/// Reads a client's token: one line of visible ASCII characters.
pub(crate) fn bearer(path: &Path) -> Result<String> {
    let text = files::read(path)?;
    match str::from_utf8(text.trim_ascii()) {
        Ok(token) if !token.is_empty() && is_visible(token.as_bytes()) => Ok(token.to_owned()),
        _ => bail!("{}: holds no token; one line of visible characters is expected", path.display()),
    }
}

fn is_visible(token: &[u8]) -> bool {
    token.iter().all(u8::is_ascii_graphic)
}

/// Returns the token that a request bears (section 2.1).
fn borne(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}
