//! A SPIFFE ID: what is taken is written as it was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh::Identity;

fuzz_target!(|text: &str| {
    if let Ok(identity) = text.parse::<Identity>() {
        assert_eq!(identity.to_string(), text);
    }
});
