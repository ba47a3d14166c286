//! Tokens that were verified, for the requests that bring them again: a signature costs more than all else of a request.

use std::{collections::HashMap, rc::Rc};

use aws_lc_rs::digest::{SHA256, digest};
use mesh::token::{Authentication, Place};

use crate::{Refused, Verified, verify};

/// Bytes of tokens that one generation holds.
const MOST_BYTES: usize = 1 << 20;
/// Tokens of one generation.
const MOST: usize = 2048;

/// What was verified of late. Of what is not accepted nothing is kept.
///
/// Two generations: what is asked for moves to the young one, and when that is full the old one is forgotten.
#[derive(Default)]
pub struct Remembered {
    young: HashMap<Digest, Held>,
    old: HashMap<Digest, Held>,
    bytes: usize,
}

/// SHA-256 of a token and of the place it was found at.
type Digest = [u8; 32];

struct Held {
    /// The rules by which it was verified: those that come after are asked again.
    by: Authentication,
    verified: Rc<Verified>,
}

impl Remembered {
    /// As [`verify`], which is asked where nothing is remembered.
    ///
    /// # Errors
    /// As it.
    pub fn verify(
        &mut self,
        token: &str,
        place: &Place,
        by: &Authentication,
        now: u64,
    ) -> Result<Rc<Verified>, Refused> {
        let key = key(token, place);
        if let Some(held) = self.young.get(&key)
            && held.by.is_same(by)
            && held.verified.is_current(now)
        {
            return Ok(held.verified.clone());
        }
        let old = self.old.remove(&key).filter(|held| held.by.is_same(by) && held.verified.is_current(now));
        let verified = match old {
            Some(held) => held.verified,
            None => Rc::new(verify(token, place, by, now)?),
        };
        if self.young.len() >= MOST || self.bytes + token.len() > MOST_BYTES {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
        let held = Held { by: by.clone(), verified: verified.clone() };
        if self.young.insert(key, held).is_none() {
            self.bytes += token.len();
        }
        Ok(verified)
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn key(token: &str, place: &Place) -> Digest {
    let (kind, name, more): (u8, &str, &str) = match place {
        Place::Header { name, prefix } => (0, name, prefix),
        Place::Parameter(name) => (1, name, ""),
        Place::Cookie(name) => (2, name, ""),
    };
    let mut text = Vec::with_capacity(token.len() + name.len() + more.len() + 16);
    text.push(kind);
    for part in [name, more, token] {
        text.extend((part.len() as u64).to_be_bytes());
        text.extend_from_slice(part.as_bytes());
    }
    let mut key = Digest::default();
    key.copy_from_slice(digest(&SHA256, &text).as_ref());
    key
}
