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

use super::{
    BadPattern, FieldMatch, Match, PathMatch, Route, RouteKind, Rule, TextMatch,
    index::{Index, Key},
    kinds::Followed,
};

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
    index: Index,
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
        let entries: Vec<Entry> = ranked.into_iter().map(|(_, entry)| entry).collect();
        let mut index = Index::default();
        entries.iter().enumerate().for_each(|(at, entry)| index.push(at, entry.followed(), entry.path.key()));
        Ok(Self { entries, index })
    }

    pub(super) fn find<'a>(
        &'a self,
        routes: &'a [Route],
        port: u16,
        followed: Option<Followed<'_>>,
        request: &impl Request,
    ) -> Found<'a> {
        let Some(followed) = followed.filter(|of| of.kind.is_of_requests()) else { return Found::NoRoute };
        let of_port = |of: Option<u16>| of.is_none_or(|of| of == port);
        let holds = |entry: &Entry| of_port(entry.port) && entry.holds(request);
        let first = self.index.first(followed, request.path(), |at| self.entries.get(at).is_some_and(holds));
        if let Some(entry) = first.and_then(|at| self.entries.get(at))
            && let Some(route) = routes.get(entry.route)
            && let Some(rule) = route.rules.get(entry.rule)
        {
            return Found::Rule(Matched { route, rule, index: entry.rule, prefix: entry.path.prefix() });
        }
        // A route without rules has nothing that matches, and is one all the same.
        let is_followed = |route: &Route| {
            of_port(route.port)
                && followed == Followed { namespace: route.for_namespace.as_deref(), kind: route.key.kind }
        };
        if routes.iter().any(is_followed) { Found::NoMatch } else { Found::NoRoute }
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

    fn followed(&self) -> Followed<'_> {
        Followed { namespace: self.namespace.as_deref(), kind: self.kind }
    }

    /// Whether it is for the request.
    fn holds(&self, request: &impl Request) -> bool {
        let path = self.path.holds(request.path());
        let method = self.method.as_deref().is_none_or(|method| method == request.method());
        let header =
            |(name, value): &(Box<str>, Text)| request.header(name).is_some_and(|found| value.holds(&found));
        path && method && self.headers.iter().all(header) && self.query_holds(request.query())
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
    fn holds(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == &**exact,
            Self::Prefix(prefix) => {
                let rest = path.strip_prefix(&**prefix);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Regex(regex) => regex.is_match(path),
            Self::Rpc(service, method) => {
                let called = path.strip_prefix('/').and_then(|path| path.split_once('/'));
                let holds =
                    |wanted: &Option<Text>, found| wanted.as_ref().is_none_or(|text| text.holds(found));
                called.is_some_and(|(of, called)| holds(service, of) && holds(method, called))
            }
        }
    }

    /// What it is found by; that it is found does not say yet that it holds.
    fn key(&self) -> Key<'_> {
        match self {
            Self::Exact(exact) => Key::Exact(exact.to_string()),
            Self::Prefix(prefix) => Key::Prefix(prefix),
            Self::Rpc(Some(Text::Exact(service)), Some(Text::Exact(method))) => {
                Key::Exact(format!("/{service}/{method}"))
            }
            Self::Regex(_) | Self::Rpc(..) => Key::Any,
        }
    }

    fn prefix(&self) -> Option<&str> {
        match self {
            Self::Prefix(prefix) => Some(prefix),
            Self::Exact(_) | Self::Regex(_) | Self::Rpc(..) => None,
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

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;
    use crate::RouteKey;

    struct Get<'a>(&'a str);

    impl Request for Get<'_> {
        fn method(&self) -> &str {
            "GET"
        }
        fn path(&self) -> &str {
            self.0
        }
        fn query(&self) -> Option<&str> {
            None
        }
        fn header(&self, _name: &str) -> Option<Cow<'_, str>> {
            None
        }
    }

    /// Few pieces, so that what is drawn often meets what was drawn.
    fn path() -> impl Strategy<Value = String> {
        vec(select(vec!["/", "/a", "/b", "a", "//"]), 0..5).prop_map(|pieces| pieces.concat())
    }

    fn of_path() -> impl Strategy<Value = PathMatch> {
        let text = || proptest::option::of(select(vec!["a", "b", "a/b", ""]));
        let exact = |text: Option<&str>| text.map(|text| TextMatch::Exact(text.into()));
        prop_oneof![
            path().prop_map(|path| PathMatch::Exact(path.into())),
            path().prop_map(|path| PathMatch::Prefix(path.into())),
            select(vec!["/a.*", ".*b", "/"]).prop_map(|pattern| PathMatch::Regex(pattern.into())),
            (text(), text()).prop_map(move |(service, method)| PathMatch::Rpc {
                service: exact(service),
                method: exact(method)
            }),
        ]
    }

    /// Mostly of requests: those of connections are in no index.
    fn kind() -> impl Strategy<Value = RouteKind> {
        prop_oneof![
            4 => select(vec![RouteKind::Http, RouteKind::Grpc]),
            1 => select(vec![RouteKind::Tls, RouteKind::Tcp]),
        ]
    }

    fn route() -> impl Strategy<Value = Route> {
        let of_rule = (of_path(), proptest::option::of(select(vec!["GET", "PUT"])));
        let of_rule = of_rule.prop_map(|(path, method)| Match {
            path,
            method: method.map(Into::into),
            ..Match::default()
        });
        let rule = vec(of_rule, 0..4).prop_map(|matches| Rule { matches, ..Rule::default() });
        let port = proptest::option::of(select(vec![80, 81]));
        let whose = proptest::option::of(select(vec!["x", "y"]));
        (kind(), vec(rule, 0..4), port, whose).prop_map(|(kind, rules, port, whose)| {
            let key = RouteKey { kind, namespace: "shop".into(), name: "route".into() };
            let for_namespace = whose.map(Into::into);
            Route { key, created: "".into(), port, for_namespace, hostnames: Vec::new(), rules }
        })
    }

    proptest! {
        #[test]
        fn what_is_found_by_the_path_is_what_the_whole_table_has_first(
            routes in vec(route(), 0..8),
            path in path(),
            namespace in proptest::option::of(select(vec!["x", "z"])),
            kind in kind(),
            port in select(vec![80, 81, 82]),
        ) {
            let table = Table::new(&routes).unwrap();
            let followed = Followed { namespace, kind };
            let first = table.entries.iter().find(|entry| {
                entry.followed() == followed
                    && entry.port.is_none_or(|of| of == port)
                    && entry.holds(&Get(&path))
            });
            let expected = first.map(|entry| (entry.route, entry.rule, entry.path.prefix()));
            let found = match table.find(&routes, port, Some(followed), &Get(&path)) {
                Found::Rule(found) => {
                    let at = routes.iter().position(|route| std::ptr::eq(route, found.route)).unwrap();
                    Some((at, found.index, found.prefix))
                }
                Found::NoMatch | Found::NoRoute => None,
            };
            prop_assert_eq!(found, expected);
        }
    }
}
