//! The host that a request is for, said once: what routes, policies and backends read is the same.
//!
//! A request may say it in its target and in `Host`. From here on it is in `Host` alone (RFC 9112, 3.2; RFC 9113,
//! 8.3.1), and a request that says two different things is nobody's.

use ::http::{
    HeaderValue, StatusCode, Uri, Version, header,
    request::Parts,
    uri::{Authority, PathAndQuery},
};
use runtime::record::Flag;

use super::Settled;

/// Settles it.
///
/// # Errors
/// With the answer 400, if the request names none and must, several, or what is no host.
pub(super) fn settle(head: &mut Parts) -> Result<(), Settled> {
    if head.version == Version::HTTP_2 && head.headers.values().any(is_padded) {
        // RFC 9113, 8.2.1. A backend that is told of it in HTTP/1 would read it without, and policies have read it with.
        return Err(malformed("a header begins or ends with a blank"));
    }
    let mut said = head.headers.get_all(header::HOST).iter();
    let (first, second) = (said.next(), said.next());
    if second.is_some() {
        return Err(malformed("the request names its host several times"));
    }
    let of_header = match first {
        Some(value) if !value.is_empty() => Some(host(value.as_bytes())?),
        Some(_) | None => None,
    };
    if head.uri.authority().is_some() && head.uri.scheme().is_none() {
        // RFC 9112, 3.2.3: only CONNECT names a host without more.
        return Err(malformed("its target is neither a path nor a whole address"));
    }
    let of_target = head.uri.authority().map(|authority| host(authority.as_str().as_bytes())).transpose()?;
    match (of_target, of_header) {
        (Some(target), Some(header)) if head.version == Version::HTTP_2 && !same(&target, &header) => {
            Err(malformed("the request names two hosts"))
        }
        // In HTTP/1 the target outweighs the header.
        (Some(target), _) => {
            let value =
                HeaderValue::try_from(target.as_str()).map_err(|_| malformed("its host is no text"))?;
            head.headers.insert(header::HOST, value);
            let path = head.uri.path_and_query().cloned();
            head.uri = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
            Ok(())
        }
        (None, Some(_)) => Ok(()),
        (None, None) if head.version == Version::HTTP_11 && first.is_none() => {
            Err(malformed("the request names no host"))
        }
        (None, None) => {
            head.headers.remove(header::HOST);
            Ok(())
        }
    }
}

fn is_padded(value: &HeaderValue) -> bool {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    blank(value.as_bytes().first()) || blank(value.as_bytes().last())
}

/// A host with or without a port, and nothing before it: who would be told of a user, and who not?
fn host(text: &[u8]) -> Result<Authority, Settled> {
    let authority = Authority::try_from(text).ok().filter(|authority| !authority.as_str().contains('@'));
    authority.ok_or_else(|| malformed("the request names a host that is none"))
}

fn same(a: &Authority, b: &Authority) -> bool {
    a.as_str().eq_ignore_ascii_case(b.as_str())
}

fn malformed(reason: &str) -> Settled {
    Settled::new(StatusCode::BAD_REQUEST, Flag::Malformed, reason)
}

#[cfg(test)]
mod tests {
    use ::http::Request;

    use super::*;

    fn settled(version: Version, target: &str, hosts: &[&str]) -> Result<(String, Option<String>), u16> {
        let mut request = Request::builder().version(version).uri(target);
        for host in hosts {
            request = request.header(header::HOST, *host);
        }
        let mut head = request.body(()).unwrap().into_parts().0;
        settle(&mut head).map_err(|settled| settled.status.as_u16())?;
        let host = head.headers.get(header::HOST).map(|value| value.to_str().unwrap().to_owned());
        assert!(head.uri.authority().is_none(), "it is said in two places");
        Ok((head.uri.to_string(), host))
    }

    #[test]
    fn it_is_said_once_and_the_target_outweighs_the_header() {
        let one = |target, hosts: &[&str]| settled(Version::HTTP_11, target, hosts);
        let is = |path: &str, host: &str| Ok((path.to_owned(), Some(host.to_owned())));
        assert_eq!(one("/a?b", &["web:80"]), is("/a?b", "web:80"));
        assert_eq!(one("http://web/a?b", &["other"]), is("/a?b", "web"));
        assert_eq!(one("http://web", &["other"]), is("/", "web"));
        assert_eq!(one("*", &["web"]), is("*", "web"));
        assert_eq!(one("/", &["[fd00::1]:80"]), is("/", "[fd00::1]:80"));
        let two = |target, hosts: &[&str]| settled(Version::HTTP_2, target, hosts);
        assert_eq!(two("http://web/a", &[]), is("/a", "web"));
        assert_eq!(two("http://web/a", &["WEB"]), is("/a", "web"));
        assert_eq!(two("/a", &["web"]), is("/a", "web"));
    }

    #[test]
    fn none_several_and_what_is_none_are_refused() {
        for (version, target, hosts) in [
            (Version::HTTP_11, "/", &[][..]),
            (Version::HTTP_11, "/", &["a", "a"]),
            (Version::HTTP_11, "http://a/", &["a", "b"]),
            (Version::HTTP_11, "a", &["a"]),
            (Version::HTTP_11, "/", &["a b"]),
            (Version::HTTP_11, "/", &["a/b"]),
            (Version::HTTP_11, "/", &["me@a"]),
            (Version::HTTP_11, "http://me@a/", &["a"]),
            (Version::HTTP_2, "http://a/", &["b"]),
            (Version::HTTP_2, "http://a/", &["a", "a"]),
            (Version::HTTP_2, "http://me@a/", &[]),
        ] {
            assert_eq!(settled(version, target, hosts), Err(400), "{version:?} {target} {hosts:?}");
        }
    }

    #[test]
    fn what_backends_would_read_otherwise_than_policies_is_refused() {
        for value in [" admin", "admin ", "\tadmin", "admin\t"] {
            let request =
                Request::builder().version(Version::HTTP_2).uri("http://a/").header("x-role", value);
            let mut head = request.body(()).unwrap().into_parts().0;
            assert_eq!(settle(&mut head).unwrap_err().status, StatusCode::BAD_REQUEST, "{value:?}");
        }
        let request =
            Request::builder().version(Version::HTTP_2).uri("http://a/").header("x-role", "an admin");
        settle(&mut request.body(()).unwrap().into_parts().0).unwrap();
    }

    #[test]
    fn http_1_0_may_name_none_and_an_empty_one_is_none() {
        assert_eq!(settled(Version::HTTP_10, "/", &[]), Ok(("/".into(), None)));
        assert_eq!(settled(Version::HTTP_11, "/", &[""]), Ok(("/".into(), None)));
    }
}
