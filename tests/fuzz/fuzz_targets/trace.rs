//! The headers of traces and the identifier of a request: what is sent on can be written, is bounded, and reads as the
//! same trace.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh::trace::{
    Arrived, B3, B3_FLAGS, B3_PARENT, B3_SAMPLED, B3_SPAN, B3_TRACE, Headers, RequestId, Sampling, SpanId,
    TRACEPARENT, TRACESTATE, Trace,
};

const NAMES: [&str; 8] = [TRACEPARENT, TRACESTATE, B3, B3_TRACE, B3_SPAN, B3_PARENT, B3_SAMPLED, B3_FLAGS];

struct Given<T>(Vec<(&'static str, T)>);

impl<T: AsRef<[u8]>> Headers for Given<T> {
    fn each(&self, name: &str, told: &mut dyn FnMut(&[u8])) {
        self.0.iter().filter(|(of, _)| *of == name).for_each(|(_, value)| told(value.as_ref()));
    }
}

fn begun<T: AsRef<[u8]>>(headers: &Given<T>) -> Trace {
    let Some(sampling) = Sampling::percent(50.0) else { panic!("a half is a percentage") };
    Trace::begin(Arrived::read(headers), sampling, || 7)
}

fuzz_target!(|input: Vec<(u8, &[u8])>| {
    for (_, value) in &input {
        if let Some(id) = RequestId::of(value) {
            assert!(id.as_str().len() <= 128 && id.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
        }
    }
    let of_name = |name: u8| NAMES[usize::from(name) % NAMES.len()];
    let trace = begun(&Given(input.into_iter().map(|(name, value)| (of_name(name), value)).collect()));
    let mut sent = Vec::new();
    trace.tell(SpanId::random(9), |name, value| sent.extend(value.map(|value| (name, value))));
    for (name, value) in &sent {
        assert!(
            value.len() <= 2048 && value.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
            "{name}: {value:?}"
        );
    }
    for only in [[TRACEPARENT].as_slice(), &[B3], &[B3_TRACE, B3_SPAN, B3_SAMPLED, B3_FLAGS]] {
        let told: Vec<_> = sent.iter().filter(|(name, _)| only.contains(name)).cloned().collect();
        if told.is_empty() {
            continue;
        }
        let again = begun(&Given(told));
        // B3 may have a number of 64 bits, which is all that there was.
        assert_eq!((again.id, again.is_sampled), (trace.id, trace.is_sampled), "{only:?}");
        assert_eq!(again.parent, Some(SpanId::random(9)), "{only:?}");
    }
});
