//! RequestAuthentication (`security.istio.io`): whose tokens requests may bring, as waypoints go by it.
//!
//! A field that is not known refuses it: without a rule its issuer's tokens would not be looked at, and what callers
//! write into the headers that it makes would be believed.

use std::{fmt, sync::Arc, time::Duration};

use http::{Uri, uri::Scheme};
use mesh::token::{ClaimHeader, Key, Place};
use serde::Deserialize;

use super::{
    authorization::is_field_name,
    kube::{LabelSelector, Metadata, Strict, bounded},
    route::OF_CONNECTIONS,
    target::{self, PolicyTarget},
};

/// A field's path and what is wrong with it.
type Wrong = (String, String);

/// The most rules of one RequestAuthentication.
const MOST_RULES: usize = 32;
/// The most entries of each of a rule's lists.
const MOST: usize = 64;
/// The longest text of a field.
const LONGEST: usize = 2048;
/// How long keys may take to be fetched where nothing is said, as Istio has it, and at most.
const TIMEOUT: Duration = Duration::from_secs(5);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Headers that are not for a token's claims, beside those of connections: by them a request is carried.
const CARRYING: [&str; 3] = ["cookie", "host", "culvert-source"];

/// A RequestAuthentication that was understood; what it applies to is decided at compile time.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestAuthentication {
    pub metadata: Metadata,
    /// None: it is for workloads, whose ztunnels read no tokens.
    pub targets: Vec<PolicyTarget>,
    pub rules: Vec<JwtRule>,
    /// Fields that have no effect, with what that means.
    pub remarks: Vec<(String, String)>,
}

/// Tokens of one issuer.
#[derive(Debug, Clone, PartialEq)]
pub struct JwtRule {
    pub issuer: Arc<str>,
    pub audiences: Vec<Arc<str>>,
    pub keys: KeysOf,
    pub from: Vec<Place>,
    pub forward: bool,
    pub payload_to: Option<Arc<str>>,
    pub claims_to: Vec<ClaimHeader>,
    pub spaced: Vec<Arc<str>>,
}

/// An issuer's keys.
#[derive(Debug, Clone, PartialEq)]
pub enum KeysOf {
    Written(Arc<[Key]>),
    Fetched { from: KeySource, timeout: Duration },
}

/// Where keys are fetched from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeySource {
    /// The set itself.
    Set(Arc<str>),
    /// The issuer, whose configuration says where the set is (OpenID Connect Discovery 1.0, 4).
    Issuer(Arc<str>),
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(uri) => f.write_str(uri),
            Self::Issuer(issuer) => write!(f, "{}", configuration(issuer)),
        }
    }
}

/// Where an issuer's configuration is.
pub(crate) fn configuration(issuer: &str) -> String {
    format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'))
}

pub(super) type Manifest = Strict<Spec>;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Spec {
    selector: Option<LabelSelector>,
    target_ref: Option<target::Manifest>,
    target_refs: Option<Vec<target::Manifest>>,
    jwt_rules: Option<Vec<RuleManifest>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct RuleManifest {
    issuer: String,
    audiences: Option<Vec<String>>,
    #[serde(alias = "jwks_uri")]
    jwks_uri: Option<String>,
    jwks: Option<String>,
    from_headers: Option<Vec<HeaderManifest>>,
    from_params: Option<Vec<String>>,
    from_cookies: Option<Vec<String>>,
    output_payload_to_header: Option<String>,
    forward_original_token: Option<bool>,
    output_claim_to_headers: Option<Vec<ClaimManifest>>,
    space_delimited_claims: Option<Vec<String>>,
    timeout: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderManifest {
    name: String,
    #[serde(default)]
    prefix: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClaimManifest {
    header: String,
    claim: String,
}

impl RequestAuthentication {
    /// Whether it is for waypoints as a whole, which may serve other namespaces.
    pub(crate) fn is_for_gateways(&self) -> bool {
        target::has_gateways(&self.targets)
    }

    /// Where keys are fetched from for it, and how long that may take.
    pub(crate) fn sources(&self) -> impl Iterator<Item = (&KeySource, Duration)> {
        self.rules.iter().filter_map(|rule| match &rule.keys {
            KeysOf::Written(_) => None,
            KeysOf::Fetched { from, timeout } => Some((from, *timeout)),
        })
    }

    /// Converts and validates.
    pub(super) fn from_manifest(manifest: Manifest) -> Result<Self, Wrong> {
        let Strict { metadata, spec, .. } = manifest;
        let targets = target::all_of(spec.target_ref, spec.target_refs)?;
        let selector = spec.selector.filter(|selector| !selector.match_labels.is_empty());
        if !targets.is_empty() && selector.is_some() {
            let reason = "it is for workloads (selector) or for targetRefs, and not for both";
            return Err(("spec.selector".to_owned(), reason.to_owned()));
        }
        let written = spec.jwt_rules.unwrap_or_default();
        bounded("spec.jwtRules", written.len(), MOST_RULES)?;
        let mut remarks = Vec::new();
        let rules = written.into_iter().enumerate();
        let rules = rules.map(|(at, written)| rule(&format!("spec.jwtRules[{at}]"), written, &mut remarks));
        let rules: Vec<JwtRule> = rules.collect::<Result<_, _>>()?;
        if targets.is_empty() && !rules.is_empty() {
            let reason = "NOBODY reads tokens by it: ztunnel knows no requests. Name a Service, or a waypoint's \
                          Gateway, by targetRefs";
            let field = if selector.is_some() { "spec.selector" } else { "spec.targetRefs" };
            remarks.push((field.to_owned(), reason.to_owned()));
        }
        Ok(Self { metadata, targets, rules, remarks })
    }
}

fn rule(field: &str, from: RuleManifest, remarks: &mut Vec<(String, String)>) -> Result<JwtRule, Wrong> {
    let at = |name: &str| format!("{field}.{name}");
    let payload = from.output_payload_to_header.filter(|name| !name.is_empty());
    let payload_to = payload.map(|name| made(&at("outputPayloadToHeader"), &name)).transpose()?;
    let claims_to = list(&at("outputClaimToHeaders"), from.output_claim_to_headers, |field, from| {
        let header = made(&format!("{field}.header"), &from.header)?;
        Ok(ClaimHeader { header, claim: text(&format!("{field}.claim"), &from.claim)? })
    })?;
    let texts = |name: &str, values| list(&at(name), values, |field, value: String| text(field, &value));
    let mut places = list(&at("fromHeaders"), from.from_headers, |field, from| {
        let name = header(&format!("{field}.name"), &from.name)?;
        Ok(Place::Header { name, prefix: from.prefix.unwrap_or_default().into() })
    })?;
    places.extend(texts("fromParams", from.from_params)?.into_iter().map(Place::Parameter));
    places.extend(texts("fromCookies", from.from_cookies)?.into_iter().map(Place::Cookie));
    if places.is_empty() {
        places.push(Place::Header { name: "authorization".into(), prefix: "Bearer ".into() });
        places.push(Place::Parameter("access_token".into()));
    }
    let issuer = text(&at("issuer"), &from.issuer)?;
    let timeout = timeout(&at("timeout"), from.timeout.as_deref())?;
    let keys = match (from.jwks_uri.filter(|uri| !uri.is_empty()), from.jwks.filter(|set| !set.is_empty())) {
        (Some(_), Some(_)) => {
            let reason = "keys are written down (jwks) or fetched (jwksUri), and not both";
            return Err((at("jwks"), reason.to_owned()));
        }
        (None, Some(set)) => KeysOf::Written(written(&at("jwks"), &set, remarks)?),
        (Some(uri), None) => {
            let uri = address(&uri).map_err(|reason| (at("jwksUri"), reason))?;
            KeysOf::Fetched { from: KeySource::Set(uri), timeout }
        }
        (None, None) => {
            let without = |reason| {
                let reason = format!(
                    "without jwks and jwksUri the issuer's own configuration says where its keys are, but {reason}"
                );
                (at("issuer"), reason)
            };
            KeysOf::Fetched { from: KeySource::Issuer(address(&issuer).map_err(without)?), timeout }
        }
    };
    Ok(JwtRule {
        audiences: texts("audiences", from.audiences)?,
        spaced: texts("spaceDelimitedClaims", from.space_delimited_claims)?,
        from: places,
        forward: from.forward_original_token.unwrap_or_default(),
        issuer,
        keys,
        payload_to,
        claims_to,
    })
}

/// A list with a bound, which may be empty as well as left out.
fn list<M, T>(
    field: &str,
    values: Option<Vec<M>>,
    convert: impl Fn(&str, M) -> Result<T, Wrong>,
) -> Result<Vec<T>, Wrong> {
    let values = values.unwrap_or_default();
    bounded(field, values.len(), MOST)?;
    values.into_iter().enumerate().map(|(at, value)| convert(&format!("{field}[{at}]"), value)).collect()
}

fn text(field: &str, value: &str) -> Result<Arc<str>, Wrong> {
    match value.len() {
        0 => Err((field.to_owned(), "it is missing".to_owned())),
        1..=LONGEST => Ok(value.into()),
        _ => Err((field.to_owned(), format!("it is longer than {LONGEST} bytes"))),
    }
}

/// The name of a header, in lower case.
fn header(field: &str, name: &str) -> Result<Arc<str>, Wrong> {
    match is_field_name(name) && name.len() <= LONGEST {
        true => Ok(name.to_ascii_lowercase().into()),
        false => Err((field.to_owned(), format!("{name:?} is not the name of a header"))),
    }
}

/// The name of a header that is made of a token.
fn made(field: &str, name: &str) -> Result<Arc<str>, Wrong> {
    let name = header(field, name)?;
    match CARRYING.contains(&&*name) || OF_CONNECTIONS.contains(&&*name) {
        true => Err((field.to_owned(), format!("{name} is not for claims: by it a request is carried"))),
        false => Ok(name),
    }
}

fn written(field: &str, set: &str, remarks: &mut Vec<(String, String)>) -> Result<Arc<[Key]>, Wrong> {
    let set = jwt::keys::read(set.as_bytes()).map_err(|error| (field.to_owned(), error.to_string()))?;
    for left_out in set.left_out {
        remarks.push((field.to_owned(), format!("a key is left out: {left_out}")));
    }
    if set.keys.is_empty() {
        remarks.push((field.to_owned(), "it has no key: every token of the issuer is refused".to_owned()));
    }
    Ok(set.keys)
}

/// The address of something that can be fetched.
fn address(text: &str) -> Result<Arc<str>, String> {
    let uri: Uri = text.parse().map_err(|_| format!("{text:?} is no URI"))?;
    let known = uri.scheme() == Some(&Scheme::HTTPS) || uri.scheme() == Some(&Scheme::HTTP);
    let host = uri.host().filter(|host| !host.is_empty());
    match (known, host, uri.authority()) {
        (true, Some(_), Some(authority)) if !authority.as_str().contains('@') && text.len() <= LONGEST => {
            Ok(text.into())
        }
        _ => Err(format!("{text:?} is no address of http:// or https:// with a host, and without a user")),
    }
}

/// `5s`, `500ms`, `1.5s`, `1m`.
fn timeout(field: &str, text: Option<&str>) -> Result<Duration, Wrong> {
    let Some(text) = text else { return Ok(TIMEOUT) };
    let units = [("ms", 0.001), ("s", 1.0), ("m", 60.0)];
    let read = units.into_iter().find_map(|(unit, seconds)| {
        let number: f64 = text.strip_suffix(unit)?.parse().ok()?;
        Duration::try_from_secs_f64(number * seconds).ok()
    });
    match read {
        Some(time) if time >= Duration::from_millis(1) && time <= LONGEST_TIMEOUT => Ok(time),
        _ => Err((field.to_owned(), format!("{text:?} is no time from 1ms to 60s, such as 5s"))),
    }
}

#[cfg(test)]
mod tests;
