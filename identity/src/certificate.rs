//! One certificate with its key and the roots it is judged against: immutable, shared by all workers.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, SystemTime},
};

use mesh::Identity;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::verify_server_cert_signed_by_trust_anchor,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
    server::ParsedCertificate,
    sign::{CertifiedKey, SigningKey, SingleCertAndKey},
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer, time::ASN1Time};

use crate::{
    BadChain, Clock, Issued,
    clock::unix_time,
    tls,
    verify::{ClientVerifier, identity_in},
};

/// More expected sets than this, and the cache of client configurations starts anew.
const MAX_CLIENT_CONFIGS: usize = 4096;

/// A certificate of an identity, with its private key and the trust bundle of its time.
pub struct Certified {
    pub identity: Identity,
    /// Leaf first, then intermediates; the root is not among them.
    pub chain: Vec<CertificateDer<'static>>,
    /// The roots that were issued with it, and the extra ones.
    pub roots: Arc<RootCertStore>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// Hexadecimal.
    pub serial: String,
    /// The roots that were issued with the chain, without the extra ones.
    pub(crate) issued_roots: Vec<CertificateDer<'static>>,
    /// Which bundle of extra roots it was made under.
    pub(crate) roots_generation: u64,
    pub(crate) presented: Arc<SingleCertAndKey>,
    /// Signs with the key.
    pub(crate) signing: Arc<dyn SigningKey>,
    key: SecretKey,
    clients: Mutex<HashMap<Arc<[Identity]>, Arc<ClientConfig>>>,
    server: OnceLock<Arc<ServerConfig>>,
    callers: OnceLock<Arc<ClientVerifier>>,
}

/// Shows everything but the key.
impl fmt::Debug for Certified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certified")
            .field("identity", &self.identity)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// A PKCS#8 private key, wiped when dropped.
pub(crate) struct SecretKey(PrivatePkcs8KeyDer<'static>);

impl SecretKey {
    pub(crate) fn from_pkcs8(der: Vec<u8>) -> Self {
        Self(PrivatePkcs8KeyDer::from(der))
    }

    pub(crate) fn pkcs8(&self) -> &[u8] {
        self.0.secret_pkcs8_der()
    }

    fn duplicate(&self) -> Self {
        Self(self.0.clone_key())
    }
}

impl Drop for SecretKey {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

/// A chain taken apart: what is shown to peers, and what peers are judged by.
pub(crate) struct Chain {
    pub(crate) shown: Vec<CertificateDer<'static>>,
    pub(crate) roots: Vec<CertificateDer<'static>>,
}

impl Chain {
    /// The first element holds the leaf, the last the root or roots, what is between are
    /// intermediates (`istio.v1.auth.IstioCertificateResponse.cert_chain`).
    pub(crate) fn from_issued(issued: &Issued) -> Result<Self, BadChain> {
        let Some((last, rest)) = issued.chain_pem.split_last() else { return Err(BadChain::Empty) };
        if rest.is_empty() {
            // One element only: everything in it is shown, and the roots must come from elsewhere.
            return Ok(Self { shown: certificates(last)?, roots: Vec::new() }).and_then(Self::not_empty);
        }
        let mut shown = Vec::new();
        for pem in rest {
            shown.extend(certificates(pem)?);
        }
        Self { shown, roots: certificates(last)? }.not_empty()
    }

    fn not_empty(self) -> Result<Self, BadChain> {
        if self.shown.is_empty() { Err(BadChain::Empty) } else { Ok(self) }
    }
}

/// Every certificate of a PEM text.
pub(crate) fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, BadChain> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| BadChain::NotPem(error.to_string()))
}

/// The trust bundle of one certificate: its own roots and the extra ones.
fn bundle(
    issued: &[CertificateDer<'static>],
    extra: &[CertificateDer<'static>],
) -> Result<RootCertStore, BadChain> {
    let mut store = RootCertStore::empty();
    for root in issued.iter().chain(extra) {
        store.add(root.clone()).map_err(|error| BadChain::NotX509(error.to_string()))?;
    }
    if store.is_empty() { Err(BadChain::NoRoot) } else { Ok(store) }
}

impl Certified {
    /// Puts a key and a chain together, and checks all that a peer would: the chain leads to the
    /// roots, the leaf names `identity`, and its key is ours.
    pub(crate) fn new(
        identity: Identity,
        key: SecretKey,
        chain: Chain,
        extra_roots: &[CertificateDer<'static>],
        roots_generation: u64,
        now: SystemTime,
    ) -> Result<Self, BadChain> {
        let roots = bundle(&chain.roots, extra_roots)?;
        let leaf = &chain.shown[0];
        let facts = LeafFacts::read(leaf)?;
        match identity_in(leaf) {
            Ok(found) if found == identity => {}
            Ok(found) => {
                return Err(BadChain::WrongIdentity { wanted: identity, found: found.to_string() });
            }
            Err(_) => return Err(BadChain::WrongIdentity { wanted: identity, found: facts.names }),
        }
        let untrusted = |error: rustls::Error| BadChain::Untrusted(error.to_string());
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(leaf).map_err(untrusted)?,
            &roots,
            &chain.shown[1..],
            unix_time(now),
            tls::provider().signature_verification_algorithms.all,
        )
        .map_err(untrusted)?;
        let wrong_key = |error: rustls::Error| BadChain::WrongKey(error.to_string());
        let private = PrivateKeyDer::Pkcs8(key.0.clone_key());
        let pair =
            CertifiedKey::from_der(chain.shown.clone(), private, &tls::provider()).map_err(wrong_key)?;
        pair.keys_match().map_err(wrong_key)?;
        Ok(Self {
            identity,
            roots: Arc::new(roots),
            not_before: facts.not_before,
            not_after: facts.not_after,
            serial: facts.serial,
            chain: chain.shown,
            issued_roots: chain.roots,
            roots_generation,
            signing: pair.key.clone(),
            presented: Arc::new(SingleCertAndKey::from(pair)),
            key,
            clients: Mutex::default(),
            server: OnceLock::new(),
            callers: OnceLock::new(),
        })
    }

    /// The same key and chain under another bundle of extra roots.
    pub(crate) fn with_roots(
        &self,
        extra: &[CertificateDer<'static>],
        generation: u64,
    ) -> Result<Self, BadChain> {
        Ok(Self {
            identity: self.identity.clone(),
            roots: Arc::new(bundle(&self.issued_roots, extra)?),
            not_before: self.not_before,
            not_after: self.not_after,
            serial: self.serial.clone(),
            chain: self.chain.clone(),
            issued_roots: self.issued_roots.clone(),
            roots_generation: generation,
            presented: self.presented.clone(),
            signing: self.signing.clone(),
            key: self.key.duplicate(),
            clients: Mutex::default(),
            server: OnceLock::new(),
            callers: OnceLock::new(),
        })
    }

    pub(crate) fn key(&self) -> &SecretKey {
        &self.key
    }

    /// Whether peers would accept it at `now`.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.not_before <= now && now < self.not_after
    }

    /// The middle of its life, when a new one is due.
    pub(crate) fn half_life(&self) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or(Duration::ZERO);
        self.not_before + life / 2
    }

    pub(crate) fn client_config(
        &self,
        expected: &Arc<[Identity]>,
        clock: &Arc<dyn Clock>,
    ) -> Arc<ClientConfig> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = clients.get(expected) {
            return config.clone();
        }
        if clients.len() >= MAX_CLIENT_CONFIGS {
            clients.clear();
        }
        let config = Arc::new(tls::client_config(self, expected, clock));
        clients.insert(expected.clone(), config.clone());
        config
    }

    /// Who judges callers by the roots of this certificate.
    pub(crate) fn callers(&self, trust_domains: &Arc<[String]>) -> Arc<ClientVerifier> {
        let make = || Arc::new(ClientVerifier::new(self.roots.clone(), trust_domains.clone()));
        self.callers.get_or_init(make).clone()
    }

    pub(crate) fn server_config(
        &self,
        trust_domains: &Arc<[String]>,
        clock: &Arc<dyn Clock>,
    ) -> Arc<ServerConfig> {
        self.server.get_or_init(|| Arc::new(tls::server_config(self, trust_domains, clock))).clone()
    }
}

/// What is read from a leaf for reports and renewal.
struct LeafFacts {
    not_before: SystemTime,
    not_after: SystemTime,
    serial: String,
    names: String,
}

impl LeafFacts {
    fn read(leaf: &CertificateDer<'_>) -> Result<Self, BadChain> {
        let not_x509 = |error: String| BadChain::NotX509(error);
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| not_x509(error.to_string()))?;
        let names = parsed.subject_alternative_name().map_err(|error| not_x509(error.to_string()))?;
        let names = names.iter().flat_map(|names| &names.value.general_names).map(|name| match name {
            GeneralName::URI(uri) | GeneralName::DNSName(uri) => (*uri).to_owned(),
            other => format!("{other:?}"),
        });
        let names = names.collect::<Vec<_>>().join(", ");
        Ok(Self {
            not_before: system_time(parsed.validity().not_before),
            not_after: system_time(parsed.validity().not_after),
            serial: parsed.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
            names: if names.is_empty() { "nobody".to_owned() } else { names },
        })
    }
}

/// Times before 1970 read as 1970.
fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}
