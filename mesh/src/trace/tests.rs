//! Headers of traces, read and written.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SHORT: &str = "a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

struct Given<'a>(&'a [(&'a str, &'a str)]);

impl Headers for Given<'_> {
    fn each(&self, name: &str, told: &mut dyn FnMut(&[u8])) {
        self.0.iter().filter(|(of, _)| *of == name).for_each(|(_, value)| told(value.as_bytes()));
    }
}

/// The trace of a request with these headers, its numbers counted from 1; a rate of nothing.
fn begun(headers: &[(&str, &str)]) -> Trace {
    begun_by(headers, 0.0)
}

fn begun_by(headers: &[(&str, &str)], percent: f64) -> Trace {
    let mut next = 0;
    let random = || {
        next += 1;
        next
    };
    Trace::begin(Arrived::read(&Given(headers)), Sampling::percent(percent).unwrap(), random)
}

/// What is sent in span ff; what is to be taken out is empty.
fn sent(trace: &Trace) -> BTreeMap<&'static str, String> {
    let mut headers = BTreeMap::new();
    trace.tell(SpanId::random(0xff), |name, value| {
        assert!(headers.insert(name, value.unwrap_or_default()).is_none(), "{name} twice");
    });
    headers
}

/// Trace, parent, sampled.
fn read(headers: &[(&str, &str)]) -> Option<(String, String, bool)> {
    let trace = begun(headers);
    trace.parent.map(|parent| (trace.id.to_string(), parent.to_string(), trace.is_sampled))
}

#[test]
fn a_traceparent_is_read_as_the_recommendation_has_it() {
    let good = Some((TRACE.to_owned(), SPAN.to_owned(), true));
    let unsampled = Some((TRACE.to_owned(), SPAN.to_owned(), false));
    for (text, expected) in [
        (format!("00-{TRACE}-{SPAN}-01"), &good),
        (format!("00-{TRACE}-{SPAN}-00"), &unsampled),
        (format!("00-{TRACE}-{SPAN}-ff"), &good),
        (format!("00-{TRACE}-{SPAN}-02"), &unsampled),
        // A later version may have more, after a dash.
        (format!("01-{TRACE}-{SPAN}-01"), &good),
        (format!("cc-{TRACE}-{SPAN}-01-what-the-future-brings"), &good),
        (format!("cc-{TRACE}-{SPAN}-01-"), &good),
        (format!("cc-{TRACE}-{SPAN}-01."), &None),
        (format!("cc-{TRACE}-{SPAN}-011"), &None),
        (format!("00-{TRACE}-{SPAN}-01-"), &None),
        (format!("00-{TRACE}-{SPAN}-01-more"), &None),
        (format!("ff-{TRACE}-{SPAN}-01"), &None),
        (format!("0-{TRACE}-{SPAN}-001"), &None),
        (format!("00-{TRACE}-{SPAN}-1"), &None),
        (format!("00-{TRACE}-{SPAN}-0g"), &None),
        (format!("00-{TRACE}-{SPAN}-0A"), &None),
        (format!("00-{}-{SPAN}-01", TRACE.to_uppercase()), &None),
        (format!("00-{}-{SPAN}-01", "0".repeat(32)), &None),
        (format!("00-{TRACE}-{}-01", "0".repeat(16)), &None),
        (format!("00-{TRACE}_{SPAN}-01"), &None),
        (format!("00-{}-{TRACE}-01", SPAN), &None),
        (format!(" 00-{TRACE}-{SPAN}-01"), &None),
        (format!("00-{}é-{SPAN}-01", &TRACE[2..]), &None),
        (String::new(), &None),
    ] {
        assert_eq!(&read(&[(TRACEPARENT, &text)]), expected, "{text:?}");
    }
    let one = format!("00-{TRACE}-{SPAN}-01");
    assert_eq!(read(&[(TRACEPARENT, &one), (TRACEPARENT, &one)]), None, "two of them are none");
}

#[test]
fn a_trace_goes_on_in_a_new_span_and_its_state_is_passed_on() {
    let trace = begun(&[
        (TRACEPARENT, &format!("00-{TRACE}-{SPAN}-03")),
        (TRACESTATE, "a=1 , b@c=2"),
        (TRACESTATE, ",d=a b"),
    ]);
    assert_eq!((trace.span, trace.is_sampled), (SpanId::random(1), true));
    let sent = sent(&trace);
    assert_eq!(sent[TRACEPARENT], format!("00-{TRACE}-00000000000000ff-03"));
    assert_eq!(sent[TRACESTATE], "a=1,b@c=2,d=a b");
    assert!(!sent.contains_key(B3) && !sent.contains_key(B3_TRACE), "nobody has asked in B3: {sent:?}");
}

#[test]
fn a_state_is_bounded_and_goes_with_its_parent() {
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let state = |state: &str| begun(&[(TRACEPARENT, &parent), (TRACESTATE, state)]).state;
    let many = |count: usize| (0..count).map(|at| format!("k{at}=v")).collect::<Vec<_>>().join(",");
    assert_eq!(state(&many(32)).as_ref(), Some(&many(32)));
    assert_eq!(state(&many(33)), None);
    for bad in ["a", "A=1", "a=", "=1", "a=b=c", "a=1,é=2", "_a=1", "a b=1", "a=\u{7f}"] {
        assert_eq!(state(bad), None, "{bad:?}");
    }
    assert_eq!(state(&format!("{}=1", "k".repeat(257))), None);
    assert_eq!(state(&format!("k={}", "v".repeat(257))), None);
    assert_eq!(state(" , "), None);
    // Long members go first, then those at the end.
    let long = format!("long={}", "v".repeat(250));
    let short: Vec<String> = (0..31).map(|at| format!("k{at}={}", "v".repeat(60))).collect();
    let shortened = state(&format!("{long},{}", short.join(","))).unwrap();
    assert_eq!(shortened, short.join(","));
    let medium: Vec<String> = (0..32).map(|at| format!("k{at}={}", "v".repeat(100))).collect();
    let shortened = state(&medium.join(",")).unwrap();
    assert!((1900..=2048).contains(&shortened.len()) && medium.join(",").starts_with(&shortened));
    // Without its parent it is nobody's, be B3 there or not.
    assert_eq!(begun(&[(TRACEPARENT, "00-x"), (TRACESTATE, "a=1")]).state, None);
    let b3 = format!("{TRACE}-{SPAN}-1");
    let of_b3 = begun(&[(TRACESTATE, "a=1"), (B3, &b3)]);
    assert_eq!((of_b3.state.as_deref(), sent(&of_b3)[TRACESTATE].as_str()), (None, ""));
}

#[test]
fn b3_is_read_from_one_header() {
    let is = |sampled| Some((TRACE.to_owned(), SPAN.to_owned(), sampled));
    for (text, expected) in [
        (format!("{TRACE}-{SPAN}-1"), is(true)),
        (format!("{TRACE}-{SPAN}-d"), is(true)),
        (format!("{TRACE}-{SPAN}-0"), is(false)),
        (format!("{TRACE}-{SPAN}"), is(false)),
        (format!("{TRACE}-{SPAN}-1-{SPAN}"), is(true)),
        (format!("{TRACE}-{SPAN}-1-{SPAN}-"), None),
        (format!("{TRACE}-{SPAN}-1-x"), None),
        (format!("{TRACE}-{SPAN}-2"), None),
        (format!("{TRACE}-{SPAN}-"), None),
        (format!("{TRACE}-{}", "0".repeat(16)), None),
        (format!("{}-{SPAN}", "0".repeat(32)), None),
        (TRACE.to_owned(), None),
        (String::new(), None),
    ] {
        assert_eq!(read(&[(B3, &text)]), expected, "{text:?}");
    }
    let short = begun(&[(B3, &format!("{SHORT}-{SPAN}-1"))]);
    assert_eq!(short.id.to_string(), format!("{}{SHORT}", "0".repeat(16)));
    let sent = sent(&short);
    assert_eq!(sent[B3], format!("{SHORT}-00000000000000ff-1-0000000000000001"));
    assert_eq!(sent[TRACEPARENT], format!("00-{}{SHORT}-00000000000000ff-01", "0".repeat(16)));
}

#[test]
fn b3_is_read_from_several_headers_and_said_in_the_same_words() {
    let ids = [(B3_TRACE, TRACE), (B3_SPAN, SPAN)];
    let with = |more: &[(&'static str, &'static str)]| begun(&[&ids, more].concat());
    for (sampled, expected) in [("1", true), ("true", true), ("0", false), ("false", false), ("x", false)] {
        assert_eq!(with(&[(B3_SAMPLED, sampled)]).is_sampled, expected, "{sampled}");
    }
    let trace = with(&[(B3_SAMPLED, "1"), (B3_PARENT, SPAN)]);
    let headers = sent(&trace);
    for (name, value) in [
        (B3_TRACE, TRACE),
        (B3_SPAN, "00000000000000ff"),
        (B3_PARENT, "0000000000000001"),
        (B3_SAMPLED, "1"),
        (B3_FLAGS, ""),
    ] {
        assert_eq!(headers[name], value, "{name}");
    }
    assert!(!headers.contains_key(B3));
    let debug = with(&[(B3_FLAGS, "1")]);
    let headers = sent(&debug);
    assert_eq!((debug.is_sampled, &*headers[B3_FLAGS], &*headers[B3_SAMPLED]), (true, "1", ""));
}

#[test]
fn the_one_outweighs_the_several_and_w3c_outweighs_both() {
    let other = "11111111111111111111111111111111";
    let one = format!("{TRACE}-{SPAN}-0");
    let b3 = [(B3, &*one), (B3_TRACE, other), (B3_SPAN, SPAN), (B3_SAMPLED, "1")];
    assert_eq!(read(&b3), Some((TRACE.to_owned(), SPAN.to_owned(), false)));
    let bad = [&[(B3, "bad")], &b3[1..]].concat();
    assert_eq!(read(&bad), Some((other.to_owned(), SPAN.to_owned(), true)));
    let w3c = format!("00-22222222222222222222222222222222-{SPAN}-01");
    let all = begun(&[&[(TRACEPARENT, &*w3c)], &b3[..]].concat());
    let headers = sent(&all);
    let id = "22222222222222222222222222222222";
    assert_eq!((all.id.to_string().as_str(), all.is_sampled), (id, true));
    assert_eq!((&headers[B3_TRACE][..], &headers[B3_SAMPLED][..]), (id, "1"));
    assert!(headers[B3].starts_with(id));
}

#[test]
fn a_decision_without_a_trace_is_heeded() {
    let denied = begun_by(&[(B3, "0")], 100.0);
    assert_eq!((denied.parent, denied.is_sampled), (None, false));
    assert!(sent(&denied)[B3].ends_with("-0-0000000000000003"), "{:?}", sent(&denied));
    assert!(begun(&[(B3, "d")]).is_sampled && begun(&[(B3_SAMPLED, "1")]).is_sampled);
    assert!(!begun_by(&[(B3_SAMPLED, "0")], 100.0).is_sampled);
    assert!(begun_by(&[(B3_SAMPLED, "")], 100.0).is_sampled, "nothing is decided");
}

#[test]
fn who_brings_nothing_gets_a_new_trace_by_the_rate() {
    let new = begun_by(&[], 100.0);
    assert_eq!(new.id.to_string(), "00000000000000010000000000000002");
    assert_eq!((new.span, new.parent, new.is_sampled), (SpanId::random(3), None, true));
    assert!(!begun_by(&[], 0.0).is_sampled);
    let tenth = Sampling::percent(10.0).unwrap();
    let step = u64::MAX / 1000;
    let sampled = (0..1000).filter(|at| tenth.has(TraceId::random(at * u128::from(step)))).count();
    assert!((99..=101).contains(&sampled), "{sampled}");
    let all = Sampling::percent(100.0).unwrap();
    assert!(all.has(TraceId::random(u128::MAX)) && all.has(TraceId::random(0)));
}

#[test]
fn a_rate_is_a_percentage() {
    for good in ["0", "0.01", "1", "100"] {
        assert_eq!(good.parse::<Sampling>().unwrap().to_string(), good);
    }
    for bad in ["", "-1", "100.1", "NaN", "inf", "1%", "a"] {
        assert!(bad.parse::<Sampling>().is_err(), "{bad}");
    }
}

#[test]
fn a_request_keeps_its_name_if_that_is_one() {
    let kept = |value: &[u8]| RequestId::of(value).map(|id| id.to_string());
    for good in ["x", "9b2c4a3e-6a0b-4c53-9a3d-0f2f8b3a7f10", "svc/7:a+b=c@d~e_f.g|h#i"] {
        assert_eq!(kept(good.as_bytes()).as_deref(), Some(good));
    }
    assert!(kept("x".repeat(128).as_bytes()).is_some());
    for bad in
        [&b""[..], b"a b", b"a,b", b"a;b", b"\"a\"", b"a\\b", b"a\xff", b"a\n", "é".as_bytes(), &[b'x'; 129]]
    {
        assert_eq!(kept(bad), None, "{bad:?}");
    }
}

#[test]
fn a_new_name_is_a_uuid_of_version_4() {
    assert_eq!(RequestId::random(0).as_str(), "00000000-0000-4000-8000-000000000000");
    assert_eq!(RequestId::random(u128::MAX).as_str(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    let some = RequestId::random(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
    assert_eq!(some.as_str(), "01234567-89ab-4def-8123-456789abcdef");
    assert_eq!(RequestId::of(some.as_str().as_bytes()), Some(some));
}

proptest! {
    /// Whatever is sent on reads as the same trace, sampled or not, in each of the ways.
    #[test]
    fn what_is_sent_is_read_alike(
        trace: u128, span: u64, sampled: bool, random: bool, one: bool, several: bool,
        state in proptest::option::of("[a-z][a-z0-9_@*/-]{0,20}=[!-+.-<>-~]{1,20}"),
    ) {
        let (trace, span) = (TraceId::random(trace), SpanId::random(span));
        let flags = u8::from(sampled) + 2 * u8::from(random);
        let parent = format!("00-{trace}-{span}-{flags:02x}");
        let mut headers = vec![(TRACEPARENT, parent.as_str())];
        if let Some(state) = &state {
            headers.push((TRACESTATE, state));
        }
        if one {
            headers.push((B3, "0"));
        }
        if several {
            headers.push((B3_SAMPLED, "1"));
        }
        let begun = begun(&headers);
        let next = sent(&begun);
        let again = |names: &[&str]| {
            let given: Vec<(&str, &str)> = next
                .iter()
                .filter(|(name, value)| names.contains(name) && !value.is_empty())
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            let arrived = Arrived::read(&Given(&given));
            (arrived.parent.map(|parent| (parent.trace, parent.span)), arrived.sampled)
        };
        let expected = (Some((trace, SpanId::random(0xff))), Some(sampled));
        prop_assert_eq!(again(&[TRACEPARENT]), expected);
        prop_assert_eq!(&next[TRACESTATE], &state.unwrap_or_default());
        if one {
            prop_assert_eq!(again(&[B3]), expected);
        }
        if several {
            prop_assert_eq!(again(&[B3_TRACE, B3_SPAN, B3_PARENT, B3_SAMPLED, B3_FLAGS]), expected);
        }
    }

    #[test]
    fn nothing_that_is_said_is_too_strange(values in proptest::collection::vec(("(?s).{0,80}", 0..8_usize), 0..10)) {
        let names = [TRACEPARENT, TRACESTATE, B3, B3_TRACE, B3_SPAN, B3_PARENT, B3_SAMPLED, B3_FLAGS];
        let headers: Vec<(&str, &str)> =
            values.iter().map(|(value, name)| (names[*name], value.as_str())).collect();
        for value in sent(&begun(&headers)).values() {
            prop_assert!(value.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{:?}", value);
        }
    }
}
