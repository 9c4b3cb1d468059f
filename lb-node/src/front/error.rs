//! The reasons why addresses could not be announced or withdrawn.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The reason why a driver failed. All of them may go away by themselves or by an operator's hand, so try again.
#[derive(Debug, thiserror::Error)]
pub enum AnnounceError {
    /// The file that BIRD includes cannot be read.
    #[error("{}: cannot read it: {source}; give this user the right to, or name another bird_file", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file that BIRD includes cannot be written.
    #[error("{}: cannot write it: {source}; the file and its directory must belong to this node", file.display())]
    Write {
        /// The file, or the one beside it that is to be renamed, or the directory.
        file: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// There is a file in its place that this program has not written.
    #[error("{}: not written by Drover, so it stays as it is; remove it, or name another bird_file", file.display())]
    Foreign {
        /// The file.
        file: PathBuf,
    },
    /// No BIRD is at the socket.
    #[error("{}: no BIRD answers: {source}; start BIRD, or name its control socket in bird_socket", socket.display())]
    Connect {
        /// The control socket.
        socket: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The conversation with BIRD broke off.
    #[error("{}: BIRD broke off: {source}; see BIRD's log", socket.display())]
    BrokeOff {
        /// The control socket.
        socket: PathBuf,
        /// How.
        source: io::Error,
    },
    /// Not what BIRD would say.
    #[error("{}: this is not BIRD 2: {line:?}; name BIRD's control socket in bird_socket", socket.display())]
    NotBird {
        /// The control socket.
        socket: PathBuf,
        /// Its answer.
        line: String,
    },
    /// BIRD takes too long.
    #[error("{}: BIRD has not done it within {limit:?}; see whether it hangs, and what its log says", socket.display())]
    TimedOut {
        /// The control socket.
        socket: PathBuf,
        /// The time that it was given.
        limit: Duration,
    },
    /// BIRD refuses a command.
    #[error("{}: BIRD refuses `{command}` with {code:04} {text}; {fix}", socket.display())]
    Refused {
        /// The control socket.
        socket: PathBuf,
        /// The command.
        command: String,
        /// BIRD's reply code.
        code: u16,
        /// BIRD's message.
        text: String,
        /// The fix.
        fix: &'static str,
    },
    /// BIRD has read its configuration, and the file is not in it.
    #[error("{}: BIRD's configuration does not include it; add `include \"{}\";` and `birdc configure`", file.display(), file.display())]
    NotIncluded {
        /// The file.
        file: PathBuf,
    },
    /// BIRD announces something else than the file says.
    #[error("{}: BIRD announces other addresses ({announced}) than the file has; see which file it includes, and whether its protocols are up", file.display())]
    Differs {
        /// The file.
        file: PathBuf,
        /// The addresses that it announces.
        announced: String,
    },
}
