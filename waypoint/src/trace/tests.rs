//! What of a trace needs no collector.

use ::http::Request;

use super::*;

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut request = Request::builder();
    for (name, value) in pairs {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0.headers
}

#[test]
fn a_request_has_one_name_and_it_is_the_callers_if_that_is_one() {
    let named = |pairs: &[(&'static str, &str)]| {
        let mut headers = headers(pairs);
        let id = request_id(&mut headers).to_string();
        let sent: Vec<_> = headers.get_all(REQUEST_ID).iter().map(|value| value.to_str().unwrap()).collect();
        assert_eq!(sent, [id.as_str()], "what is sent is what is told");
        id
    };
    assert_eq!(named(&[(REQUEST_ID, "mine-1")]), "mine-1");
    for pairs in
        [&[][..], &[(REQUEST_ID, "")], &[(REQUEST_ID, "a b")], &[(REQUEST_ID, "a"), (REQUEST_ID, "b")]]
    {
        let id = named(pairs);
        assert!(id.len() == 36 && id.as_bytes()[14] == b'4', "{id}");
        assert_ne!(named(pairs), id, "each has its own");
    }
}

#[test]
fn what_is_passed_on_is_in_the_place_of_what_came() {
    let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    let mut headers = headers(&[("traceparent", text), ("tracestate", "bad"), ("b3", "0"), ("a", "1")]);
    let trace = Trace::begin(Arrived::read(&Read(&headers)), Sampling::percent(0.0).unwrap(), || 5);
    let traced = Traced { trace, recorded: None };
    traced.tell(&mut headers, SpanId::random(255));
    let value = |name: &str| headers.get(name).map(|value| value.to_str().unwrap());
    assert_eq!(value("traceparent"), Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00000000000000ff-00"));
    assert_eq!(value("b3"), Some("4bf92f3577b34da6a3ce929d0e0e4736-00000000000000ff-0-0000000000000005"));
    assert_eq!((value("tracestate"), value("a")), (None, Some("1")));
    assert!(traced.recorded.is_none());
}

#[test]
fn attributes_are_of_few_kinds() {
    let of = |method: &str| {
        let mut attributes = Attributes::default();
        attributes.method(method);
        let text = |pair: &KeyValue| match &pair.value.as_ref().unwrap().value {
            Some(Value::StringValue(text)) => (pair.key.clone(), text.clone()),
            other => panic!("{other:?}"),
        };
        attributes.0.iter().map(text).collect::<Vec<_>>()
    };
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(of("GET"), [pair("http.request.method", "GET")]);
    assert_eq!(
        of("BREW"),
        [pair("http.request.method", "_OTHER"), pair("http.request.method_original", "BREW")]
    );
}

#[test]
fn a_long_text_is_cut_between_characters() {
    assert_eq!(cut("abc"), "abc");
    let long = cut(&"é".repeat(300));
    assert_eq!((long.len(), long.chars().all(|c| c == 'é')), (512, true));
    assert_eq!(cut(&format!("x{}", "é".repeat(300))).len(), 511);
}
