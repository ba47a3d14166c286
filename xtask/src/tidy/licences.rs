//! What we depend on: licences that we may use, and crates that we do not want. The lists are those of
//! deny.toml, so that cargo-deny and this check say the same.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::metadata::Workspace;

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

pub(crate) fn check(root: &Path, workspace: &Workspace, findings: &mut Vec<String>) -> Result<()> {
    let path = root.join("deny.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let deny: Deny = toml::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
    for package in &workspace.packages {
        let licence = package.license.as_deref().unwrap_or("");
        if !satisfied(licence, &deny.licenses.allow) {
            findings.push(format!("{}: licence {licence:?} is not among those of deny.toml", package.name));
        }
        if let Some(banned) = deny.bans.deny.iter().find(|banned| banned.name == package.name) {
            let reason = banned.reason.as_deref().unwrap_or("see deny.toml");
            findings.push(format!("{} is among the dependencies: {reason}", package.name));
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
