//! The `forwarded` header: what is read prints as something that reads the same.
#![no_main]

use hbone::Forwarded;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(forwarded) = text.parse::<Forwarded>() else { return };
    assert_eq!(forwarded.to_string().parse::<Forwarded>().as_ref(), Ok(&forwarded));
});
