//! The smallest HTTP/1.1 client that can ask a program how it is, from inside its namespace.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::Netns;

/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(5);

/// An answer: status code and body.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub body: String,
}

/// GETs `path` from `to` inside `ns`.
pub fn get(ns: &Netns, to: SocketAddr, path: &str) -> Result<Response> {
    request(ns, to, "GET", path)
}

/// Sends a request without a body (`GET`, or `POST` for an admin's switch).
pub fn request(ns: &Netns, to: SocketAddr, method: &str, path: &str) -> Result<Response> {
    let mut stream = ns.connect(to, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    )?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).with_context(|| format!("read the answer of http://{to}{path}"))?;
    parse(&bytes).with_context(|| format!("{method} http://{to}{path}"))
}

fn parse(bytes: &[u8]) -> Result<Response> {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { bail!("no end of the headers in {text:?}") };
    let status = head.split(' ').nth(1).context("no status in the first line")?.parse().context("status")?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { unchunk(body)? } else { body.to_owned() };
    Ok(Response { status, body })
}

fn unchunk(mut rest: &str) -> Result<String> {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n").context("chunk without a size line")?;
        let size = usize::from_str_radix(size.trim(), 16).context("chunk size")?;
        if size == 0 {
            return Ok(body);
        }
        body.push_str(after.get(..size).context("chunk cut short")?);
        rest = after.get(size + 2..).context("chunk without its end")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunked_answer_is_put_together() {
        let answer =
            parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
                .unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "abcde"));
        assert!(parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc").is_err());
    }
}
