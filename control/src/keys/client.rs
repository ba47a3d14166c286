//! A GET of something small: over TLS by the system's roots, or by those that are built in where it has none, with a
//! bound on time, length and redirections.
//!
//! Whoever may write a RequestAuthentication decides what is asked for: of the addresses that a name has only those that
//! the guard lets through are, and of what is fetched nothing is told but the keys.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Uri, header, uri::Scheme};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::guard::Guard;
use crate::objects::Objects;

/// The longest answer, in bytes.
const LONGEST: usize = jwt::keys::LONGEST;
/// Redirections that are followed.
const MOST_REDIRECTIONS: usize = 3;
/// Addresses of a name that are tried, and how long each.
const MOST_ADDRESSES: usize = 4;
const DIAL: Duration = Duration::from_secs(3);
/// Bytes of an answer's head.
const MOST_HEAD: usize = 32 << 10;

/// What operators say of fetching.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Further roots, PEM.
    pub roots: Option<PathBuf>,
    /// Addresses that may be asked although they are control's own machine or link.
    pub allow: Vec<IpNet>,
    /// How old keys become before they are fetched again.
    pub refresh: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { roots: None, allow: Vec::new(), refresh: Duration::from_secs(300) }
    }
}

/// Why nothing was fetched. Of an answer only its status is told.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    #[error("{0} is no address of http:// or https://")]
    Address(String),
    #[error("{host} is not found: {source}")]
    Lookup { host: String, source: std::io::Error },
    #[error(
        "{0} is this machine or a Service in front of it, its own link or a cloud's metadata, and is not asked (option \
         --jwks-allow)"
    )]
    Forbidden(IpAddr),
    #[error(
        "whether {ip} is this machine cannot be told, and it is not asked (option --jwks-allow): {source}"
    )]
    Unsure { ip: IpAddr, source: std::io::Error },
    #[error("{to} cannot be reached: {source}")]
    Dial { to: SocketAddr, source: std::io::Error },
    #[error("TLS with {host}: {source}")]
    Tls { host: String, source: std::io::Error },
    #[error("it did not answer in HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("it redirects more than {MOST_REDIRECTIONS} times")]
    Redirections,
    #[error("it redirects to where we do not follow: from https to http, or nowhere")]
    Redirection,
    #[error("its answer has more than {LONGEST} bytes")]
    TooLong,
    #[error("its answer broke off")]
    Broken,
    #[error("it took longer than {0:?}")]
    TooSlow(Duration),
}

/// Why the client cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("the roots of --jwks-ca, {}, cannot be used: {reason}", path.display())]
pub struct BadRoots {
    path: PathBuf,
    reason: String,
}

/// Asks.
#[derive(Clone)]
pub struct Client {
    tls: Arc<ClientConfig>,
    guard: Guard,
}

impl Client {
    /// # Errors
    /// If the further roots cannot be read.
    pub fn new(settings: &Settings) -> Result<Self, BadRoots> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        if let Some(path) = &settings.roots {
            add_roots(&mut roots, path).map_err(|reason| BadRoots { path: path.clone(), reason })?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|error| BadRoots { path: PathBuf::new(), reason: error.to_string() })?;
        let tls = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
        let guard = Guard { allow: settings.allow.as_slice().into(), objects: Arc::default() };
        Ok(Self { tls, guard })
    }

    /// Knows by these objects which Services lead back to this machine.
    pub fn among(mut self, objects: Arc<Mutex<Objects>>) -> Self {
        self.guard.objects = objects;
        self
    }

    /// Fetches what is at `uri`.
    ///
    /// # Errors
    /// If it is not there, or does not come within the bounds.
    pub async fn get(&self, uri: &str, patience: Duration) -> Result<Bytes, Failed> {
        let got = timeout(patience, self.follow(uri)).await;
        got.unwrap_or(Err(Failed::TooSlow(patience)))
    }

    async fn follow(&self, uri: &str) -> Result<Bytes, Failed> {
        let mut uri: Uri = uri.parse().map_err(|_| Failed::Address(uri.to_owned()))?;
        for _ in 0..=MOST_REDIRECTIONS {
            let response = self.ask(&uri).await?;
            if !response.status().is_redirection() {
                return body(response).await;
            }
            uri = next(&uri, response.headers()).ok_or(Failed::Redirection)?;
        }
        Err(Failed::Redirections)
    }

    async fn ask(&self, uri: &Uri) -> Result<Response<hyper::body::Incoming>, Failed> {
        let bad = || Failed::Address(uri.to_string());
        let is_tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return Err(bad()),
        };
        let host = uri.host().ok_or_else(bad)?;
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let stream = self.dial(name, port).await?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let authority = uri.authority().ok_or_else(bad)?.as_str();
        let request = Request::get(path)
            .header(header::HOST, authority)
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("culvert-control/", env!("CARGO_PKG_VERSION")))
            .header(header::CONNECTION, "close")
            .body(Empty::new())
            .map_err(|_| bad())?;
        if !is_tls {
            return exchange(stream, request).await;
        }
        let server = ServerName::try_from(name.to_owned()).map_err(|_| bad())?;
        let connected = TlsConnector::from(self.tls.clone()).connect(server, stream).await;
        let stream = connected.map_err(|source| Failed::Tls { host: host.to_owned(), source })?;
        exchange(stream, request).await
    }

    async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, Failed> {
        let found = lookup_host((host, port)).await;
        let found = found.map_err(|source| Failed::Lookup { host: host.to_owned(), source })?;
        let nobody = || std::io::Error::other("it has no address");
        let mut failed = Failed::Lookup { host: host.to_owned(), source: nobody() };
        for to in found.take(MOST_ADDRESSES) {
            let refused = match self.guard.forbids(to.ip()) {
                Ok(false) => None,
                Ok(true) => Some(Failed::Forbidden(to.ip())),
                Err(source) => Some(Failed::Unsure { ip: to.ip(), source }),
            };
            if let Some(refused) = refused {
                failed = refused;
                continue;
            }
            let dialled = timeout(DIAL, TcpStream::connect(to)).await;
            let late = || Err(std::io::ErrorKind::TimedOut.into());
            match dialled.unwrap_or_else(|_| late()) {
                Ok(stream) => return Ok(stream),
                Err(source) => failed = Failed::Dial { to, source },
            }
        }
        Err(failed)
    }
}

fn add_roots(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let read = CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())?;
    let mut none = true;
    for certificate in read {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
        none = false;
    }
    if none { Err("no certificate is in it".to_owned()) } else { Ok(()) }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<Response<hyper::body::Incoming>, Failed> {
    let connecting = http1::Builder::new().max_buf_size(MOST_HEAD).handshake(TokioIo::new(stream));
    let (mut sender, connection) = connecting.await?;
    // It ends with the answer's body, or when that is dropped.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender.send_request(request).await?)
}

async fn body(response: Response<hyper::body::Incoming>) -> Result<Bytes, Failed> {
    if response.status() != StatusCode::OK {
        return Err(Failed::Status(response.status()));
    }
    let collected = Limited::new(response.into_body(), LONGEST).collect().await;
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| match error.is::<LengthLimitError>() {
        true => Failed::TooLong,
        false => Failed::Broken,
    };
    Ok(collected.map_err(failed)?.to_bytes())
}

/// Where a redirection leads.
fn next(from: &Uri, headers: &HeaderMap) -> Option<Uri> {
    let to: Uri = headers.get(header::LOCATION)?.to_str().ok()?.parse().ok()?;
    let to = match to.scheme() {
        Some(_) => to,
        None if to.path().starts_with('/') && to.authority().is_none() => {
            let mut parts = from.clone().into_parts();
            parts.path_and_query = to.into_parts().path_and_query;
            Uri::from_parts(parts).ok()?
        }
        None => return None,
    };
    let is_https = |uri: &Uri| uri.scheme() == Some(&Scheme::HTTPS);
    (is_https(&to) || !is_https(from)).then_some(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirection_never_leads_out_of_tls() {
        let next = |from: &str, to: &str| {
            let headers = HeaderMap::from_iter([(header::LOCATION, to.parse().unwrap())]);
            next(&from.parse().unwrap(), &headers).map(|uri| uri.to_string())
        };
        for (from, to, wanted) in [
            ("https://a/b", "https://c/d", Some("https://c/d")),
            ("https://a:1/b", "/d?e", Some("https://a:1/d?e")),
            ("http://a/b", "https://c/d", Some("https://c/d")),
            ("http://a/b", "http://c/d", Some("http://c/d")),
            ("https://a/b", "http://a/b", None),
            ("https://a/b", "file:///etc/passwd", None),
            ("https://a/b", "d", None),
        ] {
            assert_eq!(next(from, to).as_deref(), wanted, "{from} {to}");
        }
    }

    #[test]
    fn roots_that_cannot_be_used_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("roots.pem");
        let told = |path: &Path| {
            let settings = Settings { roots: Some(path.to_owned()), ..Settings::default() };
            Client::new(&settings).err().expect("refused").to_string()
        };
        assert!(told(&path).contains("roots.pem"));
        std::fs::write(&path, "nothing").unwrap();
        assert!(told(&path).contains("no certificate is in it"));
    }
}
