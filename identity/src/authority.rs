//! A certificate authority: a root of its own, made on first start, or a plugged-in intermediate.
//!
//! It signs what its caller has authenticated. From a request it takes the public key, once its
//! signature proves that the sender holds the private one; whatever else the request claims (names,
//! usages, a CA flag) is ignored.

use std::{
    fs, io,
    io::Write as _,
    net::IpAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
    SerialNumber,
};
use rustls::pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use crate::{Clock, SystemClock, certificate::certificates};

/// A root that we make lives this long: ten years.
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A new certificate is valid from this long ago, for nodes whose clocks run behind: two minutes.
const BACKDATE: Duration = Duration::from_secs(120);

/// The longest request that is looked at, in bytes of PEM.
const MAX_REQUEST: usize = 16 << 10;

/// Signs certificates of identities, and server certificates for control itself.
pub struct Authority {
    issuer: rcgen::Issuer<'static, KeyPair>,
    /// From the signing certificate up to but without the root; empty where the root itself signs.
    intermediates: Vec<String>,
    root_pem: String,
    /// Every root that whoever gets a certificate is to trust, its own among them; PEM.
    trusted_pem: String,
    /// Nothing that it signs outlives it.
    not_after: SystemTime,
    clock: Arc<dyn Clock>,
}

/// A server's certificate and key, both PEM.
pub struct ServerCertificate {
    /// Leaf first, then intermediates, then the root.
    pub chain_pem: String,
    /// PKCS#8.
    pub key_pem: String,
}

/// Why an authority cannot be had, or does not sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("cannot {what} {path}: {source}")]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{what} is not usable: {reason}")]
    Unusable { what: String, reason: String },
    #[error("the certificate request is refused: {0}")]
    BadRequest(String),
    #[error("cannot sign: {0}")]
    Sign(String),
}

impl Authority {
    /// Opens `dir/root.pem` and `dir/key.pem`, or makes them (key mode 0600, directory 0700).
    pub fn load_or_create(dir: &Path, trust_domain: &str) -> Result<Self, AuthorityError> {
        let (root_path, key_path) = (dir.join("root.pem"), dir.join("key.pem"));
        match (read(&root_path)?, read(&key_path)?) {
            (Some(root), Some(key)) => Self::from_pem(&root, &key),
            (Some(_), None) => Err(AuthorityError::Unusable {
                what: root_path.display().to_string(),
                reason: format!(
                    "its key {} is missing; restore it, or remove the root to start with a new one \
                     that every node must then be told of",
                    key_path.display()
                ),
            }),
            // A key without a root is what a crash between the two writes leaves: start over.
            (None, _) => {
                let (root, key) = self_signed(trust_domain, SystemTime::now())?;
                fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| {
                    AuthorityError::File { what: "create", path: dir.to_owned(), source }
                })?;
                write_atomically(&key_path, &key, 0o600)?;
                write_atomically(&root_path, &root, 0o644)?;
                Self::from_pem(&root, &key)
            }
        }
    }

    /// Takes an intermediate (or root) from elsewhere: `chain_pem` from the signing certificate up to
    /// the root, `key_pem` its private key (PKCS#8).
    pub fn from_pem(chain_pem: &str, key_pem: &str) -> Result<Self, AuthorityError> {
        let unusable =
            |reason: String| AuthorityError::Unusable { what: "the CA certificate".into(), reason };
        let chain = certificates(chain_pem).map_err(|error| unusable(error.to_string()))?;
        let (Some(signer), Some(root)) = (chain.first(), chain.last()) else {
            return Err(unusable("the PEM holds no certificate".to_owned()));
        };
        let key = KeyPair::from_pem(key_pem).map_err(|error| AuthorityError::Unusable {
            what: "the CA key".into(),
            reason: format!("{error}; it must be a PKCS#8 PEM"),
        })?;
        let not_after = check_signer(signer, &key).map_err(unusable)?;
        Ok(Self {
            issuer: rcgen::Issuer::from_ca_cert_der(signer, key)
                .map_err(|error| unusable(error.to_string()))?,
            intermediates: chain[..chain.len() - 1].iter().map(|der| pem_of(der)).collect(),
            root_pem: pem_of(root),
            trusted_pem: pem_of(root),
            not_after,
            clock: Arc::new(SystemClock),
        })
    }

    /// An authority that lives in memory only: for tests, and for worlds that end with the process.
    pub fn ephemeral(trust_domain: &str) -> Result<Self, AuthorityError> {
        let (root, key) = self_signed(trust_domain, SystemTime::now())?;
        Self::from_pem(&root, &key)
    }

    /// An intermediate authority under this one, as one would plug it in: its chain and key, PEM.
    pub fn intermediate(&self, name: &str, ttl: Duration) -> Result<(String, String), AuthorityError> {
        let key = new_key()?;
        let mut params = ca_params(name, self.clock.now(), ttl)?;
        params.not_after = self.end_of(ttl).into();
        params.use_authority_key_identifier_extension = true;
        let signed = params.signed_by(&key, &self.issuer).map_err(sign)?;
        let chain = [vec![signed.pem()], self.intermediates.clone(), vec![self.root_pem.clone()]].concat();
        Ok((chain.concat(), key.serialize_pem()))
    }

    /// The same authority, which tells everyone to trust all roots of `bundle_pem`, too: while one root follows
    /// another, certificates of both must be taken.
    ///
    /// # Errors
    /// If the bundle holds something that is no certificate.
    pub fn trusting(mut self, bundle_pem: &str) -> Result<Self, AuthorityError> {
        let all = certificates(bundle_pem).map_err(|error| AuthorityError::Unusable {
            what: "the bundle of roots".into(),
            reason: error.to_string(),
        })?;
        let mut roots: Vec<String> = all.iter().map(|der| pem_of(der)).collect();
        if !roots.contains(&self.root_pem) {
            roots.insert(0, self.root_pem.clone());
        }
        self.trusted_pem = roots.concat();
        Ok(self)
    }

    /// The same authority on another clock.
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock, ..self }
    }

    /// Signs the key of a request for `identity`, whatever else the request claims. The answer is
    /// leaf, intermediates, and last all roots to trust, each PEM.
    pub fn sign(
        &self,
        csr_pem: &str,
        identity: &Identity,
        ttl: Duration,
    ) -> Result<Vec<String>, AuthorityError> {
        if csr_pem.len() > MAX_REQUEST {
            return Err(AuthorityError::BadRequest(format!(
                "{} bytes are more than the {MAX_REQUEST} of any honest request",
                csr_pem.len()
            )));
        }
        // This verifies the signature of the request, too.
        let request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(|error| AuthorityError::BadRequest(error.to_string()))?;
        let uri = identity.to_string().as_str().try_into().map_err(sign)?;
        let leaf = self.leaf(&request.public_key, vec![SanType::URI(uri)], ttl)?;
        Ok([vec![leaf], self.intermediates.clone(), vec![self.trusted_pem.clone()]].concat())
    }

    /// A certificate for a server that clients reach by DNS name or address.
    pub fn server_certificate(
        &self,
        dns_names: &[String],
        addresses: &[IpAddr],
        ttl: Duration,
    ) -> Result<ServerCertificate, AuthorityError> {
        let key = new_key()?;
        let mut names = addresses.iter().copied().map(SanType::IpAddress).collect::<Vec<_>>();
        for name in dns_names {
            names.push(SanType::DnsName(name.as_str().try_into().map_err(sign)?));
        }
        let leaf = self.leaf(&key, names, ttl)?;
        let chain = [vec![leaf], self.intermediates.clone(), vec![self.root_pem.clone()]].concat();
        Ok(ServerCertificate { chain_pem: chain.concat(), key_pem: key.serialize_pem() })
    }

    /// The root that clients must trust, PEM.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// Every root that clients must trust, PEM.
    pub fn trusted_pem(&self) -> &str {
        &self.trusted_pem
    }

    fn end_of(&self, ttl: Duration) -> SystemTime {
        (self.clock.now() + ttl).min(self.not_after)
    }

    fn leaf(
        &self,
        key: &impl PublicKeyData,
        names: Vec<SanType>,
        ttl: Duration,
    ) -> Result<String, AuthorityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.not_before = (self.clock.now() - BACKDATE).into();
        params.not_after = self.end_of(ttl).into();
        params.serial_number = Some(serial());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(key, &self.issuer).map_err(sign)?.pem())
    }
}

fn sign(error: impl std::fmt::Display) -> AuthorityError {
    AuthorityError::Sign(error.to_string())
}

fn new_key() -> Result<KeyPair, AuthorityError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(sign)
}

/// 127 random bits: positive, and unique without any record of what was given out.
fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] &= 0x7f;
    bytes[0] |= 0x40;
    SerialNumber::from(bytes.to_vec())
}

fn ca_params(name: &str, now: SystemTime, life: Duration) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, name);
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + life).into();
    params.serial_number = Some(serial());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// A new root and its key (PKCS#8), both PEM, for whoever keeps them elsewhere than [`Authority::load_or_create`].
///
/// # Errors
/// If there is no randomness for a key.
pub fn new_root(trust_domain: &str) -> Result<(String, String), AuthorityError> {
    self_signed(trust_domain, SystemTime::now())
}

fn self_signed(trust_domain: &str, now: SystemTime) -> Result<(String, String), AuthorityError> {
    let key = new_key()?;
    let root = ca_params(trust_domain, now, ROOT_LIFE)?.self_signed(&key).map_err(sign)?;
    Ok((root.pem(), key.serialize_pem()))
}

/// The signing certificate is a CA's, in its time, and the key is its own. Returns its last moment.
fn check_signer(signer: &CertificateDer<'_>, key: &KeyPair) -> Result<SystemTime, String> {
    let (_, parsed) = X509Certificate::from_der(signer).map_err(|error| error.to_string())?;
    if !parsed.is_ca() {
        return Err("it is not the certificate of a CA".to_owned());
    }
    if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return Err("the key given with it is another one's".to_owned());
    }
    if !parsed.validity().is_valid() {
        return Err(format!(
            "it is valid from {} to {} only",
            parsed.validity().not_before,
            parsed.validity().not_after
        ));
    }
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// A certificate as PEM.
pub fn pem_of(der: &CertificateDer<'_>) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::with_capacity(text.len() + text.len() / 64 + 64);
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    for start in (0..text.len()).step_by(64) {
        pem.push_str(&text[start..text.len().min(start + 64)]);
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

fn read(path: &Path) -> Result<Option<String>, AuthorityError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(AuthorityError::File { what: "read", path: path.to_owned(), source }),
    }
}

/// A reader, or a start after a crash, sees the whole file or none.
fn write_atomically(path: &Path, text: &str, mode: u32) -> Result<(), AuthorityError> {
    let temporary = path.with_extension("new");
    let written = (|| {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    written.map_err(|source| AuthorityError::File { what: "write", path: path.to_owned(), source })
}
