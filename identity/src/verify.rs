//! SPIFFE verification on top of webpki: a chain to our roots, and a URI SAN that we accept.
//!
//! Names of the DNS play no part. What a peer *may* do is not decided here, only who it is.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh::Identity;
use rustls::{
    CertificateError, DistinguishedName, Error, OtherError, RootCertStore,
    client::{
        danger::{ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::WebPkiSupportedAlgorithms,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use x509_parser::{extensions::GeneralName, prelude::FromDer};

use crate::{PeerIdentityError, tls::provider, verified_signatures};

/// The peer proved an identity, but not one that the plan allows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the peer proved to be {found}, expected one of {expected:?}")]
pub struct NotOneOf {
    pub expected: Arc<[Identity]>,
    pub found: Identity,
}

/// The peer's trust domain is not one that this node accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the peer proved to be {found}, whose trust domain is not accepted here")]
pub struct UntrustedDomain {
    pub found: Identity,
}

/// The identity in a peer's chain (leaf first). The chain must have been verified already: this only
/// reads it. As the X.509-SVID specification (section 2) demands, the leaf must have exactly one URI
/// among its subject alternative names.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<Identity, PeerIdentityError> {
    identity_in(chain.first().ok_or(PeerIdentityError::NoCertificate)?)
}

/// When a peer's leaf expires; `None` for what does not parse.
pub fn peer_expiry(chain: &[CertificateDer<'_>]) -> Option<SystemTime> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(chain.first()?).ok()?;
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

pub(crate) fn identity_in(leaf: &CertificateDer<'_>) -> Result<Identity, PeerIdentityError> {
    let not_x509 = |error: String| PeerIdentityError::NotX509(error);
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(leaf)
        .map_err(|error| not_x509(error.to_string()))?;
    let names = certificate.subject_alternative_name().map_err(|error| not_x509(error.to_string()))?;
    let mut uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let first = uris.next().ok_or(PeerIdentityError::NoSpiffeId)?;
    match uris.count() {
        0 => first.parse().map_err(|_| PeerIdentityError::NotAServiceAccount(first.to_owned())),
        more => Err(PeerIdentityError::ManyUris(more + 1)),
    }
}

/// An error of ours as rustls carries it; the peer sees the alert `certificate_unknown`.
fn refused(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// TLS 1.2 is not spoken at all: its signatures have no way to arrive, but the traits ask.
fn algorithms() -> WebPkiSupportedAlgorithms {
    provider().signature_verification_algorithms
}

/// What a client demands of a server: a chain to our roots and one of the expected identities.
pub(crate) struct ServerVerifier {
    roots: Arc<RootCertStore>,
    expected: Arc<[Identity]>,
}

impl ServerVerifier {
    pub(crate) fn new(roots: Arc<RootCertStore>, expected: Arc<[Identity]>) -> Self {
        Self { roots, expected }
    }
}

impl fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerVerifier").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            algorithms().all,
        )?;
        let found = identity_in(leaf).map_err(refused)?;
        if self.expected.contains(&found) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(refused(NotOneOf { expected: self.expected.clone(), found }))
        }
    }

    verified_signatures!(algorithms());
}

/// What a server demands of a client: a certificate, a chain to our roots, an accepted trust domain.
pub(crate) struct ClientVerifier {
    /// `None` where there are no roots at all: nobody is accepted.
    chain: Option<Arc<dyn ClientCertVerifier>>,
    trust_domains: Arc<[String]>,
}

impl ClientVerifier {
    pub(crate) fn new(roots: Arc<RootCertStore>, trust_domains: Arc<[String]>) -> Self {
        let chain = WebPkiClientVerifier::builder_with_provider(roots, provider()).build().ok();
        Self { chain, trust_domains }
    }
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientVerifier").field("trust_domains", &self.trust_domains).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.as_ref().map_or(&[], |chain| chain.root_hint_subjects())
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain = self.chain.as_ref().ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let verified = chain.verify_client_cert(leaf, intermediates, now)?;
        let found = identity_in(leaf).map_err(refused)?;
        if self.trust_domains.iter().any(|accepted| accepted == found.trust_domain()) {
            Ok(verified)
        } else {
            Err(refused(UntrustedDomain { found }))
        }
    }

    verified_signatures!(algorithms());
}
