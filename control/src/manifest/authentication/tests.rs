//! RequestAuthentications: what is taken, and with which words the rest is refused.

use super::*;
use crate::manifest::{Object, Problem, parse, parse_json};

/// A key set (RFC 7515, A.3).
const SET: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"a","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;

fn read(spec: &str) -> Result<RequestAuthentication, Box<Problem>> {
    let text = format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: p, namespace: shop}}\nspec:\n  \
         targetRefs: [{{kind: Service, name: web}}]\n{spec}"
    );
    let mut parsed = parse(std::path::Path::new("shop.yaml"), &text);
    match parsed.objects.pop() {
        Some((_, Object::RequestAuthentication(found))) => Ok(*found),
        None => Err(Box::new(parsed.problems.remove(0))),
        other => panic!("none: {other:?}"),
    }
}

/// One rule, of which the issuer is said.
fn one(fields: &str) -> Result<JwtRule, Box<Problem>> {
    let read = read(&format!("  jwtRules: [{{issuer: 'https://issuer.example/', {fields}}}]\n"))?;
    Ok(read.rules.into_iter().next().expect("a rule"))
}

#[test]
fn a_rule_says_who_and_where_and_what_becomes_of_it() {
    let rule = one(&format!(
        "jwks: '{SET}', audiences: [shop, web], fromHeaders: [{{name: X-Token, prefix: 'Token '}}, {{name: x-other}}], \
         fromParams: [token], fromCookies: [session], outputPayloadToHeader: X-Payload, forwardOriginalToken: true, \
         outputClaimToHeaders: [{{header: X-User, claim: sub}}, {{header: x-team, claim: realm.team}}], \
         spaceDelimitedClaims: [roles], timeout: 3s"
    ))
    .expect("valid");
    assert_eq!(&*rule.issuer, "https://issuer.example/");
    assert_eq!(rule.audiences, ["shop".into(), "web".into()]);
    let header = |name: &str, prefix: &str| Place::Header { name: name.into(), prefix: prefix.into() };
    let from = [
        header("x-token", "Token "),
        header("x-other", ""),
        Place::Parameter("token".into()),
        Place::Cookie("session".into()),
    ];
    assert_eq!(rule.from, from);
    assert_eq!((rule.payload_to.as_deref(), rule.forward), (Some("x-payload"), true));
    let made: Vec<(&str, &str)> = rule.claims_to.iter().map(|to| (&*to.header, &*to.claim)).collect();
    assert_eq!(made, [("x-user", "sub"), ("x-team", "realm.team")]);
    assert_eq!(rule.spaced, ["roles".into()]);
    assert!(matches!(rule.keys, KeysOf::Written(keys) if keys.len() == 1));
}

#[test]
fn what_is_not_said_is_as_istio_has_it() {
    let rule = one("jwksUri: 'https://issuer.example/keys'").expect("valid");
    let bearer = Place::Header { name: "authorization".into(), prefix: "Bearer ".into() };
    assert_eq!(rule.from, [bearer, Place::Parameter("access_token".into())]);
    assert!(!rule.forward && rule.audiences.is_empty());
    let from = KeySource::Set("https://issuer.example/keys".into());
    assert_eq!(rule.keys, KeysOf::Fetched { from, timeout: Duration::from_secs(5) });
    let KeysOf::Fetched { from, timeout } = one("timeout: 1500ms").expect("valid").keys else { panic!() };
    assert_eq!(from.to_string(), "https://issuer.example/.well-known/openid-configuration");
    assert_eq!(timeout, Duration::from_millis(1500));
    assert_eq!(read("").expect("no rule at all").rules, []);
}

#[test]
fn what_cannot_be_gone_by_is_refused_by_name() {
    for (fields, field, reason) in [
        ("jwks: '{}'".to_owned(), "jwks", "no list `keys`"),
        (r#"jwks: '{"keys": [{"kty": "oct", "k": "AAAA"}]}'"#.to_owned(), "jwks", "none of its keys"),
        (format!("jwks: '{SET}', jwksUri: 'https://a/b'"), "jwks", "not both"),
        ("jwksUri: 'ftp://a/b'".to_owned(), "jwksUri", "no address of http://"),
        ("jwksUri: '/keys'".to_owned(), "jwksUri", "no address of http://"),
        ("jwksUri: 'https://me:secret@a/b'".to_owned(), "jwksUri", "without a user"),
        (format!("jwks: '{SET}', fromHeaders: [{{name: 'a b'}}]"), "fromHeaders[0].name", "not the name"),
        (format!("jwks: '{SET}', fromParams: ['']"), "fromParams[0]", "missing"),
        (format!("jwks: '{SET}', outputPayloadToHeader: host"), "outputPayloadToHeader", "carried"),
        (
            format!("jwks: '{SET}', outputClaimToHeaders: [{{header: 'x:y', claim: a}}]"),
            "outputClaimToHeaders[0].header",
            "not the name",
        ),
        (
            format!("jwks: '{SET}', outputClaimToHeaders: [{{header: x, claim: ''}}]"),
            "outputClaimToHeaders[0].claim",
            "missing",
        ),
        (format!("jwks: '{SET}', audience: [a]"), "jwtRules[0]", "unknown field"),
        (format!("jwks: '{SET}', timeout: 2h"), "timeout", "no time from 1ms to 60s"),
        (format!("jwks: '{SET}', timeout: NaNs"), "timeout", "no time from 1ms to 60s"),
        (format!("jwks: '{SET}', audiences: [{}]", "a,".repeat(65)), "audiences", "more than 64"),
    ] {
        let told = one(&fields).expect_err(&fields).to_string();
        assert!(told.contains(field) && told.contains(reason), "{fields}: {told}");
    }
    for (spec, reason) in [
        ("  jwtRules: [{issuer: ''}]\n", "issuer: it is missing"),
        ("  jwtRules: [{issuer: me@example.com}]\n", "the issuer's own configuration"),
        ("  jwtRule: []\n", "unknown field"),
        ("  selector: {matchLabels: {a: b}}\n", "not for both"),
    ] {
        let told = read(spec).expect_err(spec).to_string();
        assert!(told.contains(reason), "{spec}: {told}");
    }
    let many = "  jwtRules:\n".to_owned() + &"  - {issuer: 'https://a'}\n".repeat(33);
    assert!(read(&many).expect_err("too many").to_string().contains("more than 32"));
}

#[test]
fn what_has_no_effect_is_told() {
    let set = r#"{"keys":[]}"#;
    let read = read(&format!("  jwtRules: [{{issuer: a, jwks: '{set}'}}]\n")).expect("valid");
    assert!(read.remarks[0].1.contains("every token of the issuer is refused"), "{:?}", read.remarks);
    for (selector, field) in
        [("null", "spec.targetRefs"), (r#"{"matchLabels": {"a": "b"}}"#, "spec.selector")]
    {
        let object = format!(
            r#"{{"apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication", "metadata": {{"name": "p"}},
                "spec": {{"selector": {selector}, "jwtRules": [{{"issuer": "https://a"}}]}}}}"#
        );
        let parsed = parse_json(&serde_json::from_str(&object).expect("JSON"));
        let Some((_, Object::RequestAuthentication(read))) = parsed.objects.first() else {
            panic!("{parsed:?}")
        };
        let [(at, reason)] = &read.remarks[..] else { panic!("{read:?}") };
        assert!(at == field && reason.contains("NOBODY"), "{at}: {reason}");
    }
}
