//! The BIRD that announces the node's VIPs, by its control socket.

use super::report::Finding;
use anyhow::{Context as _, Result, bail};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

const SOCKET: &str = "bird.socket";
const INCLUDE: &str = "bird.include";
const SESSIONS: &str = "bird.sessions";
const PATIENCE: Duration = Duration::from_secs(3);
/// The protocols in the file that the node writes.
const OURS: [&str; 2] = ["drover_v4", "drover_v6"];

/// Looks at it.
pub(super) async fn bird(socket: &Path, file: &Path) -> Vec<Finding> {
    let answer = match timeout(PATIENCE, ask(socket, "show protocols")).await {
        Ok(Ok(answer)) => answer,
        outcome => {
            let error = match outcome {
                Ok(Err(error)) => format!("{error:#}"),
                _ => format!("no answer in {PATIENCE:?}"),
            };
            return vec![
                Finding::fault(
                    SOCKET,
                    format!("BIRD does not answer on {}: {error}", socket.display()),
                    "start BIRD (systemctl start bird), or correct bird_socket in the table [front]; nothing is announced \
                     without it",
                ),
                Finding::skipped(INCLUDE, "BIRD does not answer"),
                Finding::skipped(SESSIONS, "BIRD does not answer"),
            ];
        }
    };
    let protocols = protocols(&answer);
    let socket = Finding::ok(SOCKET, format!("BIRD answers on {}", socket.display()));
    vec![socket, include(&protocols, file, file.exists()), sessions(&protocols)]
}

/// A line of `show protocols`.
#[derive(Debug, PartialEq, Eq)]
struct Protocol {
    name: String,
    kind: String,
    up: bool,
    info: String,
}

fn include(protocols: &[Protocol], file: &Path, written: bool) -> Finding {
    let missing: Vec<&str> =
        OURS.into_iter().filter(|ours| !protocols.iter().any(|found| found.name == *ours)).collect();
    match (missing.as_slice(), written) {
        ([], _) => Finding::ok(INCLUDE, format!("BIRD has {}", OURS.join(" and "))),
        (_, false) => Finding::skipped(INCLUDE, format!("lb-node has not written {} yet", file.display())),
        (missing, true) => Finding::fault(
            INCLUDE,
            format!(
                "BIRD knows no {}: its configuration does not include {}",
                missing.join(", "),
                file.display()
            ),
            format!(
                "add to BIRD's configuration: include \"{}\"; (docs/node-file.md), then birdc configure",
                file.display()
            ),
        ),
    }
}

fn sessions(protocols: &[Protocol]) -> Finding {
    let bgp: Vec<&Protocol> = protocols.iter().filter(|found| found.kind == "BGP").collect();
    let (up, down): (Vec<&Protocol>, Vec<&Protocol>) =
        bgp.iter().partition(|found| found.up && found.info.starts_with("Established"));
    let names =
        |some: &[&Protocol]| some.iter().map(|found| found.name.clone()).collect::<Vec<_>>().join(", ");
    let fix =
        "is the router up, and does it expect this neighbour? birdc show protocols all tells the last error";
    match (up.as_slice(), down.as_slice()) {
        ([], []) => Finding::warning(
            SESSIONS,
            "BIRD has no BGP session to announce by",
            "add one to BIRD's configuration (docs/node-file.md), unless another protocol announces the VIPs",
        ),
        ([], down) => Finding::fault(SESSIONS, format!("no BGP session is up: {}", names(down)), fix),
        (up, []) => Finding::ok(SESSIONS, format!("up: {}", names(up))),
        (up, down) => Finding::warning(SESSIONS, format!("up: {}; down: {}", names(up), names(down)), fix),
    }
}

/// BIRD's answer to a command: lines, the last of which begins with a code and a blank.
async fn ask(socket: &Path, command: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket).await?;
    greeted(&mut stream).await?;
    stream.write_all(format!("{command}\n").as_bytes()).await?;
    answer(&mut stream).await
}

async fn greeted(stream: &mut UnixStream) -> Result<()> {
    let greeting = answer(stream).await?;
    if !greeting.starts_with("0001 ") {
        bail!("not a BIRD: {:?}", greeting.chars().take(60).collect::<String>());
    }
    Ok(())
}

async fn answer(stream: &mut UnixStream) -> Result<String> {
    const MOST: usize = 1024 * 1024;
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let length = stream.read(&mut piece).await.context("it does not answer")?;
        text.extend_from_slice(&piece[..length]);
        if length == 0 || text.len() > MOST || is_complete(&text) {
            return Ok(String::from_utf8_lossy(&text).into_owned());
        }
    }
}

/// Returns whether the last line is there: four digits and a blank begin it, where lines before have a hyphen.
fn is_complete(text: &[u8]) -> bool {
    let Some(text) = text.strip_suffix(b"\n") else { return false };
    let last = text.rsplit(|byte| *byte == b'\n').next().unwrap_or(text);
    last.len() >= 4
        && last[..4].iter().all(u8::is_ascii_digit)
        && last.get(4).is_none_or(|byte| *byte == b' ')
}

fn protocols(answer: &str) -> Vec<Protocol> {
    let lines = answer.lines().filter_map(|line| {
        // The first of the lines has the code, the others a blank in its place.
        let line = line.strip_prefix("1002-").or_else(|| line.strip_prefix(' '))?;
        let mut words = line.split_whitespace();
        let (name, kind) = (words.next()?.to_owned(), words.next()?.to_owned());
        let (_table, state) = (words.next()?, words.next()?);
        // When, in one word or two, then what the protocol says of itself.
        let info = words.filter(|word| word.starts_with(char::is_alphabetic)).collect::<Vec<_>>().join(" ");
        Some(Protocol { name, kind, up: state == "up", info })
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    const ANSWER: &str = "2002-Name       Proto      Table      State  Since         Info\n\
                          1002-device1    Device     ---        up     06:01:02.123  \n\
                          \u{20}drover_v4  Static     master4    up     06:01:02.123  \n\
                          \u{20}drover_v6  Static     master6    up     06:01:02.123  \n\
                          \u{20}router_v4  BGP        ---        up     06:01:02.123  Established   \n\
                          \u{20}router_v6  BGP        ---        start  2026-11-21    Active        Socket: No route\n\
                          0000 \n";

    #[test]
    fn protocols_are_read_from_what_bird_answers() {
        let found = protocols(ANSWER);
        assert_eq!(found.len(), 5, "{found:?}");
        assert!(found[3].up && found[3].info == "Established" && !found[4].up, "{found:?}");
        assert!(is_complete(ANSWER.as_bytes()) && is_complete(b"0001 BIRD 2.0.12 ready.\n"));
        assert!(!is_complete(b"1002-device1 Device\n"));
    }

    #[test]
    fn what_bird_lacks_is_told() {
        let mut found = protocols(ANSWER);
        assert_eq!(include(&found, Path::new("/run/b.conf"), true).level, Level::Ok);
        assert_eq!(sessions(&found).level, Level::Warning);
        found.retain(|protocol| protocol.name == "device1" || protocol.name == "router_v6");
        let fault = include(&found, Path::new("/run/b.conf"), true);
        assert!(fault.level == Level::Fault && fault.fix.contains("/run/b.conf"), "{fault:?}");
        assert_eq!(include(&found, Path::new("/run/b.conf"), false).level, Level::Skipped);
        assert_eq!(sessions(&found).level, Level::Fault);
    }
}
