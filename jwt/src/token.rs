//! One token: read, and verified by the rules that may be for it.
//!
//! The signature is the library's to verify (`jsonwebtoken` on aws-lc-rs), and so is reading the header. What a token
//! may say of how it wants to be verified is bounded here: the algorithm is one with a public key, and one that the key
//! is for; the key is of the rule, and never of the token (`jku`, `jwk`, `x5u` and `x5c` are not looked at).

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use jsonwebtoken::{Algorithm as Named, DecodingKey, crypto, decode_header};
use mesh::{
    request::Token,
    token::{Algorithm, Authentication, Key, Material, Place, TokenRule},
};

use crate::claims::{Claims, Verified};

/// The longest token, in bytes.
pub const LONGEST: usize = 16 << 10;
/// The most keys that are tried for a token that names none.
const MOST_TRIED: usize = 8;

/// Why a token is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the token is too long")]
    TooLong,
    #[error("the token cannot be read")]
    Malformed,
    #[error("the token's algorithm is not accepted")]
    Algorithm,
    #[error("the token's issuer is not known here")]
    Issuer,
    #[error("the token's subject reads like one of another issuer's")]
    Subject,
    #[error("the token is for somebody else")]
    Audience,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not good yet")]
    NotYet,
    #[error("the keys of the token's issuer are not known yet")]
    KeysUnknown,
    #[error("the token's key is not known")]
    Key,
    #[error("the token's signature is wrong")]
    Signature,
}

impl Refused {
    /// The reason's name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::TooLong => "too-long",
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::Issuer => "issuer",
            Self::Subject => "subject",
            Self::Audience => "audience",
            Self::Expired => "expired",
            Self::NotYet => "not-yet",
            Self::KeysUnknown => "keys-unknown",
            Self::Key => "key",
            Self::Signature => "signature",
        }
    }
}

/// A token that could be read.
struct Read<'t> {
    algorithm: Algorithm,
    key: Option<String>,
    claims: Claims,
    /// What is signed.
    message: &'t str,
    payload: &'t str,
    signature: &'t str,
}

/// Verifies a token that was found at `place`, at a time in seconds since 1970, by the rules that look there: one of
/// its issuer must accept it.
///
/// # Errors
/// With the reason of the last rule of its issuer, if none does.
pub fn verify(token: &str, place: &Place, by: &Authentication, now: u64) -> Result<Verified, Refused> {
    let read = Read::new(token)?;
    let issuer = read.claims.issuer();
    let mut refused = Refused::Issuer;
    for (at, rule) in by.rules().iter().enumerate() {
        if Some(&*rule.issuer) != issuer || !rule.from.contains(place) {
            continue;
        }
        match read.check(rule, now) {
            Ok(()) => {
                let verified = Verified::new(read.claims, read.payload, at, &rule.spaced);
                return if is_anothers(&verified, rule, by) { Err(Refused::Subject) } else { Ok(verified) };
            }
            Err(reason) => refused = reason,
        }
    }
    Err(refused)
}

/// Whether a principal, `ISSUER/SUBJECT`, could be that of a longer issuer, which has it then: policies could not tell
/// the two apart.
fn is_anothers(verified: &Verified, rule: &TokenRule, by: &Authentication) -> bool {
    let Some(principal) = verified.principal() else { return false };
    let longer = by.rules().iter().filter(|other| other.issuer.len() > rule.issuer.len());
    let mut rests = longer.filter_map(|other| principal.strip_prefix(&*other.issuer));
    rests.any(|rest| rest.starts_with('/'))
}

impl<'t> Read<'t> {
    fn new(token: &'t str) -> Result<Self, Refused> {
        if token.len() > LONGEST {
            return Err(Refused::TooLong);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(Refused::Malformed)?;
        let (head, payload) = message.split_once('.').ok_or(Refused::Malformed)?;
        if payload.contains('.') || signature.is_empty() {
            return Err(Refused::Malformed);
        }
        let header = decode_header(token).map_err(|_| refused_header(head))?;
        // An extension that must be understood (RFC 7515, 4.1.11): we understand none.
        if header.crit.is_some() {
            return Err(Refused::Malformed);
        }
        let algorithm = ours(header.alg).ok_or(Refused::Algorithm)?;
        let claims = BASE64.decode(payload).ok().and_then(|json| Claims::read(&json));
        let claims = claims.ok_or(Refused::Malformed)?;
        let key = header.kid.filter(|id| !id.is_empty());
        Ok(Self { algorithm, key, claims, message, payload, signature })
    }

    /// What costs little is looked at first.
    fn check(&self, rule: &TokenRule, now: u64) -> Result<(), Refused> {
        if self.claims.is_expired(now) {
            return Err(Refused::Expired);
        }
        if self.claims.is_early(now) {
            return Err(Refused::NotYet);
        }
        if !rule.is_for(self.claims.audience()) {
            return Err(Refused::Audience);
        }
        let keys = rule.keys.known.as_ref().ok_or(Refused::KeysUnknown)?;
        let candidates = keys.iter().filter(|key| key.is_for(self.key.as_deref(), self.algorithm));
        let mut refused = Refused::Key;
        for key in candidates.take(MOST_TRIED) {
            if self.is_signed_with(key) {
                return Ok(());
            }
            refused = Refused::Signature;
        }
        Err(refused)
    }

    fn is_signed_with(&self, key: &Key) -> bool {
        let key = match &key.material {
            Material::Rsa { modulus, exponent } => DecodingKey::from_rsa_raw_components(modulus, exponent),
            Material::Elliptic { point, .. } => DecodingKey::from_ec_der(point),
            Material::Ed25519(bytes) => DecodingKey::from_ed_der(bytes),
        };
        let algorithm = theirs(self.algorithm);
        crypto::verify(self.signature, self.message.as_bytes(), &key, algorithm).unwrap_or(false)
    }
}

/// Why a header cannot be read: by its algorithm, or at all.
fn refused_header(encoded: &str) -> Refused {
    let json = BASE64.decode(encoded).ok();
    let json: Option<serde_json::Value> = json.and_then(|json| serde_json::from_slice(&json).ok());
    match json.as_ref().and_then(|header| header.get("alg")?.as_str()) {
        Some(name) if Algorithm::named(name).is_none() => Refused::Algorithm,
        _ => Refused::Malformed,
    }
}

fn ours(algorithm: Named) -> Option<Algorithm> {
    Some(match algorithm {
        Named::RS256 => Algorithm::Rs256,
        Named::RS384 => Algorithm::Rs384,
        Named::RS512 => Algorithm::Rs512,
        Named::PS256 => Algorithm::Ps256,
        Named::PS384 => Algorithm::Ps384,
        Named::PS512 => Algorithm::Ps512,
        Named::ES256 => Algorithm::Es256,
        Named::ES384 => Algorithm::Es384,
        Named::EdDSA => Algorithm::EdDsa,
        // HMAC: whoever can verify such a one can make it. And whatever else there will be.
        _ => return None,
    })
}

fn theirs(algorithm: Algorithm) -> Named {
    match algorithm {
        Algorithm::Rs256 => Named::RS256,
        Algorithm::Rs384 => Named::RS384,
        Algorithm::Rs512 => Named::RS512,
        Algorithm::Ps256 => Named::PS256,
        Algorithm::Ps384 => Named::PS384,
        Algorithm::Ps512 => Named::PS512,
        Algorithm::Es256 => Named::ES256,
        Algorithm::Es384 => Named::ES384,
        Algorithm::EdDsa => Named::EdDSA,
    }
}

/// As headers have it.
pub(crate) fn encoded(text: &str) -> String {
    BASE64.encode(text)
}
