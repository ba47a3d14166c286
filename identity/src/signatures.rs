//! What all verifiers of certificates have alike: a handshake's signature is the leaf's, by the algorithms of a provider.

/// The methods of rustls' verifiers that look at a handshake's signatures, by these algorithms
/// ([`rustls::crypto::WebPkiSupportedAlgorithms`]).
#[macro_export]
macro_rules! verified_signatures {
    ($algorithms:expr) => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            leaf: &::rustls::pki_types::CertificateDer<'_>,
            signed: &::rustls::DigitallySignedStruct,
        ) -> ::std::result::Result<::rustls::client::danger::HandshakeSignatureValid, ::rustls::Error> {
            ::rustls::crypto::verify_tls12_signature(message, leaf, signed, &$algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            leaf: &::rustls::pki_types::CertificateDer<'_>,
            signed: &::rustls::DigitallySignedStruct,
        ) -> ::std::result::Result<::rustls::client::danger::HandshakeSignatureValid, ::rustls::Error> {
            ::rustls::crypto::verify_tls13_signature(message, leaf, signed, &$algorithms)
        }

        fn supported_verify_schemes(&self) -> ::std::vec::Vec<::rustls::SignatureScheme> {
            $algorithms.supported_schemes()
        }
    };
}
