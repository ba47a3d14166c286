//! The client: makes a request some times, and prints of each what was sent, and what was answered.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use super::{ECHO, Text, tls};

/// For connecting, as the real client has it.
const CONNECT: Duration = Duration::from_secs(2);
/// For all requests together, as the real client has it.
const ALL: Duration = Duration::from_secs(5);
/// Requests under way at once, as the real client has it.
const AT_ONCE: usize = 20;

/// Request something as the mesh conformance suite's echo client does; exits with 1 if a single request was not
/// answered, whatever the answer.
#[derive(Debug, Clone, Args)]
pub(crate) struct Client {
    /// http, https or grpc.
    url: Uri,
    /// Of HTTP.
    #[arg(long, default_value = "GET")]
    method: Method,
    /// `name:value`, the host by `Host`; may be repeated.
    #[arg(long, short = 'H')]
    header: Vec<String>,
    /// How many times.
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// HTTP/2 with prior knowledge: all requests on one connection. HTTP/1 opens one for each.
    #[arg(long)]
    http2: bool,
    /// Of gRPC: what is to be sent back.
    #[arg(long, default_value = "HelloWorld")]
    msg: String,
}

/// A connection.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// What every request has in common.
struct Call {
    client: Client,
    headers: HeaderMap,
    /// The host, where a header names another than the URL.
    host: String,
    /// Of HTTP/2 there is one connection.
    shared: Option<http2::SendRequest<Full<Bytes>>>,
}

impl Client {
    pub(crate) async fn run(self) -> Result<bool> {
        let count = self.count;
        for lines in timeout(ALL, self.requests()).await.context("not all were answered in time")?? {
            // And an empty line, by which the answers are told apart.
            println!("{lines}");
        }
        eprintln!("all {count} requests were answered");
        Ok(true)
    }

    /// What is to be printed of each.
    async fn requests(self) -> Result<Vec<String>> {
        let count = self.count;
        let call = Arc::new(self.call().await?);
        let (room, mut running) = (Arc::new(Semaphore::new(AT_ONCE)), JoinSet::new());
        for number in 0..count {
            let (call, room) = (call.clone(), room.clone());
            running.spawn(async move {
                let _place = room.acquire_owned().await?;
                Ok::<_, anyhow::Error>((number, call.request(number).await?))
            });
        }
        let mut answers = vec![String::new(); count];
        while let Some(answer) = running.join_next().await {
            let (number, lines) = answer.context("a request")??;
            answers[number] = lines;
        }
        Ok(answers)
    }

    async fn call(self) -> Result<Call> {
        let authority = self.url.authority().context("the URL names no host")?.as_str().to_owned();
        let mut headers = HeaderMap::new();
        for line in &self.header {
            let (name, value) =
                line.split_once(':').with_context(|| format!("{line:?} is not name:value"))?;
            headers.append(HeaderName::try_from(name)?, HeaderValue::from_str(value.trim())?);
        }
        let host = match headers.remove(header::HOST) {
            Some(host) => host.to_str().context("the host")?.to_owned(),
            None => authority,
        };
        let shared = if self.http2 || self.speaks_grpc() {
            let stream = TokioIo::new(self.connect(b"h2").await?.0);
            let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
            drop(tokio::spawn(connection));
            Some(sender)
        } else {
            None
        };
        Ok(Call { client: self, headers, host, shared })
    }

    fn speaks_grpc(&self) -> bool {
        self.url.scheme_str() == Some("grpc")
    }

    async fn connect(&self, alpn: &[u8]) -> Result<(Box<dyn Stream>, SocketAddr)> {
        let host = self.url.host().context("the URL names no host")?.trim_matches(['[', ']']);
        let usual = match self.url.scheme_str() {
            Some("http" | "grpc") => 80,
            Some("https") => 443,
            other => bail!("{other:?} is not spoken: http, https and grpc are"),
        };
        let port = self.url.port_u16().unwrap_or(usual);
        let what = || format!("connect to {host}:{port}");
        let stream = timeout(CONNECT, TcpStream::connect((host, port)))
            .await
            .with_context(what)?
            .with_context(what)?;
        stream.set_nodelay(true)?;
        let local = stream.local_addr()?;
        if usual != 443 {
            return Ok((Box::new(stream), local));
        }
        let name = rustls::pki_types::ServerName::try_from(host.to_owned()).context("the name for TLS")?;
        let stream = tls::connector(alpn)?.connect(name, stream).await.with_context(what)?;
        Ok((Box::new(stream), local))
    }
}

impl Call {
    async fn request(&self, number: usize) -> Result<String> {
        let start = Instant::now();
        if self.client.speaks_grpc() {
            return self.request_grpc(number, start).await;
        }
        let mut lines = Lines { number, text: String::new() };
        lines.field("Url", &self.client.url);
        for (name, value) in &self.headers {
            lines.field("Header", format_args!("{name}:{}", String::from_utf8_lossy(value.as_bytes())));
        }
        let path = self.client.url.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder().method(&self.client.method);
        if let Some(headers) = request.headers_mut() {
            *headers = self.headers.clone();
            headers.entry(header::USER_AGENT).or_insert(HeaderValue::from_static("app"));
        }
        let response = match &self.shared {
            Some(shared) => {
                let scheme = self.client.url.scheme_str().unwrap_or("http");
                let request = request.uri(format!("{scheme}://{}{path}", self.host)).body(Full::default())?;
                shared.clone().send_request(request).await?
            }
            None => {
                let (stream, local) = self.client.connect(b"http/1.1").await?;
                let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
                drop(tokio::spawn(connection));
                lines.field("SourceIP", local.ip());
                let request = request.uri(path).header(header::HOST, &self.host);
                let request = request.header(header::CONNECTION, "close").body(Full::<Bytes>::default())?;
                sender.send_request(request).await?
            }
        };
        lines.field("Latency", format_args!("{:?}", start.elapsed()));
        lines.field("StatusCode", response.status().as_u16());
        let (headers, body) = read(response).await?;
        lines.answer(&headers, &String::from_utf8_lossy(&body.to_bytes()));
        Ok(lines.text)
    }

    async fn request_grpc(&self, number: usize, start: Instant) -> Result<String> {
        let mut request = Request::post(format!("http://{}{ECHO}", self.host));
        if let Some(headers) = request.headers_mut() {
            *headers = self.headers.clone();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
            headers.entry(header::USER_AGENT).or_insert(HeaderValue::from_static("app"));
        }
        let message = Text { message: self.client.msg.clone() }.framed();
        let mut shared = self.shared.clone().context("gRPC goes over a shared connection")?;
        let response = shared.send_request(request.body(Full::new(message.into()))?).await?;
        let status = response.status();
        let (headers, body) = read(response).await?;
        // Where nothing is answered, the code is among the headers.
        let code = body.trailers().and_then(|trailers| trailers.get("grpc-status"));
        let code = code.or_else(|| headers.get("grpc-status")).cloned();
        if status != StatusCode::OK || code.as_ref().is_none_or(|code| code != "0") {
            bail!("the status is {status}, of gRPC {code:?}");
        }
        let text = Text::read(&body.to_bytes()).context("no message was answered")?;
        let mut lines = Lines { number, text: String::new() };
        lines.field("Latency", format_args!("{:?}", start.elapsed()));
        lines.answer(&headers, &text.message);
        Ok(lines.text)
    }
}

async fn read(response: Response<Incoming>) -> Result<(HeaderMap, http_body_util::Collected<Bytes>)> {
    let (head, body) = response.into_parts();
    Ok((head.headers, body.collect().await.context("read the answer")?))
}

/// What is printed of one request, each line with its number.
struct Lines {
    number: usize,
    text: String,
}

impl Lines {
    fn field(&mut self, name: &str, value: impl std::fmt::Display) {
        // Writing to a string does not fail.
        _ = writeln!(self.text, "[{}] {name}={value}", self.number);
    }

    fn answer(&mut self, headers: &HeaderMap, body: &str) {
        for (name, value) in headers {
            let value = String::from_utf8_lossy(value.as_bytes());
            self.field("ResponseHeader", format_args!("{name}:{value}"));
        }
        for line in body.lines().filter(|line| !line.is_empty()) {
            _ = writeln!(self.text, "[{} body] {line}", self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{args, conformance::server::Server};

    async fn ask(words: &[&str]) -> Vec<String> {
        args::<Client>(words).requests().await.unwrap()
    }

    /// A field's value, found as the suite finds it: by its name anywhere.
    fn value<'a>(lines: &'a str, name: &str) -> &'a str {
        lines.split_once(&format!("{name}=")).unwrap().1.lines().next().unwrap()
    }

    #[tokio::test]
    async fn what_was_sent_is_told_over_every_protocol() {
        // As the suite starts it, on ports that nobody else of the tests' uses.
        let flags =
            ["--tcp=38090", "--port=38080", "--grpc=38070", "--port=38443", "--tls=38443", "--crt=/cert.crt"];
        drop(tokio::spawn(args::<Server>(&[&flags[..], &["--key=/cert.key"]].concat()).run()));
        tokio::time::sleep(Duration::from_millis(100)).await;
        for (url, more, proto) in [
            ("http://127.0.0.1:38080/path?a=b", None, "HTTP/1.1"),
            ("http://127.0.0.1:38080/path?a=b", Some("--http2"), "HTTP/2.0"),
            ("https://127.0.0.1:38443/path?a=b", None, "HTTP/1.1"),
            ("https://127.0.0.1:38443/path?a=b", Some("--http2"), "HTTP/2.0"),
        ] {
            let mut words =
                vec![url, "--method=DELETE", "-H", "Host:echo-v2", "-H", "X-Two:1", "-H", "X-Two: 2"];
            words.extend(more);
            let lines = ask(&words).await.remove(0);
            assert_eq!(value(&lines, "StatusCode"), "200", "{lines}");
            assert_eq!(value(&lines, "Host"), "echo-v2", "{lines}");
            assert_eq!(value(&lines, "URL"), "/path?a=b", "{lines}");
            assert_eq!(value(&lines, "Method"), "DELETE", "{lines}");
            assert_eq!(value(&lines, "Proto"), proto, "{lines}");
            assert_eq!(value(&lines, "Hostname"), super::super::hostname(), "{lines}");
            assert!(lines.contains("RequestHeader=x-two:1\n") && lines.contains("RequestHeader=x-two:2\n"));
            assert!(lines.contains("ResponseHeader=content-type:application/text\n"), "{lines}");
        }
        let answers = ask(&["grpc://127.0.0.1:38070", "--count=30", "-H", "x-one:1"]).await;
        assert_eq!(answers.len(), 30);
        for (number, lines) in answers.iter().enumerate() {
            assert!(lines.starts_with(&format!("[{number}] ")), "{lines}");
            assert_eq!(value(lines, "StatusCode"), "200");
            assert_eq!(value(lines, "Echo"), "HelloWorld");
            assert!(lines.contains("RequestHeader=x-one:1\n"), "{lines}");
        }
        // Answers are told apart by an empty line, so there is none within.
        assert!(answers.iter().all(|lines| !lines.contains("\n\n")));
        assert!(args::<Client>(&["grpc://127.0.0.1:38080"]).requests().await.is_err(), "no gRPC there");
        assert!(args::<Client>(&["http://127.0.0.1:38081"]).requests().await.is_err(), "nobody there");
        let mut stream = TcpStream::connect("127.0.0.1:38090").await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"hello").await.unwrap();
        tokio::io::AsyncWriteExt::shutdown(&mut stream).await.unwrap();
        let mut told = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut told).await.unwrap();
        assert!(told.starts_with("StatusCode=200\n") && told.ends_with("\nhello"), "{told}");
    }
}
