//! The libraries beside a program that is not linked statically.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::shell;

/// The folder of an image's parts that has them, each where the program looks for it.
const FOLDER: &str = "libraries";

/// Puts the libraries of a program beside an image's other parts, or none.
pub(super) fn put(context: &Path, of: Option<&Path>) -> Result<()> {
    let folder = context.join(FOLDER);
    let failed = || format!("fill {}", folder.display());
    if folder.exists() {
        // An earlier build's.
        fs::remove_dir_all(&folder).with_context(failed)?;
    }
    let Some(program) = of else { return Ok(()) };
    for library in needed(program)? {
        let place = folder.join(library.strip_prefix("/").unwrap_or(&library));
        fs::create_dir_all(place.parent().unwrap_or(&folder)).with_context(failed)?;
        fs::copy(&library, place).with_context(failed)?;
    }
    Ok(())
}

/// A Dockerfile that takes in the libraries, too, if there are any.
pub(crate) fn dockerfile(file: &Path, context: &Path) -> Result<PathBuf> {
    if !context.join(FOLDER).exists() {
        return Ok(file.to_owned());
    }
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let with_libraries = context.join("Dockerfile");
    fs::write(&with_libraries, format!("{text}COPY {FOLDER}/ /\n"))
        .with_context(|| format!("write {}", with_libraries.display()))?;
    Ok(with_libraries)
}

/// What the dynamic linker loads for a program, itself among it.
fn needed(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let said = shell::output(
        Command::new("ldd").arg(program),
        &format!("ask for the libraries of {}", program.display()),
    )?;
    Ok(paths(&said))
}

fn paths(ldd: &str) -> BTreeSet<PathBuf> {
    ldd.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linker_and_every_library_are_named() {
        let said = "\tlinux-vdso.so.1 (0x00007f)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t\
                    /lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let wanted = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(paths(said), BTreeSet::from(wanted));
    }

    #[test]
    fn a_programs_libraries_are_put_where_it_looks_for_them_and_go_with_the_next_build() {
        let context = std::env::temp_dir().join(format!("libraries-{}", std::process::id()));
        fs::create_dir_all(&context).unwrap();
        let file = context.join("x.Dockerfile");
        fs::write(&file, "FROM scratch\n").unwrap();
        put(&context, Some(&std::env::current_exe().unwrap())).unwrap();
        let with = dockerfile(&file, &context).unwrap();
        assert_eq!(fs::read_to_string(with).unwrap(), "FROM scratch\nCOPY libraries/ /\n");
        let linker = needed(&std::env::current_exe().unwrap()).unwrap();
        let linker = linker.iter().find(|path| path.to_string_lossy().contains("ld-linux")).unwrap();
        assert!(context.join(FOLDER).join(linker.strip_prefix("/").unwrap()).is_file());
        put(&context, None).unwrap();
        assert_eq!(dockerfile(&file, &context).unwrap(), file);
        fs::remove_dir_all(&context).unwrap();
    }
}
