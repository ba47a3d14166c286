//! The rustls configurations: TLS 1.3 only, two AES-GCM suites, X25519, ALPN `h2`, no SNI, no
//! resumption.
//!
//! A resumed session would skip the certificate, and with it the identity of its day; tunnels are
//! long-lived and few, so nothing is lost by a full handshake each.

use std::sync::{Arc, OnceLock};

use mesh::Identity;
use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    server::NoServerSessionStorage,
    version::TLS13,
};

use crate::{
    Certified, Clock,
    clock::ClockTime,
    verify::{ClientVerifier, ServerVerifier},
};

/// The only application protocol of a tunnel.
pub const ALPN_H2: &[u8] = b"h2";

/// The cryptography of the mesh: aws-lc-rs reduced to what HBONE peers speak.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let make = || {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
                aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            ],
            kx_groups: vec![aws_lc_rs::kx_group::X25519],
            ..aws_lc_rs::default_provider()
        })
    };
    PROVIDER.get_or_init(make).clone()
}

/// The client side of a tunnel.
pub(crate) fn client_config(
    certified: &Certified,
    expected: &Arc<[Identity]>,
    clock: &Arc<dyn Clock>,
) -> ClientConfig {
    let verifier = ServerVerifier::new(certified.roots.clone(), expected.clone());
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(ClockTime(clock.clone())))
        .with_protocol_versions(&[&TLS13])
        .expect("the suites of provider() are those of TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(certified.presented.clone());
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    // The tunnel seals and opens its records itself, in place (hbone::tls).
    config.enable_secret_extraction = true;
    config
}

/// The server side of a tunnel.
pub(crate) fn server_config(
    certified: &Certified,
    trust_domains: &Arc<[String]>,
    clock: &Arc<dyn Clock>,
) -> ServerConfig {
    let verifier = ClientVerifier::new(certified.roots.clone(), trust_domains.clone());
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(ClockTime(clock.clone())))
        .with_protocol_versions(&[&TLS13])
        .expect("the suites of provider() are those of TLS 1.3")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(certified.presented.clone());
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.enable_secret_extraction = true;
    config
}
