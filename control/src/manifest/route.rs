//! HTTPRoute of the Gateway API. What it refers to is looked for when it is compiled; all else is settled here.
//!
//! A field that is not known refuses the route: a filter that was passed over might be what keeps somebody out.

mod filter;

use std::{sync::Arc, time::Duration};

use mesh::route::{FieldMatch, Match, PathMatch, Retry, TextMatch, Timeouts, check_pattern};
use serde::{Deserialize, de::IgnoredAny};

pub use filter::Filter;

use super::kube::Metadata;

/// A field's path and what is wrong with it.
type Wrong = (String, String);

/// The most rules of a route and matches of a rule that the Gateway API allows, with room to spare.
const MOST: usize = 256;

/// A route that was understood.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpRoute {
    pub metadata: Metadata,
    pub parents: Vec<Reference>,
    pub rules: Vec<Rule>,
    /// What has no effect here, with why.
    pub remarks: Vec<(String, String)>,
}

/// One rule; its backends are not looked for yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    pub name: Option<Arc<str>>,
    pub matches: Vec<Match>,
    pub filters: Vec<Filter>,
    pub backends: Vec<Backend>,
    pub timeouts: Timeouts,
    pub retry: Option<Retry>,
}

/// A backend and its share.
#[derive(Debug, Clone, PartialEq)]
pub struct Backend {
    pub to: Reference,
    pub weight: u32,
    pub filters: Vec<Filter>,
}

/// What a route refers to: a parent, or a backend.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Reference {
    #[serde(default)]
    pub group: Option<Arc<str>>,
    #[serde(default)]
    pub kind: Option<Arc<str>>,
    #[serde(default)]
    pub namespace: Option<Arc<str>>,
    pub name: Arc<str>,
    #[serde(default)]
    pub port: Option<u16>,
    #[serde(default)]
    pub section_name: Option<Arc<str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Manifest {
    // Read before; named here so that a misspelt `spec` is not passed over.
    #[serde(rename = "apiVersion")]
    _api_version: IgnoredAny,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    #[serde(rename = "status", default)]
    _status: IgnoredAny,
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Spec {
    parent_refs: Option<Vec<Reference>>,
    hostnames: Option<Vec<String>>,
    rules: Option<Vec<RuleManifest>>,
    use_default_gateways: Option<IgnoredAny>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct RuleManifest {
    name: Option<Arc<str>>,
    matches: Option<Vec<MatchManifest>>,
    filters: Option<Vec<filter::Manifest>>,
    backend_refs: Option<Vec<BackendManifest>>,
    timeouts: Option<TimeoutsManifest>,
    retry: Option<RetryManifest>,
    session_persistence: Option<IgnoredAny>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct MatchManifest {
    path: Option<PathManifest>,
    method: Option<Arc<str>>,
    headers: Option<Vec<FieldManifest>>,
    query_params: Option<Vec<FieldManifest>>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct PathManifest {
    #[serde(rename = "type")]
    kind: Option<String>,
    value: Option<Arc<str>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FieldManifest {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    name: Arc<str>,
    value: Arc<str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BackendManifest {
    #[serde(default)]
    group: Option<Arc<str>>,
    #[serde(default)]
    kind: Option<Arc<str>>,
    #[serde(default)]
    namespace: Option<Arc<str>>,
    name: Arc<str>,
    #[serde(default)]
    port: Option<u16>,
    #[serde(default)]
    weight: Option<u32>,
    #[serde(default)]
    filters: Option<Vec<filter::Manifest>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct TimeoutsManifest {
    request: Option<String>,
    backend_request: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct RetryManifest {
    codes: Option<Vec<u16>>,
    attempts: Option<u32>,
    backoff: Option<String>,
}

impl HttpRoute {
    /// Converts and validates.
    pub(super) fn from_manifest(manifest: Manifest) -> Result<Self, Wrong> {
        let Manifest { metadata, spec, .. } = manifest;
        let mut remarks = Vec::new();
        if spec.hostnames.is_some_and(|names| !names.is_empty()) {
            let reason = "host names are for Gateways; a route of a Service is for all of its requests";
            remarks.push(("spec.hostnames".to_owned(), reason.to_owned()));
        }
        if spec.use_default_gateways.is_some() {
            let reason = "there are no default gateways here";
            remarks.push(("spec.useDefaultGateways".to_owned(), reason.to_owned()));
        }
        // Without rules there is one that matches everything and leads nowhere, as the API's default has it.
        let rules = spec.rules.unwrap_or_else(|| vec![RuleManifest::default()]);
        bounded("spec.rules", rules.len())?;
        let rules = rules.into_iter().enumerate().map(|(at, rule)| {
            let field = format!("spec.rules[{at}]");
            if rule.session_persistence.is_some() {
                let reason = "sessions are not kept at one backend yet";
                remarks.push((format!("{field}.sessionPersistence"), reason.to_owned()));
            }
            rule_of(rule, &field)
        });
        let rules = rules.collect::<Result<_, _>>()?;
        Ok(Self { metadata, parents: spec.parent_refs.unwrap_or_default(), rules, remarks })
    }
}

fn rule_of(rule: RuleManifest, field: &str) -> Result<Rule, Wrong> {
    let matches = rule.matches.unwrap_or_default();
    bounded(&format!("{field}.matches"), matches.len())?;
    let matches =
        matches.into_iter().enumerate().map(|(at, of)| match_of(of, &format!("{field}.matches[{at}]")));
    let backends = rule.backend_refs.unwrap_or_default().into_iter().enumerate();
    let backends = backends.map(|(at, of)| backend_of(of, &format!("{field}.backendRefs[{at}]")));
    let timeouts = rule.timeouts.unwrap_or_default();
    let time = |of: Option<String>, name: &str| time_of(of, &format!("{field}.timeouts.{name}"));
    let timeouts = Timeouts {
        request: time(timeouts.request, "request")?,
        backend_request: time(timeouts.backend_request, "backendRequest")?,
    };
    if let (Some(whole), Some(part)) = (timeouts.request, timeouts.backend_request)
        && part > whole
    {
        let reason = "one try may not take longer than the request".to_owned();
        return Err((format!("{field}.timeouts.backendRequest"), reason));
    }
    Ok(Rule {
        name: rule.name,
        matches: matches.collect::<Result<_, _>>()?,
        filters: filter::all_of(rule.filters, field)?,
        backends: backends.collect::<Result<_, _>>()?,
        timeouts,
        retry: rule.retry.map(|retry| retry_of(retry, &format!("{field}.retry"))).transpose()?,
    })
}

fn match_of(of: MatchManifest, field: &str) -> Result<Match, Wrong> {
    let fields = |fields: Option<Vec<FieldManifest>>, name: &str, lower: bool| -> Result<Vec<_>, Wrong> {
        let fields = fields.unwrap_or_default();
        bounded(&format!("{field}.{name}"), fields.len())?;
        let mut found: Vec<FieldMatch> = Vec::new();
        for (at, of) in fields.into_iter().enumerate() {
            let field = format!("{field}.{name}[{at}]");
            let value = text_of(of.kind.as_deref(), of.value, &field)?;
            let name = if lower { of.name.to_ascii_lowercase().into() } else { of.name };
            // Of two of one name the first counts.
            if !found.iter().any(|held| held.name == name) {
                found.push(FieldMatch { name, value });
            }
        }
        Ok(found)
    };
    Ok(Match {
        path: path_of(of.path.unwrap_or_default(), &format!("{field}.path"))?,
        method: of.method,
        headers: fields(of.headers, "headers", true)?,
        query: fields(of.query_params, "queryParams", false)?,
    })
}

fn path_of(of: PathManifest, field: &str) -> Result<PathMatch, Wrong> {
    let value = of.value.unwrap_or_else(|| "/".into());
    let path = |value: Arc<str>| {
        let odd = ["//", "/./", "/../", "%2f", "%2F", "#"].iter().find(|odd| value.contains(**odd));
        match odd {
            _ if !value.starts_with('/') => {
                Err((format!("{field}.value"), format!("{value:?} does not begin with a slash")))
            }
            Some(odd) => Err((format!("{field}.value"), format!("{value:?} holds {odd:?}"))),
            None => Ok(value),
        }
    };
    match of.kind.as_deref() {
        None | Some("PathPrefix") => Ok(PathMatch::Prefix(path(value)?)),
        Some("Exact") => Ok(PathMatch::Exact(path(value)?)),
        Some("RegularExpression") => {
            pattern(&value, &format!("{field}.value"))?;
            Ok(PathMatch::Regex(value))
        }
        Some(_) => Err((format!("{field}.type"), "use Exact, PathPrefix or RegularExpression".to_owned())),
    }
}

fn text_of(kind: Option<&str>, value: Arc<str>, field: &str) -> Result<TextMatch, Wrong> {
    match kind {
        None | Some("Exact") => Ok(TextMatch::Exact(value)),
        Some("RegularExpression") => {
            pattern(&value, &format!("{field}.value"))?;
            Ok(TextMatch::Regex(value))
        }
        Some(_) => Err((format!("{field}.type"), "use Exact or RegularExpression".to_owned())),
    }
}

fn pattern(pattern: &str, field: &str) -> Result<(), Wrong> {
    check_pattern(pattern).map_err(|error| (field.to_owned(), error.to_string()))
}

fn backend_of(of: BackendManifest, field: &str) -> Result<Backend, Wrong> {
    let BackendManifest { group, kind, namespace, name, port, weight, filters } = of;
    Ok(Backend {
        to: Reference { group, kind, namespace, name, port, section_name: None },
        weight: weight.unwrap_or(1),
        filters: filter::all_of(filters, field)?,
    })
}

fn retry_of(of: RetryManifest, field: &str) -> Result<Retry, Wrong> {
    let codes = of.codes.unwrap_or_default();
    if let Some(code) = codes.iter().find(|code| !(400..=599).contains(*code)) {
        return Err((format!("{field}.codes"), format!("{code} is no status of a failure (400 to 599)")));
    }
    Ok(Retry {
        codes,
        // What is not said is ours to say: one more try.
        attempts: of.attempts.unwrap_or(1),
        backoff: time_of(of.backoff, &format!("{field}.backoff"))?,
    })
}

/// A duration as the Gateway API writes it (GEP-2257): `1h2m3s4ms`, each part at most once by habit, four at most.
/// Nothing at all is no limit.
fn time_of(text: Option<String>, field: &str) -> Result<Option<Duration>, Wrong> {
    let Some(text) = text else { return Ok(None) };
    let time = read_time(&text)
        .ok_or_else(|| (field.to_owned(), format!("{text:?} is no duration, such as 500ms, 10s or 1h30m")))?;
    Ok((!time.is_zero()).then_some(time))
}

fn read_time(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    for _ in 0..4 {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|digits| (1..=5).contains(digits))?;
        let number: u64 = rest[..digits].parse().ok()?;
        let unit = &rest[digits..];
        let (part, length) = match unit {
            unit if unit.starts_with("ms") => (Duration::from_millis(number), 2),
            unit if unit.starts_with('h') => (Duration::from_secs(3600 * number), 1),
            unit if unit.starts_with('m') => (Duration::from_secs(60 * number), 1),
            unit if unit.starts_with('s') => (Duration::from_secs(number), 1),
            _ => return None,
        };
        total += part;
        rest = &unit[length..];
        if rest.is_empty() {
            return Some(total);
        }
    }
    None
}

fn bounded(field: &str, length: usize) -> Result<(), Wrong> {
    if length > MOST {
        return Err((field.to_owned(), format!("more than {MOST}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
