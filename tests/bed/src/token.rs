//! An issuer of tokens: keys, their public set, and tokens signed with them, right and wrong ones.

use aws_lc_rs::{
    hmac,
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
        KeyPair, RSA_PKCS1_SHA256, RSA_PSS_SHA384, RsaKeyPair,
    },
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use serde_json::{Value, json};

/// A key that signs.
pub struct SigningKey {
    /// Its `kid`; empty: none.
    id: String,
    pair: Pair,
}

enum Pair {
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Rsa(Box<RsaKeyPair>),
}

const RIGHT: &str = "the cryptography works";

impl SigningKey {
    /// ES256.
    pub fn p256(id: &str) -> Self {
        Self::new(id, Pair::P256(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect(RIGHT)))
    }

    /// ES384.
    pub fn p384(id: &str) -> Self {
        Self::new(id, Pair::P384(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).expect(RIGHT)))
    }

    /// EdDSA.
    pub fn ed25519(id: &str) -> Self {
        Self::new(id, Pair::Ed25519(Ed25519KeyPair::generate().expect(RIGHT)))
    }

    /// RS256 and PS384.
    pub fn rsa(id: &str) -> Self {
        Self::new(id, Pair::Rsa(Box::new(RsaKeyPair::generate(KeySize::Rsa2048).expect(RIGHT))))
    }

    fn new(id: &str, pair: Pair) -> Self {
        Self { id: id.to_owned(), pair }
    }

    /// The public key (RFC 7517).
    pub fn public(&self) -> Value {
        let point = |curve, pair: &EcdsaKeyPair| {
            let (x, y) = pair.public_key().as_ref()[1..].split_at(pair.public_key().as_ref().len() / 2);
            json!({"kty": "EC", "crv": curve, "x": BASE64.encode(x), "y": BASE64.encode(y)})
        };
        let mut key = match &self.pair {
            Pair::P256(pair) => point("P-256", pair),
            Pair::P384(pair) => point("P-384", pair),
            Pair::Ed25519(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": BASE64.encode(pair.public_key().as_ref())})
            }
            Pair::Rsa(pair) => {
                let public = pair.public_key();
                let (n, e) = (public.modulus(), public.exponent());
                let text = |number: &[u8]| BASE64.encode(number);
                json!({"kty": "RSA", "n": text(n.big_endian_without_leading_zero()),
                    "e": text(e.big_endian_without_leading_zero())})
            }
        };
        if !self.id.is_empty() {
            key["kid"] = self.id.as_str().into();
        }
        key
    }

    /// A token with these claims, signed by the key's own algorithm.
    pub fn token(&self, claims: &Value) -> String {
        let algorithm = match &self.pair {
            Pair::P256(_) => "ES256",
            Pair::P384(_) => "ES384",
            Pair::Ed25519(_) => "EdDSA",
            Pair::Rsa(_) => "RS256",
        };
        let mut header = json!({"alg": algorithm, "typ": "JWT"});
        if !self.id.is_empty() {
            header["kid"] = self.id.as_str().into();
        }
        self.signed(&header, claims)
    }

    /// A token with that very header. Signed by RSASSA-PSS where it says `PS384` and the key is one of RSA, else by the
    /// key's own algorithm, whatever it says.
    pub fn signed(&self, header: &Value, claims: &Value) -> String {
        let message = message(header, claims);
        let random = SystemRandom::new();
        let signature = match &self.pair {
            Pair::P256(pair) | Pair::P384(pair) => {
                pair.sign(&random, message.as_bytes()).expect(RIGHT).as_ref().to_vec()
            }
            Pair::Ed25519(pair) => pair.sign(message.as_bytes()).as_ref().to_vec(),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                let padding: &'static dyn aws_lc_rs::signature::RsaEncoding = match header["alg"].as_str() {
                    Some("PS384") => &RSA_PSS_SHA384,
                    _ => &RSA_PKCS1_SHA256,
                };
                pair.sign(padding, &random, message.as_bytes(), &mut signature).expect(RIGHT);
                signature
            }
        };
        format!("{message}.{}", BASE64.encode(signature))
    }
}

/// A set of public keys (RFC 7517).
pub fn set(keys: &[&SigningKey]) -> String {
    json!({"keys": keys.iter().map(|key| key.public()).collect::<Vec<_>>()}).to_string()
}

/// A token that says it is signed with HMAC, by whoever knows `secret`: a public key, say.
pub fn symmetric(secret: &[u8], claims: &Value) -> String {
    let message = message(&json!({"alg": "HS256"}), claims);
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
    format!("{message}.{}", BASE64.encode(signature.as_ref()))
}

/// What is signed of a token.
pub fn message(header: &Value, claims: &Value) -> String {
    format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()))
}
