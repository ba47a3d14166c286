//! The documentation names only commands, files and folders that exist.

use clap::CommandFactory;

use super::{File, Tree};
use crate::Cli;

const PAGES: [&str; 4] = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"];

pub(crate) fn check(tree: &Tree, findings: &mut Vec<String>) {
    for page in PAGES {
        match tree.find(page) {
            Some(file) => check_page(tree, file, findings),
            None => findings.push(format!("{page} is missing")),
        }
    }
}

fn check_page(tree: &Tree, page: &File, findings: &mut Vec<String>) {
    for (number, line) in (1..).zip(page.text.lines()) {
        for (at, _) in line.match_indices("cargo xtask ") {
            let command = line.get(at + "cargo xtask ".len()..).unwrap_or_default();
            if let Err(what) = check_command(command) {
                findings.push(format!("{}:{number}: no such command: {what}", page.path.display()));
            }
        }
        for target in link_targets(line) {
            let exists = tree.files.iter().any(|file| file.path.starts_with(target));
            if !exists {
                findings.push(format!("{}:{number}: links to nothing: {target}", page.path.display()));
            }
        }
    }
}

/// Checks `test node --only x` against the real command line; only names are checked, not values.
fn check_command(text: &str) -> Result<(), String> {
    // A command ends with its code span, or with the comment of a console line.
    let command = text.split(['`', '#', '|', ')', ',', ';']).next().unwrap_or_default();
    let mut words = command.split_whitespace();
    let Some(verb) = words.next() else { return Ok(()) };
    let verb = verb.trim_end_matches(['.', ':']);
    // "each task is a `cargo xtask …`" names none.
    if !verb.starts_with(|first: char| first.is_ascii_lowercase()) {
        return Ok(());
    }
    let mut cli = Cli::command();
    // Only a built command knows all its arguments.
    cli.build();
    let Some(task) = cli.find_subcommand(verb) else { return Err(verb.to_owned()) };
    for flag in words.filter_map(|word| word.strip_prefix("--")) {
        let flag = flag.split('=').next().unwrap_or_default().trim_end_matches(['.', ':']);
        let known = task.get_arguments().any(|arg| arg.get_long() == Some(flag));
        let passed_on = task.get_arguments().any(|arg| arg.is_trailing_var_arg_set());
        if !known && !passed_on && !flag.is_empty() {
            return Err(format!("{verb} --{flag}"));
        }
    }
    Ok(())
}

/// The files that Markdown links of a line point to.
fn link_targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', '#']).next())
        .filter(|target| !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_checked_down_to_their_flags() {
        assert_eq!(check_command("demo --keep` leaves it"), Ok(()));
        assert_eq!(check_command("test node     # one ring"), Ok(()));
        assert_eq!(check_command("bench --peer-ztunnel PATH`"), Ok(()));
        assert_eq!(check_command("demon`"), Err("demon".to_owned()));
        assert_eq!(check_command("demo --kepe`"), Err("demo --kepe".to_owned()));
    }

    #[test]
    fn links_are_found() {
        let line = "see [a](ARCHITECTURE.md#x) and [b](https://example.org) and [c](tests/bed)";
        assert_eq!(link_targets(line).collect::<Vec<_>>(), ["ARCHITECTURE.md", "tests/bed"]);
    }
}
