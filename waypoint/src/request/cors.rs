//! Requests from other origins (CORS, as HTTPCORSFilter of the Gateway API words it): a preflight is answered here, and
//! the answers to the requests themselves say what the route allows.

use ::http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{self, Entry},
    request::Parts,
};
use mesh::route::Cors;
use runtime::record::Flag;

use super::Settled;

/// What a backend has no say in, where the route has one.
const OURS: [HeaderName; 3] = [
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
];

/// What is said in an answer to a request from an origin.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Allowance {
    headers: Vec<(HeaderName, HeaderValue)>,
    /// The answer is another one for another origin.
    varies: bool,
}

impl Allowance {
    /// Says it, and nothing else of the kind.
    pub(super) fn apply(&self, headers: &mut HeaderMap) {
        for name in OURS {
            headers.remove(name);
        }
        for (name, value) in &self.headers {
            headers.insert(name, value.clone());
        }
        if self.varies {
            let origin = HeaderValue::from_static("Origin");
            match headers.entry(header::VARY) {
                Entry::Occupied(mut held) => held.append(origin),
                Entry::Vacant(place) => drop(place.insert(origin)),
            }
        }
    }
}

/// What the route allows the origin of a request; `None` if that names none.
///
/// # Errors
/// With the answer, if it is a preflight.
pub(super) fn judge(cors: &Cors, head: &Parts) -> Result<Option<Allowance>, Settled> {
    let Some(origin) = head.headers.get(header::ORIGIN) else { return Ok(None) };
    let allowed = origin.to_str().is_ok_and(|origin| allows(cors, origin));
    let mut allowance = Allowance::default();
    let anybody = cors.allow_origins.iter().any(|of| **of == *"*") && !cors.allow_credentials;
    allowance.varies = !anybody;
    if allowed {
        let origin = if anybody { HeaderValue::from_static("*") } else { origin.clone() };
        allowance.say(header::ACCESS_CONTROL_ALLOW_ORIGIN, Some(origin));
        if cors.allow_credentials {
            let yes = HeaderValue::from_static("true");
            allowance.say(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, Some(yes));
        }
        // Beside credentials a `*` is but a name.
        let exposed = cors.expose_headers.iter().filter(|name| !(cors.allow_credentials && ***name == *"*"));
        allowance.say(header::ACCESS_CONTROL_EXPOSE_HEADERS, list(exposed.map(|name| &**name)));
    }
    let asked = head.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD);
    let Some(asked) = asked.filter(|_| head.method == Method::OPTIONS) else { return Ok(Some(allowance)) };
    if allowed {
        let methods = granted(&cors.allow_methods, Some(asked), cors.allow_credentials);
        allowance.say(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        let asked = head.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
        let headers = granted(&cors.allow_headers, asked, cors.allow_credentials);
        allowance.say(header::ACCESS_CONTROL_ALLOW_HEADERS, headers);
        allowance.say(header::ACCESS_CONTROL_MAX_AGE, Some(HeaderValue::from(cors.max_age)));
    }
    let reason = if allowed { "a preflight" } else { "a preflight of an origin that is not allowed" };
    let mut settled = Settled::new(StatusCode::NO_CONTENT, Flag::Direct, reason);
    allowance.apply(settled.reply());
    Err(settled)
}

impl Allowance {
    fn say(&mut self, name: HeaderName, value: Option<HeaderValue>) {
        self.headers.extend(value.map(|value| (name, value)));
    }
}

/// What is granted of a list: what was asked for, where a `*` would be but a name.
fn granted(
    list_of: &[std::sync::Arc<str>],
    asked: Option<&HeaderValue>,
    credentials: bool,
) -> Option<HeaderValue> {
    let any = list_of.iter().any(|one| **one == *"*");
    match (any, credentials) {
        (true, true) => asked.cloned(),
        (true, false) => Some(HeaderValue::from_static("*")),
        (false, _) => list(list_of.iter().map(|one| &**one)),
    }
}

fn list<'t>(texts: impl Iterator<Item = &'t str>) -> Option<HeaderValue> {
    let texts: Vec<&str> = texts.collect();
    if texts.is_empty() { None } else { HeaderValue::try_from(texts.join(", ")).ok() }
}

fn allows(cors: &Cors, origin: &str) -> bool {
    cors.allow_origins.iter().any(|of| **of == *"*" || is_of(of, origin))
}

/// Whether an origin is one that is meant: the same scheme and port, and the same host or one that its `*` stands for.
fn is_of(meant: &str, origin: &str) -> bool {
    let (Some(meant), Some(origin)) = (parts(meant), parts(origin)) else { return false };
    meant.scheme.eq_ignore_ascii_case(origin.scheme)
        && meant.port == origin.port
        && is_like(&meant.host.to_ascii_lowercase(), &origin.host.to_ascii_lowercase())
}

struct Origin<'t> {
    scheme: &'t str,
    host: &'t str,
    port: u16,
}

fn parts(origin: &str) -> Option<Origin<'_>> {
    let (scheme, rest) = origin.split_once("://")?;
    let known = match scheme.to_ascii_lowercase().as_str() {
        "http" => 80,
        "https" => 443,
        _ => 0,
    };
    // Of an address of IPv6 the last colon is its own.
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (rest, known),
    };
    let plain = !host.is_empty() && !host.contains(['/', '?', '#', '@']);
    plain.then_some(Origin { scheme, host, port })
}

/// Whether a text is like a pattern, each `*` of which stands for at least one character. The first place that fits
/// leaves the most for what follows, so that no other is tried: a caller chooses the text.
fn is_like(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(last) = parts.next_back() else { return pattern == text };
    let past_one = |text: &str| text.char_indices().nth(1).map_or(text.len(), |(at, _)| at);
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    for part in parts {
        let skipped = &rest[past_one(rest)..];
        if rest.is_empty() {
            return false;
        }
        let Some(at) = skipped.find(part) else { return false };
        rest = &skipped[at + part.len()..];
    }
    !rest.is_empty() && rest[past_one(rest)..].ends_with(last)
}

#[cfg(test)]
mod tests {
    use ::http::Request;

    use super::*;

    fn cors(origins: &[&str], credentials: bool, methods: &[&str], headers: &[&str]) -> Cors {
        let texts = |of: &[&str]| of.iter().map(|text| (*text).into()).collect();
        Cors {
            allow_origins: texts(origins),
            allow_credentials: credentials,
            allow_methods: texts(methods),
            allow_headers: texts(headers),
            expose_headers: texts(&["x-a", "*"]),
            max_age: 5,
        }
    }

    fn head(method: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn said(headers: &HeaderMap, name: &str) -> Option<String> {
        headers.get(name).map(|value| value.to_str().unwrap().to_owned())
    }

    fn preflight(cors: &Cors, origin: &str, headers: &[(&str, &str)]) -> HeaderMap {
        let asked = [&[("origin", origin), ("access-control-request-method", "PUT")], headers].concat();
        let mut settled = judge(cors, &head("OPTIONS", &asked)).unwrap_err();
        assert_eq!(settled.status, StatusCode::NO_CONTENT);
        settled.reply().clone()
    }

    #[test]
    fn origins_are_allowed_as_they_are_written() {
        for (meant, hits, misses) in [
            (
                "https://www.foo.com",
                &["https://www.foo.com", "https://WWW.foo.com", "https://www.foo.com:443"][..],
                &[
                    "http://www.foo.com",
                    "https://foo.com",
                    "https://www.foo.com:444",
                    "https://www.foo.com.evil",
                ][..],
            ),
            (
                "https://*.bar.com",
                &["https://www.bar.com", "https://a.b.bar.com"],
                &[
                    "https://bar.com",
                    "https://.bar.com",
                    "https://www.bar.com.evil",
                    "https://a/.bar.com",
                    "null",
                ],
            ),
            ("http://*", &["http://a", "http://a.b:80"], &["https://a", "http://a:81", "http://"]),
            ("http://*:81", &["http://a:81"], &["http://a"]),
            (
                "https://*.a*.b",
                &["https://x.a1.b", "https://x.a.a.a.b", "https://x.a.b.a.b"],
                &["https://x.a.b", "https://.a1.b", "https://x.a1.c"],
            ),
            ("http://[::1]:80", &["http://[::1]"], &["http://[::2]"]),
            ("*", &["https://a", "null", "x-y://z"], &[]),
        ] {
            let of = cors(&[meant], false, &[], &[]);
            hits.iter().for_each(|origin| assert!(allows(&of, origin), "{meant} {origin}"));
            misses.iter().for_each(|origin| assert!(!allows(&of, origin), "{meant} {origin}"));
        }
    }

    #[test]
    fn a_preflight_is_answered_with_what_is_allowed() {
        let of = cors(&["https://a.example"], true, &["GET", "PUT"], &["x-1", "x-2"]);
        let told = preflight(&of, "https://a.example", &[("access-control-request-headers", "x-1")]);
        for (name, value) in [
            ("access-control-allow-origin", "https://a.example"),
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-methods", "GET, PUT"),
            ("access-control-allow-headers", "x-1, x-2"),
            ("access-control-expose-headers", "x-a"),
            ("access-control-max-age", "5"),
            ("vary", "Origin"),
        ] {
            assert_eq!(said(&told, name).as_deref(), Some(value), "{name}");
        }
        let refused = preflight(&of, "https://b.example", &[]);
        let names: Vec<_> = refused.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["vary"], "nothing is allowed");
    }

    #[test]
    fn a_wildcard_is_said_to_whoever_brings_no_credentials_and_nobody_else() {
        let open = preflight(&cors(&["*"], false, &["*"], &["*"]), "https://a", &[]);
        assert_eq!(said(&open, "access-control-allow-origin").as_deref(), Some("*"));
        assert_eq!(said(&open, "access-control-allow-methods").as_deref(), Some("*"));
        assert_eq!(said(&open, "access-control-allow-headers").as_deref(), Some("*"));
        assert_eq!(said(&open, "access-control-expose-headers").as_deref(), Some("x-a, *"));
        assert_eq!((said(&open, "access-control-allow-credentials"), said(&open, "vary")), (None, None));
        let of = cors(&["*"], true, &["*"], &["*"]);
        let named = preflight(&of, "https://a", &[("access-control-request-headers", "x-9")]);
        assert_eq!(said(&named, "access-control-allow-origin").as_deref(), Some("https://a"));
        assert_eq!(said(&named, "access-control-allow-methods").as_deref(), Some("PUT"));
        assert_eq!(said(&named, "access-control-allow-headers").as_deref(), Some("x-9"));
        assert_eq!(said(&preflight(&of, "https://a", &[]), "access-control-allow-headers"), None);
    }

    #[test]
    fn an_answer_says_what_the_route_allows_and_not_what_a_backend_does() {
        let of = cors(&["https://a"], false, &["GET"], &[]);
        let answer = |headers: &[(&str, &str)]| {
            let mut answer = head("GET", &[("access-control-allow-origin", "*"), ("vary", "Accept")]).headers;
            if let Some(allowance) = judge(&of, &head("GET", headers)).unwrap() {
                allowance.apply(&mut answer);
            }
            let varies: Vec<_> = answer.get_all("vary").iter().map(|one| one.to_str().unwrap()).collect();
            (said(&answer, "access-control-allow-origin"), varies.join(", "))
        };
        assert_eq!(answer(&[("origin", "https://a")]), (Some("https://a".into()), "Accept, Origin".into()));
        assert_eq!(answer(&[("origin", "https://b")]), (None, "Accept, Origin".into()));
        assert_eq!(answer(&[]), (Some("*".into()), "Accept".into()), "who names no origin is not concerned");
        // OPTIONS by itself is a request like others.
        assert!(judge(&of, &head("OPTIONS", &[("origin", "https://a")])).is_ok());
    }
}
