//! One direction of TLS 1.3 records: seal or open, in place (RFC 8446 section 5).

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;

use super::Fault;

/// Type, legacy version, length.
pub(super) const HEADER: usize = 5;
/// The inner content type, and the tag of AES-GCM.
pub(super) const TRAILER: usize = 1 + TAG;
const TAG: usize = 16;
/// Most plaintext in one record.
pub(super) const MAX_PLAINTEXT: usize = 1 << 14;
/// Most ciphertext in one record.
pub(super) const MAX_CIPHERTEXT: usize = MAX_PLAINTEXT + 256;
/// Records sealed by one key before it is updated: AES-GCM's bound is 2^24.5 full records.
const MAX_RECORDS: u64 = 1 << 24;

/// What a record carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Alert = 21,
    Handshake = 22,
    Data = 23,
}

/// The key of one direction and the number of the next record.
pub(super) struct Keys {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    sequence: u64,
    first: u64,
}

impl Keys {
    pub(super) fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Fault> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            _ => return Err(Fault::Record("a cipher suite that was not offered")),
        };
        let key =
            UnboundKey::new(algorithm, key.as_ref()).map_err(|_| Fault::Record("a key of odd length"))?;
        let iv =
            iv.as_ref().try_into().map_err(|_| Fault::Record("an initialization vector of odd length"))?;
        Ok(Self { key: LessSafeKey::new(key), iv, sequence, first: sequence })
    }

    /// Time for new keys, before a bound of the cipher is reached.
    pub(super) fn worn(&self) -> bool {
        self.sequence - self.first >= MAX_RECORDS
    }

    /// The sequence number, xored into the low bytes of the IV; each is used once.
    fn nonce(&mut self) -> Result<Nonce, Fault> {
        let mut nonce = self.iv;
        for (byte, sequence) in nonce[NONCE_LEN - 8..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= sequence;
        }
        self.sequence = self.sequence.checked_add(1).ok_or(Fault::Record("sequence numbers ran out"))?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }

    /// Seals a record that lies in `record` as header space, plaintext, trailer space.
    pub(super) fn seal(&mut self, record: &mut [u8], content: Content) -> Result<(), Fault> {
        let inner_end = record.len() - TAG;
        record[inner_end - 1] = content as u8;
        let length = (record.len() - HEADER) as u16;
        let header = [Content::Data as u8, 3, 3, (length >> 8) as u8, length as u8];
        record[..HEADER].copy_from_slice(&header);
        let nonce = self.nonce()?;
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(header), &mut record[HEADER..inner_end])
            .map_err(|_| Fault::Record("a record did not seal"))?;
        record[inner_end..].copy_from_slice(tag.as_ref());
        Ok(())
    }

    /// Opens one whole record in place; what it carried lies behind the header.
    pub(super) fn open(&mut self, record: &mut [u8]) -> Result<(Content, usize), Fault> {
        let mut header = [0; HEADER];
        header.copy_from_slice(&record[..HEADER]);
        let nonce = self.nonce()?;
        let inner = self
            .key
            .open_in_place(nonce, Aad::from(header), &mut record[HEADER..])
            .map_err(|_| Fault::Tls(std::rc::Rc::new(rustls::Error::DecryptError)))?;
        // Padding is zeros behind the type.
        let last =
            inner.iter().rposition(|byte| *byte != 0).ok_or(Fault::Record("a record without a type"))?;
        if last > MAX_PLAINTEXT {
            return Err(Fault::Record("a record longer than 2^14 bytes"));
        }
        let content = match inner[last] {
            21 => Content::Alert,
            22 => Content::Handshake,
            23 => Content::Data,
            _ => return Err(Fault::Record("a record of an unknown type")),
        };
        Ok((content, last))
    }
}

/// The length of the record at the front of `bytes`, header included; `None` if it is not all there.
pub(super) fn length(bytes: &[u8]) -> Result<Option<usize>, Fault> {
    let Some(header) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    if header[0] != Content::Data as u8 {
        return Err(Fault::Record("a record that is not encrypted"));
    }
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    match length {
        0..=TRAILER_TOO_SHORT => Err(Fault::Record("a record too short for its tag")),
        _ if length > MAX_CIPHERTEXT => Err(Fault::Record("a record longer than 2^14 + 256 bytes")),
        _ => Ok((bytes.len() >= HEADER + length).then_some(HEADER + length)),
    }
}

const TRAILER_TOO_SHORT: usize = TRAILER - 1;
