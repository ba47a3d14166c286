//! What is kept, what is forgotten, and what is known to have changed.

use super::*;
use crate::manifest::{parse, tests::rules};

const NAMESPACE: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n";
const POLICY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, \
                      namespace: shop}\nspec: {action: DENY, rules: [{to: [{operation: {ports: [\"80\"]}}]}]}\n";

fn apply(objects: &mut Objects, file: &str, text: &str) {
    let path = Path::new(file);
    objects.apply(path, parse(path, text));
}

#[test]
fn the_last_good_version_of_an_object_stays() {
    let mut objects = Objects::default();
    apply(&mut objects, "a.yaml", &format!("{NAMESPACE}---\n{POLICY}"));
    assert_eq!(objects.view().objects.len(), 2);
    let good: Vec<Object> = objects.view().objects.values().map(|o| (*o).clone()).collect();
    apply(&mut objects, "a.yaml", &format!("{NAMESPACE}---\n{}", POLICY.replace("\"80\"", "\"http\"")));
    let now: Vec<Object> = objects.view().objects.values().map(|o| (*o).clone()).collect();
    assert_eq!(now, good);
    assert_eq!(objects.view().problems.len(), 1);
    apply(&mut objects, "a.yaml", NAMESPACE);
    assert_eq!(objects.view().objects.len(), 1, "a document that is taken out is a deletion");
}

#[test]
fn a_route_that_is_refused_keeps_what_was_good_and_tells_its_parents() {
    let route = |parent: &str, rules: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: shop}}\n\
             spec: {{parentRefs: [{{kind: Service, group: '', name: {parent}}}], rules: [{rules}]}}\n"
        )
    };
    let mut objects = Objects::default();
    let shown = |objects: &Objects| {
        let view = objects.view();
        let route = view.objects.values().next().and_then(|object| object.route()).unwrap().clone();
        let refused = route.refused.map(|refused| (refused.parents[0].name.to_string(), refused.field));
        (route.rules.len(), route.parents.len(), refused)
    };
    apply(&mut objects, "a.yaml", &route("web", "{wrong: 1}"));
    let field = "spec.rules[0]".to_owned();
    let (rules, parents, refused) = shown(&objects);
    assert_eq!((rules, parents), (0, 0), "nothing was ever good");
    assert!(refused.is_some_and(|(parent, of)| parent == "web" && of.starts_with(&field)));
    let key = objects.of_kind(Kind::HTTPRoute).next().unwrap();
    assert!(!objects.holds(&key));
    apply(&mut objects, "a.yaml", &route("web", "{}, {}"));
    assert_eq!(shown(&objects), (2, 1, None));
    objects.take_changes();
    apply(&mut objects, "a.yaml", &route("other", "{filters: [{type: Magic}]}"));
    assert!(objects.take_changes().namespaces.contains_key("shop"), "its status is another");
    let (rules, parents, refused) = shown(&objects);
    assert_eq!((rules, parents), (2, 1), "what was good holds");
    assert_eq!(refused, Some(("other".to_owned(), "spec.rules[0].filters[0].type".to_owned())));
    assert!(objects.holds(&key));
    apply(&mut objects, "a.yaml", "");
    assert!(objects.view().objects.is_empty(), "taken out, refused or not");
}

#[test]
fn a_policy_for_tls_that_is_refused_keeps_what_was_good_and_else_believes_nobody() {
    let policy = |target: &str, rest: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: p, namespace: shop}}\n\
             spec: {{targetRefs: [{{group: '', kind: Service, name: {target}}}], validation: {{hostname: web.test, {rest}}}}}\n"
        )
    };
    let (good, wrong) = ("wellKnownCACertificates: System", "wellKnown: System");
    let mut objects = Objects::default();
    let shown = |objects: &Objects| {
        let view = objects.view();
        let Some(Object::BackendTLSPolicy(policy)) = view.objects.values().next() else { panic!("{view:?}") };
        let names =
            |of: &[crate::manifest::Reference]| of.iter().map(|target| target.name.to_string()).collect();
        let refused: Option<Vec<String>> = policy.refused.as_ref().map(|refused| names(&refused.targets));
        (policy.is_stand_in(), names(&policy.targets), refused)
    };
    let names = |of: &[&str]| -> Vec<String> { of.iter().map(ToString::to_string).collect() };
    apply(&mut objects, "a.yaml", &policy("web", wrong));
    assert_eq!(shown(&objects), (true, names(&["web"]), Some(names(&["web"]))), "nothing was ever good");
    apply(&mut objects, "a.yaml", &policy("other", wrong));
    assert_eq!(shown(&objects), (true, names(&["other"]), Some(names(&["other"]))), "what is written now");
    apply(&mut objects, "a.yaml", &policy("web", good));
    assert_eq!(shown(&objects), (false, names(&["web"]), None));
    objects.take_changes();
    apply(&mut objects, "a.yaml", &policy("other", wrong));
    assert!(objects.take_changes().namespaces.contains_key("shop"), "its status is another");
    assert_eq!(shown(&objects), (false, names(&["web"]), Some(names(&["other"]))), "what was good holds");
    apply(&mut objects, "a.yaml", "");
    assert!(objects.view().objects.is_empty(), "taken out, refused or not");
}

#[test]
fn a_half_written_file_forgets_nothing() {
    let mut objects = Objects::default();
    apply(&mut objects, "a.yaml", &format!("{NAMESPACE}---\n{POLICY}"));
    apply(
        &mut objects,
        "a.yaml",
        &format!("{NAMESPACE}---\napiVersion: security.istio.io/v1\nkind: Autho\n met"),
    );
    assert_eq!(objects.view().objects.len(), 2);
    assert_eq!(objects.view().problems.len(), 1);
}

#[test]
fn what_has_changed_is_known_by_namespace() {
    let mut objects = Objects::default();
    apply(&mut objects, "a.yaml", &format!("{NAMESPACE}---\n{POLICY}"));
    let shop = |policy| Changes { namespaces: [("shop".into(), policy)].into(), ..Changes::default() };
    assert_eq!(objects.take_changes(), shop(true));
    apply(&mut objects, "a.yaml", &format!("{NAMESPACE}---\n{POLICY}"));
    assert_eq!(objects.take_changes(), Changes::default());
    apply(&mut objects, "b.yaml", "{apiVersion: v1, kind: Node, metadata: {name: n}}");
    assert_eq!(objects.take_changes().nodes, ["n".into()].into());
    objects.remove(Path::new("a.yaml"));
    assert_eq!(objects.take_changes(), shop(true));
    assert_eq!(objects.view().objects.len(), 1);
}

#[test]
fn the_second_file_takes_over_when_the_first_goes() {
    let mut objects = Objects::default();
    apply(&mut objects, "b.yaml", &POLICY.replace("80", "81"));
    apply(&mut objects, "a.yaml", POLICY);
    apply(&mut objects, "c.yaml", &POLICY.replace("80", "82"));
    let port = |objects: &Objects| match objects.view().objects.values().next() {
        Some(Object::AuthorizationPolicy(policy)) => {
            rules(policy)[0].clauses[0].matches[0].destination_ports[0]
        }
        other => panic!("{other:?}"),
    };
    assert_eq!((port(&objects), objects.view().problems.len()), (80, 2));
    objects.remove(Path::new("a.yaml"));
    assert_eq!((port(&objects), objects.view().problems.len()), (81, 1));
    objects.remove(Path::new("c.yaml"));
    objects.remove(Path::new("b.yaml"));
    assert!(objects.view().objects.is_empty() && objects.namespaces().is_empty());
}

#[test]
fn of_two_files_the_first_holds() {
    let mut objects = Objects::default();
    apply(&mut objects, "b.yaml", &POLICY.replace("80", "81"));
    apply(&mut objects, "a.yaml", POLICY);
    let view = objects.view();
    assert_eq!(view.objects.len(), 1);
    assert_eq!(view.problems[0].file, Path::new("b.yaml"));
    let Some(Object::AuthorizationPolicy(policy)) = view.objects.values().next() else { panic!("no policy") };
    assert_eq!(rules(policy)[0].clauses[0].matches[0].destination_ports, [80]);
}
