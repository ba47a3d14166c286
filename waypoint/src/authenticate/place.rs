//! Where a request has its tokens: found there, and taken out.

use ::http::{HeaderName, HeaderValue, Uri, header::COOKIE, request::Parts};
use mesh::token::Place;

/// A token, and where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Presented {
    pub(super) place: Place,
    pub(super) text: Box<str>,
}

/// The tokens at these places, in their order.
pub(super) fn presented(places: &[Place], head: &Parts) -> Vec<Presented> {
    let mut found: Vec<Presented> = Vec::new();
    for place in places {
        for text in at(place, head) {
            let one = Presented { place: place.clone(), text: text.into() };
            if !found.contains(&one) {
                found.push(one);
            }
        }
    }
    found
}

fn at(place: &Place, head: &Parts) -> Vec<String> {
    let found: Vec<String> = match place {
        Place::Header { name, prefix } => {
            let values = head.headers.get_all(&**name).iter();
            values.filter_map(|value| behind(value, prefix)).collect()
        }
        Place::Parameter(name) => {
            let query = head.uri.query().unwrap_or_default();
            let pairs = form_urlencoded::parse(query.as_bytes());
            pairs.filter(|(key, _)| **key == **name).map(|(_, value)| value.into_owned()).collect()
        }
        Place::Cookie(name) => {
            let values = head.headers.get_all(COOKIE).iter();
            let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
            let all: Vec<String> = values.map(text).collect();
            let pairs = all.iter().flat_map(|text| text.split(';')).filter_map(pair);
            let own = pairs.filter(|(key, _)| *key == &**name).map(|(_, value)| value);
            own.map(|value| value.trim_matches('"').to_owned()).collect()
        }
    };
    found.into_iter().filter(|text| !text.is_empty()).collect()
}

/// What stands behind a prefix, of which the case does not matter (as of RFC 9110's schemes).
fn behind(value: &HeaderValue, prefix: &str) -> Option<String> {
    let (front, rest) = value.as_bytes().split_at_checked(prefix.len())?;
    let text = || String::from_utf8_lossy(rest).trim().to_owned();
    front.eq_ignore_ascii_case(prefix.as_bytes()).then(text)
}

fn pair(cookie: &str) -> Option<(&str, &str)> {
    let (name, value) = cookie.split_once('=')?;
    Some((name.trim(), value.trim()))
}

/// Path and query without the parameters that tokens were found in; `None` if there are none.
pub(super) fn without_parameters(presented: &[Presented], head: &Parts) -> Option<String> {
    let names: Vec<&str> = presented
        .iter()
        .filter_map(|one| match &one.place {
            Place::Parameter(name) => Some(&**name),
            Place::Header { .. } | Place::Cookie(_) => None,
        })
        .collect();
    let query = head.uri.query().filter(|_| !names.is_empty())?;
    let is_kept = |pair: &&str| {
        let name = form_urlencoded::parse(pair.as_bytes()).next().map(|(name, _)| name.into_owned());
        !name.is_some_and(|name| names.contains(&name.as_str()))
    };
    let kept: Vec<&str> = query.split('&').filter(is_kept).collect();
    let path = head.uri.path();
    Some(if kept.is_empty() { path.to_owned() } else { format!("{path}?{}", kept.join("&")) })
}

/// Takes tokens out of the request.
pub(super) fn take_out(tokens: &[Presented], head: &mut Parts) {
    if let Some(target) = without_parameters(tokens, head) {
        let mut parts = std::mem::take(&mut head.uri).into_parts();
        parts.path_and_query = target.try_into().ok();
        // Of a valid path and query one is made again.
        head.uri = Uri::from_parts(parts).unwrap_or_default();
    }
    for Presented { place, .. } in tokens {
        match place {
            Place::Header { name, prefix } => {
                retain(head, name, |value| behind(value, prefix).is_none().then(|| value.clone()));
            }
            Place::Cookie(name) => retain(head, COOKIE.as_str(), |value| without_cookie(value, name)),
            Place::Parameter(_) => {}
        }
    }
}

/// Keeps what is left of each of a header's values.
fn retain(head: &mut Parts, name: &str, left: impl Fn(&HeaderValue) -> Option<HeaderValue>) {
    let Ok(name) = HeaderName::try_from(name) else { return };
    let kept: Vec<HeaderValue> = head.headers.get_all(&name).iter().filter_map(left).collect();
    head.headers.remove(&name);
    for value in kept {
        head.headers.append(name.clone(), value);
    }
}

fn without_cookie(value: &HeaderValue, name: &str) -> Option<HeaderValue> {
    let is_kept = |cookie: &&[u8]| {
        let own = cookie.split(|byte| *byte == b'=').next().unwrap_or_default();
        own.trim_ascii() != name.as_bytes()
    };
    let kept: Vec<&[u8]> = value.as_bytes().split(|byte| *byte == b';').filter(is_kept).collect();
    let kept = kept.join(&b";"[..]);
    let kept = kept.trim_ascii();
    (!kept.is_empty()).then(|| HeaderValue::from_bytes(kept).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use ::http::Request;

    use super::*;

    fn head(target: &str, headers: &[(&str, &str)]) -> Parts {
        let request = headers
            .iter()
            .fold(Request::builder().uri(target), |request, (name, value)| request.header(*name, *value));
        request.body(()).unwrap().into_parts().0
    }

    fn bearer() -> Place {
        Place::Header { name: "authorization".into(), prefix: "Bearer ".into() }
    }

    fn texts(place: &Place, head: &Parts) -> Vec<String> {
        presented(std::slice::from_ref(place), head).into_iter().map(|one| one.text.into()).collect()
    }

    #[test]
    fn tokens_are_found_where_they_are_looked_for() {
        let parameter = Place::Parameter("access_token".into());
        let cookie = Place::Cookie("session".into());
        let whole = Place::Header { name: "x-token".into(), prefix: "".into() };
        for (place, target, headers, found) in [
            (bearer(), "/", &[("authorization", "Bearer a.b.c")][..], &["a.b.c"][..]),
            (bearer(), "/", &[("authorization", "bEARER   a.b.c")], &["a.b.c"]),
            (bearer(), "/", &[("authorization", "Basic YTpi")], &[]),
            (bearer(), "/", &[("authorization", "Bearer")], &[]),
            (bearer(), "/", &[("authorization", "Bearer a"), ("authorization", "Bearer b")], &["a", "b"]),
            (bearer(), "/", &[("authorization", "Bearer a"), ("authorization", "Bearer a")], &["a"]),
            (bearer(), "/", &[("authorization", "Bearerä")], &[]),
            (whole, "/", &[("x-token", "a.b.c")], &["a.b.c"]),
            (parameter.clone(), "/x?a=b&access_token=a.b.c", &[], &["a.b.c"]),
            (parameter.clone(), "/x?access%5ftoken=a%2eb", &[], &["a.b"]),
            (parameter, "/x?access_token=&access_tokens=x", &[], &[]),
            (cookie.clone(), "/", &[("cookie", "a=b; session=x.y; c=d")], &["x.y"]),
            (cookie.clone(), "/", &[("cookie", "a=b"), ("cookie", "session=\"x.y\"")], &["x.y"]),
            (cookie, "/", &[("cookie", "xsession=x.y; session")], &[]),
        ] {
            assert_eq!(texts(&place, &head(target, headers)), found, "{place:?} {target} {headers:?}");
        }
    }

    #[test]
    fn what_is_taken_out_is_gone_and_all_else_stays() {
        let places = [bearer(), Place::Parameter("access_token".into()), Place::Cookie("session".into())];
        let mut head = head(
            "/a%2fb?x=1&access%5Ftoken=t&y",
            &[
                ("authorization", "Bearer t"),
                ("authorization", "Basic YTpi"),
                ("cookie", "a=b; session=t; c=d"),
                ("cookie", "session=u"),
            ],
        );
        let found = presented(&places, &head);
        assert_eq!(found.len(), 4);
        assert_eq!(without_parameters(&found, &head).as_deref(), Some("/a%2fb?x=1&y"));
        take_out(&found, &mut head);
        assert_eq!(head.uri.to_string(), "/a%2fb?x=1&y");
        let values = |name: &str| -> Vec<&str> {
            head.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
        };
        assert_eq!(values("authorization"), ["Basic YTpi"]);
        assert_eq!(values("cookie"), ["a=b; c=d"]);
        assert_eq!(presented(&places, &head), []);
    }

    #[test]
    fn a_query_that_was_nothing_but_a_token_is_gone() {
        let place = [Place::Parameter("t".into())];
        let mut head = head("/a?t=1&t=2", &[]);
        let found = presented(&place, &head);
        take_out(&found, &mut head);
        assert_eq!(head.uri.to_string(), "/a");
    }
}
