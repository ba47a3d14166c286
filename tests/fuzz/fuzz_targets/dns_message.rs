//! DNS messages of pods and of their resolvers: whatever is read is answered within bounds, and the answer reads.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;

#[path = "../../../ztunnel/src/dns/message.rs"]
#[allow(dead_code, reason = "shared with ztunnel, which uses all of it")]
mod message;

fuzz_target!(|bytes: &[u8]| {
    let _ = message::read_addresses(bytes);
    if let Some(failure) = message::failure(bytes) {
        assert!(failure.len() <= bytes.len() + 11 && message::answers(&failure, bytes));
    }
    let Some(question) = message::Question::read(bytes) else { return };
    let (v4, v6) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]));
    for addresses in [vec![], vec![v4], vec![v6; 100]] {
        for (limit, most) in [(None, 1232), (Some(65_535), 65_535)] {
            let answer = question.answer(Some("alias.example"), &addresses, limit).expect("an answer");
            assert!(answer.len() <= most && message::answers(&answer, bytes));
            assert!(message::read_addresses(&answer).is_some());
        }
    }
});
