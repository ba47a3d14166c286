//! The bytes in which one ztunnel hands its keys and certificates to the next, through the agent.
//!
//! Version 1, integers big-endian: `CVID`, version u16, count u32; then for each identity its SPIFFE
//! ID, PKCS#8 key, the shown chain and the issued roots. A blob is a u32 length and its bytes, a list
//! is a u8 count and blobs. The reader believes nothing: each length is bounded before it is used, and
//! each certificate is verified again by [`Certified::new`](crate::Certified).

use mesh::Identity;
use rustls::pki_types::CertificateDer;

use crate::{
    Certified, HandoverError,
    certificate::{Chain, SecretKey},
};

const MAGIC: &[u8; 4] = b"CVID";
const VERSION: u16 = 1;
const MAX_BYTES: usize = 64 << 20;
const MAX_IDENTITIES: u32 = 10_000;
const MAX_CERTIFICATES: u8 = 64;
const MAX_BLOB: usize = 64 << 10;

/// One identity as it was handed over, not yet verified.
pub(crate) struct Inherited {
    pub(crate) identity: Identity,
    pub(crate) key: SecretKey,
    pub(crate) chain: Chain,
}

/// Writes certificates, keys included.
pub(crate) fn write<'a>(certificates: impl ExactSizeIterator<Item = &'a Certified>) -> Vec<u8> {
    let mut out = Vec::with_capacity(10 + certificates.len() * 2048);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_be_bytes());
    out.extend_from_slice(&(certificates.len() as u32).to_be_bytes());
    for certified in certificates {
        blob(&mut out, certified.identity.to_string().as_bytes());
        blob(&mut out, certified.key().pkcs8());
        list(&mut out, &certified.chain);
        list(&mut out, &certified.issued_roots);
    }
    out
}

fn blob(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

fn list(out: &mut Vec<u8>, certificates: &[CertificateDer<'static>]) {
    let kept = &certificates[..certificates.len().min(usize::from(MAX_CERTIFICATES))];
    out.push(kept.len() as u8);
    kept.iter().for_each(|certificate| blob(out, certificate));
}

/// Reads what [`write`] wrote.
pub(crate) fn read(bytes: &[u8]) -> Result<Vec<Inherited>, HandoverError> {
    if bytes.len() > MAX_BYTES {
        return Err(HandoverError::TooLarge("64 MiB"));
    }
    let mut reader = Reader { bytes, at: 0 };
    if reader.take(4).map_err(|_| HandoverError::NotOurs)? != MAGIC {
        return Err(HandoverError::NotOurs);
    }
    let version = u16::from_be_bytes(reader.array()?);
    if version != VERSION {
        return Err(HandoverError::Version(version));
    }
    let count = u32::from_be_bytes(reader.array()?);
    if count > MAX_IDENTITIES {
        return Err(HandoverError::TooLarge("10,000 identities"));
    }
    let mut all = Vec::new();
    for _ in 0..count {
        let at = reader.at;
        let identity = std::str::from_utf8(reader.blob()?).ok().and_then(|text| text.parse().ok());
        let identity = identity.ok_or(HandoverError::Malformed(at))?;
        let key = SecretKey::from_pkcs8(reader.blob()?.to_vec());
        let chain = Chain { shown: reader.list()?, roots: reader.list()? };
        if chain.shown.is_empty() {
            return Err(HandoverError::Malformed(reader.at));
        }
        all.push(Inherited { identity, key, chain });
    }
    if reader.at == bytes.len() { Ok(all) } else { Err(HandoverError::Malformed(reader.at)) }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], HandoverError> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(HandoverError::Malformed(self.at))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], HandoverError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn blob(&mut self) -> Result<&'a [u8], HandoverError> {
        let length = u32::from_be_bytes(self.array()?) as usize;
        if length > MAX_BLOB {
            return Err(HandoverError::TooLarge("64 KiB for one element"));
        }
        self.take(length)
    }

    fn list(&mut self) -> Result<Vec<CertificateDer<'static>>, HandoverError> {
        let [count] = self.array()?;
        if count > MAX_CERTIFICATES {
            return Err(HandoverError::TooLarge("64 certificates in one chain"));
        }
        (0..count).map(|_| Ok(CertificateDer::from(self.blob()?.to_vec()))).collect()
    }
}
