//! Key sets: what is taken, what is left out, and what is refused.

use bed::token::{SigningKey, set};
use jwt::keys::{BadKeySet, LONGEST, MOST, read};
use mesh::token::{Algorithm, Material};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A key with other fields.
fn with(key: &SigningKey, changes: Value) -> Value {
    let mut public = key.public();
    for (name, value) in changes.as_object().unwrap() {
        public[name] = value.clone();
    }
    public
}

fn keys(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

#[test]
fn keys_of_each_kind_are_read() {
    let all = [SigningKey::rsa("r"), SigningKey::p256("a"), SigningKey::p384(""), SigningKey::ed25519("d")];
    let read = read(set(&all.each_ref()).as_bytes()).unwrap();
    assert_eq!((read.keys.len(), read.left_out.len()), (4, 0));
    let ids: Vec<Option<&str>> = read.keys.iter().map(|key| key.id.as_deref()).collect();
    assert_eq!(ids, [Some("r"), Some("a"), None, Some("d")]);
    let Material::Rsa { modulus, exponent } = &read.keys[0].material else { panic!("{read:?}") };
    assert_eq!((modulus.len(), &exponent[..]), (256, &[1, 0, 1][..]));
}

#[test]
fn a_key_that_is_not_for_us_is_left_out_and_told() {
    let (rsa, p256, edwards) = (SigningKey::rsa("r"), SigningKey::p256("a"), SigningKey::ed25519("d"));
    let good = p256.public();
    for (key, reason) in [
        (json!({"kty": "oct", "k": "c2VjcmV0", "kid": "s"}), "can sign with it, too"),
        (json!({"kty": "oct", "k": "c2VjcmV0", "alg": "HS256", "use": "sig"}), "can sign with it, too"),
        (json!({"kty": "XYZ"}), "none of RSA, EC, OKP"),
        (json!({"n": "AQAB"}), "no `kty`"),
        (json!("text"), "no `kty`"),
        (with(&rsa, json!({"use": "enc"})), "not for signatures"),
        (with(&rsa, json!({"key_ops": ["encrypt"]})), "not for verifying"),
        (with(&rsa, json!({"alg": "RSA-OAEP"})), "no signature that is accepted"),
        (with(&rsa, json!({"alg": "HS256"})), "no signature that is accepted"),
        (with(&rsa, json!({"alg": "ES256"})), "no signature that is accepted"),
        (with(&rsa, json!({"alg": "none"})), "no signature that is accepted"),
        (with(&rsa, json!({"n": "AQAB"})), "RSA key of 17 bits"),
        (with(&rsa, json!({"n": "AAAA"})), "`n` is nothing"),
        (with(&rsa, json!({"e": "AQ"})), "no exponent"),
        (with(&rsa, json!({"e": "AQAA"})), "no exponent"),
        (with(&rsa, json!({"n": null})), "has no `n`"),
        (with(&rsa, json!({"n": "+/=="})), "no base64url"),
        (with(&p256, json!({"crv": "secp256k1"})), "neither P-256 nor P-384"),
        (with(&p256, json!({"crv": "P-384"})), "32 bytes and not 48"),
        (with(&p256, json!({"y": good["x"]})), "not on the curve"),
        (with(&edwards, json!({"crv": "X25519"})), "not Ed25519"),
        (with(&edwards, json!({"x": "AQAB"})), "no key of Ed25519"),
        (with(&p256, json!({"kid": "x".repeat(513)})), "`kid` has more than"),
        (with(&p256, json!({"kid": 7})), "a field is no text"),
    ] {
        let read = read(keys(&[good.clone(), key.clone()]).as_bytes()).unwrap();
        assert_eq!(read.keys.len(), 1, "{key}");
        assert!(read.left_out[0].starts_with("keys[1]: ") && read.left_out[0].contains(reason), "{read:?}");
        let alone = super_read(&[key]);
        assert!(matches!(alone, Err(BadKeySet::NoneUsable(_))), "{alone:?}");
    }
}

fn super_read(of: &[Value]) -> Result<usize, BadKeySet> {
    read(keys(of).as_bytes()).map(|set| set.keys.len())
}

#[test]
fn a_key_that_says_more_is_read_all_the_same() {
    let rsa = SigningKey::rsa("r");
    let fields =
        json!({"use": "sig", "key_ops": ["verify"], "alg": "RS512", "x5c": ["x"], "x5t": "y", "ext": true});
    let read = read(keys(&[with(&rsa, fields)]).as_bytes()).unwrap();
    assert_eq!(read.keys[0].algorithm, Some(Algorithm::Rs512));
}

#[test]
fn what_is_no_set_or_too_large_is_refused() {
    for (text, wanted) in [
        ("", "it ends too early"),
        ("<html>", "it is no JSON"),
        ("{}", "no list `keys`"),
        (r#"{"keys": {}}"#, "no list `keys`"),
        (r#"[]"#, "no list `keys`"),
    ] {
        let refused = read(text.as_bytes()).unwrap_err().to_string();
        assert!(refused.contains(wanted), "{text}: {refused}");
    }
    let secret = read(br#"{"password": "hunter2"}"#).unwrap_err().to_string();
    assert!(!secret.contains("hunter2") && !secret.contains("password"), "{secret}");
    let key = SigningKey::p256("a").public();
    assert_eq!(super_read(&vec![key.clone(); MOST]), Ok(MOST));
    assert_eq!(super_read(&vec![key; MOST + 1]), Err(BadKeySet::TooMany));
    assert_eq!(read(&vec![b' '; LONGEST + 1]), Err(BadKeySet::TooLong));
    assert_eq!(super_read(&[]), Ok(0), "none is a word, too");
}

proptest! {
    #[test]
    fn whatever_is_read_there_is_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read(&bytes);
    }
}
