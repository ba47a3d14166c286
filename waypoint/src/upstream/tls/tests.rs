//! Whom a waypoint believes that it speaks with.

use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType, string::Ia5String};
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::upstream::ahead::Plain;

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Issuer {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A server with these names, of whatever is asked of it.
fn server(of: &Issuer, names: &[SanType], protocol: &[u8]) -> TlsAcceptor {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.to_vec();
    let certificate = params.signed_by(&key, of).unwrap();
    let builder = rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut config = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
    config.alpn_protocols = vec![protocol.to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(Ia5String::try_from(name).unwrap())
}

fn tls(trust: Trust, names: &[SubjectName]) -> Same {
    let (policy, hostname) = ("shop/p".into(), "web.test".into());
    Same(Arc::new(BackendTls { policy, port: None, hostname, trust, names: names.to_vec() }))
}

/// Speaks with a server, and says why it cannot.
async fn speak(with: &TlsAcceptor, tls: &Same, version: Version) -> Result<(), String> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap();
    let with = with.clone();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = with.accept(stream).await?;
        assert_eq!(stream.get_ref().1.server_name(), Some("web.test"));
        stream.write_all(b"hello").await?;
        stream.shutdown().await
    });
    let io = Io::Plain(Plain::new(tokio::net::TcpStream::connect(to).await.unwrap(), false));
    let begun = begin(&Configs::default(), tls, Some(version), (io, to), Duration::from_secs(10)).await;
    let mut io = begun.map_err(|failure| failure.to_string())?;
    let mut heard = Vec::new();
    io.read_to_end(&mut heard).await.map_err(|error| error.to_string())?;
    server.await.unwrap().unwrap();
    assert_eq!(heard, b"hello");
    Ok(())
}

#[tokio::test]
async fn a_server_proves_its_name_by_the_roots_of_the_policy_and_by_no_others() {
    let (own, other) = (authority(), authority());
    let by = |of: &Issuer| Trust::Roots(of.pem().into());
    let web = server(&own, &[dns("web.test")], b"http/1.1");
    let uri = SanType::URI(Ia5String::try_from("spiffe://mesh/web").unwrap());
    let named = server(&own, &[dns("*.shop.test"), uri], b"http/1.1");
    let (exact, wildcard) = (SubjectName::Dns("a.shop.test".into()), SubjectName::Dns("*.shop.test".into()));
    let spiffe = |uri: &str| SubjectName::Uri(uri.into());
    for (case, server, tls, right) in [
        ("its own root", &web, tls(by(&own), &[]), true),
        ("both", &web, tls(Trust::Roots(format!("{}{}", other.pem(), own.pem()).into()), &[]), true),
        ("another root", &web, tls(by(&other), &[]), false),
        ("another name", &named, tls(by(&own), &[]), false),
        ("one of the names", &named, tls(by(&own), &[spiffe("x"), exact.clone()]), true),
        ("a wildcard as it is", &named, tls(by(&own), std::slice::from_ref(&wildcard)), true),
        ("a uri", &named, tls(by(&own), &[spiffe("spiffe://mesh/web")]), true),
        ("another uri", &named, tls(by(&own), &[spiffe("spiffe://mesh/other")]), false),
        ("a name that the server has not", &web, tls(by(&own), &[exact, wildcard]), false),
        ("nobody", &web, tls(Trust::Nobody("there is no ConfigMap".into()), &[]), false),
        ("what is no certificate", &web, tls(Trust::Roots("x".into()), &[]), false),
    ] {
        let spoken = speak(server, &tls, Version::One).await;
        assert_eq!(spoken.is_ok(), right, "{case}: {spoken:?}");
        if let Err(error) = spoken {
            assert!(error.starts_with("TLS with the backend 127.0.0.1:"), "{error}");
            assert!(error.contains(" as web.test (BackendTLSPolicy shop/p) failed: "), "{error}");
        }
    }
}

#[tokio::test]
async fn what_is_spoken_within_is_agreed_on() {
    let own = authority();
    let tls = tls(Trust::Roots(own.pem().into()), &[]);
    let two = server(&own, &[dns("web.test")], b"h2");
    assert_eq!(speak(&two, &tls, Version::Two).await, Ok(()));
    assert!(speak(&two, &tls, Version::One).await.is_err());
}
