//! What tells a pod from a later one of its name. The API server gives out UUIDs, which are kept as the numbers that
//! they are.

use std::{fmt, ops::Deref, str, sync::Arc};

use serde::{Deserialize, Deserializer};

/// `metadata.uid`, or `NAMESPACE.NAME` in a hand-written manifest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid(Kept);

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Kept {
    /// In the form in which Kubernetes writes them (RFC 9562).
    Uuid([u8; 16]),
    Text(Arc<str>),
}

/// Characters of a UUID, and where its hyphens are.
const LENGTH: usize = 36;
const HYPHENS: [usize; 4] = [8, 13, 18, 23];

impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        Self(uuid(text).map_or_else(|| Kept::Text(text.into()), Kept::Uuid))
    }
}

/// `None` for what would not be written in the same characters.
fn uuid(text: &str) -> Option<[u8; 16]> {
    if text.len() != LENGTH || !HYPHENS.iter().all(|at| text.as_bytes()[*at] == b'-') {
        return None;
    }
    let mut digits = text.bytes().filter(|byte| *byte != b'-').map(|byte| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    });
    let mut uuid = [0; 16];
    for byte in &mut uuid {
        *byte = digits.next()?? << 4 | digits.next()??;
    }
    Some(uuid)
}

impl Uid {
    /// As it is written.
    pub fn text(&self) -> UidText<'_> {
        match &self.0 {
            Kept::Text(text) => UidText::Kept(text),
            Kept::Uuid(uuid) => {
                let mut text = [b'-'; LENGTH];
                let places = (0..LENGTH).filter(|at| !HYPHENS.contains(at));
                let digits = uuid.iter().flat_map(|byte| [byte >> 4, byte & 15]);
                for (place, digit) in places.zip(digits) {
                    text[place] = b"0123456789abcdef"[usize::from(digit)];
                }
                UidText::Written(text)
            }
        }
    }
}

/// The text of a [`Uid`], which costs no memory of its own.
#[derive(Debug)]
pub enum UidText<'a> {
    Kept(&'a str),
    Written([u8; LENGTH]),
}

impl Deref for UidText<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Kept(text) => text,
            // Hexadecimal digits and hyphens are text.
            Self::Written(text) => str::from_utf8(text).unwrap_or_default(),
        }
    }
}

impl PartialEq<str> for Uid {
    fn eq(&self, other: &str) -> bool {
        *self.text() == *other
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl<'de> Deserialize<'de> for Uid {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Ok(text.as_str().into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_uuid_is_a_number_and_everything_else_a_text() {
        let uuid = "0f8fad5b-d9cb-469f-a165-70867728950e";
        let number = Uid::from(uuid);
        assert!(matches!(number.0, Kept::Uuid(_)));
        assert!(number == *uuid && number != *"shop.web");
        for other in ["shop.web", &uuid.to_uppercase(), &uuid.replace('d', "g"), &uuid[1..]] {
            assert!(matches!(Uid::from(other).0, Kept::Text(_)), "{other}");
        }
    }

    proptest! {
        #[test]
        fn what_was_read_is_what_is_written(text in "([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-fA-F-]{36}|.{0,40})") {
            prop_assert_eq!(Uid::from(text.as_str()).to_string(), text);
        }
    }
}
