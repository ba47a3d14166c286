//! Verifies an assertion: its time, its chain by our roots, its signature by the leaf's key.

use std::time::SystemTime;

use rustls::{SignatureScheme, pki_types::alg_id, server::danger::ClientCertVerifier};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{BadAssertion, Claims, LIFE, SKEW, wire};
use crate::{clock::unix_time, tls::provider, verify::identity_in};

/// Who calls, and until when that is so. `callers` says whose certificates are taken.
pub(super) fn verify(
    header: &str,
    callers: &dyn ClientCertVerifier,
    now: SystemTime,
) -> Result<(Claims, SystemTime), BadAssertion> {
    let bytes = wire::decode(header)?;
    let read = wire::read(&bytes)?;
    let caller = &read.claims.caller;
    let end = read.issued + LIFE;
    in_time(&read.claims, read.issued, now)?;
    let untrusted = |reason: String| BadAssertion::Untrusted { caller: caller.clone(), reason };
    let leaf = &read.chain[0];
    let found = identity_in(leaf).map_err(|error| untrusted(error.to_string()))?;
    if found != *caller {
        return Err(BadAssertion::WrongCaller { claimed: caller.clone(), found: found.to_string() });
    }
    callers
        .verify_client_cert(leaf, &read.chain[1..], unix_time(now))
        .map_err(|error| untrusted(error.to_string()))?;
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| untrusted(error.to_string()))?;
    let key = &parsed.public_key().subject_public_key.data;
    let message = [wire::CONTEXT, read.signed].concat();
    // Whatever key the leaf has, it is taken for one of P-256: with another no signature holds.
    let mapping = provider().signature_verification_algorithms.mapping;
    let mut algorithms = mapping
        .iter()
        .filter(|(scheme, _)| *scheme == SignatureScheme::ECDSA_NISTP256_SHA256)
        .flat_map(|(_, algorithms)| algorithms.iter())
        .filter(|algorithm| algorithm.public_key_alg_id() == alg_id::ECDSA_P256);
    let genuine =
        algorithms.any(|algorithm| algorithm.verify_signature(key, &message, read.signature).is_ok());
    if genuine { Ok((read.claims, end)) } else { Err(BadAssertion::Forged(read.claims.caller)) }
}

/// Whether `now` is within the life of what was issued then.
pub(super) fn in_time(claims: &Claims, issued: SystemTime, now: SystemTime) -> Result<(), BadAssertion> {
    let caller = || claims.caller.clone();
    if let Ok(by) = issued.duration_since(now)
        && by > SKEW
    {
        return Err(BadAssertion::Future { caller: caller(), by });
    }
    match now.duration_since(issued + LIFE) {
        Ok(ago) => Err(BadAssertion::Expired { caller: caller(), ago }),
        Err(_) => Ok(()),
    }
}
