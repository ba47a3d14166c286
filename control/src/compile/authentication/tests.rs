//! Rules for tokens, and the services whose requests they are found to be for.

use std::{path::Path, time::Duration};

use mesh::token::Key;

use crate::{
    compile::{
        Compiled, Options, Word,
        authorization::tests::{FAR, SHOP, WAYPOINT, WEB},
        compile,
        tests::compiled,
    },
    keys::{FetchedKeys, Want, Wanted},
    manifest::{KeySource, parse},
    objects::Objects,
};

const URI: &str = "https://issuer.example/keys";

fn authentication(namespace: &str, name: &str, target: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{targetRefs: [{target}], jwtRules: [{{issuer: 'https://{name}', jwksUri: '{URI}'}}]}}\n"
    )
}

/// The services with rules, each with the names of their RequestAuthentications.
fn found(compiled: &Compiled) -> Vec<(&str, Vec<&str>)> {
    let with = compiled.routes.values().filter(|routes| !routes.authentication.is_empty());
    with.map(|routes| {
        let names = routes.authentication.rules().iter().map(|rule| &*rule.policy.name);
        (&*routes.service.hostname, names.collect())
    })
    .collect()
}

fn told(compiled: &Compiled) -> Vec<String> {
    let all = compiled.problems.iter().map(ToString::to_string);
    all.filter(|problem| problem.contains("RequestAuthentication")).collect()
}

#[test]
fn rules_are_for_what_their_targets_name_and_those_of_several_add_up() {
    let service = "{kind: Service, name: web}";
    let gateway = "{group: gateway.networking.k8s.io, kind: Gateway, name: wp}";
    let class = "{group: gateway.networking.k8s.io, kind: GatewayClass, name: culvert-waypoint}";
    let files = [
        SHOP.to_owned(),
        FAR.to_owned(),
        authentication("shop", "one", service),
        authentication("shop", "two", gateway),
        authentication("istio-system", "three", class),
    ];
    let compiled = compiled(&files.each_ref().map(String::as_str));
    assert_eq!(
        found(&compiled),
        [
            ("far.elsewhere.svc.cluster.local", vec!["three", "two"]),
            ("bank.example", vec!["three", "two"]),
            (WEB, vec!["three", "one", "two"]),
            (WAYPOINT, vec!["three", "two"]),
        ]
    );
    assert_eq!(told(&compiled), Vec::<String>::new());
}

#[test]
fn what_nobody_goes_by_is_told() {
    let bare = compiled(&[SHOP, &authentication("shop", "one", "{kind: Service, name: bare}")]);
    assert_eq!(found(&bare), []);
    let problems = told(&bare);
    assert!(problems.len() == 1 && problems[0].contains("NOBODY judges"), "{problems:?}");
    let untargeted = authentication("shop", "one", "");
    let problems = told(&compiled(&[SHOP, &untargeted]));
    assert!(problems.len() == 1 && problems[0].contains("NOBODY reads tokens"), "{problems:?}");
    // A policy that asks for tokens where none are read.
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec: \
                  {action: DENY, targetRefs: [{kind: Service, name: web}], rules: [{from: [{source: {requestPrincipals: \
                  ['*']}}]}]}\n";
    let problems = told(&compiled(&[SHOP, policy]));
    assert!(problems.len() == 1 && problems[0].contains("nobody has one there"), "{problems:?}");
    let one = authentication("shop", "one", "{kind: Service, name: web}");
    assert_eq!(told(&compiled(&[SHOP, policy, &one])), Vec::<String>::new());
}

#[test]
fn keys_are_those_that_were_fetched_and_a_failure_is_told() {
    let mut objects = Objects::default();
    let mut apply = |file: &str, text: &str| {
        let parsed = parse(Path::new(file), text);
        assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
        objects.apply(Path::new(file), parsed);
    };
    apply("shop", SHOP);
    apply("one", &authentication("shop", "one", "{kind: Service, name: web}"));
    let source = KeySource::Set(URI.into());
    let want = Want { patience: Duration::from_secs(5), namespaces: ["shop".into()].into() };
    assert_eq!(objects.key_sources(&Wanted::new()).into_iter().collect::<Vec<_>>(), [(source.clone(), want)]);
    objects.take_changes();
    let look = |objects: &Objects| {
        let compiled = compile(&objects.view(), &|_, _| Word::None, &Options::default());
        let rule = compiled.routes.values().find_map(|routes| routes.authentication.rules().first()).cloned();
        let keys = rule.expect("a rule").keys;
        assert_eq!(&*keys.source, URI);
        (keys.known.map(|keys| keys.len()), told(&compiled))
    };
    assert_eq!(look(&objects), (None, vec![]), "not yet");
    let failed =
        |keys: Option<std::sync::Arc<[Key]>>| FetchedKeys { keys, problem: Some("no answer".into()) };
    assert!(objects.set_keys(&source, Some(failed(None))));
    let (known, problems) = look(&objects);
    assert!(known.is_none() && problems[0].contains("no answer; until then every token"), "{problems:?}");
    let set = jwt::keys::read(br#"{"keys":[]}"#).unwrap().keys;
    let fetched = FetchedKeys { keys: Some(set.clone()), problem: None };
    objects.take_changes();
    assert!(objects.set_keys(&source, Some(fetched.clone())));
    assert!(objects.take_changes().namespaces.contains_key("shop"));
    assert_eq!(look(&objects), (Some(0), vec![]));
    assert!(!objects.set_keys(&source, Some(fetched)) && objects.take_changes().namespaces.is_empty());
    assert!(objects.set_keys(&source, Some(failed(Some(set)))));
    let (known, problems) = look(&objects);
    assert!(known == Some(0) && problems[0].contains("those that were fetched last hold"), "{problems:?}");
    objects.remove(Path::new("one"));
    assert!(objects.key_sources(&Wanted::new()).is_empty());
}

#[test]
fn a_namespace_has_so_many_places_of_keys_and_none_for_what_is_for_nobody() {
    let mut objects = Objects::default();
    let mut apply = |namespace: &str, name: &str, targets: &str, uris: &[String]| {
        let rules = uris.iter().map(|uri| format!("{{issuer: i, jwksUri: '{uri}'}}"));
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{targetRefs: [{targets}], jwtRules: [{}]}}\n",
            rules.collect::<Vec<_>>().join(", ")
        );
        let parsed = parse(Path::new(name), &text);
        assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
        objects.apply(&Path::new(namespace).join(name), parsed);
    };
    let uri = |number: usize| format!("https://keys.example/{number:02}");
    let web = "{kind: Service, name: web}";
    apply("shop", "a", web, &(0..32).map(uri).collect::<Vec<_>>());
    apply("shop", "b", web, &(30..36).map(uri).collect::<Vec<_>>());
    apply("shop", "nobodys", "", &[uri(50)]);
    apply("till", "a", web, &[uri(34)]);
    let asked: Vec<(String, usize)> = objects
        .key_sources(&Wanted::new())
        .into_iter()
        .map(|(source, want)| (source.to_string(), want.namespaces.len()))
        .collect();
    let wanted = (0..36).map(|number| (uri(number), usize::from(number < 32 || number == 34)));
    assert_eq!(asked, wanted.collect::<Vec<_>>());
}

#[test]
fn of_more_rules_than_a_service_may_have_no_token_is_accepted_and_no_header_is_believed() {
    let of = |name: &str, rules: std::ops::Range<usize>| {
        let rule = |at: usize| {
            format!(
                "{{issuer: i{at}, jwks: '{{\"keys\": []}}', fromHeaders: [{{name: x-token-{at}}}], \
                 outputPayloadToHeader: x-payload-{at}, outputClaimToHeaders: [{{header: x-user-{at}, claim: sub}}]}}"
            )
        };
        format!(
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{targetRefs: [{{kind: Service, name: web}}], jwtRules: [{}]}}\n",
            rules.map(rule).collect::<Vec<_>>().join(", ")
        )
    };
    let compiled = compiled(&[SHOP, &of("a", 0..32), &of("b", 32..64), &of("c", 64..70)]);
    let web = compiled.routes.values().find(|routes| *routes.service.hostname == *WEB).unwrap();
    let found = &web.authentication;
    assert_eq!(found.rules().len(), 65);
    let beyond = &found.rules()[64];
    assert_eq!((&*beyond.policy.name, beyond.keys.known.as_ref().map(|keys| keys.len())), ("c", Some(0)));
    assert!(found.rules().iter().all(|rule| !["i64", "i69"].contains(&&*rule.issuer)));
    for at in 0..70 {
        let place = mesh::token::Place::Header { name: format!("x-token-{at}").into(), prefix: "".into() };
        assert!(found.places().contains(&place), "{at}: it is looked for, and refused");
        assert!(found.makes(&format!("x-user-{at}")) && found.makes(&format!("x-payload-{at}")), "{at}");
    }
    let problems = told(&compiled);
    assert!(
        problems.iter().any(|problem| problem.contains("of those beyond no token is accepted")),
        "{problems:?}"
    );
}

#[test]
fn a_service_whose_issuers_cannot_be_told_apart_is_told() {
    let of = |name: &str, issuers: &[String]| {
        let rule = |issuer: &String| format!("{{issuer: '{issuer}', jwks: '{{\"keys\": []}}'}}");
        format!(
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{targetRefs: [{{kind: Service, name: web}}], jwtRules: [{}]}}\n",
            issuers.iter().map(rule).collect::<Vec<_>>().join(", ")
        )
    };
    let many = |begin: &str, of: usize| (0..of).map(|at| format!("{begin}/{at}")).collect::<Vec<_>>();
    let first = [vec!["https://a".to_owned()], many("https://other", 31)].concat();
    let others = many("https://more", 32);
    let longer = |name: &str| of(name, &many(&format!("https://a/{name}"), 32));
    let few = compiled(&[SHOP, &of("a", &first), &of("b", &others), &longer("c")]);
    let web = few.routes.values().find(|routes| *routes.service.hostname == *WEB).unwrap();
    assert_eq!(web.authentication.rules().len(), 64 + 1 + 32, "all are kept in mind");
    let closed = |compiled: &Compiled| {
        told(compiled).into_iter().filter(|one| one.contains("no token of https://a is accepted")).count()
    };
    assert_eq!(closed(&few), 0);
    let many = [SHOP, &of("a", &first), &of("b", &others), &longer("c"), &longer("d"), &longer("e")];
    assert_eq!(closed(&compiled(&many)), 1);
}

#[test]
fn a_port_that_nobody_says_what_it_speaks_of_is_told_where_tokens_are_read() {
    let one = authentication("shop", "one", "{kind: Service, name: web}");
    let of = |ports: &str, more: &str| {
        let shop = SHOP.replacen("ports: [{name: http, port: 80}]", &format!("ports: [{ports}]"), 1);
        told(&compiled(&[&shop, &one, more]))
    };
    let route = |kind: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: shop}}\n\
             spec: {{parentRefs: [{{group: '', kind: Service, name: web, port: 81}}], rules: [{{backendRefs: [{{name: web, port: 81}}]}}]}}\n"
        )
    };
    assert_eq!(of("{name: http, port: 80}, {name: x, port: 81, appProtocol: tcp}", ""), Vec::<String>::new());
    let unsaid = of("{name: x, port: 80}, {name: y, port: 81}", "");
    assert!(unsaid.len() == 1 && unsaid[0].contains("what port 80, 81 of service"), "{unsaid:?}");
    for kind in ["HTTPRoute", "TCPRoute"] {
        assert_eq!(
            of("{name: http, port: 80}, {name: x, port: 81}", &route(kind)),
            Vec::<String>::new(),
            "{kind}"
        );
    }
}
