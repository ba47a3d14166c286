//! Who may import whom. The table is ARCHITECTURE.md's; a dependency that is not in it is a finding.

use super::metadata::{Package, Workspace};

/// What each of our packages may use of ours, and why not more.
const MAY_USE: &[(&str, &[&str])] = &[
    // Pure: decisions, formats and layouts that anything may build on.
    ("mesh", &[]),
    ("proto", &[]),
    ("abi", &[]),
    // A program, and what the agent must agree on with it.
    ("cni", &[]),
    // The command speaks with the API server and the programs' admin servers, and links none of them.
    ("cli", &["apiserver", "mesh"]),
    // Libraries: the layers, lowest first.
    ("apiserver", &[]),
    ("capture", &["abi"]),
    ("identity", &["mesh"]),
    ("jwt", &["mesh"]),
    ("runtime", &["mesh"]),
    ("hbone", &["mesh", "identity"]),
    ("xds", &["mesh", "proto", "identity"]),
    // Programs: libraries, never each other.
    ("agent", AGENT),
    ("ztunnel", PROGRAM),
    ("waypoint", PROGRAM),
    ("control", CONTROL),
    // The bed runs programs as processes and links none of them; the traffic program takes spans from them.
    ("app", &["proto", "trusting"]),
    ("trusting", &[]),
    ("bed", &[]),
    ("xtask", &["bed"]),
];

/// The agent answers its plugin.
const AGENT: &[&str] = &["abi", "capture", "cni", "hbone", "identity", "mesh", "proto", "runtime", "xds"];
const CONTROL: &[&str] = &["apiserver", "identity", "jwt", "mesh", "proto", "runtime", "xds"];
const PROGRAM: &[&str] = &["abi", "capture", "hbone", "identity", "jwt", "mesh", "proto", "runtime", "xds"];

/// The rings of tests may use everything.
const RINGS: &[&str] = &["sim", "node", "interop", "bench", "scale"];

/// What any package's own tests may use.
const TESTS_MAY_USE: &[&str] = &["bed"];

/// The one package that may name aya, so that what loads and attaches is in one place.
const NAMES_AYA: &str = "capture";

pub(crate) fn check(workspace: &Workspace, findings: &mut Vec<String>) {
    let ours: Vec<&str> = workspace.packages.iter().map(|package| package.name.as_str()).collect();
    for package in &workspace.packages {
        if RINGS.contains(&package.name.as_str()) {
            continue;
        }
        match MAY_USE.iter().find(|(name, _)| *name == package.name) {
            Some((_, allowed)) => check_package(package, allowed, &ours, findings),
            None => findings.push(format!(
                "package {}: not in the table of xtask/src/tidy/imports.rs; say there what it may use",
                package.name
            )),
        }
    }
    for (name, _) in MAY_USE.iter().filter(|(name, _)| !ours.contains(name)) {
        findings.push(format!("xtask/src/tidy/imports.rs names a package that is gone: {name}"));
    }
}

fn check_package(package: &Package, allowed: &[&str], ours: &[&str], findings: &mut Vec<String>) {
    for dependency in &package.dependencies {
        let name = dependency.name.as_str();
        let in_tests = dependency.kind.as_deref() == Some("dev");
        let permitted = allowed.contains(&name) || (in_tests && TESTS_MAY_USE.contains(&name));
        if ours.contains(&name) && !permitted {
            findings.push(format!("{} may not use {name}: see the table in ARCHITECTURE.md", package.name));
        }
        if (name == "aya" || name.starts_with("aya-")) && package.name != NAMES_AYA {
            findings.push(format!("{} names {name}: only {NAMES_AYA} may", package.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace(json: &str) -> Workspace {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_program_that_imports_a_program_is_a_finding() {
        let package = |name: &str, uses: &str| {
            format!(
                r#"{{"name":"{name}","manifest_path":"/x","targets":[],
                "dependencies":[{{"name":"{uses}","kind":null}}]}}"#
            )
        };
        let json = format!(
            r#"{{"packages":[{},{},{},{}]}}"#,
            package("agent", "ztunnel"),
            package("ztunnel", "hbone"),
            package("hbone", "mesh"),
            package("mesh", "aya")
        );
        let mut findings = Vec::new();
        check(&workspace(&json), &mut findings);
        let has = |text: &str| findings.iter().any(|finding| finding.starts_with(text));
        assert!(has("agent may not use ztunnel"), "{findings:?}");
        assert!(has("mesh names aya"));
        assert!(!has("ztunnel may not") && !has("hbone may not"));
    }
}
