//! What tokens (JWT) requests to a service may bring, whose keys prove them, and what is made of them: the rules of
//! RequestAuthentications.
//!
//! A request without a token goes on, and is nobody's: who may do that is for the policies of [`crate::request`] to say.
//! One with a token that no rule accepts does not. Texts are read and signatures verified elsewhere (the crate `jwt`).

use std::sync::Arc;

use crate::PolicyKey;

/// How far clocks may be apart, in seconds.
pub const SKEW: u64 = 60;

/// The rules for the tokens of one service's requests.
#[derive(Debug, Clone, Default)]
pub struct Authentication {
    rules: Arc<[TokenRule]>,
    /// Where any rule looks for tokens, each place once, in the order of the rules.
    places: Arc<[Place]>,
    /// Headers that any rule makes of tokens, each once.
    made: Arc<[Arc<str>]>,
}

/// Equal if they say the same; the rest follows from it.
impl PartialEq for Authentication {
    fn eq(&self, other: &Self) -> bool {
        self.rules == other.rules
    }
}

/// Tokens of one issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRule {
    /// The RequestAuthentication that says so.
    pub policy: PolicyKey,
    /// The token's `iss`.
    pub issuer: Arc<str>,
    /// One of these is in its `aud`; none: whoever it is for.
    pub audiences: Vec<Arc<str>>,
    pub keys: Keys,
    pub from: Vec<Place>,
    /// The token is left in the request.
    pub forward: bool,
    /// The header that its claims are put in as a whole, in lower case.
    pub payload_to: Option<Arc<str>>,
    /// Claims that headers are made of.
    pub claims_to: Vec<ClaimHeader>,
    /// Claims whose text is a list with spaces between.
    pub spaced: Vec<Arc<str>>,
}

/// Where a token is looked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// Of a header (its name in lower case) what comes behind the prefix; without the prefix there is none.
    Header {
        name: Arc<str>,
        prefix: Arc<str>,
    },
    /// A parameter of the query.
    Parameter(Arc<str>),
    Cookie(Arc<str>),
}

/// A header (its name in lower case) that is made of a claim: the one of that name, or else the one that its names,
/// with dots between, lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimHeader {
    pub header: Arc<str>,
    pub claim: Arc<str>,
}

/// The keys of an issuer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys {
    /// Where they are fetched from; empty where they were written down.
    pub source: Arc<str>,
    /// `None` until they were fetched: nobody's token is accepted.
    pub known: Option<Arc<[Key]>>,
}

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its `kid`.
    pub id: Option<Arc<str>>,
    /// The one algorithm that it is for; `None`: each that its kind allows.
    pub algorithm: Option<Algorithm>,
    pub material: Material,
}

/// What a key is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Material {
    /// Big-endian, without zeros before.
    Rsa {
        modulus: Arc<[u8]>,
        exponent: Arc<[u8]>,
    },
    /// The point, not compressed (SEC 1, 2.3.3).
    Elliptic {
        curve: Curve,
        point: Arc<[u8]>,
    },
    Ed25519(Arc<[u8]>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Curve {
    P256,
    P384,
}

impl Curve {
    /// Bytes of a coordinate.
    pub fn size(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
        }
    }
}

/// The algorithms of signatures that are accepted (RFC 7518, 3.1; RFC 8037): those with a public key. There is none
/// without a signature, and none whose key could sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::EdDsa,
    ];

    /// By its name, which is told apart by case.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::EdDsa => "EdDSA",
        }
    }
}

impl Material {
    /// Whether it can have made a signature of that algorithm.
    pub fn is_for(&self, algorithm: Algorithm) -> bool {
        match self {
            Self::Rsa { .. } => matches!(
                algorithm,
                Algorithm::Rs256
                    | Algorithm::Rs384
                    | Algorithm::Rs512
                    | Algorithm::Ps256
                    | Algorithm::Ps384
                    | Algorithm::Ps512
            ),
            Self::Elliptic { curve: Curve::P256, .. } => algorithm == Algorithm::Es256,
            Self::Elliptic { curve: Curve::P384, .. } => algorithm == Algorithm::Es384,
            Self::Ed25519(_) => algorithm == Algorithm::EdDsa,
        }
    }
}

impl Key {
    /// Whether it is to be tried for a token that names this key, or none. A key without a name is tried for all.
    pub fn is_for(&self, id: Option<&str>, algorithm: Algorithm) -> bool {
        let named = match (id, self.id.as_deref()) {
            (Some(wanted), Some(own)) => wanted == own,
            (None, _) | (_, None) => true,
        };
        named && self.algorithm.is_none_or(|own| own == algorithm) && self.material.is_for(algorithm)
    }
}

impl Authentication {
    /// The most rules that one service has whose tokens are accepted.
    pub const MOST: usize = 64;

    pub fn new(rules: Vec<TokenRule>) -> Self {
        let (mut places, mut made) = (Vec::new(), Vec::new());
        for rule in &rules {
            for place in &rule.from {
                if !places.contains(place) {
                    places.push(place.clone());
                }
            }
            let headers = rule.claims_to.iter().map(|claim| &claim.header).chain(&rule.payload_to);
            for header in headers {
                if !made.contains(header) {
                    made.push(header.clone());
                }
            }
        }
        Self { rules: rules.into(), places: places.into(), made: made.into() }
    }

    /// Them, in their order.
    pub fn rules(&self) -> &[TokenRule] {
        &self.rules
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Where tokens are looked for, each place once.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// The rules that look at a place.
    pub fn at(&self, place: &Place) -> impl Iterator<Item = &TokenRule> {
        self.rules.iter().filter(move |rule| rule.from.contains(place))
    }

    /// Whether a header of that name, in lower case, is made of tokens: what a caller has brought under it is not to be
    /// believed. Underscores are read as hyphens, as many a server reads them.
    pub fn makes(&self, header: &str) -> bool {
        let same = |made: &Arc<str>| {
            let like = |byte: u8| if byte == b'_' { b'-' } else { byte };
            made.len() == header.len() && made.bytes().map(like).eq(header.bytes().map(like))
        };
        self.made.iter().any(same)
    }

    /// Whether they are the very ones, and not others that say the same.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.rules, &other.rules)
    }

    /// With the keys that were known `before`, where control has fetched none yet from the same place: one that has
    /// just begun is not to lock anybody out.
    pub fn keeping(self, before: &Self) -> Self {
        let waits = |rule: &TokenRule| rule.keys.known.is_none();
        if self == *before {
            // What was remembered of them counts on.
            return before.clone();
        }
        if !self.rules.iter().any(waits) {
            return self;
        }
        let kept = |rule: &TokenRule| {
            let same = |held: &&TokenRule| {
                held.keys.source == rule.keys.source && held.issuer == rule.issuer && !waits(held)
            };
            let held = before.rules.iter().find(same).filter(|_| waits(rule) && !rule.keys.source.is_empty());
            let keys = held.map_or(&rule.keys, |held| &held.keys).clone();
            TokenRule { keys, ..rule.clone() }
        };
        Self { rules: self.rules.iter().map(kept).collect(), ..self }
    }
}

impl TokenRule {
    /// A rule that looks nowhere and accepts no token; the other fields are set by the caller.
    pub fn of(issuer: impl Into<Arc<str>>, policy: PolicyKey) -> Self {
        Self {
            policy,
            issuer: issuer.into(),
            audiences: Vec::new(),
            keys: Keys { source: Arc::from(""), known: Some([].into()) },
            from: Vec::new(),
            forward: false,
            payload_to: None,
            claims_to: Vec::new(),
            spaced: Vec::new(),
        }
    }

    /// Whether a token for these is for us.
    pub fn is_for<'a>(&self, mut audience: impl Iterator<Item = &'a str>) -> bool {
        self.audiences.is_empty() || audience.any(|one| self.audiences.iter().any(|ours| **ours == *one))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: Option<&str>, algorithm: Option<Algorithm>, material: Material) -> Key {
        Key { id: id.map(Arc::from), algorithm, material }
    }

    fn rsa() -> Material {
        Material::Rsa { modulus: [1; 256].into(), exponent: [1, 0, 1].into() }
    }

    fn rule(issuer: &str, source: &str, known: Option<Arc<[Key]>>) -> TokenRule {
        let policy = PolicyKey { namespace: "shop".into(), name: "p".into() };
        TokenRule {
            keys: Keys { source: source.into(), known },
            from: vec![Place::Parameter("access_token".into())],
            ..TokenRule::of(issuer, policy)
        }
    }

    #[test]
    fn a_key_is_tried_for_what_it_can_have_signed() {
        let p256 = Material::Elliptic { curve: Curve::P256, point: [4; 65].into() };
        let p384 = Material::Elliptic { curve: Curve::P384, point: [4; 97].into() };
        let edwards = Material::Ed25519([0; 32].into());
        use Algorithm::{EdDsa, Es256, Es384, Ps256, Rs256};
        for (of, wanted, algorithm, tried) in [
            (key(Some("a"), None, rsa()), Some("a"), Rs256, true),
            (key(Some("a"), None, rsa()), Some("b"), Rs256, false),
            (key(Some("a"), None, rsa()), None, Rs256, true),
            (key(None, None, rsa()), Some("b"), Ps256, true),
            (key(Some("a"), Some(Rs256), rsa()), Some("a"), Ps256, false),
            (key(None, None, rsa()), None, Es256, false),
            (key(None, None, p256.clone()), None, Es256, true),
            (key(None, None, p256.clone()), None, Es384, false),
            (key(None, None, p256), None, EdDsa, false),
            (key(None, None, p384.clone()), None, Es384, true),
            (key(None, None, p384), None, Es256, false),
            (key(None, None, edwards.clone()), None, EdDsa, true),
            (key(None, None, edwards), None, Rs256, false),
        ] {
            assert_eq!(of.is_for(wanted, algorithm), tried, "{of:?} {wanted:?} {algorithm:?}");
        }
    }

    #[test]
    fn algorithms_without_a_public_key_have_no_name() {
        for name in ["none", "None", "HS256", "HS384", "HS512", "rs256", "ES512", "ES256K", ""] {
            assert_eq!(Algorithm::named(name), None, "{name}");
        }
    }

    #[test]
    fn a_header_that_is_made_of_a_token_is_known_in_each_spelling() {
        let claim = ClaimHeader { header: "x-user-id".into(), claim: "sub".into() };
        let made =
            TokenRule { claims_to: vec![claim], payload_to: Some("x_jwt".into()), ..rule("i", "", None) };
        let made = Authentication::new(vec![made]);
        for (name, ours) in [
            ("x-user-id", true),
            ("x_user_id", true),
            ("x-user_id", true),
            ("x-jwt", true),
            ("x-user", false),
        ] {
            assert_eq!(made.makes(name), ours, "{name}");
        }
    }

    #[test]
    fn keys_that_were_known_are_kept_until_there_are_others() {
        let known: Arc<[Key]> = [key(None, None, rsa())].into();
        let before = Authentication::new(vec![rule("i", "https://keys", Some(known.clone()))]);
        let kept =
            |now: TokenRule| Authentication::new(vec![now]).keeping(&before).rules()[0].keys.known.clone();
        assert_eq!(kept(rule("i", "https://keys", None)), Some(known));
        assert_eq!(kept(rule("i", "https://others", None)), None);
        assert_eq!(kept(rule("other", "https://keys", None)), None);
        assert_eq!(kept(rule("i", "https://keys", Some([].into()))), Some([].into()), "none is a word, too");
    }

    #[test]
    fn of_several_audiences_one_suffices() {
        let any = rule("i", "", None);
        let ours = TokenRule { audiences: vec!["shop".into(), "web".into()], ..any.clone() };
        for (audience, fits) in
            [(&["web"][..], true), (&["other", "shop"], true), (&["other"], false), (&[], false)]
        {
            assert_eq!(ours.is_for(audience.iter().copied()), fits, "{audience:?}");
            assert!(any.is_for(audience.iter().copied()));
        }
    }
}
