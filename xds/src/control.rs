//! How to reach control: a TLS channel whose trust and token are read anew each time, since both are
//! replaced under a running program.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use tonic::{
    metadata::{Ascii, MetadataMap, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

/// Opening the connection, TLS included, may take this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A silent connection is asked for a sign of life this often, and given [`KEEPALIVE_TIMEOUT`] for it.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2 flow-control windows: the first answer holds the whole mesh.
const WINDOW: u32 = 8 * 1024 * 1024;
/// A token file is a line, not a download.
const TOKEN_LIMIT: usize = 64 * 1024;

/// Where control is, whom to trust there, and what proves who we are.
#[derive(Debug, Clone)]
pub struct Control {
    /// `https://HOST:PORT`.
    pub uri: String,
    /// A PEM file with the roots that may have signed control's certificate.
    pub ca: PathBuf,
    /// A file with the bearer token of this node.
    pub token: PathBuf,
    /// The name control's certificate must bear, where it is not the host of `uri`.
    pub server_name: Option<String>,
}

/// Why control cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The operator's: the address.
    #[error("{uri:?} is not an address of control: {reason}; give https://HOST:PORT")]
    Uri { uri: String, reason: String },
    /// The operator's: a file.
    #[error("cannot read the {what} {}: {source}", path.display())]
    Read { what: &'static str, path: PathBuf, source: io::Error },
    /// The operator's: what a file holds.
    #[error("the {what} {} is not usable: {reason}", path.display())]
    Content { what: &'static str, path: PathBuf, reason: String },
    /// Control, or what lies between.
    #[error("cannot connect to control at {uri}: {reason}")]
    Connect { uri: String, reason: String },
}

impl Control {
    /// Opens a connection.
    pub async fn connect(&self) -> Result<Channel, ControlError> {
        let roots = self.roots().await?;
        self.endpoint(&roots)?
            .connect()
            .await
            .map_err(|error| ControlError::Connect { uri: self.uri.clone(), reason: causes(&error) })
    }

    /// A connection that is opened when first used, and again when it broke, trusting `roots`.
    pub(crate) fn lazy(&self, roots: &[u8]) -> Result<Channel, ControlError> {
        Ok(self.endpoint(roots)?.connect_lazy())
    }

    /// The trusted roots as they are now, PEM.
    pub(crate) async fn roots(&self) -> Result<Vec<u8>, ControlError> {
        let what = "control CA file";
        let roots = read(what, &self.ca).await?;
        let has_one = CertificateDer::pem_slice_iter(&roots).any(|found| found.is_ok());
        has_one.then_some(roots).ok_or_else(|| ControlError::Content {
            what,
            path: self.ca.clone(),
            reason: "it has no certificate in PEM".to_owned(),
        })
    }

    /// The value of the `authorization` header, from the token as it is now.
    pub async fn bearer(&self) -> Result<MetadataValue<Ascii>, ControlError> {
        let what = "token file";
        let content = |reason: &str| ControlError::Content {
            what,
            path: self.token.clone(),
            reason: reason.to_owned(),
        };
        let token = read(what, &self.token).await?;
        if token.len() > TOKEN_LIMIT {
            return Err(content("it is too large for a token"));
        }
        let token = std::str::from_utf8(&token).map_err(|_| content("it is not text"))?.trim();
        if token.is_empty() {
            return Err(content("it is empty"));
        }
        let mut value: MetadataValue<Ascii> = format!("Bearer {token}")
            .parse()
            .map_err(|_| content("it has characters that no header may hold"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    fn endpoint(&self, roots: &[u8]) -> Result<Endpoint, ControlError> {
        let uri = |reason: String| ControlError::Uri { uri: self.uri.clone(), reason };
        let endpoint = Endpoint::from_shared(self.uri.clone()).map_err(|error| uri(causes(&error)))?;
        if endpoint.uri().scheme_str() != Some("https") {
            return Err(uri("it does not begin with https://".to_owned()));
        }
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(roots));
        if let Some(name) = &self.server_name {
            tls = tls.domain_name(name);
        }
        let endpoint = endpoint.tls_config(tls).map_err(|error| ControlError::Content {
            what: "control CA file",
            path: self.ca.clone(),
            reason: causes(&error),
        })?;
        Ok(endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW))
    }
}

async fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, ControlError> {
    tokio::fs::read(path).await.map_err(|source| ControlError::Read { what, path: path.to_owned(), source })
}

/// Says of which cluster a request is; a name that no header may hold is left out.
pub(crate) fn name_cluster(metadata: &mut MetadataMap, cluster: &str) {
    if let Ok(cluster) = MetadataValue::try_from(cluster) {
        metadata.insert("clusterid", cluster);
    }
}

/// An error and its causes on one line; a cause that the line already says is left out.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(uri: &str) -> Control {
        Control {
            uri: uri.into(),
            ca: "/nonexistent/ca".into(),
            token: "/nonexistent/t".into(),
            server_name: None,
        }
    }

    #[tokio::test]
    async fn the_operators_mistakes_are_named() {
        let error = control("http://control:15010").endpoint(b"").unwrap_err();
        assert!(matches!(&error, ControlError::Uri { .. }), "{error}");
        let error = control("https://control:15010").connect().await.unwrap_err();
        assert!(
            error.to_string().starts_with("cannot read the control CA file /nonexistent/ca: "),
            "{error}"
        );
        let of_no_use = Control { ca: file!().into(), ..control("https://control:15010") };
        let of_no_use = Control { ca: Path::new("..").join(&of_no_use.ca), ..of_no_use };
        let error = of_no_use.connect().await.unwrap_err();
        assert!(error.to_string().ends_with("is not usable: it has no certificate in PEM"), "{error}");
        let error = control("https://control:15010").bearer().await.unwrap_err();
        assert!(error.to_string().starts_with("cannot read the token file /nonexistent/t: "), "{error}");
    }
}
