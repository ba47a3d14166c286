//! What a token says.

use std::sync::Arc;

use mesh::{request::Token, token::SKEW};
use serde_json::{Map, Value};

/// Claims whose text is a list with spaces between, in every token (RFC 8693, 4.2; as Istio has it).
const SPACED: [&str; 2] = ["scope", "permission"];

/// The claims of a token, of which it is only known that they could be read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Claims {
    all: Map<String, Value>,
    pub(crate) expires: Option<u64>,
    pub(crate) not_before: Option<u64>,
}

/// A token that one rule accepts.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    claims: Claims,
    principal: Option<Box<str>>,
    /// The claims as they stand in the token, in base64url.
    payload: Box<str>,
    /// The rule that accepts it, by its place.
    rule: usize,
    spaced: Vec<Arc<str>>,
}

impl Claims {
    /// `None` if they are no object, or of a kind that they may not have.
    pub(crate) fn read(json: &[u8]) -> Option<Self> {
        let Value::Object(all) = serde_json::from_slice(json).ok()? else { return None };
        let time = |name: &str| match all.get(name) {
            None | Some(Value::Null) => Some(None),
            Some(value) => seconds(value).map(Some),
        };
        let (expires, not_before) = (time("exp")?, time("nbf")?);
        // They are compared, and must be what they are compared as.
        let text = |name: &str| matches!(all.get(name), None | Some(Value::Null | Value::String(_)));
        let audience = match all.get("aud") {
            None | Some(Value::Null | Value::String(_)) => true,
            Some(Value::Array(list)) => list.iter().all(Value::is_string),
            Some(_) => false,
        };
        let proper = text("iss") && text("sub") && audience;
        proper.then_some(Self { expires, not_before, all })
    }

    pub(crate) fn issuer(&self) -> Option<&str> {
        self.all.get("iss")?.as_str()
    }

    pub(crate) fn audience(&self) -> impl Iterator<Item = &str> {
        texts(self.all.get("aud")).into_iter()
    }

    pub(crate) fn is_expired(&self, now: u64) -> bool {
        self.expires.is_some_and(|at| at.saturating_add(SKEW) < now)
    }

    pub(crate) fn is_early(&self, now: u64) -> bool {
        self.not_before.is_some_and(|at| at > now.saturating_add(SKEW))
    }
}

/// A time (RFC 7519, 2: NumericDate), which may have a fraction.
fn seconds(value: &Value) -> Option<u64> {
    let of_float = |float: f64| (float.is_finite() && float >= 0.0).then_some(float as u64);
    value.as_u64().or_else(|| value.as_f64().and_then(of_float))
}

fn texts(value: Option<&Value>) -> Vec<&str> {
    match value {
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

impl Verified {
    pub(crate) fn new(claims: Claims, payload: &str, rule: usize, spaced: &[Arc<str>]) -> Self {
        let subject = claims.all.get("sub").and_then(Value::as_str).filter(|subject| !subject.is_empty());
        let principal = claims.issuer().zip(subject).map(|(issuer, subject)| format!("{issuer}/{subject}"));
        let principal = principal.map(Into::into);
        Self { principal, payload: payload.into(), rule, spaced: spaced.to_vec(), claims }
    }

    /// The place of the rule that accepts it among those that were asked.
    pub fn rule(&self) -> usize {
        self.rule
    }

    /// Its claims as a header has them: JSON in base64url, without padding.
    pub fn payload(&self) -> &str {
        &self.payload
    }

    /// Whether it is still good, and good already.
    pub fn is_current(&self, now: u64) -> bool {
        !self.claims.is_expired(now) && !self.claims.is_early(now)
    }

    /// A claim as the value of a header: a text, a number, true or false as they are, else JSON in base64url. By its
    /// name, or by the names on the way to it with dots between.
    pub fn header_of(&self, claim: &str) -> Option<String> {
        let nested = || {
            let mut names = claim.split('.');
            let first = self.claims.all.get(names.next()?)?;
            names.try_fold(first, |value, name| value.get(name))
        };
        match self.claims.all.get(claim).or_else(nested)? {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            Value::Bool(value) => Some(value.to_string()),
            Value::Number(number) => Some(number.to_string()),
            value @ (Value::Array(_) | Value::Object(_)) => Some(crate::token::encoded(&value.to_string())),
        }
    }
}

impl Token for Verified {
    fn principal(&self) -> Option<&str> {
        self.principal.as_deref()
    }

    fn claim(&self, path: &[Arc<str>]) -> Vec<&str> {
        let Some((first, rest)) = path.split_first() else { return Vec::new() };
        let found = self.claims.all.get(&**first);
        let found = rest.iter().try_fold(found, |value, name| Some(value?.get(&**name)));
        let is_spaced = rest.is_empty()
            && (SPACED.contains(&&**first) || self.spaced.iter().any(|spaced| spaced == first));
        match found.flatten() {
            Some(Value::String(text)) if is_spaced => text.split(' ').filter(|one| !one.is_empty()).collect(),
            value => texts(value),
        }
    }
}
