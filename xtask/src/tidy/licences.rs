//! What we depend on: licences that we may use, and crates that we do not want. The lists are those of
//! deny.toml, so that cargo-deny and this check say the same.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::shell;

#[derive(Debug, Deserialize)]
struct Deny {
    licenses: Licences,
    bans: Bans,
}

#[derive(Debug, Deserialize)]
struct Licences {
    allow: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Bans {
    deny: Vec<Banned>,
}

#[derive(Debug, Deserialize)]
struct Banned {
    #[serde(rename = "crate")]
    name: String,
    reason: Option<String>,
}

pub(crate) fn check(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    let path = root.join("deny.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let deny: Deny = toml::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
    // Not `cargo metadata`: it also lists optional dependencies that nobody turned on.
    let mut cargo = shell::cargo(root);
    cargo.args(["tree", "--workspace", "--locked", "--prefix", "none", "--format", "{p}\t{l}"]);
    let tree = shell::output(&mut cargo, "list the dependencies")?;
    let lines: BTreeSet<&str> = tree.lines().filter(|line| !line.is_empty()).collect();
    for line in lines {
        let (package, licence) =
            line.split_once('\t').with_context(|| format!("no licence column in {line:?}"))?;
        let name = package.split(' ').next().unwrap_or_default();
        // A package shown before is marked so after its licence.
        let licence = licence.trim_end_matches("(*)").trim();
        if !satisfied(licence, &deny.licenses.allow) {
            findings.push(format!("{name}: licence {licence:?} is not among those of deny.toml"));
        }
        if let Some(banned) = deny.bans.deny.iter().find(|banned| banned.name == name) {
            let reason = banned.reason.as_deref().unwrap_or("see deny.toml");
            findings.push(format!("{name} is among the dependencies: {reason}"));
        }
    }
    Ok(())
}

/// Whether an SPDX expression can be met with the allowed licences: `OR` lets us choose, `AND` binds
/// more tightly, parentheses group. The old spelling `A/B` means `A OR B`.
fn satisfied(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    let verdict = either(&mut rest, allowed);
    verdict && rest.is_empty() && !words.is_empty()
}

fn either(rest: &mut &[&str], allowed: &[String]) -> bool {
    let mut verdict = both(rest, allowed);
    while let ["OR", after @ ..] = rest {
        *rest = after;
        verdict |= both(rest, allowed);
    }
    verdict
}

fn both(rest: &mut &[&str], allowed: &[String]) -> bool {
    let mut verdict = one(rest, allowed);
    while let ["AND", after @ ..] = rest {
        *rest = after;
        verdict &= one(rest, allowed);
    }
    verdict
}

fn one(rest: &mut &[&str], allowed: &[String]) -> bool {
    match rest {
        ["(", after @ ..] => {
            *rest = after;
            let verdict = either(rest, allowed);
            if let [")", after @ ..] = rest {
                *rest = after;
            }
            verdict
        }
        [licence, "WITH", exception, after @ ..] => {
            *rest = after;
            allowed.contains(&format!("{licence} WITH {exception}"))
                || allowed.iter().any(|one| one == licence)
        }
        [licence, after @ ..] => {
            *rest = after;
            allowed.iter().any(|one| one == licence)
        }
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_met_by_choice_and_by_all() {
        let allowed = ["MIT".to_owned(), "Apache-2.0".to_owned(), "Unicode-3.0".to_owned()];
        let met = |expression: &str| satisfied(expression, &allowed);
        assert!(
            met("MIT") && met("MIT OR GPL-3.0") && met("MIT/Apache-2.0") && met("(MIT OR X) AND Unicode-3.0")
        );
        assert!(met("Apache-2.0 WITH LLVM-exception OR X"));
        assert!(!met("GPL-3.0") && !met("MIT AND GPL-3.0") && !met("") && !met("(MIT OR X) AND Y"));
    }
}
