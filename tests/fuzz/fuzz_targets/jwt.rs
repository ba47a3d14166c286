//! Tokens and key sets, as anybody may write them: no panic, and nothing but what the key has signed is accepted.
#![no_main]

use std::sync::LazyLock;

use jwt::{Refused, keys, verify};
use libfuzzer_sys::fuzz_target;
use mesh::{
    PolicyKey,
    request::Token,
    token::{Authentication, Keys, Place, TokenRule},
};

/// The key, and a token that it has signed (RFC 7515, A.3).
const SET: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;
const TOKEN: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
const NOW: u64 = 1_300_819_000;

fn by(set: &[u8]) -> Option<Authentication> {
    let keys = keys::read(set).ok()?.keys;
    Some(Authentication::new(vec![TokenRule {
        policy: PolicyKey { namespace: "shop".into(), name: "p".into() },
        issuer: "joe".into(),
        audiences: Vec::new(),
        keys: Keys { source: "".into(), known: Some(keys) },
        from: vec![PLACE.clone()],
        forward: false,
        payload_to: None,
        claims_to: Vec::new(),
        spaced: Vec::new(),
    }]))
}

static PLACE: LazyLock<Place> = LazyLock::new(|| Place::Parameter("t".into()));
static BY: LazyLock<Authentication> = LazyLock::new(|| by(SET.as_bytes()).expect("a set"));

fuzz_target!(|input: (&str, &[u8], u16)| {
    let (text, set, at) = input;
    if let Ok(verified) = verify(text, &PLACE, &BY, NOW) {
        assert_eq!(text, TOKEN);
        let _ = (verified.principal(), verified.claim(&["iss".into()]), verified.header_of("iss"));
    }
    // The good one with something else in it.
    let at = usize::from(at) % (TOKEN.len() + 1);
    let (front, back) = TOKEN.split_at(at);
    for changed in [format!("{front}{text}{back}"), format!("{front}{text}")] {
        let outcome = verify(&changed, &PLACE, &BY, NOW);
        assert!(outcome.is_err() || changed == TOKEN, "{changed}");
    }
    if let Some(by) = by(set) {
        let outcome = verify(TOKEN, &PLACE, &by, NOW);
        assert!(matches!(outcome, Ok(_) | Err(Refused::Key | Refused::Signature)), "{outcome:?}");
    }
});
