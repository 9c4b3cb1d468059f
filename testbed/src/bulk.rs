//! Long TCP transfers whose every byte is checked.
//!
//! What is sent is a pseudo-random block over and over. Its length is prime, so that no segment, page or buffer
//! size divides it: bytes lost, doubled, swapped or changed on the way do not look like the ones expected.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::host::Host;

/// A transfer that makes no progress for so long has failed.
const STALLED: Duration = Duration::from_secs(20);
const PERIOD: usize = 1_048_573;
const CHUNK: usize = 128 * 1024;

/// The block, and its beginning once more behind it so that a chunk can start anywhere in it.
static BLOCK: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block: Vec<u8> = std::iter::repeat_with(|| {
        // Xorshift (Marsaglia, 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(PERIOD)
    .collect();
    block.extend_from_within(..CHUNK);
    block
});

/// What is expected at this position of the stream, at most a chunk of it.
fn expected(position: u64, length: usize) -> &'static [u8] {
    let start = usize::try_from(position % PERIOD as u64).expect("below the period");
    &BLOCK[start..start + length.min(CHUNK)]
}

/// Which way a transfer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the real.
    Up,
    /// From the real to the client.
    Down,
}

/// Transfers `bytes` between `client` and the bulk service at `server`, and checks each of them at its receiver.
///
/// # Errors
///
/// When the connection cannot be had, breaks or stalls for 20 s, and when a byte arrives that was not sent there.
pub fn transfer(client: &Host, server: SocketAddr, direction: Direction, bytes: u64) -> Result<()> {
    client
        .enter(|| -> Result<()> {
            let mut stream = TcpStream::connect_timeout(&server, STALLED)?;
            stream.set_read_timeout(Some(STALLED))?;
            stream.set_write_timeout(Some(STALLED))?;
            let order = match direction {
                Direction::Up => b'u',
                Direction::Down => b'd',
            };
            stream.write_all(&[order])?;
            stream.write_all(&bytes.to_be_bytes())?;
            match direction {
                Direction::Up => send(&mut stream, bytes)?,
                Direction::Down => receive(&mut stream, bytes)?,
            }
            stream.shutdown(Shutdown::Write)?;
            // The server's word that it was all as it should be; for a download it only says that it is done.
            let mut verdict = String::new();
            stream.read_to_string(&mut verdict)?;
            ensure!(verdict == "ok", "the server says: {verdict:?}");
            Ok(())
        })?
        .with_context(|| format!("{direction:?}load of {bytes} bytes by {} at {server}", client.name()))
}

fn send(stream: &mut TcpStream, bytes: u64) -> Result<()> {
    let mut position = 0;
    while position < bytes {
        let chunk = expected(position, usize::try_from(bytes - position).unwrap_or(CHUNK));
        stream.write_all(chunk).with_context(|| format!("after {position} bytes"))?;
        position += chunk.len() as u64;
    }
    Ok(())
}

fn receive(stream: &mut TcpStream, bytes: u64) -> Result<()> {
    let mut position = 0;
    let mut buffer = vec![0; CHUNK];
    while position < bytes {
        let limit = usize::try_from(bytes - position).unwrap_or(CHUNK).min(CHUNK);
        let length = stream.read(&mut buffer[..limit]).with_context(|| format!("after {position} bytes"))?;
        if length == 0 {
            bail!("the stream ends after {position} bytes");
        }
        ensure!(buffer[..length] == *expected(position, length), "wrong bytes behind {position}");
        position += length as u64;
    }
    Ok(())
}

/// The server's side.
pub(crate) async fn serve(mut stream: tokio::net::TcpStream) -> io::Result<()> {
    let order = stream.read_u8().await?;
    let bytes = stream.read_u64().await?;
    let mut position = 0;
    if order == b'd' {
        while position < bytes {
            let chunk = expected(position, usize::try_from(bytes - position).unwrap_or(CHUNK));
            stream.write_all(chunk).await?;
            position += chunk.len() as u64;
        }
        stream.write_all(b"ok").await?;
        return stream.shutdown().await;
    }
    let mut buffer = vec![0; CHUNK];
    let mut verdict = "ok".to_owned();
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            break;
        }
        if verdict == "ok" && buffer[..length] != *expected(position, length) {
            verdict = format!("wrong bytes behind {position}");
        }
        position += length as u64;
    }
    if position != bytes {
        verdict = format!("{position} bytes instead of {bytes}");
    }
    stream.write_all(verdict.as_bytes()).await?;
    stream.shutdown().await
}
