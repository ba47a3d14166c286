//! The conversation between plugin and agent: one line of JSON each way over a unix socket, then it is closed.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::IpAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// Longest line either way.
pub const MAX_LINE: usize = 64 << 10;
/// How long the plugin waits for the agent's answer. The agent gives up sooner, with a reason.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A pod whose network has just been made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub container_id: String,
    /// Path of the network namespace, as the node sees it.
    pub netns: PathBuf,
    /// The device that the plugins before this one made.
    pub ifname: String,
    pub namespace: String,
    pub name: String,
    /// Empty where the runtime does not tell it.
    #[serde(default)]
    pub uid: String,
    /// As the plugins before this one gave them.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// What the agent says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The pod may start: it is captured, or not to be.
    Start,
    /// It may not, now.
    Refuse(Refusal),
}

/// Why a pod may not start, for who reads its events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What happened, and on what.
    pub message: String,
    /// Why, and what to do.
    pub details: String,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// Nobody listens.
    Absent(io::Error),
    /// It was asked, and did not answer.
    Silent(io::Error),
    /// What it said is no answer.
    Garbage(String),
}

impl std::fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Absent(error) => write!(f, "the agent of this node does not run ({error})"),
            Self::Silent(error) => write!(f, "the agent of this node did not answer ({error})"),
            Self::Garbage(what) => {
                write!(f, "what the agent of this node answered is not understood ({what})")
            }
        }
    }
}

/// Asks the agent that listens at `socket`. Blocks until its answer, `patience` at most.
///
/// # Errors
/// When there is none.
pub fn ask(socket: &Path, request: &Request, patience: Duration) -> Result<Answer, NoAnswer> {
    let until = Instant::now() + patience;
    let mut stream = UnixStream::connect(socket).map_err(NoAnswer::Absent)?;
    let mut line = serde_json::to_vec(request).map_err(|error| NoAnswer::Garbage(error.to_string()))?;
    line.push(b'\n');
    stream.set_write_timeout(Some(patience)).map_err(NoAnswer::Silent)?;
    stream.write_all(&line).map_err(NoAnswer::Silent)?;
    let answer = read_line(&stream, until).map_err(NoAnswer::Silent)?;
    if answer.is_empty() {
        let closed = io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection");
        return Err(NoAnswer::Silent(closed));
    }
    serde_json::from_slice(&answer).map_err(|error| NoAnswer::Garbage(error.to_string()))
}

/// A line, whoever sends it a byte at a time; what came of it where the other side closes.
fn read_line(stream: &UnixStream, until: Instant) -> io::Result<Vec<u8>> {
    let mut reader = BufReader::new(stream.take(MAX_LINE as u64));
    let mut line = Vec::new();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it took too long"));
        }
        stream.set_read_timeout(Some(left))?;
        let chunk = match reader.fill_buf() {
            Ok(chunk) => chunk,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it took too long"));
            }
            Err(error) => return Err(error),
        };
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(chunk.len(), |end| end + 1);
        line.extend_from_slice(&chunk[..end.unwrap_or(taken)]);
        let over = end.is_some() || chunk.is_empty();
        reader.consume(taken);
        if over {
            return Ok(line);
        }
    }
}
