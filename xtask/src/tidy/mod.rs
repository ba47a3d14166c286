//! What the compiler does not check: who may import whom, how large a file may be, whether the docs name
//! commands that exist. All findings are told in one run.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::shell;

mod docs;
mod files;
mod imports;
mod licences;
mod metadata;

/// Runs every check.
pub(crate) fn run(root: &Path) -> Result<()> {
    let tree = Tree::read(root)?;
    let workspace = metadata::read(root, &root.join("Cargo.toml"))?;
    let mut findings = Vec::new();
    imports::check(&workspace, &mut findings);
    files::check(&tree, &mut findings);
    files::check_unsafe(&tree, &workspace, &mut findings);
    docs::check(&tree, &mut findings);
    licences::check(root, &mut findings)?;
    for finding in &findings {
        println!("  {finding}");
    }
    if !findings.is_empty() {
        bail!("{} finding(s)", findings.len());
    }
    println!("tidy: {} files, {} packages, nothing to say", tree.files.len(), workspace.packages.len());
    Ok(())
}

/// The text files of the repository, as git knows them (new ones that are not ignored too).
pub(crate) struct Tree {
    root: PathBuf,
    files: Vec<File>,
}

/// A text file.
pub(crate) struct File {
    /// Relative to the root.
    path: PathBuf,
    text: String,
}

impl Tree {
    fn read(root: &Path) -> Result<Self> {
        let mut git = Command::new("git");
        git.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
        let list = shell::output(&mut git, "list the files of the repository")?;
        let mut files = Vec::new();
        for name in list.split('\0').filter(|name| !name.is_empty()) {
            let path = root.join(name);
            // Removed but not yet committed.
            if !path.is_file() {
                continue;
            }
            let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            if let Ok(text) = String::from_utf8(bytes) {
                files.push(File { path: name.into(), text });
            }
        }
        Ok(Self { root: root.to_owned(), files })
    }

    fn rust(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|file| file.path.extension().is_some_and(|extension| extension == "rs"))
    }

    /// The file at this path, absolute or relative to the root.
    fn find(&self, path: impl AsRef<Path>) -> Option<&File> {
        let path = path.as_ref();
        let path = path.strip_prefix(&self.root).unwrap_or(path);
        self.files.iter().find(|file| file.path == path)
    }
}
