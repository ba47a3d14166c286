//! Each flag makes of the objects what helm makes of the value.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use clap::Parser;

use super::*;

fn choices(flags: &[&str]) -> Choices {
    Line::parse_from([&["culvert"], flags].concat()).flags.over(&Installed::default()).0
}

/// helm from the PATH, or where `cargo xtask setup` puts it.
fn helm() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([root.join("target/tools/bin")]);
    let found = folders.map(|folder| folder.join("helm")).find(|helm| helm.is_file());
    found.expect("no helm to compare with: `cargo xtask setup` installs one")
}

/// What helm makes of the chart, by what each object is called, labels made ours.
fn template(namespace: &str, kubernetes: &str, set: &[&str]) -> BTreeMap<String, Value> {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/culvert");
    let mut helm = Command::new(helm());
    helm.args(["template", "culvert", "--include-crds", "--namespace", namespace]).arg(chart);
    helm.args(["--kube-version", kubernetes]);
    for value in set {
        helm.args(["--set", value]);
    }
    let output = helm.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut objects = parse(std::str::from_utf8(&output.stdout).unwrap()).unwrap();
    objects.iter_mut().for_each(ours);
    by_name(objects)
}

fn by_name(objects: Vec<Value>) -> BTreeMap<String, Value> {
    objects.into_iter().map(|object| (object::named(&object), object)).collect()
}

#[test]
fn every_flag_makes_what_helm_makes_of_its_value() {
    let cases: &[(&str, &str, &[&str], &[&str])] = &[
        (NAMESPACE, "1.34.0", &[], &[]),
        (NAMESPACE, "1.28.0", &[], &[]),
        ("mesh", "1.34.0", &[], &[]),
        ("kube-system", "1.34.0", &[], &[]),
        (NAMESPACE, "1.34.0", &["--registry", "r.example/a"], &["image.registry=r.example/a"]),
        (NAMESPACE, "1.34.0", &["--tag", "9.8"], &["image.tag=9.8"]),
        (NAMESPACE, "1.34.0", &["--pull-policy", "Always"], &["image.pullPolicy=Always"]),
        (NAMESPACE, "1.34.0", &["--trust-domain", "prod.example"], &["mesh.trustDomain=prod.example"]),
        (NAMESPACE, "1.34.0", &["--cluster-domain", "k8s.example"], &["mesh.clusterDomain=k8s.example"]),
        (NAMESPACE, "1.34.0", &["--no-cni"], &["agent.cni.enabled=false"]),
        (NAMESPACE, "1.34.0", &["--replicas", "3"], &["control.replicas=3"]),
        (
            "mesh",
            "1.29.4",
            &["--replicas", "2", "--no-cni", "--registry", "r", "--tag", "t"],
            &["control.replicas=2", "agent.cni.enabled=false", "image.registry=r", "image.tag=t"],
        ),
    ];
    for (namespace, kubernetes, flags, set) in cases {
        let minor = kubernetes.split('.').nth(1).unwrap().parse().unwrap();
        let own = by_name(objects(namespace, &choices(flags), (1, minor)).unwrap());
        let helm = template(namespace, kubernetes, set);
        assert_eq!(own.keys().collect::<Vec<_>>(), helm.keys().collect::<Vec<_>>(), "{namespace} {flags:?}");
        for (name, object) in &own {
            assert_eq!(object, &helm[name], "{name} in {namespace} for {kubernetes} with {flags:?}");
        }
    }
}

/// Whether the chart's schema takes values.
fn takes(set: &str) -> bool {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/culvert");
    let mut helm = Command::new(helm());
    helm.args(["template", "culvert"]).arg(chart).args(["--kube-version", "1.34.0", "--set-string", set]);
    helm.output().unwrap().status.success()
}

#[test]
fn domains_that_nobody_can_bear_are_refused_by_flag_and_by_schema() {
    let long = |bytes: usize| "a".repeat(bytes);
    let is = |flag: &str, value: &str, domain: &str, good: bool| {
        assert_eq!(Line::try_parse_from(["culvert", flag, domain]).is_ok(), good, "{flag} {domain:?}");
        assert_eq!(takes(&format!("{value}={domain}")), good, "{value}={domain}");
    };
    let trust = |domain: &str, good: bool| is("--trust-domain", "mesh.trustDomain", domain, good);
    ["prod_1.example-2", &long(255)].into_iter().for_each(|domain| trust(domain, true));
    ["Foo Bar", "", "..", "a/b", &long(256)].into_iter().for_each(|domain| trust(domain, false));
    let cluster = |domain: &str, good: bool| is("--cluster-domain", "mesh.clusterDomain", domain, good);
    ["k8s.example", &long(63)].into_iter().for_each(|domain| cluster(domain, true));
    ["Foo", "", "a_b", "a.", "-a", &long(64)].into_iter().for_each(|domain| cluster(domain, false));
}

#[test]
fn what_is_needed_is_made_first_and_every_kind_has_its_place() {
    let objects = objects(NAMESPACE, &choices(&["--replicas", "2"]), (1, 34)).unwrap();
    let at = |kind: &str| objects.iter().position(|object| object["kind"] == kind).unwrap();
    assert!(at("CustomResourceDefinition") < at("ServiceAccount"));
    assert!(at("ClusterRole") < at("ClusterRoleBinding") && at("RoleBinding") < at("Deployment"));
    for object in &objects {
        assert!(object::path(object).ends_with(object::name(object)));
        assert!(
            object["kind"] == "CustomResourceDefinition"
                || object::label(object, MANAGED_BY) == Some("culvert")
        );
    }
}

/// YAML 1.1, which Kubernetes reads, and 1.2, which we read, must see the same: `0400` is 256 there and a text here.
#[test]
fn no_value_means_different_things_to_different_readers() {
    fn look(value: &Value, at: &str) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| look(value, &format!("{at}.{key}"))),
            Value::Array(list) => list.iter().for_each(|value| look(value, at)),
            Value::String(text) => {
                let octal =
                    text.len() > 1 && text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
                let truth =
                    ["yes", "no", "on", "off", "y", "n"].contains(&text.to_ascii_lowercase().as_str());
                assert!(!octal && !truth, "{at}: {text:?} is to be written otherwise in the chart");
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    for object in
        parse(FILLED_IN).unwrap().iter().filter(|object| object["kind"] != "CustomResourceDefinition")
    {
        look(object, &object::named(object));
    }
}
