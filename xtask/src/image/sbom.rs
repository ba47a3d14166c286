//! The bill of materials of an image: every crate that is linked into its program, as CycloneDX.

use std::{collections::BTreeSet, path::Path};

use anyhow::Result;
use serde_json::{Value, json};

use crate::shell;

/// A crate, as `cargo tree` names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Part {
    name: String,
    version: String,
    licence: String,
}

/// What a program is made of; the agent's includes the kernel programs and the CNI plugin that it carries.
pub(super) fn of(root: &Path, program: &str, version: &str, target: &str) -> Result<Value> {
    let mut parts = parts(root, &["--package", program], target)?;
    if program == "agent" {
        let kernel = root.join("ebpf/kernel/Cargo.toml");
        parts.extend(self::parts(root, &["--manifest-path", &kernel.to_string_lossy()], target)?);
        parts.extend(self::parts(root, &["--package", "cni"], target)?);
    }
    parts.retain(|part| part.name != program);
    Ok(document(program, version, &parts))
}

/// Not `cargo metadata`: that also lists optional dependencies that nobody turned on.
fn parts(root: &Path, which: &[&str], target: &str) -> Result<BTreeSet<Part>> {
    let mut cargo = shell::cargo(root);
    cargo.args(["tree", "--locked", "--edges", "normal", "--target", target, "--prefix", "none"]);
    cargo.args(["--format", "{p}\t{l}"]).args(which);
    let tree = shell::output(&mut cargo, "list what is linked")?;
    Ok(tree.lines().filter_map(part).collect())
}

/// `serde v1.0.2 (proc-macro)`, a tab, `MIT OR Apache-2.0`.
fn part(line: &str) -> Option<Part> {
    let (package, licence) = line.split_once('\t')?;
    let mut words = package.split_whitespace();
    let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
    // A crate listed before has a mark behind its licence.
    let licence = licence.trim_end_matches(" (*)").trim().replace('/', " OR ");
    Some(Part { name: name.to_owned(), version: version.to_owned(), licence })
}

fn document(program: &str, version: &str, parts: &BTreeSet<Part>) -> Value {
    let components: Vec<Value> = parts.iter().map(component).collect();
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": { "type": "application", "name": program, "version": version } },
        "components": components,
    })
}

fn component(part: &Part) -> Value {
    let Part { name, version, licence } = part;
    let licences = if licence.is_empty() { json!([]) } else { json!([{ "expression": licence }]) };
    let purl = format!("pkg:cargo/{name}@{version}");
    json!({
        "type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl, "licenses": licences,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_cargo_tree_become_components() {
        let serde = part("serde v1.0.2 (proc-macro)\tMIT/Apache-2.0 (*)").unwrap();
        assert_eq!(serde.licence, "MIT OR Apache-2.0");
        let ours = part("mesh v0.1.0 (/somewhere/mesh)\tApache-2.0").unwrap();
        assert_eq!((ours.name.as_str(), ours.version.as_str()), ("mesh", "0.1.0"));
        assert_eq!(part(""), None);
        let document = document("agent", "0.1.0", &BTreeSet::from([serde, ours]));
        assert_eq!(document["components"][1]["purl"], "pkg:cargo/serde@1.0.2");
        assert_eq!(document["components"].as_array().map(Vec::len), Some(2));
    }
}
