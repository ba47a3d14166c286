//! What a request is called in every log that tells of it.

use std::fmt;

/// The longest that is kept, in bytes.
const LONGEST: usize = 128;

/// A request's identifier: a caller's own, or a UUID of version 4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(Box<str>);

impl RequestId {
    /// A caller's, if it is one that every log can bear: some visible ASCII, without what separates values or quotes
    /// them.
    pub fn of(value: &[u8]) -> Option<Self> {
        let fits = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b',' | b';');
        if !(1..=LONGEST).contains(&value.len()) || !value.iter().all(fits) {
            return None;
        }
        std::str::from_utf8(value).ok().map(|text| Self(text.into()))
    }

    /// A new one of random bits (RFC 9562, 5.4).
    pub fn random(bits: u128) -> Self {
        let bits = bits & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
        let digits = format!("{bits:032x}");
        let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
        Self(parts.join("-").into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
