//! A small web service, one of a shop: `GET /N` is answered with a first line and N bytes of a pattern. It speaks
//! HTTP/1.1, HTTP/2 with prior knowledge, and gRPC on one port, keeps connections, refuses what it does not
//! understand, and leaves as a well-behaved one does; it is no web server.

use std::{io, rc::Rc, time::Duration};

use anyhow::{Context, Result};
use clap::Args;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::LocalSet,
};

use crate::{pages, pattern::Pattern, protocol::Answer, serve};

/// A header block of more is not ours.
const MOST_HEADERS: u64 = 16 << 10;
/// A page of more is not asked for.
pub(crate) const MOST_BYTES: u64 = 16 << 20;

/// Serve pages over HTTP/1.1, h2c and gRPC until SIGTERM; prints `ready` once the port listens.
#[derive(Debug, Args)]
pub(crate) struct Http {
    /// Where to serve.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// The first line of every page.
    #[arg(long, default_value = "a page")]
    page: String,
    /// Seconds after SIGTERM in which connections are still taken, and each told to close after its next answer:
    /// those who call learn a little later that this one has left.
    #[arg(long, default_value_t = 0)]
    linger: u64,
}

impl Http {
    pub(crate) async fn run(self) -> Result<()> {
        let local = LocalSet::new();
        let listener =
            serve::listen(self.port, 1024).with_context(|| format!("listen on port {}", self.port))?;
        let mut term = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
        let page: Rc<str> = format!("{}\n", self.page).into();
        let (leave, leaving) = watch::channel(false);
        println!("ready");
        let accept = async {
            loop {
                match listener.accept().await {
                    // A connection that fails is the client's to report.
                    Ok((stream, _)) => {
                        drop(tokio::task::spawn_local(converse(stream, page.clone(), leaving.clone())))
                    }
                    Err(error) => {
                        eprintln!("accept: {error}");
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
            }
        };
        let end = async {
            term.recv().await;
            leave.send_replace(true);
            tokio::time::sleep(Duration::from_secs(self.linger)).await;
        };
        local
            .run_until(async move {
                tokio::select! {
                    () = accept => {}
                    () = end => {}
                }
            })
            .await;
        Ok(())
    }
}

/// Answers until the client has had enough, or we leave.
async fn converse(stream: TcpStream, page: Rc<str>, leaving: watch::Receiver<bool>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut first = [0; 3];
    if stream.peek(&mut first).await? == 3 && &first == b"PRI" {
        return pages::serve(stream, page, leaving).await.map_err(io::Error::other);
    }
    let mut stream = BufReader::new(stream);
    while let Some(request) = head(&mut stream).await? {
        let size = asked(&request).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, request))?;
        let last = *leaving.borrow();
        let close = if last { "connection: close\r\n" } else { "" };
        let length = page.len() as u64 + size;
        let head = format!("HTTP/1.1 200 OK\r\n{close}content-length: {length}\r\n\r\n");
        stream.write_all(&[head.as_bytes(), &body(&page, size)].concat()).await?;
        if last {
            break;
        }
    }
    stream.shutdown().await
}

/// The page's first line, and `size` bytes of the pattern.
pub(crate) fn body(page: &str, size: u64) -> Vec<u8> {
    let mut body = page.as_bytes().to_vec();
    let at = body.len();
    body.resize(at + size as usize, 0);
    Pattern::new(size).fill(0, &mut body[at..]);
    body
}

/// The first line of a page that has `size` bytes of the pattern after it.
pub(crate) fn compare(body: &[u8], size: u64) -> io::Result<String> {
    let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let at =
        body.len().checked_sub(size as usize).ok_or_else(|| wrong("the page is too short".to_owned()))?;
    let (page, bytes) = body.split_at(at);
    if let Some(at) = Pattern::new(size).first_difference(0, bytes, &mut Vec::new()) {
        return Err(wrong(format!("byte {at} is not as it was sent")));
    }
    Ok(String::from_utf8_lossy(page).trim_end().to_owned())
}

/// The bytes that `GET /N HTTP/1.1` asks for.
fn asked(request: &str) -> Option<u64> {
    size(request.strip_prefix("GET /")?.split_once(' ')?.0)
}

/// The bytes that a path asks for, without its slash.
pub(crate) fn size(path: &str) -> Option<u64> {
    let size = if path.is_empty() { 0 } else { path.parse().ok()? };
    (size <= MOST_BYTES).then_some(size)
}

/// The lines up to the empty one; `None` where the other side closed instead.
async fn head(stream: &mut BufReader<TcpStream>) -> io::Result<Option<String>> {
    let mut head = String::new();
    loop {
        let before = head.len();
        let left = MOST_HEADERS.saturating_sub(before as u64);
        if (&mut *stream).take(left).read_line(&mut head).await? == 0 {
            let early = || io::Error::new(io::ErrorKind::UnexpectedEof, "the head is cut off");
            return if head.is_empty() { Ok(None) } else { Err(early()) };
        }
        if head[before..].trim().is_empty() {
            return Ok(Some(head));
        }
    }
}

/// Asks for a page of `size` bytes after its first line, and compares it. Its first line, and whether the connection may
/// be used again.
pub(crate) async fn get(stream: &mut BufReader<TcpStream>, host: &str, size: u64) -> io::Result<Answer> {
    let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let request = format!("GET /{size} HTTP/1.1\r\nhost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let early = || io::Error::new(io::ErrorKind::UnexpectedEof, "closed instead of an answer");
    let head = head(stream).await?.ok_or_else(early)?;
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 200 ") {
        return Err(wrong(format!("the status is {status:?}")));
    }
    let length: u64 = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .filter(|length| (size..=size + MOST_HEADERS).contains(length))
        .ok_or_else(|| wrong(format!("no fitting content-length in {head:?}")))?;
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body).await?;
    let page = compare(&body, size)?;
    let close = head.lines().any(|line| line.eq_ignore_ascii_case("connection: close"));
    Ok(Answer { page: Some(page), again: !close })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_how_much_it_wants() {
        assert_eq!(asked("GET / HTTP/1.1\r\n\r\n"), Some(0));
        assert_eq!(asked("GET /100 HTTP/1.1\r\nhost: x\r\n\r\n"), Some(100));
        for strange in ["POST / HTTP/1.1", "GET /x HTTP/1.1", "GET /1", "GET /99999999999 HTTP/1.1", ""] {
            assert_eq!(asked(strange), None, "{strange}");
        }
    }
}
