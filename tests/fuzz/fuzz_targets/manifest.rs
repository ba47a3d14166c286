//! A file of the manifest folder: parsed, compiled and published; and what control publishes, our own
//! client takes and understands as what was compiled.
#![no_main]

use std::path::Path;

use control::{
    compile::{Compiled, Options, Word, compile},
    manifest,
    objects::Objects,
    publish::{Store, Type},
};
use libfuzzer_sys::fuzz_target;
use mesh::Clause;
use xds::convert::{Address, Converter};

fuzz_target!(|text: &str| {
    let parsed = manifest::parse(Path::new("fuzz.yaml"), text);
    assert!(parsed.problems.iter().all(|problem| !problem.to_string().is_empty()));
    let mut objects = Objects::default();
    objects.apply(Path::new("fuzz.yaml"), parsed);
    let view = objects.view();
    for word in [Word::Fresh { measured: true }, Word::Stale { measured: false }, Word::None] {
        let compiled = compile(&view, &|_, _| word, &Options::default());
        check(&compiled);
    }
});

fn check(compiled: &Compiled) {
    let store = Store::default();
    let workloads = compiled.workloads.values().cloned();
    store.publish(workloads, compiled.services.values().cloned(), compiled.policies.values().cloned());
    let state = store.subscribe().borrow().clone();
    let mut converter = Converter::new("cluster.local");
    for resource in state.resources(Type::Address).values() {
        let name = resource.name();
        let body = resource.on_the_wire().resource.expect("a resource has a body").value;
        match converter.address(name, &body) {
            Ok(Address::Workload(workload)) => assert_eq!(Some(&workload), compiled.workloads.get(name)),
            Ok(Address::Service(service)) => assert_eq!(Some(&service), compiled.services.get(&service.key)),
            Err(reason) => panic!("our own client refuses {name}: {reason}"),
        }
    }
    for resource in state.resources(Type::Authorization).values() {
        let name = resource.name();
        let body = resource.on_the_wire().resource.expect("a resource has a body").value;
        let policy = match converter.authorization(name, &body) {
            Ok(policy) => policy,
            Err(refused) => panic!("our own client refuses {name}: {}", refused.reason),
        };
        let mut expected = compiled.policies[&policy.key].clone();
        // The client writes a rule that matches everything in one way.
        for rule in expected.rules.iter_mut().filter(|rule| rule.clauses.is_empty()) {
            rule.clauses.push(Clause::default());
        }
        assert_eq!(policy, expected);
    }
}
