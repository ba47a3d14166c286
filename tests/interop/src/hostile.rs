//! A client of port 15008 that does what it is told, right or wrong: plain rustls and h2, none of our
//! own tunnel, so that a mistake made on both sides of our code cannot hide.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream as StdStream},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use bed::Netns;
use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, StatusCode};
use rustls::{
    AlertDescription, ClientConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::ServerName,
};
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use trusting::Anybody;

use crate::pki::Credentials;

/// How long any answer may take, unless a test is about slowness itself.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What the client offers in its handshake.
pub struct Offer<'a> {
    pub credentials: Option<&'a Credentials>,
    pub provider: CryptoProvider,
}

impl<'a> Offer<'a> {
    /// What every HBONE peer offers: TLS 1.3, the usual suites, a certificate.
    pub fn usual(credentials: &'a Credentials) -> Self {
        Self { credentials: Some(credentials), provider: aws_lc_rs::default_provider() }
    }

    /// The usual, without a certificate.
    pub fn anonymous() -> Self {
        Self { credentials: None, provider: aws_lc_rs::default_provider() }
    }

    /// TLS 1.3 with ChaCha20-Poly1305 only.
    pub fn chacha(credentials: &'a Credentials) -> Self {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256];
        Self { provider, ..Self::usual(credentials) }
    }

    fn configuration(&self) -> Result<ClientConfig> {
        let provider = Arc::new(self.provider.clone());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .context("protocol versions")?
            .dangerous()
            // The server is not what these tests doubt.
            .with_custom_certificate_verifier(Arc::new(Anybody(provider)));
        let mut configuration = match self.credentials {
            Some(own) => builder
                .with_client_auth_cert(own.chain.clone(), own.key.clone_key())
                .context("client certificate")?,
            None => builder.with_no_client_auth(),
        };
        configuration.alpn_protocols = vec![b"h2".to_vec()];
        configuration.enable_sni = false;
        Ok(configuration)
    }
}

/// The ClientHello of a client that knows TLS 1.2 and nothing newer, in one record (RFC 5246, 7.4.1.2):
/// ECDHE-ECDSA with AES-128-GCM, P-256, ECDSA with SHA-256. Our own TLS library cannot say this.
pub fn client_hello_tls12() -> Vec<u8> {
    let extensions: [&[u8]; 3] =
        [&[0, 10, 0, 4, 0, 2, 0, 23], &[0, 11, 0, 2, 1, 0], &[0, 13, 0, 4, 0, 2, 4, 3]];
    let extensions = extensions.concat();
    let mut body = vec![3, 3];
    body.extend([0x5a; 32]);
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let mut message = vec![22, 3, 1];
    message.extend((body.len() as u16 + 4).to_be_bytes());
    message.extend([1, 0]);
    message.extend((body.len() as u16).to_be_bytes());
    message.extend(body);
    message
}

/// Connects from inside a namespace; the socket belongs to the current tokio runtime.
pub fn dial(from: &Netns, to: SocketAddr) -> Result<TcpStream> {
    let stream: StdStream = from.connect(to, PATIENCE)?;
    stream.set_nonblocking(true)?;
    Ok(TcpStream::from_std(stream)?)
}

/// A TLS connection, as far as the client can tell.
pub async fn handshake(from: &Netns, to: SocketAddr, offer: &Offer<'_>) -> Result<TlsStream<TcpStream>> {
    let connector = TlsConnector::from(Arc::new(offer.configuration()?));
    let name = ServerName::IpAddress(to.ip().into());
    let stream = dial(from, to)?;
    Ok(timeout(PATIENCE, connector.connect(name, stream))
        .await
        .context("the TLS handshake took too long")??)
}

/// How a peer turned a client away before any HTTP.
#[derive(Debug, PartialEq, Eq)]
pub enum TurnedAway {
    /// With a TLS alert.
    Alert(AlertDescription),
    /// By closing or resetting the connection.
    Closed,
}

/// Expects that a handshake, or the first read after it, is refused; says how.
///
/// In TLS 1.3 the client believes that the handshake is done before the server has seen its certificate.
pub async fn refused(from: &Netns, to: SocketAddr, offer: &Offer<'_>) -> Result<TurnedAway> {
    use tokio::io::AsyncReadExt;
    let mut stream = match handshake(from, to, offer).await {
        Ok(stream) => stream,
        Err(error) => return turned_away(error),
    };
    // The server's SETTINGS frame comes first on a connection that is let in.
    let mut byte = [0];
    match timeout(PATIENCE, stream.read(&mut byte)).await.context("neither refused nor let in")? {
        Ok(0) => Ok(TurnedAway::Closed),
        Ok(_) => anyhow::bail!("the peer went on to HTTP/2 instead of refusing"),
        Err(error) => turned_away(error.into()),
    }
}

fn turned_away(error: anyhow::Error) -> Result<TurnedAway> {
    let Some(io) = error.downcast_ref::<std::io::Error>() else { return Err(error) };
    if let Some(rustls::Error::AlertReceived(alert)) =
        io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>())
    {
        return Ok(TurnedAway::Alert(*alert));
    }
    match io.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
            Ok(TurnedAway::Closed)
        }
        _ => Err(error),
    }
}

/// An HTTP/2 connection on which requests can be made.
pub struct Http2 {
    pub requests: SendRequest<Bytes>,
    driver: JoinHandle<Result<(), h2::Error>>,
}

impl Http2 {
    /// TLS and HTTP/2 as a well-behaved peer does them.
    pub async fn open(from: &Netns, to: SocketAddr, credentials: &Credentials) -> Result<Self> {
        let stream = handshake(from, to, &Offer::usual(credentials)).await?;
        let (requests, connection) = h2::client::Builder::new()
            .initial_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .enable_push(false)
            .handshake(stream)
            .await
            .context("HTTP/2 handshake")?;
        Ok(Self { requests, driver: tokio::spawn(connection) })
    }

    /// The status that a CONNECT to `authority` is answered with.
    pub async fn connect(&mut self, authority: &str) -> Result<StatusCode> {
        let request = Request::builder().method(Method::CONNECT).uri(authority).body(())?;
        self.ask(request, false).await
    }

    /// The status of any request; `end` says whether it ends the stream at once.
    pub async fn ask(&mut self, request: Request<()>, end: bool) -> Result<StatusCode> {
        let mut requests = self.requests.clone().ready().await.context("the connection takes no request")?;
        // The sending half is held until the answer is there: dropping it resets the stream.
        let (answer, _sending) = requests.send_request(request, end).context("send the request")?;
        let answer = timeout(PATIENCE, answer).await.context("no answer in time")?;
        Ok(answer.context("the request was not answered")?.status())
    }

    /// Opens a tunnel and gives both halves of it.
    pub async fn tunnel(&mut self, authority: &str) -> Result<(h2::SendStream<Bytes>, h2::RecvStream)> {
        let request = Request::builder().method(Method::CONNECT).uri(authority).body(())?;
        let mut requests = self.requests.clone().ready().await.context("the connection takes no request")?;
        let (answer, sending) = requests.send_request(request, false).context("send CONNECT")?;
        let answer = timeout(PATIENCE, answer).await.context("no answer in time")?.context("CONNECT")?;
        anyhow::ensure!(
            answer.status() == StatusCode::OK,
            "CONNECT {authority} was answered {}",
            answer.status()
        );
        Ok((sending, answer.into_body()))
    }
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
