//! What remains of more rules for tokens than a service may have. Pure.
//!
//! Those beyond accept no token, and still count for what they keep others from: a token at their places is refused,
//! the headers that they make are nobody's to write, and the principals of their issuers are nobody else's.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use mesh::token::{Authentication, ClaimHeader, Keys, Place, TokenRule};

/// The most issuers beyond a service's rules that are kept in mind.
const MOST_ISSUERS: usize = Authentication::MOST;

/// The rules that a service has.
pub(super) struct Bounded {
    pub rules: Vec<TokenRule>,
    /// Issuers of which no token is accepted although their rules are among the first: too many others have names that
    /// theirs begin, so whose a principal is cannot be told.
    pub closed: BTreeSet<Arc<str>>,
}

/// So many rules as a service may have, and what stands for those beyond.
pub(super) fn bounded(mut rules: Vec<TokenRule>) -> Bounded {
    let beyond = rules.split_off(rules.len().min(Authentication::MOST));
    let Some(first) = beyond.first() else { return Bounded { rules, closed: BTreeSet::new() } };
    let mut stand_in = TokenRule::of("(more rules than a service may have)", first.policy.clone());
    let (mut places, mut headers) = (HashSet::new(), HashSet::new());
    for rule in &beyond {
        stand_in.from.extend(rule.from.iter().filter(|place| places.insert(*place)).cloned());
        let made = rule.claims_to.iter().map(|to| &to.header).chain(&rule.payload_to);
        for header in made.filter(|header| headers.insert(*header)) {
            stand_in.claims_to.push(ClaimHeader { header: header.clone(), claim: "none".into() });
        }
    }
    let (longer, closed) = longer_issuers(&rules, &beyond);
    for rule in rules.iter_mut().filter(|rule| closed.contains(&rule.issuer)) {
        rule.keys = Keys { source: "".into(), known: Some([].into()) };
    }
    // Whoever looks for longer issuers finds them among the rules. Each rule looks somewhere.
    let place: Option<Place> = stand_in.from.first().cloned();
    let known = longer.into_iter().map(|issuer| TokenRule {
        from: place.iter().cloned().collect(),
        ..TokenRule::of(issuer, first.policy.clone())
    });
    let known: Vec<TokenRule> = known.collect();
    rules.push(stand_in);
    rules.extend(known);
    Bounded { rules, closed }
}

/// Issuers beyond whose principals, `ISSUER/SUBJECT`, tokens of one of `rules` could have, if they are so few as can be
/// kept in mind; and of the others, whose tokens those are.
fn longer_issuers(rules: &[TokenRule], beyond: &[TokenRule]) -> (BTreeSet<Arc<str>>, BTreeSet<Arc<str>>) {
    let seen: HashSet<&str> = rules.iter().map(|rule| &*rule.issuer).collect();
    let mut longer = BTreeSet::new();
    let mut closed = BTreeSet::new();
    for issuer in beyond.iter().map(|rule| &rule.issuer).filter(|issuer| !seen.contains(&***issuer)) {
        let begins =
            |rule: &&TokenRule| issuer.strip_prefix(&*rule.issuer).is_some_and(|rest| rest.starts_with('/'));
        let mut shorter = rules.iter().filter(begins).peekable();
        if shorter.peek().is_none() || longer.contains(issuer) {
            continue;
        }
        if longer.len() < MOST_ISSUERS {
            longer.insert(issuer.clone());
        } else {
            closed.extend(shorter.map(|rule| rule.issuer.clone()));
        }
    }
    (longer, closed)
}

#[cfg(test)]
mod tests {
    use mesh::PolicyKey;

    use super::*;

    fn rule(issuer: impl Into<Arc<str>>) -> TokenRule {
        let policy = PolicyKey { namespace: "shop".into(), name: "p".into() };
        let keys = Keys { source: "https://keys".into(), known: None };
        TokenRule { keys, from: vec![Place::Parameter("token".into())], ..TokenRule::of(issuer, policy) }
    }

    /// Of rules of these issuers, which fill a service, and of those beyond: what is kept in mind, and what is closed.
    fn kept(first: &[&str], beyond: &[String]) -> (Vec<String>, Vec<String>) {
        let filled = (first.len()..Authentication::MOST).map(|at| format!("https://other/{at}"));
        let issuers = first.iter().map(ToString::to_string).chain(filled).chain(beyond.iter().cloned());
        let Bounded { rules, closed } = bounded(issuers.map(rule).collect());
        for (at, rule) in rules.iter().enumerate() {
            let is_open = at < Authentication::MOST && !closed.contains(&rule.issuer);
            assert_eq!(rule.keys.known.is_none(), is_open, "{at}: {}", rule.issuer);
            assert!(!rule.from.is_empty(), "{at}: the wire has no rule that looks nowhere");
        }
        let further = rules.iter().skip(Authentication::MOST + 1);
        (
            further.map(|rule| rule.issuer.to_string()).collect(),
            closed.iter().map(ToString::to_string).collect(),
        )
    }

    #[test]
    fn issuers_beyond_keep_their_principals_for_themselves() {
        for (first, beyond, wanted) in [
            (&["https://a"][..], &["https://a/b"][..], &["https://a/b"][..]),
            (&["https://a"], &["https://a/"], &["https://a/"]),
            (&["https://a"], &["https://a/b", "https://a/b"], &["https://a/b"]),
            // Among the first it is seen as it is.
            (&["https://a", "https://a/b"], &["https://a/b"], &[]),
            // None of these has a principal of the other's.
            (&["https://a"], &["https://ab"], &[]),
            (&["https://a/b"], &["https://a"], &[]),
            (&["https://a"], &["https://b/c"], &[]),
        ] {
            let beyond: Vec<String> = beyond.iter().map(ToString::to_string).collect();
            let (longer, closed) = kept(first, &beyond);
            assert_eq!(longer, wanted, "{first:?} {beyond:?}");
            assert!(closed.is_empty(), "{closed:?}");
        }
    }

    #[test]
    fn whose_issuer_begins_too_many_is_closed() {
        let many = |of: usize| (0..of).map(|at| format!("https://a/{at:03}")).collect::<Vec<_>>();
        let (longer, closed) = kept(&["https://a", "https://b"], &many(MOST_ISSUERS));
        assert_eq!((longer.len(), closed.len()), (MOST_ISSUERS, 0));
        let (longer, closed) = kept(&["https://a", "https://b"], &many(MOST_ISSUERS + 1));
        assert_eq!((longer.len(), closed), (MOST_ISSUERS, vec!["https://a".to_owned()]));
    }
}
