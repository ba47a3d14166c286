//! TLS with a backend, as a BackendTLSPolicy asks for it: within the tunnel, where the backend is of the mesh.
//!
//! The certificate must lead to the roots that the policy names, and be for the server that is asked for, or have one of
//! the names that the policy lists.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use identity::verified_signatures;
use mesh::route::{BackendTls, SubjectName, Trust};
use rustls::{
    CertificateError, ClientConfig, Error, RootCertStore,
    client::{
        danger::{ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{WebPkiSupportedAlgorithms, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use super::{Same, connect::Io};
use crate::{arrival::Failure, request::Version};

/// Configurations that one worker keeps; beyond it all are made anew.
const MOST: usize = 256;

/// What each policy comes to, by what is spoken within.
#[derive(Default)]
pub(super) struct Configs(RefCell<HashMap<(Same, Option<Version>), Made>>);

/// A configuration, or why there is none.
type Made = Result<Arc<ClientConfig>, Arc<str>>;

impl Configs {
    fn get(&self, tls: &Same, version: Option<Version>) -> Made {
        let key = (tls.clone(), version);
        let mut held = self.0.borrow_mut();
        if let Some(made) = held.get(&key) {
            return made.clone();
        }
        if held.len() >= MOST {
            held.clear();
        }
        let made = config(&tls.0, version).map(Arc::new).map_err(Arc::from);
        held.insert(key, made.clone());
        made
    }
}

/// Begins TLS over a connection to a backend. `version` is what is to be spoken; `None`: no HTTP.
pub(super) async fn begin(
    configs: &Configs,
    tls: &Same,
    version: Option<Version>,
    (io, to): (Io, SocketAddr),
    patience: Duration,
) -> Result<Io, Failure> {
    let failed = |reason: String| Failure::Tls {
        to,
        server: tls.0.hostname.clone(),
        policy: tls.0.policy.clone(),
        reason,
    };
    let config = configs.get(tls, version).map_err(|reason| failed(reason.to_string()))?;
    let server =
        ServerName::try_from(tls.0.hostname.to_string()).map_err(|error| failed(error.to_string()))?;
    match timeout(patience, TlsConnector::from(config).connect(server, io)).await {
        Ok(Ok(stream)) => Ok(Io::Tls(Box::new(stream))),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed("it took too long".to_owned())),
    }
}

fn config(tls: &BackendTls, version: Option<Version>) -> Result<ClientConfig, String> {
    let roots = match &tls.trust {
        Trust::System => system(),
        Trust::Roots(pem) => Arc::new(roots(pem)?),
        Trust::Nobody(reason) => return Err(reason.to_string()),
    };
    if roots.is_empty() {
        return Err("there is no certificate by which a server could be believed".to_owned());
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Verifier { roots, names: tls.names.clone().into() };
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?;
    let mut config =
        builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth();
    config.alpn_protocols = match version {
        Some(Version::One) => vec![b"http/1.1".to_vec()],
        Some(Version::Two) => vec![b"h2".to_vec()],
        None => Vec::new(),
    };
    Ok(config)
}

fn roots(pem: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| format!("the policy's certificates: {error}"))?;
        roots.add(certificate).map_err(|error| format!("the policy's certificates: {error}"))?;
    }
    Ok(roots)
}

/// Whom this machine believes, read once.
fn system() -> Arc<RootCertStore> {
    static SYSTEM: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let read = || {
        let found = rustls_native_certs::load_native_certs();
        for error in found.errors {
            tracing::warn!(%error, "a certificate of this system cannot be read");
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        Arc::new(roots)
    };
    SYSTEM.get_or_init(read).clone()
}

/// What is demanded of a backend's certificate.
#[derive(Debug)]
struct Verifier {
    roots: Arc<RootCertStore>,
    /// Any of these; the server that was asked for, if they are none.
    names: Box<[SubjectName]>,
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    aws_lc_rs::default_provider().signature_verification_algorithms
}

impl Verifier {
    fn is_named(
        &self,
        leaf: &CertificateDer<'_>,
        parsed: &ParsedCertificate<'_>,
        server: &ServerName<'_>,
    ) -> Result<(), Error> {
        if self.names.is_empty() {
            return verify_server_name(parsed, server);
        }
        let has = |name: &SubjectName| match name {
            SubjectName::Dns(name) if !name.starts_with('*') => {
                ServerName::try_from(&**name).is_ok_and(|name| verify_server_name(parsed, &name).is_ok())
            }
            literal => is_written(leaf, literal),
        };
        match self.names.iter().any(has) {
            true => Ok(()),
            false => Err(CertificateError::NotValidForName.into()),
        }
    }
}

/// Whether a certificate has exactly this name among its subject's.
fn is_written(leaf: &CertificateDer<'_>, wanted: &SubjectName) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(leaf) else { return false };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
    names.value.general_names.iter().any(|name| match (name, wanted) {
        (GeneralName::DNSName(name), SubjectName::Dns(wanted)) => name.eq_ignore_ascii_case(wanted),
        (GeneralName::URI(uri), SubjectName::Uri(wanted)) => **uri == **wanted,
        _ => false,
    })
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let all = algorithms().all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, all)?;
        self.is_named(leaf, &parsed, server)?;
        Ok(ServerCertVerified::assertion())
    }

    verified_signatures!(algorithms());
}

#[cfg(test)]
mod tests;
