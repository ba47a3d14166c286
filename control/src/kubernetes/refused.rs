//! What holds in the place of a policy that is refused.
//!
//! The last version that was accepted, as long as control remembers it. A control that starts anew does not: it knows by
//! the object's condition that there was one, and puts the strictest policy for the same workloads in its place, since a
//! restart must not let in whom that version kept out. A policy of which no version was ever accepted restricts nobody, and
//! says so: it may be for workloads that are called right now.

use serde_json::{Value, json};

use crate::manifest::{Kind, parse_json};

/// What holds instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Instead {
    /// The last version that was accepted.
    Last,
    /// [`strictest`].
    Strictest,
    Nothing,
}

impl Instead {
    /// As it is told behind the reason of the refusal.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Last => "; the last version that was accepted holds while this control runs",
            Self::Strictest => {
                "; the last version that was accepted was lost when control began anew: until this is mended, \
                 whatever it may forbid is forbidden"
            }
            Self::Nothing => "; NOTHING of it holds",
        }
    }

    /// Whether a version of the object was accepted once.
    pub(super) fn is_after_accepted(self) -> bool {
        self != Self::Nothing
    }
}

/// The strictest that a policy may have meant that cannot be read: an ALLOW that lets nobody in, a DENY for everybody,
/// mutual TLS that is STRICT, tokens that no key makes good; for those that it selects or targets, or for all of its scope if neither can be read.
///
/// `None` for what forbids nothing (AUDIT, a dry run).
pub(super) fn strictest(kind: Kind, object: &Value) -> Option<Value> {
    let spec = &object["spec"];
    let rest = match kind {
        Kind::AuthorizationPolicy => {
            let dry = object["metadata"]["annotations"]["istio.io/dry-run"] == "true";
            match spec["action"].as_str() {
                _ if dry => return None,
                Some("AUDIT") => return None,
                None | Some("ALLOW") => json!({"action": "ALLOW"}),
                Some(_) => json!({"action": "DENY", "rules": [{}]}),
            }
        }
        Kind::PeerAuthentication => json!({"mtls": {"mode": "STRICT"}}),
        Kind::RequestAuthentication => json!({"jwtRules": keyless(object)}),
        _ => return None,
    };
    let metadata = &object["metadata"];
    let mut strict = json!({
        "apiVersion": object["apiVersion"], "kind": object["kind"], "spec": rest,
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"],
            "creationTimestamp": metadata["creationTimestamp"]},
    });
    for field in ["selector", "targetRef", "targetRefs"] {
        if spec[field].is_null() {
            continue;
        }
        let mut narrower = strict.clone();
        narrower["spec"][field] = spec[field].clone();
        if parse_json(&narrower).problems.is_empty() {
            strict = narrower;
        }
    }
    Some(strict)
}

/// The rules of a RequestAuthentication, as far as each field can be read, without any key: tokens are refused wherever
/// they were looked for, and headers that were made of them are still nobody's to write.
fn keyless(object: &Value) -> Vec<Value> {
    const NONE: &str = r#"{"keys": []}"#;
    let nobody = json!({"issuer": "unreadable", "jwks": NONE});
    let can_be_read = |rule: &Value| {
        let alone = json!({
            "apiVersion": object["apiVersion"], "kind": object["kind"], "metadata": {"name": "alone"},
            "spec": {"jwtRules": [rule]},
        });
        parse_json(&alone).problems.is_empty()
    };
    let written = object["spec"]["jwtRules"].as_array().map_or(&[][..], Vec::as_slice);
    let mut rules = Vec::new();
    for rule in written.iter().take(32) {
        let mut kept = nobody.clone();
        for field in [
            "issuer",
            "fromHeaders",
            "fromParams",
            "fromCookies",
            "outputPayloadToHeader",
            "outputClaimToHeaders",
        ] {
            if rule[field].is_null() {
                continue;
            }
            let mut more = kept.clone();
            more[field] = rule[field].clone();
            if can_be_read(&more) {
                kept = more;
            }
        }
        rules.push(kept);
    }
    // And at the usual places, whatever was written.
    rules.push(nobody);
    rules.truncate(32);
    rules
}

#[cfg(test)]
mod tests {
    use mesh::request::RequestAction;

    use super::*;
    use crate::manifest::{Judges, KeysOf, Object};

    fn read(kind: Kind, spec: Value) -> Option<Object> {
        let name = format!("{kind:?}");
        let object = json!({
            "apiVersion": "security.istio.io/v1", "kind": name, "metadata": {"name": "p", "namespace": "shop"},
            "spec": spec,
        });
        let mut parsed = parse_json(&strictest(kind, &object)?);
        assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
        parsed.objects.pop().map(|(_, object)| object)
    }

    fn authorization(spec: Value) -> Option<(bool, usize, bool)> {
        match read(Kind::AuthorizationPolicy, spec)? {
            Object::AuthorizationPolicy(policy) => Some(match &policy.judges {
                Judges::Connections { selector, action, rules } => {
                    (*action == mesh::Action::Deny, rules.len(), selector.is_some())
                }
                Judges::Requests { targets, action, rules } => {
                    assert_eq!(targets.len(), 1);
                    (*action == RequestAction::Deny, rules.len(), true)
                }
            }),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_cannot_be_read_forbids_all_that_it_may_forbid() {
        let selector = json!({"matchLabels": {"app": "web"}});
        let (allow, deny) = (Some((false, 0, true)), Some((true, 1, true)));
        assert_eq!(authorization(json!({"selector": selector, "rules": [{"form": []}]})), allow);
        assert_eq!(authorization(json!({"selector": selector, "action": "ALLOW", "rules": 7})), allow);
        assert_eq!(authorization(json!({"selector": selector, "action": "DENY", "rules": 7})), deny);
        assert_eq!(authorization(json!({"selector": selector, "action": "DENNY"})), deny);
        assert_eq!(
            authorization(json!({"selector": {"matchLabel": {}}})),
            Some((false, 0, false)),
            "its scope"
        );
        assert_eq!(authorization(Value::Null), Some((false, 0, false)), "a misspelt spec");
        assert_eq!(authorization(json!({"action": "AUDIT", "rules": 7})), None);
        let web = json!([{"kind": "Service", "name": "web"}]);
        assert_eq!(authorization(json!({"targetRefs": web, "rules": 7})), allow);
        assert_eq!(authorization(json!({"targetRefs": web, "action": "DENY", "rules": 7})), deny);
        assert_eq!(
            authorization(json!({"targetRefs": [{}], "rules": 7})),
            Some((false, 0, false)),
            "its scope"
        );
        let Some(Object::PeerAuthentication(strict)) =
            read(Kind::PeerAuthentication, json!({"selector": selector, "mtsl": {}}))
        else {
            panic!("it is none")
        };
        assert!(strict.selector().is_some());
        assert_eq!(strict.spec.mtls.map(|mtls| mtls.mode), Some(crate::manifest::MtlsMode::Strict));
        assert_eq!(read(Kind::ServiceEntry, Value::Null), None);
    }

    #[test]
    fn of_rules_for_tokens_all_stays_but_the_keys() {
        let of = |spec: Value| match read(Kind::RequestAuthentication, spec) {
            Some(Object::RequestAuthentication(read)) => *read,
            other => panic!("{other:?}"),
        };
        let web = json!([{"kind": "Service", "name": "web"}]);
        let rule = json!({
            "issuer": "https://a", "jwksUri": "https://a/keys", "fromHeaders": [{"name": "x-token"}], "fromParams": 7,
            "outputClaimToHeaders": [{"header": "x-user", "claim": "sub"}], "misspelt": true,
        });
        let strict = of(json!({"targetRefs": web, "jwtRules": [rule, 7]}));
        assert_eq!((strict.targets.len(), strict.rules.len()), (1, 3));
        let first = &strict.rules[0];
        assert_eq!((&*first.issuer, first.from.len(), first.claims_to.len()), ("https://a", 1, 1));
        assert!(
            strict.rules.iter().all(|rule| matches!(&rule.keys, KeysOf::Written(keys) if keys.is_empty()))
        );
        assert_eq!(of(json!({"targetRefs": web, "jwtRule": []})).rules.len(), 1, "at the usual places");
    }
}
