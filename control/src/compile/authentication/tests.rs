//! Rules for tokens, and the services whose requests they are found to be for.

use std::{path::Path, time::Duration};

use mesh::token::Key;

use crate::{
    compile::{Compiled, Options, Word, compile, tests::compiled},
    keys::FetchedKeys,
    manifest::{KeySource, parse},
    objects::Objects,
};

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: culvert-waypoint}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: bare, namespace: shop}
spec: {clusterIP: 10.96.0.2, selector: {app: web}, ports: [{name: http, port: 80}]}
";
/// Another namespace's service, behind the waypoint of `shop`.
const FAR: &str = "
apiVersion: v1
kind: Service
metadata:
  name: far
  namespace: elsewhere
  labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: shop}
spec: {clusterIP: 10.96.0.3, selector: {app: far}, ports: [{name: http, port: 80}]}
";
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

const WEB: &str = "web.shop.svc.cluster.local";
const WAYPOINT: &str = "wp.shop.svc.cluster.local";

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
    let sources: Vec<_> = objects.key_sources().into_iter().collect();
    assert_eq!(sources, [(source.clone(), Duration::from_secs(5))]);
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
    assert!(objects.key_sources().is_empty());
}
