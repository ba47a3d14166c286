//! The `:authority` of a CONNECT: what is read prints as something that reads the same.
#![no_main]

use hbone::Authority;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(authority) = text.parse::<Authority>() else { return };
    assert_eq!(authority.to_string().parse::<Authority>().as_ref(), Ok(&authority));
});
