//! Tokens that are accepted, and all the ways in which one is not.

use bed::token::{SigningKey, message, set, symmetric};
use jwt::{LONGEST, Refused, Remembered, keys, verify};
use mesh::{
    PolicyKey,
    request::Token,
    token::{Authentication, ClaimHeader, Keys, Place, TokenRule},
};
use serde_json::{Value, json};

const NOW: u64 = 1_800_000_000;
const ISSUER: &str = "https://issuer.example";

fn bearer() -> Place {
    Place::Header { name: "authorization".into(), prefix: "Bearer ".into() }
}

fn rule(issuer: &str, keys: &str) -> TokenRule {
    let policy = PolicyKey { namespace: "shop".into(), name: "p".into() };
    TokenRule {
        keys: Keys { source: "".into(), known: Some(keys::read(keys.as_bytes()).unwrap().keys) },
        from: vec![bearer()],
        claims_to: vec![ClaimHeader { header: "x-user".into(), claim: "sub".into() }],
        ..TokenRule::of(issuer, policy)
    }
}

fn by(rules: &[TokenRule]) -> Authentication {
    Authentication::new(rules.to_vec())
}

fn claims() -> Value {
    json!({"iss": ISSUER, "sub": "ann", "aud": ["shop"], "exp": NOW + 600, "nbf": NOW - 600})
}

/// The claims with others in their place.
fn with(changes: Value) -> Value {
    let mut claims = claims();
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

fn outcome(token: &str, by: &Authentication) -> Result<String, Refused> {
    let verified = verify(token, &bearer(), by, NOW)?;
    Ok(verified.principal().unwrap_or("nobody").to_owned())
}

fn ann() -> Result<String, Refused> {
    Ok(format!("{ISSUER}/ann"))
}

#[test]
fn each_algorithm_is_verified_with_its_kind_of_key() {
    for key in [SigningKey::p256("a"), SigningKey::p384("a"), SigningKey::ed25519("a"), SigningKey::rsa("a")]
    {
        let by = by(&[rule(ISSUER, &set(&[&key]))]);
        assert_eq!(outcome(&key.token(&claims()), &by), ann());
    }
    let rsa = SigningKey::rsa("a");
    let by = by(&[rule(ISSUER, &set(&[&rsa]))]);
    assert_eq!(outcome(&rsa.signed(&json!({"alg": "PS384"}), &claims()), &by), ann());
}

/// Of RFC 7515 (A.2, A.3) and RFC 8037 (A.4), whose payload is no object of claims.
#[test]
fn what_others_have_signed_is_verified() {
    const PAYLOAD: &str =
        "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let rsa = r#"{"keys":[{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}]}"#;
    let p256 = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;
    let long_ago = 1_300_819_000;
    for (set, head, signature) in [
        (
            rsa,
            "eyJhbGciOiJSUzI1NiJ9",
            "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
        ),
        (
            p256,
            "eyJhbGciOiJFUzI1NiJ9",
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        ),
    ] {
        let by = by(&[rule("joe", set)]);
        let token = format!("{head}.{PAYLOAD}.{signature}");
        let verified = verify(&token, &bearer(), &by, long_ago).unwrap();
        assert_eq!(verified.header_of("http://example.com/is_root").as_deref(), Some("true"));
        assert_eq!(verified.payload(), PAYLOAD);
        assert_eq!(verify(&token, &bearer(), &by, NOW), Err(Refused::Expired));
        let forged = token.replace("eyJpc3MiOiJqb2UiLA0K", "eyJpc3MiOiJqb2UiLA0L");
        assert!(verify(&forged, &bearer(), &by, long_ago).is_err());
    }
}

#[test]
fn a_principal_that_reads_like_one_of_a_longer_issuers_is_nobodys() {
    let (short, long) = (SigningKey::p256("short"), SigningKey::p256("long"));
    let of = |issuer: &str, key: &SigningKey| rule(issuer, &set(&[key]));
    let alone = by(&[of("https://a", &short)]);
    let both = by(&[of("https://a", &short), of("https://a/b", &long), of("https://a/", &long)]);
    let token = |issuer: &str, subject: &str| {
        let key = if issuer == "https://a" { &short } else { &long };
        key.token(&with(json!({"iss": issuer, "sub": subject})))
    };
    for (issuer, subject, told) in [
        ("https://a", "ann", Ok("https://a/ann".to_owned())),
        ("https://a", "bob/c", Ok("https://a/bob/c".to_owned())),
        ("https://a", "b", Ok("https://a/b".to_owned())),
        ("https://a", "b/c", Err(Refused::Subject)),
        ("https://a", "/c", Err(Refused::Subject)),
        ("https://a/b", "c", Ok("https://a/b/c".to_owned())),
        ("https://a/", "c", Ok("https://a//c".to_owned())),
    ] {
        assert_eq!(outcome(&token(issuer, subject), &both), told, "{issuer} {subject}");
    }
    assert_eq!(
        outcome(&token("https://a", "b/c"), &alone),
        Ok("https://a/b/c".to_owned()),
        "no other is there"
    );
    // An issuer beyond a service's rules: it has no key, and looks elsewhere.
    let elsewhere = vec![Place::Parameter("elsewhere".into())];
    let beyond = TokenRule { from: elsewhere, ..of("https://a/b", &long) };
    let beyond = TokenRule { keys: Keys { source: "".into(), known: Some([].into()) }, ..beyond };
    let beyond = by(&[of("https://a", &short), beyond]);
    assert_eq!(outcome(&token("https://a", "b/c"), &beyond), Err(Refused::Subject));
    assert_eq!(outcome(&token("https://a", "ann"), &beyond), Ok("https://a/ann".to_owned()));
}

#[test]
fn a_token_is_of_its_time_for_somebody_and_from_somebody() {
    let key = SigningKey::p256("a");
    let any = by(&[rule(ISSUER, &set(&[&key]))]);
    let ours =
        by(&[TokenRule { audiences: vec!["web".into(), "shop".into()], ..rule(ISSUER, &set(&[&key])) }]);
    for (by, changes, wanted) in [
        (&any, json!({}), ann()),
        // Clocks are a minute apart.
        (&any, json!({"exp": NOW - 60}), ann()),
        (&any, json!({"exp": NOW - 61}), Err(Refused::Expired)),
        (&any, json!({"exp": NOW - 62, "nbf": null}), Err(Refused::Expired)),
        (&any, json!({"exp": 0}), Err(Refused::Expired)),
        (&any, json!({"exp": null}), ann()),
        (&any, json!({"exp": NOW as f64 + 0.5}), ann()),
        (&any, json!({"exp": 1e300}), ann()),
        (&any, json!({"exp": "tomorrow"}), Err(Refused::Malformed)),
        (&any, json!({"exp": -1}), Err(Refused::Malformed)),
        (&any, json!({"nbf": NOW + 60}), ann()),
        (&any, json!({"nbf": NOW + 61}), Err(Refused::NotYet)),
        (&any, json!({"nbf": true}), Err(Refused::Malformed)),
        (&any, json!({"iss": "https://other.example"}), Err(Refused::Issuer)),
        (&any, json!({"iss": "HTTPS://issuer.example"}), Err(Refused::Issuer)),
        (&any, json!({"iss": [ISSUER]}), Err(Refused::Malformed)),
        (&any, json!({"iss": null}), Err(Refused::Issuer)),
        (&any, json!({"sub": null}), Ok("nobody".to_owned())),
        (&any, json!({"sub": ""}), Ok("nobody".to_owned())),
        (&any, json!({"sub": 7}), Err(Refused::Malformed)),
        (&any, json!({"aud": "anybody"}), ann()),
        (&ours, json!({"aud": "shop"}), ann()),
        (&ours, json!({"aud": ["bank", "web"]}), ann()),
        (&ours, json!({"aud": "bank"}), Err(Refused::Audience)),
        (&ours, json!({"aud": "shop "}), Err(Refused::Audience)),
        (&ours, json!({"aud": []}), Err(Refused::Audience)),
        (&ours, json!({"aud": null}), Err(Refused::Audience)),
        (&ours, json!({"aud": {"shop": 1}}), Err(Refused::Malformed)),
    ] {
        assert_eq!(outcome(&key.token(&with(changes.clone())), by), wanted, "{changes}");
    }
}

#[test]
fn the_algorithm_is_not_the_tokens_to_choose() {
    let (rsa, p256, edwards) = (SigningKey::rsa("r"), SigningKey::p256("e"), SigningKey::ed25519("d"));
    let text = set(&[&rsa, &p256, &edwards]);
    let by = by(&[rule(ISSUER, &text)]);
    let claims = claims();
    // Without a signature, in each spelling.
    for name in ["none", "None", "NONE", "nOnE", ""] {
        let unsigned = message(&json!({"alg": name}), &claims);
        assert_eq!(outcome(&format!("{unsigned}."), &by), Err(Refused::Malformed), "{name}");
        assert_eq!(outcome(&format!("{unsigned}.AAAA"), &by), Err(Refused::Algorithm), "{name}");
    }
    // The public key as a secret, in the forms in which it is at hand.
    for secret in [rsa.public().to_string().into_bytes(), text.clone().into_bytes(), b"secret".to_vec()] {
        assert_eq!(outcome(&symmetric(&secret, &claims), &by), Err(Refused::Algorithm));
    }
    // A key of another kind, or one for another algorithm.
    for (key, algorithm, wanted) in [
        (&rsa, "ES256", Refused::Signature),
        (&p256, "RS256", Refused::Signature),
        (&p256, "ES384", Refused::Key),
        (&edwards, "ES256", Refused::Signature),
        (&rsa, "RS384", Refused::Signature),
        (&rsa, "RS1", Refused::Algorithm),
        (&rsa, "ES512", Refused::Algorithm),
    ] {
        let token = key.signed(&json!({ "alg": algorithm }), &claims);
        assert_eq!(outcome(&token, &by), Err(wanted), "{algorithm}");
    }
    let mut bound = rsa.public();
    bound["alg"] = "PS256".into();
    let bound = Authentication::new(vec![rule(ISSUER, &json!({ "keys": [bound] }).to_string())]);
    assert_eq!(outcome(&rsa.token(&claims), &bound), Err(Refused::Key), "it is for PS256");
}

#[test]
fn the_key_is_never_the_tokens_to_bring() {
    let (ours, theirs) = (SigningKey::p256("a"), SigningKey::p256("a"));
    let by = by(&[rule(ISSUER, &set(&[&ours]))]);
    for header in [
        json!({"alg": "ES256", "jwk": theirs.public()}),
        json!({"alg": "ES256", "kid": "a", "jku": "https://evil.example/keys"}),
        json!({"alg": "ES256", "x5u": "https://evil.example/chain"}),
    ] {
        assert_eq!(outcome(&theirs.signed(&header, &claims()), &by), Err(Refused::Signature), "{header}");
    }
    for header in [
        json!({"alg": "ES256", "crit": ["b64"], "b64": false}),
        json!({"alg": "ES256", "crit": []}),
        json!({"alg": ["ES256"]}),
        json!({"alg": null}),
        json!({"kid": "a"}),
        json!([]),
    ] {
        assert_eq!(outcome(&ours.signed(&header, &claims()), &by), Err(Refused::Malformed), "{header}");
    }
}

#[test]
fn keys_are_chosen_by_name_and_those_without_are_tried() {
    let (old, new, unnamed) = (SigningKey::p256("old"), SigningKey::p256("new"), SigningKey::p256(""));
    let token = |key: &SigningKey, id: Value| key.signed(&json!({"alg": "ES256", "kid": id}), &claims());
    let named = by(&[rule(ISSUER, &set(&[&old, &new]))]);
    assert_eq!(outcome(&old.token(&claims()), &named), ann());
    assert_eq!(outcome(&new.token(&claims()), &named), ann());
    assert_eq!(outcome(&token(&new, json!("old")), &named), Err(Refused::Signature));
    assert_eq!(outcome(&token(&new, json!("newer")), &named), Err(Refused::Key));
    assert_eq!(outcome(&token(&new, Value::Null), &named), ann(), "all are tried");
    assert_eq!(outcome(&unnamed.token(&claims()), &named), Err(Refused::Signature));
    let with_unnamed = by(&[rule(ISSUER, &set(&[&old, &unnamed]))]);
    assert_eq!(outcome(&token(&unnamed, json!("whatever")), &with_unnamed), ann());
    // After the rotation.
    let rotated = by(&[rule(ISSUER, &set(&[&new]))]);
    assert_eq!(outcome(&old.token(&claims()), &rotated), Err(Refused::Key));
    assert_eq!(outcome(&new.token(&claims()), &rotated), ann());
    let none = by(&[rule(ISSUER, r#"{"keys": []}"#)]);
    assert_eq!(outcome(&new.token(&claims()), &none), Err(Refused::Key));
    let unknown =
        TokenRule { keys: Keys { source: "https://keys".into(), known: None }, ..rule(ISSUER, &set(&[])) };
    assert_eq!(outcome(&new.token(&claims()), &by(&[unknown])), Err(Refused::KeysUnknown));
}

#[test]
fn of_several_issuers_each_has_its_own_keys() {
    let (one, two) = (SigningKey::p256("a"), SigningKey::p256("a"));
    let rules = [rule("one", &set(&[&one])), rule("two", &set(&[&two]))];
    let by = by(&rules);
    let claims = |issuer: &str| with(json!({ "iss": issuer }));
    assert_eq!(outcome(&one.token(&claims("one")), &by), Ok("one/ann".to_owned()));
    assert_eq!(outcome(&two.token(&claims("two")), &by), Ok("two/ann".to_owned()));
    assert_eq!(outcome(&one.token(&claims("two")), &by), Err(Refused::Signature));
    assert_eq!(outcome(&two.token(&claims("one")), &by), Err(Refused::Signature));
    // A rule only looks at its own places.
    let cookie = Place::Cookie("t".into());
    let elsewhere = Authentication::new(vec![TokenRule { from: vec![cookie.clone()], ..rules[0].clone() }]);
    assert_eq!(outcome(&one.token(&claims("one")), &elsewhere), Err(Refused::Issuer));
    assert!(verify(&one.token(&claims("one")), &cookie, &elsewhere, NOW).is_ok());
    // Two rules of one issuer: one of them accepts it.
    let strict = TokenRule { audiences: vec!["bank".into()], ..rules[0].clone() };
    let both = Authentication::new(vec![strict, rules[0].clone()]);
    let verified = verify(&one.token(&claims("one")), &bearer(), &both, NOW).unwrap();
    assert_eq!(verified.rule(), 1);
}

#[test]
fn what_is_no_token_is_told_apart_without_a_panic() {
    let key = SigningKey::p256("a");
    let by = by(&[rule(ISSUER, &set(&[&key]))]);
    let good = key.token(&claims());
    let (message, signature) = good.rsplit_once('.').unwrap();
    for text in [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "opaque",
        message,
        &format!("{good}.x"),
        &format!("{good}="),
        &format!(" {good}"),
        &format!("{message}."),
        &format!(".{message}.{signature}"),
        &good.replace('.', ".."),
        &key.signed(&json!({"alg": "ES256"}), &json!([1])),
        &key.signed(&json!({"alg": "ES256"}), &json!("text")),
        &"\u{fffd}.ä.x".repeat(3),
    ] {
        let refused = outcome(text, &by);
        assert!(matches!(refused, Err(Refused::Malformed | Refused::Signature)), "{text}: {refused:?}");
    }
    // Another signature of the same length, and one that is cut.
    let other = SigningKey::p256("a").token(&claims());
    let (_, theirs) = other.rsplit_once('.').unwrap();
    assert_eq!(outcome(&format!("{message}.{theirs}"), &by), Err(Refused::Signature));
    assert_eq!(outcome(&good[..good.len() - 4], &by), Err(Refused::Signature));
    let long = key.token(&with(json!({"pad": "x".repeat(LONGEST)})));
    assert_eq!(outcome(&long, &by), Err(Refused::TooLong));
}

#[test]
fn claims_are_read_as_policies_and_headers_need_them() {
    let key = SigningKey::p256("a");
    let spaced = TokenRule { spaced: vec!["roles".into()], ..rule(ISSUER, &set(&[&key])) };
    let token = key.token(&with(json!({
        "azp": "app", "scope": "read  write", "roles": "a b", "name": "Ann Lee", "level": 7, "admin": true,
        "groups": ["x", "y", 7], "org": {"team": {"name": "red", "ids": ["1", "2"]}},
        "https://a.example/group": "dotted", "empty": null,
    })));
    let verified = verify(&token, &bearer(), &by(&[spaced]), NOW).unwrap();
    let claim = |path: &[&str]| {
        let path: Vec<_> = path.iter().map(|name| (*name).into()).collect();
        verified.claim(&path)
    };
    for (path, wanted) in [
        (&["sub"][..], &["ann"][..]),
        (&["aud"], &["shop"]),
        (&["azp"], &["app"]),
        (&["scope"], &["read", "write"]),
        (&["roles"], &["a", "b"]),
        (&["name"], &["Ann Lee"]),
        (&["groups"], &["x", "y"]),
        (&["org", "team", "name"], &["red"]),
        (&["org", "team", "ids"], &["1", "2"]),
        (&["https://a.example/group"], &["dotted"]),
        (&["org"], &[]),
        (&["org", "nobody", "name"], &[]),
        (&["name", "first"], &[]),
        (&["level"], &[]),
        (&["admin"], &[]),
        (&[], &[]),
    ] {
        assert_eq!(claim(path), wanted, "{path:?}");
    }
    for (name, wanted) in [
        ("sub", Some("ann")),
        ("level", Some("7")),
        ("admin", Some("true")),
        ("org.team.name", Some("red")),
        ("https://a.example/group", Some("dotted")),
        ("org.team.ids", Some("WyIxIiwiMiJd")),
        ("empty", None),
        ("nothing", None),
        ("org.nothing", None),
        ("", None),
    ] {
        assert_eq!(verified.header_of(name).as_deref(), wanted, "{name}");
    }
}

#[test]
fn what_is_remembered_is_good_as_long_as_the_token_and_its_rules() {
    let (key, other) = (SigningKey::p256("a"), SigningKey::p256("a"));
    let by = by(&[rule(ISSUER, &set(&[&key]))]);
    let token = key.token(&claims());
    let mut remembered = Remembered::default();
    let first = remembered.verify(&token, &bearer(), &by, NOW).unwrap();
    let again = remembered.verify(&token, &bearer(), &by, NOW).unwrap();
    assert!(std::rc::Rc::ptr_eq(&first, &again) && remembered.len() == 1);
    let mut verify = |token: &str, place: &Place, by: &Authentication, now| {
        remembered.verify(token, place, by, now).map(|_| ())
    };
    assert_eq!(verify(&token, &bearer(), &by, NOW + 661), Err(Refused::Expired));
    assert_eq!(verify(&token, &bearer(), &by, NOW), Ok(()));
    assert_eq!(
        verify(&token, &Place::Cookie("t".into()), &by, NOW),
        Err(Refused::Issuer),
        "of its place alone"
    );
    let rotated = Authentication::new(vec![rule(ISSUER, &set(&[&other]))]);
    assert_eq!(verify(&token, &bearer(), &rotated, NOW), Err(Refused::Signature));
    let none = Authentication::new(vec![rule("other", &set(&[&key]))]);
    assert_eq!(verify(&token, &bearer(), &none, NOW), Err(Refused::Issuer));
    let mut forged = token.clone();
    forged.replace_range(token.len() - 2.., if token.ends_with("AA") { "BB" } else { "AA" });
    assert!(verify(&forged, &bearer(), &by, NOW).is_err());
}

#[test]
fn what_is_remembered_has_a_bound() {
    let key = SigningKey::ed25519("a");
    let by = by(&[rule(ISSUER, &set(&[&key]))]);
    let mut remembered = Remembered::default();
    let often = key.token(&claims());
    let first = remembered.verify(&often, &bearer(), &by, NOW).unwrap();
    for number in 0..600 {
        let token = key.token(&with(json!({"sub": number.to_string(), "pad": "x".repeat(8000)})));
        remembered.verify(&token, &bearer(), &by, NOW).unwrap();
        remembered.verify(&often, &bearer(), &by, NOW).unwrap();
    }
    assert!(remembered.len() < 250, "{}", remembered.len());
    let still = remembered.verify(&often, &bearer(), &by, NOW).unwrap();
    assert!(std::rc::Rc::ptr_eq(&first, &still), "what is asked for stays");
}
