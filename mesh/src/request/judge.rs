//! Policies for requests, compiled, and what they say of one.

use std::{fmt, sync::Arc};

use super::{
    Head, PathPattern, RequestAction, RequestAttempt, RequestDecision, RequestMatch, RequestPolicy,
    RequestRefusal, RequestRule, RequestVerdict, Subject, Token, path::decoded_path,
};
use crate::{
    PolicyKey, StringMatch,
    compiled::{self, Facts, Strings},
};

/// The most policies that one decision names beside its verdict.
const MOST_TOLD: usize = 16;

/// The policies for one service's requests, or for those that call a workload by its address.
#[derive(Clone, Default)]
pub struct RequestPolicies {
    /// In order of their names.
    all: Arc<[RequestPolicy]>,
    compiled: Arc<[Compiled]>,
}

/// Equal if they say the same; what was compiled follows from it.
impl PartialEq for RequestPolicies {
    fn eq(&self, other: &Self) -> bool {
        self.all == other.all
    }
}

impl fmt::Debug for RequestPolicies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.all.fmt(f)
    }
}

impl RequestPolicies {
    pub fn new(mut policies: Vec<RequestPolicy>) -> Self {
        policies.sort_by(|a, b| a.key.cmp(&b.key));
        Self { compiled: policies.iter().map(Compiled::new).collect(), all: policies.into() }
    }

    /// Them, in order of their names.
    pub fn all(&self) -> &[RequestPolicy] {
        &self.all
    }

    /// Judges a request, or a connection that is carried as it is.
    pub fn authorize<R: Head, T: Token>(&self, attempt: &RequestAttempt<'_, R, T>) -> RequestDecision {
        judge(&self.compiled, attempt)
    }
}

/// A policy in the form in which it judges.
struct Compiled {
    key: PolicyKey,
    action: RequestAction,
    dry_run: bool,
    /// It asks for the path.
    by_path: bool,
    rules: Box<[Rule]>,
}

type Rule = Box<[Clause]>;
type Clause = Box<[Box<[Condition]>]>;

enum Condition {
    Caller(compiled::Condition),
    Path { patterns: Box<[PathPattern]>, negated: bool },
    Value { of: Subject, strings: Strings, negated: bool },
}

/// What conditions read.
struct Asked<'a, R, T> {
    facts: Facts<'a>,
    attempt: &'a RequestAttempt<'a, R, T>,
}

impl Compiled {
    fn new(policy: &RequestPolicy) -> Self {
        let RequestPolicy { key, action, dry_run, rules } = policy;
        let matches = || rules.iter().flat_map(|rule| &rule.clauses).flat_map(|clause| &clause.matches);
        let by_path = matches().any(|one| !(one.paths.is_empty() && one.not_paths.is_empty()));
        let clauses = |rule: &RequestRule| -> Rule {
            let clauses = rule.clauses.iter().filter(|clause| !clause.matches.is_empty());
            clauses.map(|clause| clause.matches.iter().map(conditions).collect()).collect()
        };
        let rules = rules.iter().map(clauses).collect();
        Self { key: key.clone(), action: *action, dry_run: *dry_run, by_path, rules }
    }

    fn matches<R: Head, T: Token>(&self, asked: &Asked<'_, R, T>) -> bool {
        // Without a request to be read a DENY looks at the caller alone.
        let unread = self.action != RequestAction::Allow;
        self.rules.iter().any(|rule| {
            rule.iter().all(|clause| {
                clause.iter().any(|conditions| conditions.iter().all(|one| one.holds(asked, unread)))
            })
        })
    }
}

fn conditions(of: &RequestMatch) -> Box<[Condition]> {
    let caller = compiled::conditions_of(&compiled::canonical(&of.caller));
    let mut conditions: Vec<Condition> = caller.into_iter().map(Condition::Caller).collect();
    for value in &of.values {
        let lower = |values: &[StringMatch]| match value.of {
            Subject::Host => values.iter().map(in_lower_case).collect(),
            _ => values.to_vec(),
        };
        for (values, negated) in [(&value.values, false), (&value.not_values, true)] {
            if !values.is_empty() {
                let strings = Strings::of(&lower(values));
                conditions.push(Condition::Value { of: value.of.clone(), strings, negated });
            }
        }
    }
    for (paths, negated) in [(&of.paths, false), (&of.not_paths, true)] {
        if !paths.is_empty() {
            let patterns = paths.iter().map(compared).collect();
            conditions.push(Condition::Path { patterns, negated });
        }
    }
    conditions.into()
}

/// A pattern as paths are compared.
fn compared(pattern: &PathPattern) -> PathPattern {
    let decoded = |text: &Arc<str>| Arc::from(decoded_path(text));
    match pattern {
        PathPattern::Text(StringMatch::Exact(text)) => PathPattern::Text(StringMatch::Exact(decoded(text))),
        PathPattern::Text(StringMatch::Prefix(text)) => PathPattern::Text(StringMatch::Prefix(decoded(text))),
        PathPattern::Text(StringMatch::Suffix(text)) => PathPattern::Text(StringMatch::Suffix(decoded(text))),
        PathPattern::Text(StringMatch::Presence) | PathPattern::Template(_) => pattern.clone(),
    }
}

fn in_lower_case(value: &StringMatch) -> StringMatch {
    match value {
        StringMatch::Exact(text) => StringMatch::Exact(text.to_ascii_lowercase().into()),
        StringMatch::Prefix(text) => StringMatch::Prefix(text.to_ascii_lowercase().into()),
        StringMatch::Suffix(text) => StringMatch::Suffix(text.to_ascii_lowercase().into()),
        StringMatch::Presence => StringMatch::Presence,
    }
}

impl Condition {
    /// `unread`: what is said where there is no request to be read.
    fn holds<R: Head, T: Token>(&self, asked: &Asked<'_, R, T>, unread: bool) -> bool {
        let (content, negated) = match (self, &asked.attempt.content) {
            (Self::Caller(condition), _) => return condition.holds(&asked.facts),
            (_, None) => return unread,
            (Self::Path { negated, .. } | Self::Value { negated, .. }, Some(content)) => (content, negated),
        };
        let found = match self {
            Self::Caller(_) => false,
            Self::Path { patterns, .. } => patterns.iter().any(|pattern| pattern.holds(&content.path.judged)),
            Self::Value { of, strings, .. } => match of {
                Subject::Host => hosts(content.host).iter().any(|host| strings.hold(host)),
                Subject::Method => strings.hold(content.head.method()),
                Subject::Header(name) => content.head.has(name, &mut |value| strings.hold(value)),
                Subject::Principal => {
                    content.token.and_then(Token::principal).is_some_and(|text| strings.hold(text))
                }
                Subject::Audience => of_claim(content.token, strings, &["aud".into()]),
                Subject::Presenter => of_claim(content.token, strings, &["azp".into()]),
                Subject::Claim(path) => of_claim(content.token, strings, path),
            },
        };
        found != *negated
    }
}

fn of_claim<T: Token>(token: Option<&T>, strings: &Strings, path: &[Arc<str>]) -> bool {
    token.is_some_and(|token| token.claim(path).into_iter().any(|text| strings.hold(text)))
}

/// A host in the spellings in which a policy may name it: with its port, and without.
fn hosts(host: &str) -> Vec<String> {
    let host = host.to_ascii_lowercase();
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let bare = match host.rsplit_once(':') {
        // The colons of an IPv6 address stand in brackets.
        Some((name, port)) if is_port(port) && (!name.contains(':') || name.ends_with(']')) => name,
        _ => &host,
    };
    let bare = bare.strip_suffix('.').unwrap_or(bare).to_owned();
    if bare == host { vec![bare] } else { vec![bare, host] }
}

impl PathPattern {
    fn holds(&self, path: &str) -> bool {
        match self {
            Self::Template(template) => template.holds(path),
            Self::Text(StringMatch::Exact(text)) => **text == *path,
            Self::Text(StringMatch::Prefix(text)) => path.starts_with(&**text),
            Self::Text(StringMatch::Suffix(text)) => path.ends_with(&**text),
            Self::Text(StringMatch::Presence) => true,
        }
    }
}

/// What the policies say, which are in order of their names.
fn judge<R: Head, T: Token>(policies: &[Compiled], attempt: &RequestAttempt<'_, R, T>) -> RequestDecision {
    if policies.is_empty() {
        let verdict = RequestVerdict::Allow(None);
        return RequestDecision { verdict, audited: Vec::new(), dry_run: Vec::new() };
    }
    let facts = Facts::of_call(attempt.source, attempt.source_ip, attempt.destination_ip, attempt.port);
    let asked = Asked { facts, attempt };
    let of = |action, dry_run| {
        policies.iter().filter(move |policy| policy.action == action && policy.dry_run == dry_run)
    };
    let matching = |action, dry_run| of(action, dry_run).filter(|policy| policy.matches(&asked));
    let verdict = verdict(policies, attempt, matching(RequestAction::Deny, false).next(), || {
        let first = of(RequestAction::Allow, false).next()?;
        Some((first, matching(RequestAction::Allow, false).next()))
    });
    let mut dry_run: Vec<PolicyKey> = match &verdict {
        RequestVerdict::Allow(_) => keys(matching(RequestAction::Deny, true)),
        RequestVerdict::Refuse(RequestRefusal::NotAllowed(_)) => keys(matching(RequestAction::Allow, true)),
        RequestVerdict::Refuse(_) => Vec::new(),
    };
    if let (RequestVerdict::Allow(None), Some(first)) = (&verdict, of(RequestAction::Allow, true).next())
        && matching(RequestAction::Allow, true).next().is_none()
    {
        dry_run.push(first.key.clone());
        dry_run.sort_unstable();
        dry_run.truncate(MOST_TOLD);
    }
    RequestDecision { verdict, audited: keys(matching(RequestAction::Audit, false)), dry_run }
}

/// `allowing`: the first ALLOW policy, if there is one, and the first that matches.
fn verdict<'c, R, T>(
    policies: &[Compiled],
    attempt: &RequestAttempt<'_, R, T>,
    denying: Option<&Compiled>,
    allowing: impl FnOnce() -> Option<(&'c Compiled, Option<&'c Compiled>)>,
) -> RequestVerdict {
    let refuse = RequestVerdict::Refuse;
    if let Some(policy) = denying {
        return refuse(RequestRefusal::Denied(policy.key.clone()));
    }
    let ambiguous = attempt.content.as_ref().and_then(|content| content.path.ambiguous);
    if let Some(ambiguity) = ambiguous
        && let Some(policy) = policies.iter().find(|policy| policy.by_path && policy.is_enforced())
    {
        return refuse(RequestRefusal::Ambiguous(policy.key.clone(), ambiguity));
    }
    match allowing() {
        None => RequestVerdict::Allow(None),
        Some((_, Some(policy))) => RequestVerdict::Allow(Some(policy.key.clone())),
        Some((first, None)) => refuse(RequestRefusal::NotAllowed(first.key.clone())),
    }
}

impl Compiled {
    /// Whether it may change what becomes of a request.
    fn is_enforced(&self) -> bool {
        !self.dry_run && self.action != RequestAction::Audit
    }
}

fn keys<'c>(policies: impl Iterator<Item = &'c Compiled>) -> Vec<PolicyKey> {
    policies.take(MOST_TOLD).map(|policy| policy.key.clone()).collect()
}
