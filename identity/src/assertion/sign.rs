//! Signs an assertion with the key of a certificate.

use std::time::SystemTime;

use rustls::SignatureScheme;

use super::{CannotAssert, Claims, wire};
use crate::Certified;

/// The header for these claims, made now.
pub(super) fn sign(certified: &Certified, claims: &Claims, now: SystemTime) -> Result<String, CannotAssert> {
    let identity = || certified.identity.clone();
    let too_large = || CannotAssert::TooLarge(identity());
    let message = wire::write(claims, now, &certified.chain).ok_or_else(too_large)?;
    let signer = certified
        .signing
        .choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256])
        .ok_or_else(|| CannotAssert::WrongKey(identity()))?;
    let signature = signer
        .sign(&[wire::CONTEXT, &message].concat())
        .map_err(|error| CannotAssert::Sign { identity: identity(), reason: error.to_string() })?;
    wire::finish(message, &signature).ok_or_else(too_large)
}
