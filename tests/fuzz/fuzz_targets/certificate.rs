//! The leaf a peer shows: its identity and expiry are read from hostile DER.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;

fuzz_target!(|der: &[u8]| {
    let chain = [CertificateDer::from(der)];
    if let Ok(identity) = identity::peer_identity(&chain) {
        assert_eq!(identity.to_string().parse(), Ok(identity));
    }
    let _ = identity::peer_expiry(&chain);
});
