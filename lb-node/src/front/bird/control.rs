//! BIRD's control protocol, as `birdc` speaks it: commands are lines; a reply is lines that begin with a code of four
//! digits and a hyphen, the last one with the code and a blank. A line that begins with a blank goes on
//! with the code of the one before it; one that begins with `+` is a log message.

use super::super::AnnounceError;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

/// The code of BIRD's greeting.
const WELCOME: u16 = 1;

/// More than BIRD says about a configuration with as many routes as a node has VIPs.
const MAX_REPLY_BYTES: u64 = 4 << 20;

/// A connection to a BIRD.
#[derive(Debug)]
pub(super) struct Control {
    socket: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Control {
    /// Connects, and waits for the greeting.
    pub(super) async fn connect(socket: &Path) -> Result<Self, AnnounceError> {
        let stream = UnixStream::connect(socket).await;
        let stream = stream.map_err(|source| AnnounceError::Connect { socket: socket.to_owned(), source })?;
        let mut control = Self { socket: socket.to_owned(), stream: BufReader::new(stream) };
        let greeting = control.reply().await?;
        if greeting.code() == WELCOME {
            Ok(control)
        } else {
            Err(AnnounceError::NotBird { socket: control.socket, line: greeting.text().to_owned() })
        }
    }

    /// Gives a command and waits for the reply.
    pub(super) async fn ask(&mut self, command: &str) -> Result<Reply, AnnounceError> {
        let line = format!("{command}\n");
        if let Err(source) = self.stream.get_mut().write_all(line.as_bytes()).await {
            return Err(AnnounceError::BrokeOff { socket: self.socket.clone(), source });
        }
        self.reply().await
    }

    async fn reply(&mut self) -> Result<Reply, AnnounceError> {
        read_reply(&mut self.stream).await.map_err(|error| match error {
            ReplyError::Io(source) => AnnounceError::BrokeOff { socket: self.socket.clone(), source },
            ReplyError::Format(line) => AnnounceError::NotBird { socket: self.socket.clone(), line },
        })
    }
}

/// BIRD's answer to one command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reply {
    code: u16,
    lines: Vec<String>,
}

impl Reply {
    /// The code of the last line, which says how it went.
    pub(super) fn code(&self) -> u16 {
        self.code
    }

    /// The last line's text.
    pub(super) fn text(&self) -> &str {
        self.lines.last().map_or("", String::as_str)
    }

    /// All lines, without codes.
    pub(super) fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}

enum ReplyError {
    Io(io::Error),
    /// A line that has no place in the protocol.
    Format(String),
}

impl From<io::Error> for ReplyError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

async fn read_reply(stream: &mut (impl AsyncBufRead + Unpin)) -> Result<Reply, ReplyError> {
    let mut limited = stream.take(MAX_REPLY_BYTES);
    let mut reply = Reply::default();
    loop {
        let mut line = Vec::new();
        limited.read_until(b'\n', &mut line).await?;
        let line = String::from_utf8_lossy(&line);
        let Some(line) = line.strip_suffix('\n') else {
            if limited.limit() == 0 {
                return Err(io::Error::new(ErrorKind::InvalidData, "its reply has no end").into());
            }
            return Err(io::Error::from(ErrorKind::UnexpectedEof).into());
        };
        match parse(line) {
            Line::Log => {}
            Line::More(text) => reply.lines.push(text.to_owned()),
            Line::Coded { code, text, last } => {
                reply.code = code;
                reply.lines.push(text.to_owned());
                if last {
                    return Ok(reply);
                }
            }
            Line::Strange => return Err(ReplyError::Format(line.chars().take(80).collect())),
        }
    }
}

/// One line of a reply.
#[derive(Debug, PartialEq, Eq)]
enum Line<'l> {
    Log,
    More(&'l str),
    Coded { code: u16, text: &'l str, last: bool },
    Strange,
}

fn parse(line: &str) -> Line<'_> {
    if line.starts_with('+') {
        return Line::Log;
    }
    if let Some(text) = line.strip_prefix(' ') {
        return Line::More(text);
    }
    let Some((code, rest)) = line.split_at_checked(4) else { return Line::Strange };
    if !code.bytes().all(|b| b.is_ascii_digit()) {
        return Line::Strange;
    }
    let Ok(code) = code.parse() else { return Line::Strange };
    match (rest.strip_prefix('-'), rest.strip_prefix(' ')) {
        (Some(text), _) => Line::Coded { code, text, last: false },
        (_, Some(text)) => Line::Coded { code, text, last: true },
        _ => Line::Strange,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &[u8]) -> Result<Reply, ReplyError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut text = text;
        runtime.block_on(read_reply(&mut text))
    }

    #[test]
    fn replies_are_read_to_their_last_line() {
        // As BIRD 2.0.12 says it.
        let text = "0002-Reading configuration from bird.conf\n0003 Reconfigured\n0000 \n";
        let reply = read(text.as_bytes()).ok().unwrap();
        assert_eq!((reply.code(), reply.text()), (3, "Reconfigured"));

        let text = "2002-Name       Proto\n1002-drover_v4  Static     master4    up     03:26:15.578  \n \
                    drover_v6  Static     master6    down   03:26:15.578  \n+ a log message\n0000 \n";
        let reply = read(text.as_bytes()).ok().unwrap();
        assert_eq!(reply.code(), 0);
        assert_eq!(reply.lines().count(), 4);
        assert!(reply.lines().any(|line| line.starts_with("drover_v6")));
    }

    #[test]
    fn what_is_no_reply_is_shown_and_what_has_no_end_is_refused() {
        for text in ["220 mail.example.net ESMTP\n", "\n", "000\n", "00a1 x\n", "0001x\n", "äöü\n"] {
            let Err(ReplyError::Format(line)) = read(text.as_bytes()) else { panic!("{text}") };
            assert_eq!(line, text.trim_end());
        }
        assert!(
            matches!(read(b"0001-x\n0001"), Err(ReplyError::Io(error)) if error.kind() == ErrorKind::UnexpectedEof)
        );
        let endless = b"0001-x\n".repeat(1 << 20);
        assert!(
            matches!(read(&endless), Err(ReplyError::Io(error)) if error.kind() == ErrorKind::InvalidData)
        );
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line in ".*") {
            let _ = parse(&line);
        }
    }
}
