//! A certificate request that a node sends to control: DER as it is, since the fuzzer finds no base64.
#![no_main]

use std::{sync::LazyLock, time::Duration};

use base64::prelude::{BASE64_STANDARD, Engine};
use identity::{Identity, authority::Authority};
use libfuzzer_sys::fuzz_target;
use rustls_pki_types::{CertificateDer, pem::PemObject};

static AUTHORITY: LazyLock<Authority> =
    LazyLock::new(|| Authority::ephemeral("cluster.local").expect("a key and a certificate can be made"));

fuzz_target!(|der: &[u8]| {
    let pem = pem(der);
    let wanted = Identity::new("cluster.local", "ns", "sa");
    let Ok(chain) = AUTHORITY.sign(&pem, &wanted, Duration::from_secs(60)) else { return };
    let leaf = CertificateDer::from_pem_slice(chain[0].as_bytes()).expect("our own PEM");
    assert_eq!(identity::peer_identity(&[leaf]), Ok(wanted), "whatever the request claims");
});

/// Wraps bytes as PEM.
fn pem(der: &[u8]) -> String {
    let body = BASE64_STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n")
}
