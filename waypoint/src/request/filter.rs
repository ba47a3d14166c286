//! The filters of a rule, carried out on a request's head or an answer's; and what HTTP itself asks of who stands
//! between two ends (RFC 9110, 7.6).

use ::http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header,
    request::Parts,
    uri::{Authority, PathAndQuery},
};
use mesh::route::{Filter, HeaderChange, Mirror, PathChange, Redirect, Rewrite};
use runtime::record::Flag;

use super::{Settled, cors};

/// What is to be done with the answer, and beside the request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Changes {
    headers: Vec<HeaderChange>,
    pub(super) allowance: Option<cors::Allowance>,
    /// Copies of the request that are still to be made.
    pub(super) mirrors: Vec<Mirror>,
}

impl Changes {
    /// Carries them out.
    pub(crate) fn apply(&self, headers: &mut HeaderMap) {
        if let Some(allowance) = &self.allowance {
            allowance.apply(headers);
        }
        self.headers.iter().for_each(|change| change_headers(headers, change));
    }
}

/// Carries out filters on a request to `port`.
///
/// # Errors
/// With the answer, where one settles it.
pub(crate) fn apply(
    filters: &[Filter],
    prefix: Option<&str>,
    port: u16,
    head: &mut Parts,
    changes: &mut Changes,
) -> Result<(), Settled> {
    // Before all others: a browser follows no redirect of a preflight.
    for filter in filters {
        if let Filter::Cors(cors) = filter
            && let Some(allowance) = cors::judge(cors, head)?
        {
            changes.allowance = Some(allowance);
        }
    }
    let mut redirect = None;
    for filter in filters {
        match filter {
            Filter::RequestHeaders(change) => change_headers(&mut head.headers, change),
            Filter::ResponseHeaders(change) => changes.headers.push(change.clone()),
            Filter::Redirect(to) => redirect = Some(redirected(to, prefix, port, head)),
            Filter::Rewrite(rewrite) => rewrite_head(rewrite, prefix, head)?,
            Filter::Mirror(mirror) => changes.mirrors.push(mirror.clone()),
            Filter::Cors(_) => {}
        }
    }
    match redirect {
        // It is an answer like others, with what others would have.
        Some(mut redirect) => {
            changes.apply(redirect.reply());
            Err(redirect)
        }
        None => Ok(()),
    }
}

fn change_headers(headers: &mut HeaderMap, change: &HeaderChange) {
    // Names and values were checked by control.
    let pair = |name: &str, value: &str| {
        Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?))
    };
    for name in &change.remove {
        headers.remove(&**name);
    }
    for (name, value) in change.set.iter().filter_map(|(name, value)| pair(name, value)) {
        headers.insert(name, value);
    }
    for (name, value) in change.add.iter().filter_map(|(name, value)| pair(name, value)) {
        headers.append(name, value);
    }
}

/// The host that a request is for.
pub(crate) fn authority(head: &Parts) -> Option<&str> {
    let of_uri = head.uri.authority().map(Authority::as_str);
    of_uri.or_else(|| head.headers.get(header::HOST)?.to_str().ok())
}

/// The path with its query, after a change.
fn changed_path(change: &PathChange, prefix: Option<&str>, uri: &Uri) -> String {
    let path = match change {
        PathChange::Full(path) => path.to_string(),
        PathChange::Prefix(new) => {
            let rest = uri.path().strip_prefix(prefix.unwrap_or_default()).unwrap_or_default();
            match (new.trim_end_matches('/'), rest.trim_start_matches('/')) {
                (new, "") if rest.is_empty() => if new.is_empty() { "/" } else { new }.to_owned(),
                (new, rest) => format!("{new}/{rest}"),
            }
        }
    };
    match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    }
}

/// `port` is the one that was called, which the specification calls the listener's.
fn redirected(redirect: &Redirect, prefix: Option<&str>, port: u16, head: &Parts) -> Settled {
    let scheme = redirect.scheme.as_deref().unwrap_or("http");
    let asked: Option<Authority> = authority(head).and_then(|text| text.parse().ok());
    let host =
        redirect.hostname.as_deref().or_else(|| asked.as_ref().map(Authority::host)).unwrap_or_default();
    // A scheme that is named has its own port, unless one is named, too.
    let port = redirect.port.or(Some(port).filter(|_| redirect.scheme.is_none()));
    let port = port.filter(|port| (scheme, *port) != ("http", 80) && (scheme, *port) != ("https", 443));
    let path = match &redirect.path {
        Some(change) => changed_path(change, prefix, &head.uri),
        None => head.uri.path_and_query().map_or("/", PathAndQuery::as_str).to_owned(),
    };
    let location = match port {
        Some(port) => format!("{scheme}://{host}:{port}{path}"),
        None => format!("{scheme}://{host}{path}"),
    };
    let status = StatusCode::from_u16(redirect.status).unwrap_or(StatusCode::FOUND);
    let mut settled = Settled::new(status, Flag::Direct, "redirected by its route");
    let reply = settled.reply();
    if let Ok(location) = HeaderValue::try_from(location) {
        reply.insert(header::LOCATION, location);
    }
    settled
}

fn rewrite_head(rewrite: &Rewrite, prefix: Option<&str>, head: &mut Parts) -> Result<(), Settled> {
    let bad = || {
        let reason = "the rewritten path or host is none";
        Settled::new(StatusCode::INTERNAL_SERVER_ERROR, Flag::NoRoute, reason)
    };
    let mut uri = head.uri.clone().into_parts();
    if let Some(change) = &rewrite.path {
        uri.path_and_query = Some(changed_path(change, prefix, &head.uri).parse().map_err(|_| bad())?);
    }
    if let Some(host) = &rewrite.hostname {
        let value = HeaderValue::try_from(&**host).map_err(|_| bad())?;
        if uri.authority.is_some() {
            uri.authority = Some(host.parse().map_err(|_| bad())?);
        }
        head.headers.insert(header::HOST, value);
    }
    head.uri = Uri::from_parts(uri).map_err(|_| bad())?;
    Ok(())
}

/// Headers that are for one connection only (RFC 9110, 7.6.1), besides those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 4] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
];

/// Takes out what is for one connection only. Whether another protocol is asked for (or agreed to), where that can be
/// had: then its headers stay.
pub(crate) fn hop_by_hop(headers: &mut HeaderMap, may_upgrade: bool) -> bool {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::try_from(name.trim()).ok())
        // Whom it is for is everybody's business.
        .filter(|name| *name != header::HOST)
        .collect();
    let upgrade = may_upgrade && named.contains(&header::UPGRADE) && leads_out_of_http(headers);
    let trailers = headers.get(header::TE).is_some_and(|value| value.as_bytes() == b"trailers");
    for name in named.iter().chain(&HOP_BY_HOP) {
        if !(upgrade && *name == header::UPGRADE) {
            headers.remove(name);
        }
    }
    if upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(header::UPGRADE);
    }
    headers.remove(header::TE);
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    upgrade
}

/// Whether another protocol is asked for, and no HTTP under another name or way to somewhere else: requests within
/// what was agreed to are read by nobody here.
fn leads_out_of_http(headers: &HeaderMap) -> bool {
    let mut asked = headers.get_all(header::UPGRADE).iter().peekable();
    let leads_out = |name: &str| {
        let name = name.split('/').next().unwrap_or_default().trim().to_ascii_lowercase();
        !matches!(name.as_str(), "" | "http" | "h2" | "h2c" | "h3" | "tls") && !name.starts_with("connect-")
    };
    asked.peek().is_some()
        && asked.all(|value| value.to_str().is_ok_and(|value| value.split(',').all(leads_out)))
}

#[cfg(test)]
mod tests {
    use ::http::Request;

    use super::*;

    fn head(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn has(headers: &HeaderMap, name: &str) -> Vec<String> {
        headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn headers_are_removed_set_and_added() {
        let mut head = head("/", &[("a", "1"), ("b", "1"), ("c", "1")]);
        let pair = |name: &str, value: &str| (name.into(), value.into());
        let change = HeaderChange {
            set: vec![pair("a", "2"), pair("d", "1")],
            add: vec![pair("b", "2"), pair("e", "1")],
            remove: vec!["c".into()],
        };
        apply(&[Filter::RequestHeaders(change)], None, 80, &mut head, &mut Changes::default()).unwrap();
        assert_eq!(has(&head.headers, "a"), ["2"]);
        assert_eq!(has(&head.headers, "b"), ["1", "2"]);
        assert!(has(&head.headers, "c").is_empty());
        assert_eq!((has(&head.headers, "d"), has(&head.headers, "e")), (vec!["1".into()], vec!["1".into()]));
    }

    #[test]
    fn a_prefix_is_replaced_as_the_specification_has_it() {
        for (path, prefix, new, result) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo", "/foo", "/xyz/", "/xyz"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/bar", "/foo", "/", "/bar"),
            ("/foo", "/foo", "/", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo/bar/", "/foo", "/xyz", "/xyz/bar/"),
            ("/foo?q=/foo", "/foo", "/xyz", "/xyz?q=/foo"),
            ("/a/b", "", "/x", "/x/a/b"),
            ("/foo/bar?q=1", "/foo", "/x", "/x/bar?q=1"),
        ] {
            let changed = changed_path(&PathChange::Prefix(new.into()), Some(prefix), &path.parse().unwrap());
            assert_eq!(changed, result, "{path} {prefix} {new}");
        }
    }

    #[test]
    fn a_redirect_keeps_what_it_does_not_change() {
        let none = Redirect { scheme: None, hostname: None, path: None, port: None, status: 302 };
        let to = |redirect: Redirect| {
            let head = head("/a?b=c", &[("host", "web:8080")]);
            let mut settled = redirected(&redirect, Some(""), 8080, &head);
            (settled.status.as_u16(), has(settled.reply(), "location").remove(0))
        };
        assert_eq!(to(none.clone()), (302, "http://web:8080/a?b=c".into()));
        assert_eq!(
            to(Redirect { scheme: Some("https".into()), status: 301, ..none.clone() }),
            (301, "https://web/a?b=c".into())
        );
        assert_eq!(
            to(Redirect { hostname: Some("other".into()), port: Some(80), ..none.clone() }),
            (302, "http://other/a?b=c".into())
        );
        let path = Some(PathChange::Full("/x".into()));
        assert_eq!(to(Redirect { path, ..none }), (302, "http://web:8080/x?b=c".into()));
    }

    #[test]
    fn the_port_of_a_redirect_follows_from_its_scheme_and_from_what_was_called() {
        let to = |scheme: Option<&str>, hostname: Option<&str>, port: Option<u16>, called: u16| {
            let scheme = scheme.map(Into::into);
            let hostname = hostname.map(Into::into);
            let redirect = Redirect { scheme, hostname, path: None, port, status: 302 };
            let mut settled = redirected(&redirect, None, called, &head("/", &[("host", "web")]));
            has(settled.reply(), "location").remove(0)
        };
        for (scheme, hostname, port, called, location) in [
            // Nothing is said: the port that was called, if it is not the scheme's own.
            (None, None, None, 80, "http://web/"),
            (None, None, None, 8080, "http://web:8080/"),
            (None, Some("other"), None, 8080, "http://other:8080/"),
            (None, None, None, 443, "http://web:443/"),
            // A scheme has its own.
            (Some("https"), None, None, 80, "https://web/"),
            (Some("https"), None, None, 8080, "https://web/"),
            (Some("http"), None, None, 8080, "http://web/"),
            // A port that is said is told, if it is not the scheme's own.
            (None, None, Some(8083), 80, "http://web:8083/"),
            (None, None, Some(80), 8080, "http://web/"),
            (Some("https"), None, Some(443), 80, "https://web/"),
            (Some("https"), None, Some(80), 80, "https://web:80/"),
            (Some("http"), None, Some(443), 80, "http://web:443/"),
        ] {
            assert_eq!(
                to(scheme, hostname, port, called),
                location,
                "{scheme:?} {hostname:?} {port:?} {called}"
            );
        }
    }

    #[test]
    fn a_redirect_has_the_headers_of_an_answer_and_a_preflight_is_not_redirected() {
        let set =
            |name: &str| HeaderChange { set: vec![(name.into(), "1".into())], ..HeaderChange::default() };
        let redirect = Redirect { scheme: None, hostname: None, path: None, port: None, status: 302 };
        let cors = mesh::route::Cors { allow_origins: vec!["*".into()], ..Default::default() };
        let filters = [Filter::Redirect(redirect), Filter::ResponseHeaders(set("x-a")), Filter::Cors(cors)];
        let answer = |mut head: Parts| {
            let mut settled = apply(&filters, None, 80, &mut head, &mut Changes::default()).unwrap_err();
            (settled.status.as_u16(), settled.reply().clone())
        };
        let origin = ("origin", "https://a");
        let (status, headers) = answer(head("/", &[("host", "web"), origin]));
        assert_eq!((status, has(&headers, "x-a")), (302, vec!["1".to_owned()]));
        assert_eq!(has(&headers, "access-control-allow-origin"), ["*"]);
        let mut asked = head("/", &[("host", "web"), origin, ("access-control-request-method", "GET")]);
        asked.method = ::http::Method::OPTIONS;
        let (status, headers) = answer(asked);
        assert_eq!((status, has(&headers, "location").len()), (204, 0));
    }

    #[test]
    fn what_is_for_one_connection_is_taken_out() {
        let mut plain =
            head("/", &[("connection", "keep-alive, x-own"), ("x-own", "1"), ("te", "trailers"), ("a", "1")]);
        assert!(!hop_by_hop(&mut plain.headers, true));
        let left: Vec<_> = plain.headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left.len(), 2, "{left:?}");
        assert_eq!(has(&plain.headers, "te"), ["trailers"]);
        let ask = [("connection", "Upgrade"), ("upgrade", "websocket")];
        let mut upgrade = head("/", &ask);
        assert!(hop_by_hop(&mut upgrade.headers, true));
        assert_eq!(
            (has(&upgrade.headers, "upgrade"), has(&upgrade.headers, "connection")),
            (vec!["websocket".to_owned()], vec!["upgrade".to_owned()])
        );
        for protocol in ["h2c", "H2C", "websocket, h2c", "HTTP/2.0", "TLS/1.2", "connect-udp", ""] {
            let asked =
                [("connection", "Upgrade, HTTP2-Settings"), ("upgrade", protocol), ("http2-settings", "AAM")];
            let mut smuggled = head("/", &asked);
            assert!(!hop_by_hop(&mut smuggled.headers, true), "{protocol}");
            assert!(smuggled.headers.is_empty(), "{protocol}: {:?}", smuggled.headers);
        }
        let mut hostless = head("/", &[("connection", "host, close"), ("host", "web")]);
        hop_by_hop(&mut hostless.headers, true);
        assert_eq!(has(&hostless.headers, "host"), ["web"]);
        let mut not_here = head("/", &ask);
        assert!(!hop_by_hop(&mut not_here.headers, false) && not_here.headers.is_empty());
    }
}
