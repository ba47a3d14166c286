//! W3C Trace Context: `traceparent` and `tracestate` (<https://www.w3.org/TR/trace-context/>).

use super::{Headers, Parent, SpanId, TRACESTATE, Trace, TraceId, hex};

/// The lengths of what version 00 has: `00-TRACE-SPAN-FLAGS`.
const LENGTH: usize = 55;
const SAMPLED: u8 = 1;
/// Of level 2: the number was drawn by chance.
const RANDOM: u8 = 2;
/// Members of a `tracestate` (3.3.1.1).
const MOST_MEMBERS: usize = 32;
/// Bytes of a `tracestate` that are passed on; at least 512 must be (3.3.1.5).
const MOST_STATE: usize = 2048;
/// Where there are more, members longer than this go first (3.3.1.5).
const LONG_MEMBER: usize = 128;
/// The longest key and value of a member.
const LONGEST: usize = 256;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Traceparent {
    pub(super) parent: Parent,
    pub(super) sampled: bool,
    pub(super) is_random: bool,
}

/// Reads a `traceparent`. Of a version above ours the part that we know is read, if it is there (4.3).
pub(super) fn parse(text: &str) -> Option<Traceparent> {
    if !text.is_ascii() || text.len() < LENGTH {
        return None;
    }
    let (known, rest) = text.split_at(LENGTH);
    let [version] = hex(&known[..2])?;
    let is_ours = match version {
        0 => rest.is_empty(),
        0xff => false,
        _ => rest.is_empty() || rest.starts_with('-'),
    };
    let has_dashes = [2, 35, 52].iter().all(|at| known.as_bytes()[*at] == b'-');
    if !is_ours || !has_dashes {
        return None;
    }
    let [flags] = hex(&known[53..])?;
    let parent =
        Parent { trace: TraceId::new(hex(&known[3..35])?)?, span: SpanId::new(hex(&known[36..52])?)? };
    Some(Traceparent {
        parent,
        sampled: flags & SAMPLED != 0,
        is_random: version == 0 && flags & RANDOM != 0,
    })
}

pub(super) fn format(trace: &Trace, span: SpanId) -> String {
    let flags = u8::from(trace.is_sampled) * SAMPLED + u8::from(trace.is_random) * RANDOM;
    format!("00-{}-{span}-{flags:02x}", trace.id)
}

/// The `tracestate` as it is passed on; none where a part of it is wrong.
pub(super) fn state(headers: &(impl Headers + ?Sized)) -> Option<String> {
    let mut whole = Some(String::new());
    headers.each(TRACESTATE, &mut |value| {
        let text = std::str::from_utf8(value).ok();
        whole = whole.take().zip(text).map(|(whole, text)| match whole.is_empty() {
            true => text.to_owned(),
            false => whole + "," + text,
        });
    });
    let whole = whole?;
    let members = || whole.split(',').map(|member| member.trim_matches([' ', '\t']));
    let mut members: Vec<&str> = members().filter(|member| !member.is_empty()).collect();
    if members.len() > MOST_MEMBERS || !members.iter().all(|member| is_member(member)) {
        return None;
    }
    shorten(&mut members);
    (!members.is_empty()).then(|| members.join(","))
}

/// Takes out members until it is short enough: long ones first, then from the end, the oldest.
fn shorten(members: &mut Vec<&str>) {
    let length = |members: &[&str]| members.iter().map(|member| member.len() + 1).sum::<usize>();
    while length(members) > MOST_STATE + 1 {
        let long = members.iter().rposition(|member| member.len() > LONG_MEMBER);
        members.remove(long.unwrap_or(members.len() - 1));
    }
}

/// `KEY=VALUE` (3.3.1.3).
fn is_member(member: &str) -> bool {
    let Some((key, value)) = member.split_once('=') else { return false };
    let begins = key.starts_with(|first: char| first.is_ascii_lowercase() || first.is_ascii_digit());
    let is_key = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-' | b'*' | b'/' | b'@')
    };
    // A space at its end was taken for one beside the member.
    let is_value = |byte: u8| matches!(byte, b' '..=b'~') && byte != b',' && byte != b'=';
    begins
        && key.len() <= LONGEST
        && key.bytes().all(is_key)
        && (1..=LONGEST).contains(&value.len())
        && value.bytes().all(is_value)
}
