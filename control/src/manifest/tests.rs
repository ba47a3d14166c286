//! What is taken, what is refused, and with which words.

use std::path::Path;

use mesh::{
    Action, Clause, Match, StringMatch,
    request::{PathPattern, RequestAction, RequestMatch, Subject, Template, ValueMatch},
};

use super::*;

fn read(text: &str) -> Parsed {
    parse(Path::new("shop.yaml"), text)
}

/// The rules of a policy for connections.
pub(crate) fn rules(policy: &Authorization) -> &[mesh::Rule] {
    match &policy.judges {
        Judges::Connections { rules, .. } => rules,
        Judges::Requests { .. } => panic!("{policy:?} is for requests"),
    }
}

fn policy(spec: &str) -> Result<Authorization, Box<Problem>> {
    let text = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: p\n  namespace: shop\n{spec}"
    );
    let mut parsed = read(&text);
    match parsed.objects.pop() {
        Some((_, Object::AuthorizationPolicy(policy))) => Ok(*policy),
        None => Err(Box::new(parsed.problems.remove(0))),
        other => panic!("not a policy: {other:?}"),
    }
}

#[test]
fn documents_of_one_file_are_told_apart() {
    let parsed = read(
        "# a comment\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\napiVersion: v1\nkind: \
         Secret\nmetadata: {name: c}\n--- {apiVersion: v1, kind: Node, metadata: {name: a}}\n...\n",
    );
    assert_eq!(parsed.problems, []);
    let keys: Vec<String> = parsed.objects.iter().map(|(key, _)| key.to_string()).collect();
    assert_eq!(keys, ["Namespace shop", "Node a"]);
    assert_eq!(parsed.passed_over, ["v1 Secret"]);
}

#[test]
fn a_syntax_error_costs_one_document_and_names_its_line() {
    let parsed = read(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: v1\nkind: [\n---\napiVersion: v1\nkind: \
         Namespace\nmetadata: {name: b}\n",
    );
    assert_eq!(parsed.objects.len(), 2);
    assert!(parsed.unreadable);
    assert_eq!(parsed.problems.len(), 1);
    assert!(matches!(parsed.problems[0].line, Some(6..=7)), "{:?}", parsed.problems[0]);
    assert_eq!(parsed.problems[0].document, 2);
}

#[test]
fn a_wrong_type_names_field_and_line() {
    let parsed = read(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec:\n  ports:\n  - port: eighty\n",
    );
    let problem = &parsed.problems[0];
    assert_eq!((problem.line, problem.field.as_str()), (Some(6), "spec.ports[0].port"));
    assert!(problem.reason.contains("eighty"), "{problem}");
    assert!(!parsed.unreadable, "the object is known by name");
    assert_eq!(parsed.refused[0].to_string(), "Service shop/web");
}

#[test]
fn lists_are_opened() {
    let parsed = read(
        "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n- {apiVersion: v1, \
         kind: Service, metadata: {name: w}, spec: {ports: [{port: x}]}}\n",
    );
    assert_eq!(parsed.objects.len(), 1);
    assert_eq!(parsed.problems[0].field, "items[1].spec.ports[0].port");
}

#[test]
fn a_misspelt_field_of_a_policy_is_refused_not_ignored() {
    let problem =
        policy("spec:\n  action: DENY\n  rules:\n  - from:\n    - source:\n        principal: [\"x\"]\n")
            .expect_err("misspelt");
    assert!(problem.reason.contains("principal"), "{problem}");
    assert_eq!(problem.line, Some(11));
}

#[test]
fn a_misspelt_spec_of_a_policy_is_refused_not_ignored() {
    for kind in ["AuthorizationPolicy", "PeerAuthentication"] {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: p, namespace: shop}}\nsepc: {{}}\n"
        );
        let parsed = parse(Path::new("shop.yaml"), &text);
        assert_eq!(parsed.objects, [], "{kind}");
        assert!(parsed.problems[0].reason.contains("sepc"), "{}", parsed.problems[0]);
        let good = text.replace("sepc", "spec") + "status: {conditions: []}\n";
        assert_eq!(parse(Path::new("shop.yaml"), &good).problems, [], "{kind}");
    }
}

#[test]
fn a_name_that_would_run_into_another_is_refused() {
    for metadata in ["{name: a/b}", "{name: a, namespace: b/c}", "{name: \"a b\"}"] {
        let parsed =
            parse(Path::new("a.yaml"), &format!("{{apiVersion: v1, kind: Pod, metadata: {metadata}}}"));
        assert_eq!(parsed.objects, [], "{metadata}");
        assert_eq!(parsed.problems.len(), 1, "{metadata}");
    }
}

#[test]
fn a_cidr_that_does_not_parse_refuses_the_policy() {
    let problem = policy(
        "spec:\n  rules:\n  - from:\n    - source:\n        ipBlocks:\n        - 10.0.0.0/8\n        - 10.0.0.0/33\n",
    )
    .expect_err("bad range");
    assert_eq!(problem.field, "spec.rules[0].from[0].source.ipBlocks[1]");
    assert_eq!(problem.line, Some(12));
    assert!(problem.to_string().starts_with("shop.yaml:12: AuthorizationPolicy shop/p: "), "{problem}");
}

#[test]
fn every_layer_4_field_arrives() {
    let policy = policy(
        "spec:
  action: DENY
  selector: {matchLabels: {app: web}}
  rules:
  - from:
    - source: {principals: [\"cluster.local/ns/shop/sa/*\"], notPrincipals: [\"*/sa/root\"]}
    - source: {namespaces: [shop], notNamespaces: [\"*\"]}
    - source: {serviceAccounts: [web, other/db], notServiceAccounts: [x]}
    - source: {ipBlocks: [10.1.0.9/16], notIpBlocks: [\"fd00::1\"]}
    to:
    - operation: {ports: [\"80\"], notPorts: [\"81\"]}
    when:
    - {key: destination.ip, values: [10.0.0.1], notValues: [10.0.0.2]}
    - {key: destination.port, values: [\"1\"], notValues: [\"2\"]}
",
    )
    .expect("valid");
    assert!(matches!(policy.judges, Judges::Connections { action: Action::Deny, .. }));
    let clauses = &rules(&policy)[0].clauses;
    assert_eq!(clauses.len(), 4);
    let from = &clauses[0].matches;
    assert_eq!(from[0].principals, [StringMatch::Prefix("cluster.local/ns/shop/sa/".into())]);
    assert_eq!(from[0].not_principals, [StringMatch::Suffix("/sa/root".into())]);
    assert_eq!(from[1].not_namespaces, [StringMatch::Presence]);
    assert_eq!(&*from[2].service_accounts[0].namespace, "shop");
    assert_eq!(&*from[2].service_accounts[1].namespace, "other");
    assert_eq!(from[3].source_ips[0].to_string(), "10.1.0.0/16");
    assert_eq!(from[3].not_source_ips[0].to_string(), "fd00::1/128");
    assert_eq!(clauses[1].matches[0].not_destination_ports, [81]);
    assert_eq!(clauses[2].matches[0].not_destination_ips[0].to_string(), "10.0.0.2/32");
    assert_eq!(clauses[3].matches[0].destination_ports, [1]);
}

#[test]
fn allow_with_layer_7_never_matches_and_says_so() {
    let policy = policy(
        "spec:\n  rules:\n  - to: [{operation: {methods: [GET], ports: [\"80\"]}}]\n  - from: [{source: {namespaces: \
         [shop]}}, {source: {requestPrincipals: [\"*\"]}}]\n",
    )
    .expect("valid");
    assert_eq!(rules(&policy).len(), 1, "the first rule can never match");
    let namespaces = Match { namespaces: vec![StringMatch::Exact("shop".into())], ..Match::default() };
    assert_eq!(rules(&policy)[0].clauses, [Clause { matches: vec![namespaces] }]);
    assert_eq!(policy.remarks.len(), 2);
}

#[test]
fn a_method_in_small_letters_is_remarked() {
    let policy = policy(
        "spec:\n  targetRefs: [{group: '', kind: Service, name: web}]\n  action: DENY\n  rules:\n  - to: [{operation: \
         {methods: [get, GET, '*']}}, {operation: {notMethods: [Post]}}]\n",
    )
    .expect("valid");
    let fields: Vec<&str> = policy.remarks.iter().map(|(field, _)| &**field).collect();
    assert_eq!(
        fields,
        ["spec.rules[0].to[0].operation.methods", "spec.rules[0].to[1].operation.notMethods"],
        "{:?}",
        policy.remarks
    );
    assert!(policy.remarks[0].1.contains("\"GET\""), "{:?}", policy.remarks);
}

#[test]
fn deny_drops_layer_7_and_denies_more() {
    let policy =
        policy("spec:\n  action: DENY\n  rules:\n  - to: [{operation: {methods: [GET], ports: [\"80\"]}}]\n")
            .expect("valid");
    assert_eq!(rules(&policy)[0].clauses[0].matches[0].destination_ports, [80]);
    // One alternative of layer 7 only opens its clause; the other clause still bounds the rule.
    let policy = self::policy(
        "spec:\n  action: DENY\n  rules:\n  - from: [{source: {namespaces: [a]}}]\n    to: [{operation: {ports: [\"80\"]}}, \
         {operation: {paths: [/x]}}]\n",
    )
    .expect("valid");
    assert_eq!(rules(&policy)[0].clauses.len(), 1);
    let problem = self::policy("spec:\n  action: DENY\n  rules:\n  - to: [{operation: {methods: [GET]}}]\n")
        .expect_err("nothing is left");
    assert!(problem.reason.contains("layer-7"), "{problem}");
}

#[test]
fn nothing_and_everything_are_told_apart() {
    assert_eq!(rules(&policy("spec: {}\n").expect("valid")).len(), 0, "allows nobody");
    let all = policy("spec:\n  rules:\n  - {}\n").expect("valid");
    assert_eq!(rules(&all)[0].clauses, [Clause::default()], "allows everybody");
    for bad in [
        "spec:\n  rules:\n  - from: []\n",
        "spec:\n  rules:\n  - from: [{source: {}}]\n",
        "spec:\n  rules:\n  - from: [{source: {namespaces: []}}]\n",
        "spec:\n  rules:\n  - from: [{source: {namespaces: [\"\"]}}]\n",
        "spec:\n  rules:\n  - to: [{operation: {ports: [\"0\"]}}]\n",
        "spec:\n  rules:\n  - when: [{key: source.ip}]\n",
        "spec:\n  rules:\n  - when: [{key: source.colour, values: [x]}]\n",
        "spec:\n  rules:\n  - from: [{source: {principals: [\"a*b\"]}}]\n",
        "spec:\n  rules:\n  - from: [{source: {principals: [\"spiffe://a/ns/b/sa/c\"]}}]\n",
        "spec:\n  rules:\n  - from: [{source: {serviceAccounts: [\"a/*\"]}}]\n",
        "spec:\n  action: AUDIT\n",
        "spec:\n  action: CUSTOM\n",
        "spec:\n  action: allow\n",
        "spec:\n  selector: {matchExpressions: []}\n",
    ] {
        assert!(policy(bad).is_err(), "{bad} was taken");
    }
}

#[test]
fn entries_are_taken_or_refused_with_the_reason() {
    let entry = |spec: &str| {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: shop}}\nspec:\n{spec}"
        );
        read(&text).problems.pop().map(|problem| problem.to_string()).unwrap_or_default()
    };
    let good = "  hosts: [db.example]\n  addresses: [240.0.0.1]\n  resolution: STATIC\n  ports: [{number: 5432, name: tcp}]\n  \
                endpoints: [{address: 10.9.9.9}]\n";
    assert_eq!(entry(good), "");
    assert_eq!(entry(&good.replace("  addresses: [240.0.0.1]\n", "")), "");
    assert_eq!(entry(&good.replace("STATIC", "NONE")), "");
    assert_eq!(entry(&good.replace("STATIC", "DNS").replace("10.9.9.9", "db.internal")), "");
    assert_eq!(entry(&good.replace("db.example", "\"*.example\"")), "");
    assert!(entry(&good.replace("240.0.0.1", "240.0.0.0/24")).contains("range"));
    assert!(entry(&good.replace("STATIC", "DYNAMIC")).contains("DNS_ROUND_ROBIN"));
    assert!(entry(&good.replace("10.9.9.9", "db.internal")).contains("resolution: DNS"));
    assert!(entry(&good.replace("10.9.9.9", "10.9.9.999")).contains("not an IP address"));
    for host in ["a*.example", "*", "db..example", "db example"] {
        assert!(
            entry(&good.replace("db.example", &format!("\"{host}\""))).contains("no host name"),
            "{host}"
        );
    }
}

#[test]
fn ports_of_peer_authentication_may_be_numbers_or_texts() {
    for key in ["8080", "\"8080\""] {
        let parsed = read(&format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: s}}\nspec:\n  \
             selector: {{matchLabels: {{app: a}}}}\n  portLevelMtls:\n    {key}: {{mode: STRICT}}\n"
        ));
        assert_eq!(parsed.problems, [], "{key}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in "(---\n|[a-z]+: |- |\\[|\\{|\n|  |kind: Pod\n|apiVersion: v1\n|metadata: |name: x\n|[ -~]){0,40}") {
        let _ = read(&text);
    }
}

#[test]
fn a_misspelt_kind_takes_no_policy_away() {
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorisationPolicy\nmetadata: {name: readers}\n";
    let parsed = parse(Path::new("policy.yaml"), text);
    assert!(parsed.unreadable, "whatever the file held holds");
    assert!(parsed.passed_over.is_empty());
    let told = parsed.problems[0].to_string();
    assert!(told.contains("policy.yaml:2") && told.contains("AuthorizationPolicy"), "{told}");
}

/// The first match of the first clause of a policy for requests.
fn request(spec: &str) -> Result<RequestMatch, Box<Problem>> {
    let spec = format!("spec:\n  targetRefs: [{{kind: Service, name: web}}]\n  rules:\n  - {spec}\n");
    let Judges::Requests { rules, .. } = policy(&spec)?.judges else { panic!("it is for connections") };
    Ok(rules[0].clauses[0].matches[0].clone())
}

#[test]
fn what_is_for_requests_says_all_that_a_waypoint_reads() {
    let exact = |text: &str| StringMatch::Exact(text.into());
    let value = |of, values: &[StringMatch], not_values: &[StringMatch]| RequestMatch {
        values: vec![ValueMatch { of, values: values.to_vec(), not_values: not_values.to_vec() }],
        ..RequestMatch::default()
    };
    let claim: Box<[std::sync::Arc<str>]> = ["realm".into(), "roles".into()].into();
    for (spec, expected) in [
        ("to: [{operation: {methods: [GET]}}]", value(Subject::Method, &[exact("GET")], &[])),
        ("to: [{operation: {notHosts: [a.b]}}]", value(Subject::Host, &[], &[exact("a.b")])),
        (
            "from: [{source: {requestPrincipals: ['*']}}]",
            value(Subject::Principal, &[StringMatch::Presence], &[]),
        ),
        (
            "when: [{key: 'request.headers[X-Team]', notValues: [red]}]",
            value(Subject::Header("x-team".into()), &[], &[exact("red")]),
        ),
        (
            "when: [{key: request.auth.audiences, values: [shop]}]",
            value(Subject::Audience, &[exact("shop")], &[]),
        ),
        (
            "when: [{key: 'request.auth.claims[realm][roles]', values: [admin]}]",
            value(Subject::Claim(claim), &[exact("admin")], &[]),
        ),
        (
            "to: [{operation: {paths: ['/a/{*}', '/b*'], notPaths: [/b/c]}}]",
            RequestMatch {
                paths: vec![
                    PathPattern::Template(Template::new("/a/{*}").expect("one")),
                    PathPattern::Text(StringMatch::Prefix("/b".into())),
                ],
                not_paths: vec![PathPattern::Text(exact("/b/c"))],
                ..RequestMatch::default()
            },
        ),
        (
            "from: [{source: {remoteIpBlocks: [10.0.0.0/8]}}]",
            RequestMatch {
                caller: Match {
                    source_ips: vec!["10.0.0.0/8".parse().expect("a block")],
                    ..Match::default()
                },
                ..RequestMatch::default()
            },
        ),
    ] {
        assert_eq!(request(spec).expect(spec), expected, "{spec}");
    }
}

#[test]
fn what_no_waypoint_could_judge_by_is_refused() {
    for (spec, field, reason) in [
        ("to: [{operation: {paths: [/a/../b]}}]", "paths[0]", "normal form"),
        ("to: [{operation: {paths: ['/a%2fb']}}]", "paths[0]", "encoded slash"),
        ("to: [{operation: {paths: ['/a/{**}/b']}}]", "paths[0]", "stands at the end"),
        ("to: [{operation: {paths: ['/a*b']}}]", "paths[0]", "wildcard"),
        ("to: [{operation: {}}]", "operation", "says nothing"),
        ("when: [{key: connection.sni, values: [a]}]", "when[0]", "does not see connection.sni"),
        ("when: [{key: 'request.headers[]', values: [a]}]", "key", "not a key"),
        ("when: [{key: 'request.headers[a][b]', values: [a]}]", "key", "not a key"),
        ("when: [{key: 'request.headers[:path]', values: [a]}]", "key", "not a key"),
        ("from: [{source: {ipBlocks: [10.0.0.1], remoteIpBlocks: [10.0.0.1]}}]", "from", "same address"),
    ] {
        let problem = request(spec).expect_err(spec);
        let told = problem.to_string();
        assert!(told.contains(field) && told.contains(reason), "{spec}: {told}");
    }
    for (spec, reason) in [
        ("{targetRefs: [{kind: Pod, name: a}]}", "is no target"),
        ("{targetRefs: [{kind: Service, name: a, namespace: b}]}", "own namespace"),
        ("{targetRefs: [{kind: Service, name: a}], selector: {matchLabels: {a: b}}}", "not for both"),
        ("{targetRef: {kind: Service, name: a}, targetRefs: [{kind: Service, name: a}]}", "one thing"),
        ("{action: AUDIT}", "name it by targetRefs"),
        ("{action: CUSTOM, targetRefs: [{kind: Service, name: a}]}", "not done yet"),
    ] {
        let told = policy(&format!("spec: {spec}\n")).expect_err(spec).to_string();
        assert!(told.contains(reason), "{spec}: {told}");
    }
    let by_token = "{action: DENY, targetRefs: [{kind: Service, name: a}], rules: [{from: [{source: \
                    {requestPrincipals: [a]}}]}]}";
    let denied = policy(&format!("spec: {by_token}\n")).expect("valid");
    assert!(matches!(denied.judges, Judges::Requests { action: RequestAction::Deny, .. }));
    let audit = policy("spec: {action: AUDIT, targetRefs: [{kind: Service, name: a}]}\n").expect("valid");
    assert!(matches!(audit.judges, Judges::Requests { action: RequestAction::Audit, .. }));
}
