//! HTTPRoute of the Gateway API, and what the other kinds of routes have in common with it. What a route refers to is looked for when it
//! is compiled; all else is settled here.
//!
//! A field that is not known refuses the route: a filter that was passed over might be what keeps somebody out. A route
//! that is refused is known all the same, since its writer is told so at each of its parents.

mod filter;
mod grpc;
mod stream;

use std::{sync::Arc, time::Duration};

use mesh::route::{FieldMatch, Match, PathMatch, Retry, TextMatch, Timeouts, check_pattern};
use serde::{Deserialize, Serialize, de::IgnoredAny};

pub use filter::Filter;
pub(super) use filter::OF_CONNECTIONS;

use super::kube::{Metadata, Strict, bounded};

/// A field's path and what is wrong with it.
type Wrong = (String, String);

/// The most rules of a route and matches of a rule that the Gateway API allows, with room to spare.
const MOST: usize = 256;
/// Regular expressions of one route.
const MOST_PATTERNS: usize = 64;

/// The methods that a route may name.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// A route that was understood, of whatever kind.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Route {
    pub metadata: Metadata,
    pub parents: Vec<Reference>,
    /// Of a TLSRoute: the servers that it is for; none: every one.
    pub hostnames: Vec<Arc<str>>,
    pub rules: Vec<Rule>,
    /// What has no effect here, with why.
    pub remarks: Vec<(String, String)>,
    /// What is written now is wrong, and this is the last good version; nothing at all if there was none.
    pub refused: Option<Box<Refused>>,
}

/// A route as it is written, and was not understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    /// Those of its parents that could be read.
    pub parents: Vec<Reference>,
    pub field: String,
    pub reason: String,
}

impl Route {
    /// The services that it is for.
    pub fn services(&self) -> impl Iterator<Item = &Reference> {
        let is_service = |of: &&Reference| matches!(of.kind.as_deref(), Some("Service" | "ServiceEntry"));
        self.parents.iter().filter(is_service)
    }

    /// Everything that it leads to, if it is for services at all.
    pub fn leads_to(&self) -> impl Iterator<Item = &Reference> {
        let is_ours = self.services().next().is_some();
        self.rules.iter().flat_map(Rule::refers_to).filter(move |_| is_ours)
    }
}

impl Rule {
    /// Everything that a request or a copy of it may be sent to.
    fn refers_to(&self) -> impl Iterator<Item = &Reference> {
        let of_backends = self.backends.iter().flat_map(|backend| &backend.filters);
        let mirrors = self.filters.iter().chain(of_backends).filter_map(|filter| match filter {
            Filter::Mirror { to, .. } => Some(to),
            _ => None,
        });
        self.backends.iter().map(|backend| &backend.to).chain(mirrors)
    }
}

impl Refused {
    /// Whether each filter by itself is right.
    pub fn is_by_combination(&self) -> bool {
        self.reason == filter::NOT_BOTH
    }
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
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Reference {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Arc<str>>,
    pub name: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<Arc<str>>,
}

/// A manifest of a route of which nothing but its parents is read.
#[derive(Deserialize)]
pub(super) struct ParentsOnly {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: ParentsSpec,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ParentsSpec {
    parent_refs: Vec<serde_yaml_ng::Value>,
}

impl ParentsOnly {
    /// What is known of a route that was refused.
    pub(super) fn refused(self, field: String, reason: String) -> Route {
        let parents = self.spec.parent_refs.into_iter();
        let parents = parents.filter_map(|parent| serde_yaml_ng::from_value(parent).ok()).collect();
        let refused = Refused { parents, field, reason };
        Route { metadata: self.metadata, refused: Some(Box::new(refused)), ..Route::default() }
    }
}

pub(super) type Manifest = Strict<Spec<RuleManifest>>;

/// What routes of every kind say, by the form of their rules.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields, bound(deserialize = "R: Deserialize<'de>"))]
pub(super) struct Spec<R> {
    parent_refs: Option<Vec<Reference>>,
    hostnames: Option<Vec<String>>,
    rules: Option<Vec<R>>,
    use_default_gateways: Option<IgnoredAny>,
}

impl<R> Default for Spec<R> {
    fn default() -> Self {
        Self { parent_refs: None, hostnames: None, rules: None, use_default_gateways: None }
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct RuleManifest {
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

impl Route {
    /// Converts and validates.
    pub(super) fn from_manifest(manifest: Manifest) -> Result<Self, Wrong> {
        // Without rules there is one that matches everything and leads nowhere, as the API's default has it.
        let default = vec![RuleManifest::default()];
        Self::of(manifest, default, |rule, field, remarks| {
            remark_session(rule.session_persistence.as_ref(), field, remarks);
            if rule.retry.as_ref().and_then(|retry| retry.attempts).is_some_and(|of| of > Retry::MOST) {
                let reason = format!("a request is sent again {} times at most", Retry::MOST);
                remarks.push((format!("{field}.retry.attempts"), reason));
            }
            rule_of(rule, field)
        })
    }

    /// A route of any kind; without rules it has those of its `default`.
    fn of<R>(
        manifest: Strict<Spec<R>>,
        default: Vec<R>,
        convert: impl Fn(R, &str, &mut Vec<(String, String)>) -> Result<Rule, Wrong>,
    ) -> Result<Self, Wrong> {
        let Strict { metadata, spec, .. } = manifest;
        let mut remarks = remarks_of(spec.hostnames.as_deref(), spec.use_default_gateways.is_some());
        let rules = spec.rules.unwrap_or(default);
        few("spec.rules", rules.len())?;
        let rules = rules.into_iter().enumerate();
        let rules = rules.map(|(at, rule)| convert(rule, &format!("spec.rules[{at}]"), &mut remarks));
        let rules = rules.collect::<Result<Vec<_>, _>>()?;
        distinct_names(&rules)?;
        few_patterns(&rules)?;
        let parents = spec.parent_refs.unwrap_or_default();
        remarks.extend(likely_mistakes(&parents, &rules));
        Ok(Self { metadata, parents, hostnames: Vec::new(), rules, remarks, refused: None })
    }
}

/// Each pattern may take a quarter of a megabyte, here and in every waypoint that is told of it.
fn few_patterns(rules: &[Rule]) -> Result<(), Wrong> {
    let is_pattern = |text: &TextMatch| matches!(text, TextMatch::Regex(_));
    let of_path = |path: &PathMatch| match path {
        PathMatch::Regex(_) => 1,
        PathMatch::Rpc { service, method } => {
            [service, method].into_iter().flatten().filter(|text| is_pattern(text)).count()
        }
        PathMatch::Exact(_) | PathMatch::Prefix(_) => 0,
    };
    let of_match = |of: &Match| {
        let fields = of.headers.iter().chain(&of.query);
        of_path(&of.path) + fields.filter(|field| is_pattern(&field.value)).count()
    };
    let patterns: usize = rules.iter().flat_map(|rule| &rule.matches).map(of_match).sum();
    if patterns > MOST_PATTERNS {
        let reason = format!("{patterns} regular expressions; a route has {MOST_PATTERNS} at most");
        return Err(("spec.rules".to_owned(), reason));
    }
    Ok(())
}

/// What is right by itself, and hardly what was meant.
fn likely_mistakes(parents: &[Reference], rules: &[Rule]) -> Vec<(String, String)> {
    let has_no_kind = |parent: &Reference| {
        let of_gateways = parent.group.as_deref().is_none_or(|group| group == "gateway.networking.k8s.io");
        of_gateways && matches!(parent.kind.as_deref(), Some("Service" | "ServiceEntry"))
    };
    let is_idle =
        |rule: &Rule| !rule.backends.is_empty() && rule.backends.iter().all(|backend| backend.weight == 0);
    let groupless = (0..).zip(parents).filter(|(_, parent)| has_no_kind(parent)).map(|(at, parent): (u32, _)| {
        let kind = parent.kind.as_deref().unwrap_or_default();
        let group = if kind == "Service" { "\"\"" } else { "networking.istio.io" };
        let reason = format!(
            "without a group that of Gateways is meant, which has no {kind}: the route is not for it; write group: {group}"
        );
        (format!("spec.parentRefs[{at}].group"), reason)
    });
    let idle = (0..).zip(rules).filter(|(_, rule)| is_idle(rule)).map(|(at, _): (u32, _)| {
        let reason = "every weight is 0: whatever matches the rule is refused (of HTTP with 500)";
        (format!("spec.rules[{at}].backendRefs"), reason.to_owned())
    });
    groupless.chain(idle).collect()
}

/// What routes of Gateways have and those of Services have not.
fn remarks_of(hostnames: Option<&[String]>, default_gateways: bool) -> Vec<(String, String)> {
    let mut remarks = Vec::new();
    if hostnames.is_some_and(|names| !names.is_empty()) {
        let reason = "host names are for Gateways; a route of a Service is for all of its requests";
        remarks.push(("spec.hostnames".to_owned(), reason.to_owned()));
    }
    if default_gateways {
        let reason = "there are no default gateways here";
        remarks.push(("spec.useDefaultGateways".to_owned(), reason.to_owned()));
    }
    remarks
}

fn remark_session(session: Option<&IgnoredAny>, field: &str, remarks: &mut Vec<(String, String)>) {
    if session.is_some() {
        let reason = "sessions are not kept at one backend yet";
        remarks.push((format!("{field}.sessionPersistence"), reason.to_owned()));
    }
}

/// A name is of one rule: logs and statuses tell rules by it.
fn distinct_names(rules: &[Rule]) -> Result<(), Wrong> {
    for (at, rule) in rules.iter().enumerate() {
        if let Some(name) = &rule.name
            && rules[..at].iter().any(|other| other.name.as_ref() == Some(name))
        {
            return Err((format!("spec.rules[{at}].name"), format!("another rule is named {name:?}")));
        }
    }
    Ok(())
}

fn rule_of(rule: RuleManifest, field: &str) -> Result<Rule, Wrong> {
    let matches = rule.matches.unwrap_or_default();
    few(&format!("{field}.matches"), matches.len())?;
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
    let rule = Rule {
        name: rule.name,
        matches: matches.collect::<Result<_, _>>()?,
        filters: filter::all_of(rule.filters, field)?,
        backends: backends.collect::<Result<_, _>>()?,
        timeouts,
        retry: rule.retry.map(|retry| retry_of(retry, &format!("{field}.retry"))).transpose()?,
    };
    check_combinations(&rule, field)?;
    Ok(rule)
}

/// What is right by itself, and not together with the rest of its rule.
fn check_combinations(rule: &Rule, field: &str) -> Result<(), Wrong> {
    let redirects = rule.filters.iter().any(|filter| matches!(filter, Filter::Redirect(_)));
    if redirects && !rule.backends.is_empty() {
        let reason = "a request that is redirected is sent to no backend".to_owned();
        return Err((format!("{field}.backendRefs"), reason));
    }
    let by_prefix = rule.matches.iter().all(|of| matches!(of.path, PathMatch::Prefix(_)));
    let lists = rule
        .backends
        .iter()
        .enumerate()
        .map(|(at, backend)| (format!("{field}.backendRefs[{at}].filters"), &backend.filters));
    for (field, filters) in std::iter::once((format!("{field}.filters"), &rule.filters)).chain(lists) {
        if let Some(at) = filters.iter().position(filter::replaces_prefix).filter(|_| !by_prefix) {
            let reason =
                "a prefix is replaced only where every match of the rule is by PathPrefix".to_owned();
            return Err((format!("{field}[{at}]"), reason));
        }
    }
    Ok(())
}

fn match_of(of: MatchManifest, field: &str) -> Result<Match, Wrong> {
    if let Some(method) = of.method.as_deref()
        && !METHODS.contains(&method)
    {
        return Err((format!("{field}.method"), format!("use one of {}", METHODS.join(", "))));
    }
    Ok(Match {
        path: path_of(of.path.unwrap_or_default(), &format!("{field}.path"))?,
        method: of.method,
        headers: fields_of(of.headers, &format!("{field}.headers"), true)?,
        query: fields_of(of.query_params, &format!("{field}.queryParams"), false)?,
    })
}

/// Headers, whose names are compared in lower case, or parameters of the query.
fn fields_of(from: Option<Vec<FieldManifest>>, field: &str, lower: bool) -> Result<Vec<FieldMatch>, Wrong> {
    let from = from.unwrap_or_default();
    few(field, from.len())?;
    let mut found: Vec<FieldMatch> = Vec::new();
    for (at, of) in from.into_iter().enumerate() {
        let value = text_of(of.kind.as_deref(), of.value, &format!("{field}[{at}]"))?;
        let name = if lower { of.name.to_ascii_lowercase().into() } else { of.name };
        // Of two of one name the first counts.
        if !found.iter().any(|held| held.name == name) {
            found.push(FieldMatch { name, value });
        }
    }
    Ok(found)
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
            None if value.ends_with("/.") || value.ends_with("/..") => {
                Err((format!("{field}.value"), format!("{value:?} ends with dots")))
            }
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

fn few(field: &str, length: usize) -> Result<(), Wrong> {
    bounded(field, length, MOST)
}

#[cfg(test)]
mod tests;
