//! What a caller begins with, as anybody may say it: a verdict, which no piece that follows changes.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../../waypoint/src/detect/sniff.rs"]
mod sniff;

fuzz_target!(|input: (&[u8], &[u8])| {
    let (said, more) = input;
    let first = sniff::sniff(said);
    let whole = sniff::sniff(&[said, more].concat());
    assert!(first == sniff::Sniff::More || first == whole);
});
