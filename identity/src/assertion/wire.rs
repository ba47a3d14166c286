//! The bytes of an assertion, in URL-safe base64. The reader believes nothing: each length is bounded before it is
//! used.
//!
//! ```text
//! version u8 = 1
//! issued u64: seconds since 1970
//! caller, waypoint: u16 length, SPIFFE ID
//! address: u8 length (4 or 16), bytes
//! behind: u8 (1 service, 2 workload), u16 length, `NAMESPACE/HOSTNAME` or uid
//! chain: u8 count (1 to 4), each u16 length, DER; the leaf first
//! signature: u16 length, ECDSA P-256 with SHA-256, over CONTEXT and all bytes before
//! ```
//! Integers are big-endian.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use mesh::{Behind, Identity, ServiceKey};
use rustls::pki_types::CertificateDer;

use super::{BadAssertion, Claims, LIFE, LONGEST};

/// What is signed begins with this: no signature made for anything else, TLS above all, is one of these.
pub(super) const CONTEXT: &[u8] = b"culvert source assertion v1\0";

const VERSION: u8 = 1;
const MAX_CERTIFICATES: usize = 4;
const MAX_CERTIFICATE: usize = 4096;
const MAX_NAME: usize = 2048;
const MAX_SIGNATURE: usize = 128;

/// An assertion as it was read, not verified.
pub(super) struct Read<'a> {
    pub(super) claims: Claims,
    pub(super) issued: SystemTime,
    pub(super) chain: Vec<CertificateDer<'a>>,
    /// What the signature is over, without [`CONTEXT`].
    pub(super) signed: &'a [u8],
    pub(super) signature: &'a [u8],
}

/// Writes what is to be signed; `None` if it would be too large to be read again.
pub(super) fn write(claims: &Claims, issued: SystemTime, chain: &[CertificateDer<'_>]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(1536);
    out.push(VERSION);
    let seconds = issued.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    out.extend_from_slice(&seconds.to_be_bytes());
    for identity in [&claims.caller, &claims.waypoint] {
        blob(&mut out, identity.to_string().as_bytes(), MAX_NAME)?;
    }
    match claims.address {
        IpAddr::V4(v4) => {
            out.push(4);
            out.extend_from_slice(&v4.octets());
        }
        IpAddr::V6(v6) => {
            out.push(16);
            out.extend_from_slice(&v6.octets());
        }
    }
    out.push(match &claims.behind {
        Behind::Service(_) => 1,
        Behind::Workload(_) => 2,
    });
    blob(&mut out, claims.behind.to_string().as_bytes(), MAX_NAME)?;
    if chain.is_empty() || chain.len() > MAX_CERTIFICATES {
        return None;
    }
    out.push(u8::try_from(chain.len()).ok()?);
    for certificate in chain {
        blob(&mut out, certificate, MAX_CERTIFICATE)?;
    }
    Some(out)
}

/// Adds the signature and makes a header of it.
pub(super) fn finish(mut signed: Vec<u8>, signature: &[u8]) -> Option<String> {
    blob(&mut signed, signature, MAX_SIGNATURE)?;
    Some(BASE64.encode(signed)).filter(|text| text.len() <= LONGEST)
}

fn blob(out: &mut Vec<u8>, bytes: &[u8], most: usize) -> Option<()> {
    let length = u16::try_from(bytes.len()).ok().filter(|_| bytes.len() <= most)?;
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
    Some(())
}

/// The bytes of a header.
pub(super) fn decode(header: &str) -> Result<Vec<u8>, BadAssertion> {
    if header.len() > LONGEST {
        return Err(BadAssertion::Malformed("it is too long"));
    }
    BASE64.decode(header).map_err(|_| BadAssertion::Malformed("it is not base64"))
}

/// Reads what [`finish`] made.
pub(super) fn read(bytes: &[u8]) -> Result<Read<'_>, BadAssertion> {
    let mut reader = Reader { bytes, at: 0 };
    let [version] = reader.array()?;
    if version != VERSION {
        return Err(BadAssertion::Version(version));
    }
    let seconds = u64::from_be_bytes(reader.array()?);
    let issued = time(seconds).ok_or(BadAssertion::Malformed("its time"))?;
    let (caller, waypoint) = (reader.identity()?, reader.identity()?);
    let [family] = reader.array()?;
    let address = match family {
        4 => IpAddr::from(reader.array::<4>()?),
        16 => IpAddr::from(reader.array::<16>()?).to_canonical(),
        _ => return Err(BadAssertion::Malformed("its address")),
    };
    // An app that trusts its own host must not be told that it is called from there.
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
        return Err(BadAssertion::Malformed("an address that nobody calls from"));
    }
    let [kind] = reader.array()?;
    let name = reader.text(MAX_NAME)?;
    let behind = match (kind, name.split_once('/')) {
        (1, Some((namespace, hostname))) if !namespace.is_empty() && !hostname.is_empty() => {
            Behind::Service(ServiceKey { namespace: namespace.into(), hostname: hostname.into() })
        }
        (2, _) if !name.is_empty() => Behind::Workload(name.into()),
        _ => return Err(BadAssertion::Malformed("what was called")),
    };
    let [count] = reader.array()?;
    if !(1..=MAX_CERTIFICATES).contains(&usize::from(count)) {
        return Err(BadAssertion::Malformed("the number of certificates"));
    }
    let chain = (0..count).map(|_| Ok(CertificateDer::from(reader.blob(MAX_CERTIFICATE)?)));
    let chain = chain.collect::<Result<Vec<_>, BadAssertion>>()?;
    let signed = &bytes[..reader.at];
    let signature = reader.blob(MAX_SIGNATURE)?;
    if reader.at != bytes.len() {
        return Err(BadAssertion::Malformed("bytes after its end"));
    }
    Ok(Read { claims: Claims { caller, address, waypoint, behind }, issued, chain, signed, signature })
}

/// When that was, if its end is a time, too.
fn time(seconds: u64) -> Option<SystemTime> {
    let issued = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
    issued.checked_add(LIFE).map(|_| issued)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], BadAssertion> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(BadAssertion::Malformed("it is cut short"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BadAssertion> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn blob(&mut self, most: usize) -> Result<&'a [u8], BadAssertion> {
        let length = usize::from(u16::from_be_bytes(self.array()?));
        if length > most {
            return Err(BadAssertion::Malformed("a part is too long"));
        }
        self.take(length)
    }

    fn text(&mut self, most: usize) -> Result<&'a str, BadAssertion> {
        std::str::from_utf8(self.blob(most)?).map_err(|_| BadAssertion::Malformed("a name is not text"))
    }

    fn identity(&mut self) -> Result<Identity, BadAssertion> {
        self.text(MAX_NAME)?.parse().map_err(|_| BadAssertion::Malformed("an identity"))
    }
}
