//! The server: every port answers with what reached it, over HTTP/1.1, HTTP/2, TLS, gRPC or plain TCP.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Version, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
};
use tokio_rustls::TlsAcceptor;

use super::{ECHO, Text, field, hostname, tls};
use crate::serve;

/// After SIGTERM: those who call learn a little later that this one has left.
const LINGER: Duration = Duration::from_secs(1);

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Serve as the mesh conformance suite's echo image does, until SIGTERM; prints `ready` once every port listens.
#[derive(Debug, Args)]
pub(crate) struct Server {
    /// A port of HTTP; may be repeated.
    #[arg(long)]
    port: Vec<u16>,
    /// One of these that speaks TLS; may be repeated.
    #[arg(long)]
    tls: Vec<u16>,
    /// A port of gRPC; may be repeated.
    #[arg(long)]
    grpc: Vec<u16>,
    /// A port of TCP; may be repeated.
    #[arg(long)]
    tcp: Vec<u16>,
    /// Not read: a certificate is made at the start, and nobody checks it.
    #[arg(long)]
    crt: Option<PathBuf>,
    /// Not read either.
    #[arg(long)]
    key: Option<PathBuf>,
}

/// What a port speaks.
#[derive(Clone)]
enum Speech {
    Http,
    Tls(TlsAcceptor),
    Grpc,
    Tcp,
}

/// Where a request came in.
#[derive(Debug, Clone)]
struct Place {
    port: u16,
    from: IpAddr,
    /// What TLS agreed on: protocol and server name.
    agreed: Option<(String, String)>,
    grpc: bool,
}

impl Server {
    pub(crate) async fn run(self) -> Result<()> {
        let mut term = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
        let acceptor = tls::acceptor()?;
        let http = self.port.iter().map(|port| {
            let tls = self.tls.contains(port);
            (*port, if tls { Speech::Tls(acceptor.clone()) } else { Speech::Http })
        });
        let grpc = self.grpc.iter().map(|port| (*port, Speech::Grpc));
        let tcp = self.tcp.iter().map(|port| (*port, Speech::Tcp));
        for (port, speech) in http.chain(grpc).chain(tcp) {
            let listener = serve::listen(port, 1024).with_context(|| format!("listen on port {port}"))?;
            drop(tokio::spawn(accept(listener, port, speech)));
        }
        println!("ready");
        term.recv().await;
        tokio::time::sleep(LINGER).await;
        Ok(())
    }
}

async fn accept(listener: TcpListener, port: u16, speech: Speech) {
    loop {
        match listener.accept().await {
            // A connection that fails is the client's to report.
            Ok((stream, from)) => drop(tokio::spawn(converse(stream, from, port, speech.clone()))),
            Err(error) => {
                eprintln!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, from: SocketAddr, port: u16, speech: Speech) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let grpc = matches!(speech, Speech::Grpc);
    let place = Place { port, from: from.ip().to_canonical(), agreed: None, grpc };
    match speech {
        Speech::Tcp => echo(stream, &place).await,
        Speech::Tls(acceptor) => {
            let stream = acceptor.accept(stream).await?;
            let session = stream.get_ref().1;
            let alpn = session.alpn_protocol().unwrap_or_default().to_owned();
            let name = session.server_name().unwrap_or_default().to_owned();
            let http2 = alpn == b"h2";
            let agreed = Some((String::from_utf8_lossy(&alpn).into_owned(), name));
            serve_http(stream, Place { agreed, ..place }, http2).await
        }
        Speech::Http | Speech::Grpc => {
            let mut first = [0; 3];
            let http2 = stream.peek(&mut first).await? == 3 && &first == b"PRI";
            serve_http(stream, place, http2).await
        }
    }
}

async fn serve_http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    place: Place,
    http2: bool,
) -> io::Result<()> {
    let service = service_fn(move |request| answer(request, place.clone()));
    let stream = TokioIo::new(stream);
    if http2 {
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        server.serve_connection(stream, service).await.map_err(io::Error::other)
    } else {
        hyper::server::conn::http1::Builder::new()
            .serve_connection(stream, service)
            .await
            .map_err(io::Error::other)
    }
}

async fn answer(request: Request<Incoming>, place: Place) -> Result<Response<Body>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    if place.grpc {
        return Ok(answer_grpc(&head, &body, &place));
    }
    let text = Full::new(Bytes::from(told(&head, &place))).boxed_unsync();
    let mut response = Response::new(text);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/text"));
    Ok(response)
}

/// What a request of HTTP is answered with.
fn told(head: &http::request::Parts, place: &Place) -> String {
    let mut lines = String::new();
    field(&mut lines, "ServiceVersion", "");
    field(&mut lines, "ServicePort", place.port);
    field(&mut lines, "Host", host(head));
    field(&mut lines, "URL", head.uri.path_and_query().map_or("", |path| path.as_str()));
    field(&mut lines, "Method", &head.method);
    field(&mut lines, "Proto", if head.version == Version::HTTP_2 { "HTTP/2.0" } else { "HTTP/1.1" });
    field(&mut lines, "IP", place.from);
    if let Some((alpn, name)) = &place.agreed {
        field(&mut lines, "Alpn", alpn);
        field(&mut lines, "Sni", name);
    }
    for (name, value) in headers(&head.headers).filter(|(name, _)| *name != header::HOST) {
        field(&mut lines, "RequestHeader", format!("{name}:{value}"));
    }
    field(&mut lines, "Hostname", hostname());
    lines
}

fn answer_grpc(head: &http::request::Parts, body: &[u8], place: &Place) -> Response<Body> {
    let asked = Text::read(body).filter(|_| head.uri.path() == ECHO);
    let (answer, code) = match &asked {
        Some(asked) => (Text { message: told_grpc(head, asked, place) }.framed(), "0"),
        // Not implemented.
        None => (Vec::new(), "12"),
    };
    let status = HeaderName::from_static("grpc-status");
    let trailers = HeaderMap::from_iter([(status, HeaderValue::from_static(code))]);
    let body = Full::new(Bytes::from(answer)).with_trailers(async move { Some(Ok(trailers)) });
    let mut response = Response::new(body.boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

fn told_grpc(head: &http::request::Parts, asked: &Text, place: &Place) -> String {
    let mut lines = String::new();
    field(&mut lines, "Host", host(head));
    field(&mut lines, "RequestHeader", format!(":authority:{}", host(head)));
    for (name, value) in headers(&head.headers).filter(|(name, _)| !name.as_str().ends_with("-bin")) {
        field(&mut lines, "RequestHeader", format!("{name}:{value}"));
    }
    field(&mut lines, "StatusCode", 200);
    field(&mut lines, "ServiceVersion", "");
    field(&mut lines, "ServicePort", place.port);
    field(&mut lines, "IP", place.from);
    field(&mut lines, "Proto", "GRPC");
    field(&mut lines, "Echo", &asked.message);
    field(&mut lines, "Hostname", hostname());
    lines
}

/// Says whom it sees when the first bytes come, and sends back what it gets.
async fn echo(mut stream: TcpStream, place: &Place) -> io::Result<()> {
    let mut buffer = vec![0; 4096];
    let mut told = false;
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return stream.shutdown().await;
        }
        if !std::mem::replace(&mut told, true) {
            let mut lines = String::new();
            field(&mut lines, "StatusCode", 200);
            field(&mut lines, "ServiceVersion", "");
            field(&mut lines, "ServicePort", place.port);
            field(&mut lines, "IP", place.from);
            field(&mut lines, "Proto", "TCP");
            field(&mut lines, "Hostname", hostname());
            stream.write_all(lines.as_bytes()).await?;
        }
        stream.write_all(&buffer[..length]).await?;
    }
}

/// HTTP/2 has it as authority, HTTP/1 as a header.
fn host(head: &http::request::Parts) -> &str {
    let header = || head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    head.uri.authority().map(|authority| authority.as_str()).or_else(header).unwrap_or_default()
}

fn headers(headers: &HeaderMap) -> impl Iterator<Item = (&HeaderName, std::borrow::Cow<'_, str>)> {
    headers.iter().map(|(name, value)| (name, String::from_utf8_lossy(value.as_bytes())))
}
