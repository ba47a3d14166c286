//! Policies for requests: what is matched, in which order policies count, and in which spelling a path is judged.

use std::sync::Arc;

use mesh::{
    Identity, Match, PolicyKey, StringMatch,
    request::{
        self, Ambiguity, BadTemplate, Content, PathPattern, RequestAction, RequestAttempt, RequestClause,
        RequestMatch, RequestPolicies, RequestPolicy, RequestRefusal, RequestRule, RequestVerdict, Subject,
        Template, Token, ValueMatch, normal_path,
    },
};

struct Head {
    method: &'static str,
    path: &'static str,
    headers: Vec<(&'static str, &'static str)>,
}

impl request::Head for Head {
    fn method(&self) -> &str {
        self.method
    }

    fn has(&self, name: &str, test: &mut dyn FnMut(&str) -> bool) -> bool {
        self.headers.iter().any(|(held, value)| *held == name && test(value))
    }
}

struct Proved(Vec<(&'static str, Vec<&'static str>)>);

impl Token for Proved {
    fn principal(&self) -> Option<&str> {
        Some("https://issuer/someone")
    }

    fn claim(&self, path: &[Arc<str>]) -> Vec<&str> {
        let path = path.join(".");
        self.0
            .iter()
            .filter(|(name, _)| **name == path)
            .flat_map(|(_, texts)| texts.iter().copied())
            .collect()
    }
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.into())
}

fn policy(name: &str, action: RequestAction, matches: Vec<RequestMatch>) -> RequestPolicy {
    RequestPolicy {
        key: PolicyKey { namespace: "shop".into(), name: name.into() },
        action,
        dry_run: false,
        rules: vec![RequestRule { clauses: vec![RequestClause { matches }] }],
    }
}

fn value(of: Subject, values: &[StringMatch], not_values: &[StringMatch]) -> RequestMatch {
    let values = ValueMatch { of, values: values.to_vec(), not_values: not_values.to_vec() };
    RequestMatch { values: vec![values], ..RequestMatch::default() }
}

fn path(text: &str) -> RequestMatch {
    let pattern = match Template::is_one(text) {
        true => PathPattern::Template(Template::new(text).unwrap()),
        false => PathPattern::Text(exact(text)),
    };
    RequestMatch { paths: vec![pattern], ..RequestMatch::default() }
}

fn state(policies: &[RequestPolicy]) -> RequestPolicies {
    RequestPolicies::new(policies.to_vec())
}

/// GET /cart of `web`, by `client` of `shop`, without a token.
struct Ask {
    head: Head,
    host: &'static str,
    token: Option<Proved>,
    readable: bool,
}

impl Default for Ask {
    fn default() -> Self {
        let head = Head { method: "GET", path: "/cart", headers: vec![("x-team", "red")] };
        Self { head, host: "web.shop:8080", token: None, readable: true }
    }
}

impl Ask {
    fn path(path: &'static str) -> Self {
        let ask = Self::default();
        Self { head: Head { path, ..ask.head }, ..ask }
    }

    fn judged(&self, state: &RequestPolicies) -> mesh::request::RequestDecision {
        let caller = Identity::new("cluster.local", "shop", "client");
        let path = normal_path(self.head.path);
        let content = Content { head: &self.head, host: self.host, path: &path, token: self.token.as_ref() };
        let attempt = RequestAttempt {
            source: Some(&caller),
            source_ip: "10.0.0.1".parse().unwrap(),
            destination_ip: "10.96.0.1".parse().unwrap(),
            port: 80,
            content: self.readable.then_some(content),
        };
        state.authorize(&attempt)
    }

    fn verdict(&self, policies: &[RequestPolicy]) -> RequestVerdict {
        self.judged(&state(policies)).verdict
    }

    /// Whether one match holds for the request.
    fn matches(&self, matches: RequestMatch) -> bool {
        let denied = self.verdict(&[policy("p", RequestAction::Deny, vec![matches.clone()])]);
        let denied = denied != RequestVerdict::Allow(None);
        let allowed = self.verdict(&[policy("p", RequestAction::Allow, vec![matches])]);
        let allowed = matches!(allowed, RequestVerdict::Allow(Some(_)));
        assert_eq!(denied, allowed, "what denies would allow");
        allowed
    }
}

#[test]
fn every_part_of_a_request_is_matched() {
    let ask = Ask::default();
    let prefix = |text: &str| StringMatch::Prefix(text.into());
    let suffix = |text: &str| StringMatch::Suffix(text.into());
    for (of, right, wrong) in [
        (Subject::Host, vec![exact("WEB.shop")], vec![exact("web.shop.example")]),
        (Subject::Host, vec![exact("web.shop:8080")], vec![exact("web.shop:80")]),
        (Subject::Host, vec![suffix(".shop")], vec![suffix(".bank")]),
        (Subject::Method, vec![exact("POST"), exact("GET")], vec![exact("POST")]),
        (Subject::Header("x-team".into()), vec![prefix("r")], vec![exact("blue")]),
        (Subject::Header("x-team".into()), vec![StringMatch::Presence], vec![suffix("x")]),
    ] {
        assert!(ask.matches(value(of.clone(), &right, &[])), "{of:?} {right:?}");
        assert!(!ask.matches(value(of.clone(), &wrong, &[])), "{of:?} {wrong:?}");
        assert!(!ask.matches(value(of.clone(), &[], &right)), "not {of:?} {right:?}");
        assert!(ask.matches(value(of.clone(), &[], &wrong)), "not {of:?} {wrong:?}");
    }
    // Each of several values by itself: a second one hides nothing.
    let twice = Head { headers: vec![("x-role", "admin"), ("x-role", "x")], ..Ask::default().head };
    let twice = Ask { head: twice, ..Ask::default() };
    assert!(twice.matches(value(Subject::Header("x-role".into()), &[exact("admin")], &[])));
    assert!(!twice.matches(value(Subject::Header("x-role".into()), &[], &[exact("admin")])));
    let absent = Subject::Header("x-other".into());
    assert!(!ask.matches(value(absent.clone(), &[StringMatch::Presence], &[])));
    assert!(ask.matches(value(absent, &[], &[StringMatch::Presence])));
    // With what layer 4 knows, in one match.
    let caller = |namespace: &str| Match { namespaces: vec![exact(namespace)], ..Match::default() };
    assert!(ask.matches(RequestMatch { caller: caller("shop"), ..path("/cart") }));
    assert!(!ask.matches(RequestMatch { caller: caller("bank"), ..path("/cart") }));
    let port = |port| Match { destination_ports: vec![port], ..Match::default() };
    assert!(ask.matches(RequestMatch { caller: port(80), ..path("/cart") }), "the service's");
    assert!(!ask.matches(RequestMatch { caller: port(8080), ..path("/cart") }));
}

#[test]
fn a_token_is_matched_by_its_claims_and_its_absence_by_none() {
    let claims =
        vec![("aud", vec!["shop", "bank"]), ("azp", vec!["web-ui"]), ("realm.roles", vec!["admin", "staff"])];
    let with = Ask { token: Some(Proved(claims)), ..Ask::default() };
    let without = Ask::default();
    let nested: Box<[Arc<str>]> = ["realm".into(), "roles".into()].into();
    for (of, text) in [
        (Subject::Principal, "https://issuer/someone"),
        (Subject::Audience, "bank"),
        (Subject::Presenter, "web-ui"),
        (Subject::Claim(nested), "admin"),
    ] {
        assert!(with.matches(value(of.clone(), &[exact(text)], &[])), "{of:?}");
        assert!(!with.matches(value(of.clone(), &[exact("other")], &[])), "{of:?}");
        assert!(!with.matches(value(of.clone(), &[], &[exact(text)])), "{of:?}");
        assert!(!without.matches(value(of.clone(), &[StringMatch::Presence], &[])), "{of:?}");
        assert!(
            without.matches(value(of.clone(), &[], &[StringMatch::Presence])),
            "{of:?}: whoever has none"
        );
    }
}

#[test]
fn denied_before_allowed_and_nothing_but_what_is_allowed() {
    let named = |name: &str| PolicyKey { namespace: "shop".into(), name: name.into() };
    let deny = policy("deny", RequestAction::Deny, vec![path("/admin")]);
    let allow = policy("allow", RequestAction::Allow, vec![path("/cart"), path("/admin")]);
    let both = [deny.clone(), allow.clone()];
    assert_eq!(Ask::path("/cart").verdict(&[]), RequestVerdict::Allow(None));
    assert_eq!(Ask::path("/cart").verdict(std::slice::from_ref(&deny)), RequestVerdict::Allow(None));
    assert_eq!(Ask::path("/cart").verdict(&both), RequestVerdict::Allow(Some(named("allow"))));
    let refused = |refusal| RequestVerdict::Refuse(refusal);
    assert_eq!(Ask::path("/admin").verdict(&both), refused(RequestRefusal::Denied(named("deny"))));
    assert_eq!(Ask::path("/else").verdict(&both), refused(RequestRefusal::NotAllowed(named("allow"))));
    // Without a rule it never matches; with one that says nothing always.
    let nobody = RequestPolicy { rules: Vec::new(), ..allow };
    assert_eq!(Ask::default().verdict(&[nobody]), refused(RequestRefusal::NotAllowed(named("allow"))));
    let everybody = RequestPolicy { rules: vec![RequestRule::default()], ..deny };
    assert_eq!(Ask::default().verdict(&[everybody]), refused(RequestRefusal::Denied(named("deny"))));
}

#[test]
fn what_would_be_and_what_is_audited_is_told_and_decides_nothing() {
    let key = |name: &str| PolicyKey { namespace: "shop".into(), name: name.into() };
    let audit = policy("audit", RequestAction::Audit, vec![path("/cart")]);
    let would = |name, action| RequestPolicy { dry_run: true, ..policy(name, action, vec![path("/cart")]) };
    let policies =
        [audit, would("would-deny", RequestAction::Deny), would("would-allow", RequestAction::Allow)];
    let cart = Ask::path("/cart").judged(&state(&policies));
    assert_eq!(cart.verdict, RequestVerdict::Allow(None));
    assert_eq!((cart.audited, cart.dry_run), (vec![key("audit")], vec![key("would-deny")]));
    let other = Ask::path("/other").judged(&state(&policies));
    assert_eq!((other.verdict, other.audited), (RequestVerdict::Allow(None), vec![]));
    assert_eq!(other.dry_run, [key("would-allow")], "it would be the only ALLOW, and does not match");
}

#[test]
fn where_no_request_can_be_read_nothing_is_allowed_by_it_and_more_is_denied() {
    let ask = || Ask { readable: false, ..Ask::default() };
    let caller = Match { namespaces: vec![exact("shop")], ..Match::default() };
    let by_caller = |namespace: &str, of: RequestMatch| {
        let caller = Match { namespaces: vec![exact(namespace)], ..Match::default() };
        RequestMatch { caller, ..of }
    };
    let allows = |of: RequestMatch| {
        let verdict = ask().verdict(&[policy("p", RequestAction::Allow, vec![of])]);
        matches!(verdict, RequestVerdict::Allow(Some(_)))
    };
    assert!(allows(RequestMatch { caller, ..RequestMatch::default() }));
    assert!(!allows(by_caller("shop", path("/cart"))));
    let negated = RequestMatch { not_paths: path("/x").paths, ..RequestMatch::default() };
    assert!(!allows(by_caller("shop", negated)), "be it the contrary");
    let denies =
        |of| ask().verdict(&[policy("p", RequestAction::Deny, vec![of])]) != RequestVerdict::Allow(None);
    assert!(denies(by_caller("shop", path("/cart"))) && denies(path("/other")));
    assert!(!denies(by_caller("bank", path("/cart"))), "of another caller");
}

#[test]
fn a_path_is_judged_in_one_spelling() {
    for (written, normal) in [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("/a/b/", "/a/b/"),
        ("/%61dmin", "/admin"),
        ("/a%2dz", "/a-z"),
        ("/a%c3%a9", "/a%C3%A9"),
        ("/a%20b", "/a%20b"),
        ("/x/../admin", "/admin"),
        ("/x/%2e%2E/admin", "/admin"),
        ("/./admin/.", "/admin/"),
        ("/a/b/..", "/a/"),
        ("/../../admin", "/admin"),
        ("/..", "/"),
        ("/.hidden", "/.hidden"),
        ("/a/...", "/a/..."),
        ("*", "*"),
    ] {
        let found = normal_path(written);
        assert_eq!((&*found.path, found.ambiguous), (normal, None), "{written}");
        let again = normal_path(&found.path);
        assert_eq!(again.path, found.path, "it is normal");
    }
    for (written, why) in [
        ("/a%2fb", Ambiguity::EncodedSlash),
        ("/a%5Cb", Ambiguity::Backslash),
        ("/a\\b", Ambiguity::Backslash),
        ("//admin", Ambiguity::EmptySegment),
        ("/a//b", Ambiguity::EmptySegment),
        ("/a%00", Ambiguity::Control),
        ("/a%zz", Ambiguity::BadEscape),
        ("/a%2", Ambiguity::BadEscape),
        ("/a%", Ambiguity::BadEscape),
        ("/a%é", Ambiguity::BadEscape),
        ("/x/..;/admin", Ambiguity::Semicolon),
        ("/admin;x", Ambiguity::Semicolon),
    ] {
        assert_eq!(normal_path(written).ambiguous, Some(why), "{written}");
    }
}

#[test]
fn an_escape_is_what_it_stands_for() {
    for (pattern, asked) in [
        ("/x:delete", "/x%3Adelete"),
        ("/x%3Adelete", "/x:delete"),
        ("/@me", "/%40me"),
        ("/caf%C3%A9", "/caf\u{e9}"),
        ("/a b", "/a%20b"),
        ("/a%25b", "/a%25b"),
        ("/%FF", "/%ff"),
        ("/{*}/caf%c3%a9", "/x/caf%C3%A9"),
    ] {
        assert!(Ask::path(asked).matches(path(pattern)), "{pattern} {asked}");
    }
    assert!(!Ask::path("/%2541dmin").matches(path("/Admin")), "and once alone");
}

#[test]
fn what_is_ambiguous_is_refused_where_paths_are_asked_for_and_passes_where_not() {
    let by_path = policy("by-path", RequestAction::Deny, vec![path("/admin")]);
    let by_method =
        policy("by-method", RequestAction::Deny, vec![value(Subject::Method, &[exact("PUT")], &[])]);
    let ask = Ask::path("//admin");
    let refusal = RequestRefusal::Ambiguous(by_path.key.clone(), Ambiguity::EmptySegment);
    assert_eq!(ask.verdict(std::slice::from_ref(&by_path)), RequestVerdict::Refuse(refusal));
    assert_eq!(ask.verdict(&[by_method]), RequestVerdict::Allow(None));
    let only_told = RequestPolicy { dry_run: true, ..by_path.clone() };
    assert_eq!(ask.verdict(&[only_told]), RequestVerdict::Allow(None));
    assert_ne!(Ask::path("/%61dmin").verdict(&[by_path]), RequestVerdict::Allow(None));
}

#[test]
fn templates_stand_for_segments() {
    for (template, right, wrong) in [
        ("/a/{*}/c", &["/a/b/c", "/a/%20/c"][..], &["/a/c", "/a//c", "/a/b/b/c", "/a/b/c/", "/a/b"][..]),
        ("/a/{*}", &["/a/b"], &["/a", "/a/", "/a/b/c", "/b/b"]),
        ("/a/{**}", &["/a/b", "/a/", "/a", "/a/b/c/"], &["/ab", "/b"]),
        ("/{**}", &["/", "/a/b"], &["*"]),
        ("/{*}/b/{**}", &["/a/b/c", "/a/b"], &["/a/c", "/b"]),
    ] {
        let template = Template::new(template).unwrap();
        for path in right {
            assert!(template.holds(path), "{template} {path}");
        }
        for path in wrong {
            assert!(!template.holds(path), "{template} {path}");
        }
    }
    for (text, why) in [
        ("a/{*}", BadTemplate::NoSlash),
        ("/a{*}", BadTemplate::PartOfSegment),
        ("/{**}/b", BadTemplate::Inner),
        ("/{*}/*", BadTemplate::Wildcard),
    ] {
        assert_eq!(Template::new(text), Err(why), "{text}");
    }
}
