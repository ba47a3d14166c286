//! GRPCRoute of the Gateway API: the same rules, and matches by service and method.

use std::sync::Arc;

use mesh::route::{Match, PathMatch, TextMatch, Timeouts};
use serde::{Deserialize, de::IgnoredAny};

use super::{
    BackendManifest, FieldManifest, Route, Rule, Spec, Wrong, backend_of, few, fields_of, filter, pattern,
    remark_session,
};
use crate::manifest::kube::Strict;

pub(in crate::manifest) type Manifest = Strict<Spec<RuleManifest>>;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(in crate::manifest) struct RuleManifest {
    name: Option<Arc<str>>,
    matches: Option<Vec<MatchManifest>>,
    filters: Option<Vec<filter::Manifest>>,
    backend_refs: Option<Vec<BackendManifest>>,
    session_persistence: Option<IgnoredAny>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct MatchManifest {
    method: Option<MethodManifest>,
    headers: Option<Vec<FieldManifest>>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct MethodManifest {
    #[serde(rename = "type")]
    kind: Option<String>,
    service: Option<Arc<str>>,
    method: Option<Arc<str>>,
}

impl Route {
    /// Converts and validates a GRPCRoute.
    pub(in crate::manifest) fn from_grpc_manifest(manifest: Manifest) -> Result<Self, Wrong> {
        Self::of(manifest, Vec::new(), |rule, field, remarks| {
            remark_session(rule.session_persistence.as_ref(), field, remarks);
            rule_of(rule, field)
        })
    }
}

fn rule_of(rule: RuleManifest, field: &str) -> Result<Rule, Wrong> {
    let matches = rule.matches.unwrap_or_default();
    few(&format!("{field}.matches"), matches.len())?;
    let matches =
        matches.into_iter().enumerate().map(|(at, of)| match_of(of, &format!("{field}.matches[{at}]")));
    let mut matches: Vec<Match> = matches.collect::<Result<_, _>>()?;
    if matches.is_empty() {
        matches.push(Match { path: PathMatch::Rpc { service: None, method: None }, ..Match::default() });
    }
    let backends = rule.backend_refs.unwrap_or_default();
    few(&format!("{field}.backendRefs"), backends.len())?;
    for (at, backend) in backends.iter().enumerate() {
        of_calls(backend.filters.as_deref(), &format!("{field}.backendRefs[{at}]"))?;
    }
    of_calls(rule.filters.as_deref(), field)?;
    let backends = backends.into_iter().enumerate();
    let backends = backends.map(|(at, of)| backend_of(of, &format!("{field}.backendRefs[{at}]")));
    Ok(Rule {
        name: rule.name,
        matches,
        filters: filter::all_of(rule.filters, field)?,
        backends: backends.collect::<Result<_, _>>()?,
        timeouts: Timeouts::default(),
        retry: None,
    })
}

/// Refuses filters that a call cannot have.
fn of_calls(filters: Option<&[filter::Manifest]>, field: &str) -> Result<(), Wrong> {
    const KNOWN: [&str; 4] =
        ["RequestHeaderModifier", "ResponseHeaderModifier", "RequestMirror", "ExtensionRef"];
    for (at, filter) in filters.unwrap_or_default().iter().enumerate() {
        if !KNOWN.contains(&filter.kind()) {
            let reason = format!("{:?} is no filter of a GRPCRoute that is known here", filter.kind());
            return Err((format!("{field}.filters[{at}].type"), reason));
        }
    }
    Ok(())
}

fn match_of(of: MatchManifest, field: &str) -> Result<Match, Wrong> {
    let path = method_of(of.method.unwrap_or_default(), &format!("{field}.method"))?;
    let headers = fields_of(of.headers, &format!("{field}.headers"), true)?;
    Ok(Match { path, method: None, headers, query: Vec::new() })
}

fn method_of(of: MethodManifest, field: &str) -> Result<PathMatch, Wrong> {
    let MethodManifest { kind, service, method } = of;
    // Empty means any, as if it were not there.
    let said = |text: Option<Arc<str>>| text.filter(|text| !text.is_empty());
    let (service, method) = (said(service), said(method));
    let regular = match kind.as_deref() {
        None | Some("Exact") => false,
        Some("RegularExpression") => true,
        Some(_) => return Err((format!("{field}.type"), "use Exact or RegularExpression".to_owned())),
    };
    if kind.is_some() && service.is_none() && method.is_none() {
        return Err((field.to_owned(), "name a service, a method or both".to_owned()));
    }
    let text = |text: Option<Arc<str>>, name: &str, dots: bool| -> Result<Option<TextMatch>, Wrong> {
        let Some(text) = text else { return Ok(None) };
        let field = format!("{field}.{name}");
        if regular {
            pattern(&text, &field)?;
            return Ok(Some(TextMatch::Regex(text)));
        }
        if !is_name(&text, dots) {
            return Err((field, format!("{text:?} is no name of a {name}")));
        }
        Ok(Some(TextMatch::Exact(text)))
    };
    Ok(PathMatch::Rpc { service: text(service, "service", true)?, method: text(method, "method", false)? })
}

/// A name as protobuf has it: with a package before it, or one word.
fn is_name(text: &str, dots: bool) -> bool {
    let word = |word: &str| {
        word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && word.bytes().next().is_some_and(|byte| !byte.is_ascii_digit())
    };
    if !dots {
        return word(text);
    }
    text.strip_prefix('.').unwrap_or(text).split('.').all(word)
}
