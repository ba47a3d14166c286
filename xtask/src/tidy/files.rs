//! What every file owes its reader: an opening that says what it owns, a size that fits a head, no test
//! that is skipped, no name of one machine.

use std::path::Path;

use super::{File, Tree, metadata::Workspace};
use crate::test;

/// Lines at most; a longer file is split by what it owns.
const CEILING: usize = 600;

/// The packages with unsafe code, and why they need it. All others forbid it at their root.
const MAY_BE_UNSAFE: &[(&str, &str)] = &[
    ("abi", "marks plain structs as readable by the kernel (aya::Pod)"),
    ("capture", "bpf(2), setns and socket options without a safe wrapper"),
    ("ztunnel", "sockets from received file descriptors, socket options without a safe wrapper, mallopt"),
    ("agent", "descriptors received over a socket"),
    ("control", "mallopt and malloc_trim, in one module of the program"),
    ("hbone", "socket options without a safe wrapper"),
    ("bed", "packet sockets, in one module"),
    ("app", "a packet socket, in one module"),
];

/// Spelled in halves, so that this file is no finding itself.
const MACHINE: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("deb.deb", "ian.org"),
    concat!("index.cra", "tes.io"),
    concat!("static.cra", "tes.io"),
    concat!("py", "pi.org"),
    concat!("pythonho", "sted.org"),
    concat!("registry.npm", "js.org"),
    concat!("proxy.gol", "ang.org"),
];

/// Without a reason. In halves for the same cause.
const DEAD: &str = concat!("[allow(dead", "_code)]");

pub(crate) fn check(tree: &Tree, findings: &mut Vec<String>) {
    for file in tree.rust() {
        check_rust(file, findings);
    }
    for file in tree.files.iter().filter(|file| file.path != Path::new("Cargo.lock")) {
        for (number, line) in (1..).zip(file.text.lines()) {
            if let Some(what) = MACHINE.iter().find(|what| line.contains(**what)) {
                findings
                    .push(format!("{}:{number}: names one machine or registry: {what}", file.path.display()));
            }
        }
    }
}

fn check_rust(file: &File, findings: &mut Vec<String>) {
    let path = file.path.display();
    let lines = file.text.lines().count();
    if lines > CEILING {
        findings.push(format!("{path}: {lines} lines; split it by what it owns ({CEILING} at most)"));
    }
    let opening = file.text.lines().next().unwrap_or_default();
    if opening.strip_prefix("//!").is_none_or(|text| text.trim().is_empty()) {
        findings.push(format!("{path}:1: open with `//!`: what the file owns, and what it refuses to do"));
    }
    for (number, line) in (1..).zip(file.text.lines()) {
        let code = line.trim_start();
        if code.starts_with("#[ignore") && !code.contains(test::PART_OF_A_TEST) {
            findings.push(format!("{path}:{number}: an ignored test proves nothing"));
        }
        if code.contains(DEAD) {
            findings.push(format!("{path}:{number}: remove what is dead, or `expect` it with a reason"));
        }
    }
}

/// Every root of a package forbids unsafe code, or is in the table.
pub(crate) fn check_unsafe(tree: &Tree, workspace: &Workspace, findings: &mut Vec<String>) {
    for package in &workspace.packages {
        let justified = MAY_BE_UNSAFE.iter().any(|(name, _)| *name == package.name);
        let folder = package.manifest_path.parent().unwrap_or(Path::new(""));
        let roots = package.targets.iter().filter(|target| {
            target.kind.iter().any(|kind| kind == "lib" || kind == "bin")
                && target.src_path.starts_with(folder)
        });
        for root in roots {
            let found = tree.find(&root.src_path);
            let forbids = found.is_some_and(|file| file.text.contains("#![forbid(unsafe_code)]"));
            if !forbids && !justified {
                findings.push(format!(
                    "{}: forbid unsafe code, or say in xtask/src/tidy/files.rs why {} needs it",
                    found.map_or(root.src_path.display(), |file| file.path.display()),
                    package.name
                ));
            }
        }
        if let Some(manifest) = tree.find(&package.manifest_path)
            && !file_has_lints(&manifest.text)
        {
            findings.push(format!("{}: takes no lints from the workspace", manifest.path.display()));
        }
    }
}

fn file_has_lints(manifest: &str) -> bool {
    manifest.lines().skip_while(|line| line.trim() != "[lints]").any(|line| line.trim() == "workspace = true")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str) -> Vec<String> {
        let tree =
            Tree { root: "/x".into(), files: vec![File { path: "x.rs".into(), text: text.to_owned() }] };
        let mut findings = Vec::new();
        check(&tree, &mut findings);
        findings
    }

    #[test]
    fn each_rule_finds_what_breaks_it() {
        assert_eq!(findings("//! Owns nothing.\n"), Vec::<String>::new());
        assert_eq!(findings("fn main() {}\n").len(), 1);
        assert_eq!(findings(&format!("//! Long.\n{}", "\n".repeat(CEILING))).len(), 1);
        assert_eq!(findings(&format!("//! Skips.\n    #[{}]\n", "ignore")).len(), 1);
        assert_eq!(findings(&format!("//! Paths.\nlet x = \"{}x\";\n", MACHINE[0])).len(), 1);
    }
}
