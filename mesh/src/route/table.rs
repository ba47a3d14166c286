//! Which rule is for a request: the Gateway API's precedence, settled once when routes change, so that for a request
//! the first match in order holds.
//!
//! HTTPRoute: an exact path, the longest prefix, a method, the most headers, the most parameters; then the older
//! route, the first by `namespace/name`, the first rule. GRPCRoute: the most characters of the service, of the method,
//! the most headers; then the same. Of patterns the specification says nothing: here they come after exact paths and
//! before prefixes, since a prefix is mostly the rule for the rest.
//!
//! Before all of that it is settled which routes are followed at all ([`super::kinds`]).

use std::{borrow::Cow, cmp::Reverse};

use regex::{Regex, RegexBuilder};

use super::{BadPattern, FieldMatch, Match, PathMatch, Route, RouteKind, Rule, TextMatch, kinds::Followed};

/// The longest pattern, in bytes.
const LONGEST_PATTERN: usize = 1024;
/// The most memory that one pattern may compile to, in bytes.
const LARGEST_PATTERN: usize = 256 << 10;

/// What is asked of a request.
pub trait Request {
    fn method(&self) -> &str;
    /// Without the query.
    fn path(&self) -> &str;
    /// What follows the question mark.
    fn query(&self) -> Option<&str>;
    /// The value of a header by its name in lower case; of several of one name all, joined by commas.
    fn header(&self, name: &str) -> Option<Cow<'_, str>>;
}

/// What was found for a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Found<'a> {
    /// No route is for this port: the request goes to the service itself.
    NoRoute,
    /// There are routes, and none of their rules is for the request: 404.
    NoMatch,
    Rule(Matched<'a>),
}

/// A rule, and by what it matched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Matched<'a> {
    pub route: &'a Route,
    pub rule: &'a Rule,
    /// The rule's place in its route.
    pub index: usize,
    /// The prefix of the path by which it matched, without a trailing slash.
    pub prefix: Option<&'a str>,
}

/// Every match of every rule, the first that holds first.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    route: usize,
    rule: usize,
    /// As its route has it.
    port: Option<u16>,
    namespace: Option<Box<str>>,
    kind: RouteKind,
    path: Path,
    method: Option<Box<str>>,
    headers: Vec<(Box<str>, Text)>,
    query: Vec<(Box<str>, Text)>,
}

#[derive(Debug, Clone)]
enum Path {
    Exact(Box<str>),
    /// Without a trailing slash: empty for `/`.
    Prefix(Box<str>),
    Regex(Regex),
    Rpc(Option<Text>, Option<Text>),
}

#[derive(Debug, Clone)]
enum Text {
    Exact(Box<str>),
    Regex(Regex),
}

impl Table {
    pub(super) fn new(routes: &[Route]) -> Result<Self, BadPattern> {
        let everything = [Match::default()];
        let mut ranked = Vec::new();
        for (at, route) in routes.iter().enumerate().filter(|(_, route)| route.key.kind.is_of_requests()) {
            for (number, rule) in route.rules.iter().enumerate() {
                let matches = if rule.matches.is_empty() { &everything } else { rule.matches.as_slice() };
                for (place, of_rule) in matches.iter().enumerate() {
                    let age = (&route.created, &route.key.namespace, &route.key.name, route.key.kind);
                    let rank = (rank(of_rule), age, number, place);
                    ranked.push((rank, Entry::new(at, number, route, of_rule)?));
                }
            }
        }
        ranked.sort_by_key(|(rank, _)| *rank);
        Ok(Self { entries: ranked.into_iter().map(|(_, entry)| entry).collect() })
    }

    pub(super) fn find<'a>(
        &'a self,
        routes: &'a [Route],
        port: u16,
        followed: Option<Followed<'_>>,
        request: &impl Request,
    ) -> Found<'a> {
        let mut found = Found::NoRoute;
        let Some(followed) = followed.filter(|of| of.kind.is_of_requests()) else { return found };
        let is_followed = |route: &Route| {
            route.port.is_none_or(|of| of == port)
                && followed == Followed { namespace: route.for_namespace.as_deref(), kind: route.key.kind }
        };
        for entry in &self.entries {
            let of = Followed { namespace: entry.namespace.as_deref(), kind: entry.kind };
            if entry.port.is_some_and(|of| of != port) || of != followed {
                continue;
            }
            if let Some(prefix) = entry.holds(request) {
                let Some(route) = routes.get(entry.route) else { continue };
                let Some(rule) = route.rules.get(entry.rule) else { continue };
                return Found::Rule(Matched { route, rule, index: entry.rule, prefix });
            }
            found = Found::NoMatch;
        }
        // A route without rules has nothing that matches, and is one all the same.
        let bare = |route: &Route| route.rules.is_empty() && is_followed(route);
        if routes.iter().any(bare) { Found::NoMatch } else { found }
    }
}

/// What sorts first is asked first.
type Rank = (u8, Reverse<usize>, Reverse<usize>, Reverse<bool>, Reverse<usize>, Reverse<usize>);

fn rank(of: &Match) -> Rank {
    let (class, first, second) = match &of.path {
        // A call that names its service and method has an exact path.
        PathMatch::Exact(path) => (0, path.chars().count(), 0),
        PathMatch::Rpc { service, method } => match (length(service), length(method)) {
            (0, 0) => (2, 0, 0),
            (service, method) => (1, service, method),
        },
        PathMatch::Regex(_) => (1, 0, 0),
        PathMatch::Prefix(prefix) => (2, prefix.trim_end_matches('/').chars().count(), 0),
    };
    (
        class,
        Reverse(first),
        Reverse(second),
        Reverse(of.method.is_some()),
        Reverse(of.headers.len()),
        Reverse(of.query.len()),
    )
}

fn length(text: &Option<TextMatch>) -> usize {
    match text {
        Some(TextMatch::Exact(text) | TextMatch::Regex(text)) => text.chars().count(),
        None => 0,
    }
}

impl Entry {
    fn new(at: usize, rule: usize, route: &Route, of: &Match) -> Result<Self, BadPattern> {
        let fields = |fields: &[FieldMatch]| -> Result<Vec<_>, BadPattern> {
            let field = |field: &FieldMatch| Ok((field.name.as_ref().into(), Text::new(&field.value)?));
            fields.iter().map(field).collect()
        };
        let text = |text: &Option<TextMatch>| text.as_ref().map(Text::new).transpose();
        Ok(Self {
            route: at,
            rule,
            port: route.port,
            namespace: route.for_namespace.as_deref().map(Into::into),
            kind: route.key.kind,
            path: match &of.path {
                PathMatch::Exact(path) => Path::Exact(path.as_ref().into()),
                PathMatch::Prefix(prefix) => Path::Prefix(prefix.trim_end_matches('/').into()),
                PathMatch::Regex(pattern) => Path::Regex(compile(pattern)?),
                PathMatch::Rpc { service, method } => Path::Rpc(text(service)?, text(method)?),
            },
            method: of.method.as_deref().map(Into::into),
            headers: fields(&of.headers)?,
            query: fields(&of.query)?,
        })
    }

    /// Whether it is for the request, and by which prefix.
    fn holds(&self, request: &impl Request) -> Option<Option<&str>> {
        let prefix = self.path.holds(request.path())?;
        let method = self.method.as_deref().is_none_or(|method| method == request.method());
        let header =
            |(name, value): &(Box<str>, Text)| request.header(name).is_some_and(|found| value.holds(&found));
        (method && self.headers.iter().all(header) && self.query_holds(request.query())).then_some(prefix)
    }

    fn query_holds(&self, query: Option<&str>) -> bool {
        self.query.iter().all(|(name, value)| {
            // Of a parameter that is there twice the first counts.
            let mut pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
            pairs.find(|(key, _)| **key == **name).is_some_and(|(_, found)| value.holds(&found))
        })
    }
}

impl Path {
    fn holds(&self, path: &str) -> Option<Option<&str>> {
        match self {
            Self::Exact(exact) => (path == &**exact).then_some(None),
            Self::Prefix(prefix) => {
                let rest = path.strip_prefix(&**prefix)?;
                (rest.is_empty() || rest.starts_with('/')).then_some(Some(prefix))
            }
            Self::Regex(regex) => regex.is_match(path).then_some(None),
            Self::Rpc(service, method) => {
                let (of, called) = path.strip_prefix('/')?.split_once('/')?;
                let holds =
                    |wanted: &Option<Text>, found| wanted.as_ref().is_none_or(|text| text.holds(found));
                (holds(service, of) && holds(method, called)).then_some(None)
            }
        }
    }
}

impl Text {
    fn new(of: &TextMatch) -> Result<Self, BadPattern> {
        Ok(match of {
            TextMatch::Exact(text) => Self::Exact(text.as_ref().into()),
            TextMatch::Regex(pattern) => Self::Regex(compile(pattern)?),
        })
    }

    fn holds(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == &**exact,
            Self::Regex(regex) => regex.is_match(text),
        }
    }
}

/// A pattern that must match the whole text; it takes linear time whatever it is given.
pub(super) fn compile(pattern: &str) -> Result<Regex, BadPattern> {
    let bad = |reason: String| BadPattern { pattern: pattern.chars().take(100).collect(), reason };
    if pattern.len() > LONGEST_PATTERN {
        return Err(bad(format!("it is longer than {LONGEST_PATTERN} bytes")));
    }
    // By itself first: what closes the group that is put around it would be another pattern.
    let build = |pattern: &str| RegexBuilder::new(pattern).size_limit(LARGEST_PATTERN).build();
    build(pattern)
        .and_then(|_| build(&format!("^(?:{pattern})$")))
        .map_err(|error| bad(error.to_string().lines().last().unwrap_or_default().trim().to_owned()))
}
