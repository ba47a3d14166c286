//! The `baggage` header: bounded, and what is read prints as something that reads the same.
#![no_main]

use hbone::Baggage;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(baggage) = Baggage::parse(text) else { return };
    let printed = baggage.to_string();
    assert!(printed.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "not a header's value: {printed:?}");
    let mut expected = baggage;
    if expected.workload_name.is_empty() {
        // A kind is printed as the key of a name.
        expected.workload_kind = mesh::WorkloadKind::default();
    }
    assert_eq!(Baggage::parse(&printed), Ok(expected));
});
