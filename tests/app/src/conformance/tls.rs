//! TLS for both ends. Nobody is to be proved here: the suite's services speak it, and no test asks who they are.

use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::{ClientConfig, ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use trusting::Anybody;

/// Answers with a certificate made now.
pub(super) fn acceptor() -> Result<TlsAcceptor> {
    let made = rcgen::generate_simple_self_signed(["echo".to_owned()]).context("make a certificate")?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let mut config = ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config).into())
}

/// Calls whoever answers.
pub(super) fn connector(alpn: &[u8]) -> Result<TlsConnector> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(Arc::new(config).into())
}
