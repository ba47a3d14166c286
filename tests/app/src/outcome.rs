//! How a connection went, in words that a test can compare and count.

use std::{collections::BTreeMap, io, time::Duration};

use serde::Serialize;
use tokio::time::timeout;

/// Why a step of a connection failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Failure {
    /// connect: nothing listens.
    Refused,
    /// RST.
    Reset,
    /// Writing after the other side was gone.
    BrokenPipe,
    /// No answer within the patience.
    Timeout,
    /// The stream ended too early.
    Eof,
    /// A byte was not as it should be.
    Mismatch,
    /// No local port left.
    AddressInUse,
    Unreachable,
    Other,
}

impl Failure {
    pub(crate) fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => Self::Reset,
            io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected => Self::BrokenPipe,
            io::ErrorKind::TimedOut => Self::Timeout,
            io::ErrorKind::UnexpectedEof => Self::Eof,
            io::ErrorKind::InvalidData => Self::Mismatch,
            io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable => Self::AddressInUse,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Self::Unreachable,
            _ => Self::Other,
        }
    }
}

/// Runs one step with a limit, so that a hang becomes a [`Failure::Timeout`].
pub(crate) async fn within<T>(limit: Duration, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match timeout(limit, step).await {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// The one line that a client prints about one connection.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failure: Option<Failure>,
    /// The system's own words for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) seconds: f64,
    /// Whatever else the client found out.
    #[serde(flatten)]
    pub(crate) more: BTreeMap<&'static str, serde_json::Value>,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self {
            ok: false,
            failure: None,
            error: None,
            sent: 0,
            received: 0,
            seconds: 0.0,
            more: BTreeMap::new(),
        }
    }

    /// Notes how it ended and prints the line; whether all was well.
    pub(crate) fn close(mut self, result: io::Result<()>, took: Duration) -> bool {
        self.seconds = took.as_secs_f64();
        match result {
            Ok(()) => self.ok = true,
            Err(error) => {
                self.failure = Some(Failure::of(&error));
                self.error = Some(error.to_string());
            }
        }
        print_line(&self);
        self.ok
    }
}

/// Prints one line of JSON.
pub(crate) fn print_line(value: &impl Serialize) {
    match serde_json::to_string(value) {
        Ok(line) => println!("{line}"),
        Err(error) => eprintln!("app: cannot print the result: {error}"),
    }
}
