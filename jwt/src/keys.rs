//! Key sets: JWKS in, public keys out.
//!
//! A key that cannot be used is left out and told, since sets hold keys for other purposes, too. A set of which nothing
//! can be used is refused.

use std::sync::Arc;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use mesh::token::{Algorithm, Curve, Key, Material};
use serde::Deserialize;
use serde_json::Value;

/// The longest text of a set, in bytes.
pub const LONGEST: usize = 256 << 10;
/// The most keys of a set.
pub const MOST: usize = 64;
/// The longest `kid`.
const LONGEST_ID: usize = 512;

/// What a set holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySet {
    pub keys: Arc<[Key]>,
    /// Keys that are left out, and why.
    pub left_out: Vec<String>,
}

/// A text that is no set that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadKeySet {
    #[error("it has more than {LONGEST} bytes")]
    TooLong,
    #[error("it is no JWKS: {0}")]
    Malformed(String),
    #[error("it has more than {MOST} keys")]
    TooMany,
    #[error("none of its keys can be used: {0}")]
    NoneUsable(String),
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Value>,
}

/// A key as it is written; what is not named here does not matter.
#[derive(Deserialize)]
struct Written {
    kty: String,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<String>,
    n: Option<String>,
    e: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// Reads a set. One that lists no key at all is a word, too: nobody's token is accepted.
///
/// # Errors
/// If it is none, is too large, or has keys of which none can be used.
pub fn read(text: &[u8]) -> Result<KeySet, BadKeySet> {
    if text.len() > LONGEST {
        return Err(BadKeySet::TooLong);
    }
    let set: Set = serde_json::from_slice(text).map_err(|error| BadKeySet::Malformed(position(&error)))?;
    if set.keys.len() > MOST {
        return Err(BadKeySet::TooMany);
    }
    let (mut keys, mut left_out) = (Vec::new(), Vec::new());
    for (at, written) in set.keys.into_iter().enumerate() {
        match key(written) {
            Ok(key) => keys.push(key),
            Err(reason) => left_out.push(format!("keys[{at}]: {reason}")),
        }
    }
    if keys.is_empty() && !left_out.is_empty() {
        return Err(BadKeySet::NoneUsable(left_out.join("; ")));
    }
    Ok(KeySet { keys: keys.into(), left_out })
}

/// What is wrong and where, without a word of the text itself: it may have been fetched from where its reader has no
/// business.
fn position(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Data => "it has no list `keys`",
        serde_json::error::Category::Eof => "it ends too early",
        serde_json::error::Category::Syntax | serde_json::error::Category::Io => "it is no JSON",
    };
    format!("{what} (line {}, column {})", error.line(), error.column())
}

fn key(written: Value) -> Result<Key, String> {
    let written: Written =
        serde_json::from_value(written).map_err(|_| "it has no `kty`, or a field is no text".to_owned())?;
    if written.purpose.as_deref().is_some_and(|purpose| purpose != "sig") {
        return Err("it is not for signatures (`use`)".to_owned());
    }
    if written.key_ops.as_ref().is_some_and(|all| !all.iter().any(|one| one == "verify")) {
        return Err("it is not for verifying (`key_ops`)".to_owned());
    }
    let material = match written.kty.as_str() {
        "RSA" => rsa(&written)?,
        "EC" => elliptic(&written)?,
        "OKP" => edwards(&written)?,
        "oct" => return Err("who can verify by a key of kind `oct` can sign with it, too".to_owned()),
        _ => return Err("its `kty` is none of RSA, EC, OKP".to_owned()),
    };
    let algorithm = match written.alg.as_deref() {
        None => None,
        Some(name) => match Algorithm::named(name).filter(|of| material.is_for(*of)) {
            Some(algorithm) => Some(algorithm),
            None => return Err("its `alg` is no signature that is accepted of such a key".to_owned()),
        },
    };
    if written.kid.as_ref().is_some_and(|id| id.len() > LONGEST_ID) {
        return Err(format!("its `kid` has more than {LONGEST_ID} bytes"));
    }
    let id = written.kid.filter(|id| !id.is_empty()).map(Arc::from);
    Ok(Key { id, algorithm, material })
}

fn rsa(written: &Written) -> Result<Material, String> {
    let modulus = number("n", written.n.as_deref())?;
    let exponent = number("e", written.e.as_deref())?;
    let bits = modulus.len() * 8 - modulus.first().map_or(0, |first| first.leading_zeros() as usize);
    if !(2048..=8192).contains(&bits) {
        return Err(format!("an RSA key of {bits} bits: 2048 to 8192 are accepted"));
    }
    let odd = exponent.last().is_some_and(|last| last % 2 == 1);
    if exponent.len() > 8 || !odd || *exponent == [1] {
        return Err("its `e` is no exponent that RSA keys have".to_owned());
    }
    Ok(Material::Rsa { modulus: modulus.into(), exponent: exponent.into() })
}

fn elliptic(written: &Written) -> Result<Material, String> {
    let curve = match written.crv.as_deref() {
        Some("P-256") => Curve::P256,
        Some("P-384") => Curve::P384,
        _ => return Err("its `crv` is neither P-256 nor P-384".to_owned()),
    };
    let mut point = vec![4];
    for (name, text) in [("x", &written.x), ("y", &written.y)] {
        let bytes = decoded(name, text.as_deref())?;
        if bytes.len() != curve.size() {
            return Err(format!("its `{name}` has {} bytes and not {}", bytes.len(), curve.size()));
        }
        point.extend(bytes);
    }
    let parsed = match curve {
        Curve::P256 => ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &point),
        Curve::P384 => ParsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, &point),
    };
    parsed.map_err(|_| "its point is not on the curve".to_owned())?;
    Ok(Material::Elliptic { curve, point: point.into() })
}

fn edwards(written: &Written) -> Result<Material, String> {
    if written.crv.as_deref() != Some("Ed25519") {
        return Err("its `crv` is not Ed25519".to_owned());
    }
    let bytes = decoded("x", written.x.as_deref())?;
    if bytes.len() != 32 || ParsedPublicKey::new(&ED25519, &bytes).is_err() {
        return Err("its `x` is no key of Ed25519".to_owned());
    }
    Ok(Material::Ed25519(bytes.into()))
}

/// A number without zeros before it.
fn number(name: &str, text: Option<&str>) -> Result<Vec<u8>, String> {
    let bytes = decoded(name, text)?;
    let start = bytes.iter().position(|byte| *byte != 0);
    start.map(|start| bytes[start..].to_vec()).ok_or_else(|| format!("its `{name}` is nothing"))
}

fn decoded(name: &str, text: Option<&str>) -> Result<Vec<u8>, String> {
    let text = text.ok_or_else(|| format!("it has no `{name}`"))?;
    BASE64.decode(text).map_err(|_| format!("its `{name}` is no base64url"))
}
