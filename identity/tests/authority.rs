//! What the authority signs, what it ignores, and what lies on disk.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, SystemTime},
};

use identity::{
    Identity, PeerIdentityError,
    authority::{Authority, AuthorityError},
    peer_expiry, peer_identity,
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    SanType,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

const HOUR: Duration = Duration::from_secs(3600);

fn web() -> Identity {
    Identity::new("cluster.local", "default", "web")
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key")
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate")
}

#[test]
fn only_the_key_of_a_request_counts() {
    let authority = Authority::ephemeral("cluster.local").expect("an authority");
    let key = key();
    let mut greedy = CertificateParams::new(vec!["admin.example".to_owned()]).expect("params");
    greedy.distinguished_name.push(DnType::CommonName, "root of all");
    greedy
        .subject_alt_names
        .push(SanType::URI("spiffe://cluster.local/ns/kube-system/sa/admin".try_into().expect("a uri")));
    greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let csr = greedy.serialize_request(&key).expect("a request").pem().expect("pem");
    let chain = authority.sign(&csr, &web(), HOUR).expect("signed");
    assert_eq!(chain.len(), 2);
    assert_eq!(chain[1], authority.root_pem());
    let leaf = der(&chain[0]);
    assert_eq!(peer_identity(std::slice::from_ref(&leaf)), Ok(web()));
    let (_, parsed) = X509Certificate::from_der(&leaf).expect("x509");
    assert!(!parsed.is_ca());
    assert_eq!(parsed.subject().iter().count(), 0);
    let names = parsed.subject_alternative_name().expect("names").expect("names");
    assert!(names.critical, "with an empty subject the names are critical");
    assert_eq!(names.value.general_names.len(), 1);
    assert_eq!(parsed.public_key().subject_public_key.data.as_ref(), key.public_key_raw());
    let usage = parsed.extended_key_usage().expect("usage").expect("usage");
    assert!(usage.value.client_auth && usage.value.server_auth);
    let left = peer_expiry(&[leaf]).expect("an end").duration_since(SystemTime::now()).expect("valid");
    assert!(left <= HOUR && left > HOUR - Duration::from_secs(60), "{left:?}");
}

#[test]
fn bad_requests_are_refused() {
    let authority = Authority::ephemeral("cluster.local").expect("an authority");
    let mut csr =
        CertificateParams::default().serialize_request(&key()).expect("a request").pem().expect("pem");
    let refused = |csr: &str| matches!(authority.sign(csr, &web(), HOUR), Err(AuthorityError::BadRequest(_)));
    assert!(!refused(&csr));
    assert!(refused(""));
    assert!(refused("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"));
    assert!(refused(&"A".repeat(100_000)));
    // One bit of the signature flipped: the sender does not hold the key.
    let at = csr.rfind("\n-----END").expect("an end") - 6;
    let flipped = if csr.as_bytes()[at] == b'A' { "B" } else { "A" };
    csr.replace_range(at..=at, flipped);
    assert!(refused(&csr));
}

#[test]
fn a_root_is_made_once_and_kept_to_ourselves() {
    let dir = tempfile::tempdir().expect("a directory");
    let ca = dir.path().join("state/ca");
    let first = Authority::load_or_create(&ca, "cluster.local").expect("made");
    let mode = |path: &std::path::Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&ca), 0o700);
    assert_eq!(mode(&ca.join("key.pem")), 0o600);
    let again = Authority::load_or_create(&ca, "cluster.local").expect("opened");
    assert_eq!(first.root_pem(), again.root_pem());
    assert_eq!(fs::read_dir(&ca).expect("there").count(), 2, "nothing temporary is left");
    fs::remove_file(ca.join("key.pem")).expect("removed");
    let error = Authority::load_or_create(&ca, "cluster.local")
        .err()
        .expect("a lost key is no reason for a new root");
    assert!(error.to_string().contains("key.pem"), "{error}");
    // A crash between the two writes leaves a key without a root.
    fs::remove_file(ca.join("root.pem")).expect("removed");
    fs::write(ca.join("key.pem"), "half a k").expect("written");
    Authority::load_or_create(&ca, "cluster.local").expect("made anew");
    assert_eq!(mode(&ca.join("key.pem")), 0o600);
}

#[test]
fn an_intermediate_can_be_plugged_in() {
    let root = Authority::ephemeral("cluster.local").expect("an authority");
    let (chain, key_pem) = root.intermediate("node ca", 2 * HOUR).expect("an intermediate");
    let plugged = Authority::from_pem(&chain, &key_pem).expect("usable");
    assert_eq!(plugged.root_pem(), root.root_pem());
    let csr = CertificateParams::default().serialize_request(&key()).expect("a request").pem().expect("pem");
    let signed = plugged.sign(&csr, &web(), 100 * HOUR).expect("signed");
    assert_eq!(signed.len(), 3);
    let left =
        peer_expiry(&[der(&signed[0])]).expect("an end").duration_since(SystemTime::now()).expect("valid");
    assert!(left <= 2 * HOUR, "nothing outlives its signer: {left:?}");
    let (other_chain, _) = root.intermediate("other", HOUR).expect("an intermediate");
    assert!(Authority::from_pem(&other_chain, &key_pem).is_err(), "another's key");
    let leaf = signed[0].clone() + &signed[1];
    assert!(Authority::from_pem(&leaf, &key_pem).is_err(), "no CA");
}

/// A self-signed certificate with these alternative names.
fn with_names(names: Vec<SanType>) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.self_signed(&key()).expect("signed").der().clone()
}

#[test]
fn peers_have_exactly_one_identity() {
    let uri = |text: &str| SanType::URI(text.try_into().expect("a uri"));
    let of = |names| peer_identity(&[with_names(names)]);
    assert_eq!(peer_identity(&[]), Err(PeerIdentityError::NoCertificate));
    assert!(matches!(
        peer_identity(&[CertificateDer::from(vec![1, 2, 3])]),
        Err(PeerIdentityError::NotX509(_))
    ));
    assert_eq!(of(vec![]), Err(PeerIdentityError::NoSpiffeId));
    let dns = SanType::DnsName("web.default".try_into().expect("a name"));
    assert_eq!(of(vec![dns.clone()]), Err(PeerIdentityError::NoSpiffeId));
    let ours = "spiffe://cluster.local/ns/default/sa/web";
    assert_eq!(of(vec![uri(ours)]), Ok(web()));
    assert_eq!(of(vec![dns, uri(ours)]), Ok(web()));
    assert_eq!(
        of(vec![uri(ours), uri("spiffe://cluster.local/ns/default/sa/b")]),
        Err(PeerIdentityError::ManyUris(2))
    );
    for odd in ["https://example.com", "spiffe://cluster.local/web", "spiffe://cluster.local/ns/a/sa/b/c"] {
        assert_eq!(of(vec![uri(odd)]), Err(PeerIdentityError::NotAServiceAccount(odd.to_owned())));
    }
}

#[test]
fn a_server_certificate_has_names_and_addresses() {
    let authority = Authority::ephemeral("cluster.local").expect("an authority");
    let names = ["control.culvert.svc".to_owned(), "localhost".to_owned()];
    let made = authority.server_certificate(&names, &["127.0.0.1".parse().expect("ip")], HOUR).expect("made");
    let (_, parsed) = x509_parser::pem::parse_x509_pem(made.chain_pem.as_bytes()).expect("pem");
    let parsed = parsed.parse_x509().expect("x509");
    let names = parsed.subject_alternative_name().expect("names").expect("names");
    assert_eq!(names.value.general_names.len(), 3);
    assert!(KeyPair::from_pem(&made.key_pem).is_ok());
    assert!(made.chain_pem.ends_with(authority.root_pem()));
}
