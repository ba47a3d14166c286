//! A caller's assertion, as anybody may send one: reading it never panics, and what is read is bounded.
#![no_main]

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use identity::assertion::{LONGEST, claims};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // As text, and as the bytes of a text that decodes.
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = claims(text);
    }
    let text = BASE64.encode(bytes);
    if let Ok((claims, _)) = claims(&text) {
        assert!(text.len() <= LONGEST);
        assert_eq!(claims.caller.to_string().parse().as_ref(), Ok(&claims.caller));
        assert_eq!(claims.waypoint.to_string().parse().as_ref(), Ok(&claims.waypoint));
    }
});
