//! A node's token: no text but one that control made proves anything.
#![no_main]

use std::time::{Duration, UNIX_EPOCH};

use control::tokens::Tokens;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let tokens = Tokens::from_key(&[7; 32]).expect("a key of 32 bytes");
    let end = UNIX_EPOCH + Duration::from_secs(1000);
    assert!(tokens.verify(text, UNIX_EPOCH).is_err());
    // A text as a node's name, and as a change to a token.
    let made = tokens.make(text, end);
    match tokens.verify(&made, UNIX_EPOCH) {
        Ok(node) => assert_eq!(node, text),
        Err(_) => assert!(made.len() > 1024, "a token of ours is refused: {made}"),
    }
    let changed = tokens.make("node", end) + text;
    assert_eq!(tokens.verify(&changed, UNIX_EPOCH).is_ok(), text.is_empty());
});
