//! What first bytes say. Pure: the same bytes say the same, in however many pieces they come.

/// The longest first line of HTTP/1 that is waited for, in bytes. What begins like one and is longer is left to who
/// reads HTTP, and refuses it.
const LONGEST_LINE: usize = 8 << 10;
/// How HTTP/2 begins (RFC 9113, 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sniff {
    /// Not enough.
    More,
    Http1,
    Http2,
    /// A ClientHello has begun.
    Tls,
    Other,
}

/// What the bytes say that a caller has begun with.
pub(crate) fn sniff(said: &[u8]) -> Sniff {
    match sniff_tls(said) {
        Sniff::Other => sniff_http(said),
        found => found,
    }
}

/// Whether the bytes begin TLS: the head of a record of the handshake, whose first message is a ClientHello (RFC 8446,
/// 4 and 5.1).
pub(crate) fn sniff_tls(said: &[u8]) -> Sniff {
    let is = |at: usize, holds: fn(u8) -> bool| said.get(at).is_none_or(|byte| holds(*byte));
    let version = is(1, |major| major == 3) && is(2, |minor| minor <= 4);
    match is(0, |kind| kind == 22) && version && is(5, |message| message == 1) {
        true if said.len() > 5 => Sniff::Tls,
        true => Sniff::More,
        false => Sniff::Other,
    }
}

fn sniff_http(said: &[u8]) -> Sniff {
    let common = said.len().min(PREFACE.len());
    if said[..common] == PREFACE[..common] {
        return if common == PREFACE.len() { Sniff::Http2 } else { Sniff::More };
    }
    // Empty lines before a request are allowed (RFC 9112, 2.2).
    // However many there are: servers pass over more than one, and nobody gets round routes by them.
    let Some(start) = said.iter().position(|byte| !b"\r\n".contains(byte)) else {
        return if said.len() <= LONGEST_LINE { Sniff::More } else { Sniff::Http1 };
    };
    let line = &said[start..];
    let end = line.iter().position(|byte| *byte == b'\n');
    let method = line.iter().take_while(|byte| byte.is_ascii_uppercase() || **byte == b'-').count();
    match (end, line.get(method)) {
        (_, Some(b' ')) if (3..=24).contains(&method) => {}
        (None, None) if method <= 24 => return Sniff::More,
        _ => return Sniff::Other,
    }
    match end {
        Some(end) if end <= LONGEST_LINE => {
            let line = line[..end].strip_suffix(b"\r").unwrap_or(&line[..end]);
            if line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0") {
                Sniff::Http1
            } else {
                Sniff::Other
            }
        }
        None if line.len() <= LONGEST_LINE => Sniff::More,
        Some(_) | None => Sniff::Http1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn first_bytes_say_what_is_spoken() {
        for (said, what) in [
            (&b"GET / HTTP/1.1\r\n"[..], Sniff::Http1),
            (b"\r\nPOST /a?b HTTP/1.0\n", Sniff::Http1),
            (b"M-SEARCH * HTTP/1.1\r\n", Sniff::Http1),
            (b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\nmore", Sniff::Http1),
            (PREFACE, Sniff::Http2),
            (b"PRI * HTTP/2.0\r\n", Sniff::More),
            (b"PRI * HTTP/2.0\r\n\r\nXX", Sniff::Other),
            (b"P", Sniff::More),
            (b"GET", Sniff::More),
            (b"GET /very/long", Sniff::More),
            (b"GET key\r\n", Sniff::Other),
            (b"PING\r\n", Sniff::Other),
            (b"SSH-2.0-OpenSSH\r\n", Sniff::Other),
            (b"*1\r\n$4\r\nPING\r\n", Sniff::Other),
            (b"\x16\x03\x01\x02\x00\x01", Sniff::Tls),
            (b"\x16\x03\x04\x02\x00\x01\xff", Sniff::Tls),
            (b"\x16\x03\x01\x02\x00", Sniff::More),
            (b"\x16", Sniff::More),
            (b"\x16\x03\x01\x02\x00\x02", Sniff::Other),
            (b"\x16\x03\x05", Sniff::Other),
            (b"\x16\x02", Sniff::Other),
            (b"\x17\x03\x01\x02\x00\x01", Sniff::Other),
            (b"\0\0\0\x0b", Sniff::Other),
            (b"get / HTTP/1.1\r\n", Sniff::Other),
            (b"G / HTTP/1.1\r\n", Sniff::Other),
        ] {
            assert_eq!(sniff(said), what, "{:?}", String::from_utf8_lossy(said));
        }
        let long = [b"GET /", &[b'a'; LONGEST_LINE][..]].concat();
        assert_eq!(sniff(&long), Sniff::Http1, "a line is too long, and HTTP all the same");
        assert_eq!(sniff(&[&long[..], b"\r\n"].concat()), Sniff::Http1);
    }

    proptest! {
        #[test]
        fn what_is_clear_stays_so_whatever_follows(
            said in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..64),
                (0..6usize).prop_map(|end| b"\x16\x03\x01\x02\x00\x01"[..end].to_vec()),
                "[\r\n]{0,6}[A-Z-]{0,30} ?[ -~]{0,40}( HTTP/1.[01])?\r?\n?".prop_map(String::into_bytes),
                (0..PREFACE.len()).prop_map(|end| PREFACE[..end].to_vec()),
            ],
            more in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let first = sniff(&said);
            let whole = sniff(&[said, more].concat());
            prop_assert!(first == Sniff::More || first == whole, "{first:?}, then {whole:?}");
        }
    }

    #[test]
    fn a_request_that_comes_byte_by_byte_is_told_at_its_first_line() {
        let request = b"GET / HTTP/1.1\r\nhost: a\r\n";
        for end in 1..request.len() {
            let wanted = if end < 16 { Sniff::More } else { Sniff::Http1 };
            assert_eq!(sniff(&request[..end]), wanted, "{end}");
        }
    }
}
