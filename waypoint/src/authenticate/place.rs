//! Where a request has its tokens: found there, and taken out.

use std::{borrow::Cow, collections::HashSet};

use ::http::{HeaderName, HeaderValue, Uri, header::COOKIE, request::Parts};
use mesh::token::Place;

/// A token, and where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Presented {
    pub(super) place: Place,
    pub(super) text: Box<str>,
}

/// The tokens at these places, in their order; `most` of them, whatever follows.
pub(super) fn presented(places: &[Place], head: &Parts, most: usize) -> Vec<Presented> {
    let mut found: Vec<Presented> = Vec::new();
    for place in places {
        for text in at(place, head) {
            if found.len() >= most {
                return found;
            }
            let one = Presented { place: place.clone(), text: text.into_owned().into() };
            if !found.contains(&one) {
                found.push(one);
            }
        }
    }
    found
}

/// What stands at a place, one after the other.
fn at<'a>(place: &'a Place, head: &'a Parts) -> Box<dyn Iterator<Item = Cow<'a, str>> + 'a> {
    let found: Box<dyn Iterator<Item = Cow<'a, str>> + 'a> = match place {
        Place::Header { name, prefix } => {
            let values = head.headers.get_all(&**name).iter();
            Box::new(values.filter_map(|value| behind(value, prefix)))
        }
        Place::Parameter(name) => {
            let query = head.uri.query().unwrap_or_default();
            let pairs = form_urlencoded::parse(query.as_bytes());
            Box::new(pairs.filter(|(key, _)| **key == **name).map(|(_, value)| value))
        }
        Place::Cookie(name) => {
            let values = head.headers.get_all(COOKIE).iter();
            let pieces = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
            Box::new(pieces.filter_map(|piece| cookie(piece, name)))
        }
    };
    Box::new(found.filter(|text| !text.is_empty()))
}

/// What stands behind a prefix, of which the case does not matter (as of RFC 9110's schemes).
fn behind<'a>(value: &'a HeaderValue, prefix: &str) -> Option<Cow<'a, str>> {
    let (front, rest) = value.as_bytes().split_at_checked(prefix.len())?;
    front.eq_ignore_ascii_case(prefix.as_bytes()).then(|| String::from_utf8_lossy(rest.trim_ascii()))
}

/// The value of a cookie of that name.
fn cookie<'a>(piece: &[u8], wanted: &str) -> Option<Cow<'a, str>> {
    let at = piece.iter().position(|byte| *byte == b'=')?;
    let (name, value) = (piece[..at].trim_ascii(), piece[at + 1..].trim_ascii());
    (name == wanted.as_bytes()).then(|| String::from_utf8_lossy(value).trim_matches('"').to_owned().into())
}

/// Path and query without the parameters that are places of tokens; `None` if it has none of them.
pub(super) fn without_parameters<'p>(
    places: impl IntoIterator<Item = &'p Place>,
    head: &Parts,
) -> Option<String> {
    let query = head.uri.query()?;
    let names = places.into_iter().filter_map(|place| match place {
        Place::Parameter(name) => Some(&**name),
        Place::Header { .. } | Place::Cookie(_) => None,
    });
    let names: HashSet<&str> = names.collect();
    let is_kept = |pair: &&str| {
        let name = form_urlencoded::parse(pair.as_bytes()).next().map(|(name, _)| name);
        !name.is_some_and(|name| names.contains(&*name))
    };
    let (kept, gone): (Vec<&str>, Vec<&str>) = query.split('&').partition(is_kept);
    let path = head.uri.path();
    (!gone.is_empty()).then(|| match kept.is_empty() {
        true => path.to_owned(),
        false => format!("{path}?{}", kept.join("&")),
    })
}

/// Takes tokens out of the request.
pub(super) fn take_out(tokens: &[Presented], head: &mut Parts) {
    if let Some(target) = without_parameters(tokens.iter().map(|one| &one.place), head) {
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
        presented(std::slice::from_ref(place), head, 9).into_iter().map(|one| one.text.into()).collect()
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
        let found = presented(&places, &head, 9);
        assert_eq!(found.len(), 4);
        assert_eq!(without_parameters(&places, &head).as_deref(), Some("/a%2fb?x=1&y"));
        take_out(&found, &mut head);
        assert_eq!(head.uri.to_string(), "/a%2fb?x=1&y");
        let values = |name: &str| -> Vec<&str> {
            head.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
        };
        assert_eq!(values("authorization"), ["Basic YTpi"]);
        assert_eq!(values("cookie"), ["a=b; c=d"]);
        assert_eq!(presented(&places, &head, 9), []);
    }

    #[test]
    fn no_more_tokens_are_looked_for_than_would_be_too_many_and_none_of_them_is_shown() {
        let places = [Place::Parameter("a".into()), Place::Parameter("b".into())];
        let many: String = (0..5_000).map(|number| format!("a={number}&")).collect();
        let head = head(&format!("/x?{many}b=secret&c=1"), &[]);
        let found: Vec<Box<str>> = presented(&places, &head, 9).into_iter().map(|one| one.text).collect();
        assert_eq!(found, ["0", "1", "2", "3", "4", "5", "6", "7", "8"].map(Box::from));
        assert_eq!(without_parameters(&places, &head).as_deref(), Some("/x?c=1"));
        assert_eq!(without_parameters(&[bearer()], &head), None);
    }

    #[test]
    fn a_query_that_was_nothing_but_a_token_is_gone() {
        let place = [Place::Parameter("t".into())];
        let mut head = head("/a?t=1&t=2", &[]);
        let found = presented(&place, &head, 9);
        take_out(&found, &mut head);
        assert_eq!(head.uri.to_string(), "/a");
    }
}
