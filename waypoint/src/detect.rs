//! What is spoken, where nobody has said it: by the first bytes, without holding up whoever waits for the server to
//! speak first.
//!
//! A caller that speaks at once (its first bytes come with its CONNECT) is told by them. One that is silent for a
//! moment may be waiting: a backend is dialled, and whoever speaks first says what it is. A backend that speaks first
//! speaks no HTTP.

use std::{io, rc::Rc, time::Duration};

use bytes::BytesMut;
use hbone::Stream;
use tokio::{
    io::AsyncReadExt,
    time::{sleep, timeout},
};

use crate::{
    arrival::{Call, Failure},
    body::Rewind,
    tcp::{self, Backend},
    worker::Worker,
};

/// A caller that has said nothing for so long may be waiting for the server.
const SILENCE: Duration = Duration::from_millis(15);
/// What has begun like HTTP and does not go on for so long is none.
const HESITATION: Duration = Duration::from_secs(1);
/// The longest first line of HTTP/1 that is waited for, in bytes.
const LONGEST_LINE: usize = 8 << 10;
/// How HTTP/2 begins (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What was found.
pub(crate) enum Spoken {
    Http1,
    Http2,
    /// Neither; with a backend, where one is dialled already.
    Tcp(Option<Result<Backend, Failure>>),
}

/// What first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sniff {
    More,
    Http1,
    Http2,
    Other,
}

/// Whether HTTP/2 is spoken on a port that speaks HTTP: there the caller speaks first.
pub(crate) async fn version(mut stream: Stream) -> io::Result<(bool, Rewind<Stream>)> {
    let mut said = BytesMut::new();
    loop {
        if stream.read_buf(&mut said).await? == 0 {
            return Ok((false, Rewind::new(said.freeze(), stream)));
        }
        let common = said.len().min(PREFACE.len());
        if said[..common] != PREFACE[..common] {
            return Ok((false, Rewind::new(said.freeze(), stream)));
        }
        if common == PREFACE.len() {
            return Ok((true, Rewind::new(said.freeze(), stream)));
        }
    }
}

/// What is spoken.
pub(crate) async fn first_words(
    worker: &Rc<Worker>,
    call: &Rc<Call>,
    mut stream: Stream,
    has_bytes: bool,
) -> io::Result<(Spoken, Rewind<Stream>)> {
    let mut said = BytesMut::new();
    let patience = if has_bytes { HESITATION } else { SILENCE };
    if let Ok(sniff) = timeout(patience, listen(&mut stream, &mut said)).await {
        return Ok(found(sniff?, None, said, stream));
    }
    // It waits, perhaps for the server to speak.
    let dial = tcp::dial(worker, call);
    tokio::pin!(dial);
    let mut backend = None;
    let hesitation = sleep(HESITATION);
    tokio::pin!(hesitation);
    loop {
        tokio::select! {
            biased;
            sniff = listen(&mut stream, &mut said) => return Ok(found(sniff?, backend, said, stream)),
            dialled = &mut dial, if backend.is_none() => backend = Some(dialled),
            spoke = speaks(&mut backend), if backend.as_ref().is_some_and(Result::is_ok) => {
                spoke?;
                return Ok((Spoken::Tcp(backend), Rewind::new(said.freeze(), stream)));
            }
            () = &mut hesitation, if !said.is_empty() => {
                return Ok((Spoken::Tcp(backend), Rewind::new(said.freeze(), stream)));
            }
        }
    }
}

/// Waits until the backend has said something, or ended.
async fn speaks(backend: &mut Option<Result<Backend, Failure>>) -> io::Result<()> {
    match backend {
        Some(Ok(backend)) => backend.listen().await,
        Some(Err(_)) | None => std::future::pending().await,
    }
}

fn found(
    sniff: Sniff,
    backend: Option<Result<Backend, Failure>>,
    said: BytesMut,
    stream: Stream,
) -> (Spoken, Rewind<Stream>) {
    let spoken = match sniff {
        Sniff::Http1 => Spoken::Http1,
        Sniff::Http2 => Spoken::Http2,
        Sniff::Other | Sniff::More => Spoken::Tcp(backend),
    };
    (spoken, Rewind::new(said.freeze(), stream))
}

/// Reads until it is clear what is spoken. What was read is in `said`, also when this is given up.
async fn listen(stream: &mut Stream, said: &mut BytesMut) -> io::Result<Sniff> {
    loop {
        if !said.is_empty() {
            match sniff(said) {
                Sniff::More => {}
                clear => return Ok(clear),
            }
        }
        if stream.read_buf(said).await? == 0 {
            return if said.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(Sniff::Other) };
        }
    }
}

fn sniff(said: &[u8]) -> Sniff {
    let common = said.len().min(PREFACE.len());
    if said[..common] == PREFACE[..common] {
        return if common == PREFACE.len() { Sniff::Http2 } else { Sniff::More };
    }
    // Empty lines before a request are allowed (RFC 9112, 2.2).
    let start = said.iter().position(|byte| !b"\r\n".contains(byte));
    let Some(start) = start.filter(|start| *start <= 4) else {
        return if said.len() <= 4 { Sniff::More } else { Sniff::Other };
    };
    let line = &said[start..];
    let end = line.iter().position(|byte| *byte == b'\n');
    let method = line.iter().take_while(|byte| byte.is_ascii_uppercase() || **byte == b'-').count();
    match (end, line.get(method)) {
        (_, Some(b' ')) if (3..=24).contains(&method) => {}
        (None, None) if method <= 24 => return Sniff::More,
        _ => return Sniff::Other,
    }
    match end {
        Some(end) => {
            let line = line[..end].strip_suffix(b"\r").unwrap_or(&line[..end]);
            if line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0") {
                Sniff::Http1
            } else {
                Sniff::Other
            }
        }
        None if line.len() <= LONGEST_LINE => Sniff::More,
        None => Sniff::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_say_what_is_spoken() {
        for (said, what) in [
            (&b"GET / HTTP/1.1\r\n"[..], Sniff::Http1),
            (b"\r\nPOST /a?b HTTP/1.0\n", Sniff::Http1),
            (b"M-SEARCH * HTTP/1.1\r\n", Sniff::Http1),
            (b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\nmore", Sniff::Http1),
            (PREFACE, Sniff::Http2),
            (b"PRI * HTTP/2.0\r\n", Sniff::More),
            (b"PRI * HTTP/2.0\r\n\r\nXX", Sniff::Other),
            (b"P", Sniff::More),
            (b"GET", Sniff::More),
            (b"GET /very/long", Sniff::More),
            (b"GET key\r\n", Sniff::Other),
            (b"PING\r\n", Sniff::Other),
            (b"SSH-2.0-OpenSSH\r\n", Sniff::Other),
            (b"*1\r\n$4\r\nPING\r\n", Sniff::Other),
            (b"\x16\x03\x01\x02\x00", Sniff::Other),
            (b"\0\0\0\x0b", Sniff::Other),
            (b"get / HTTP/1.1\r\n", Sniff::Other),
            (b"G / HTTP/1.1\r\n", Sniff::Other),
        ] {
            assert_eq!(sniff(said), what, "{:?}", String::from_utf8_lossy(said));
        }
        let long = [b"GET /", &[b'a'; LONGEST_LINE][..]].concat();
        assert_eq!(sniff(&long), Sniff::Other);
    }

    #[test]
    fn a_request_that_comes_byte_by_byte_is_told_at_its_first_line() {
        let request = b"GET / HTTP/1.1\r\nhost: a\r\n";
        for end in 1..request.len() {
            let wanted = if end < 16 { Sniff::More } else { Sniff::Http1 };
            assert_eq!(sniff(&request[..end]), wanted, "{end}");
        }
    }
}
