//! A network namespace that the container runtime names by its path, before any process of the pod runs. It is
//! pinned by its descriptor; the path, which the runtime removes with the sandbox, tells whether it still is the
//! pod's.

use std::{
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Component, Path, PathBuf},
};

use capture::Netns;
use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::stat::Mode,
};

/// A namespace and its path on the node.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) netns: Netns,
    /// The node's procfs.
    proc: PathBuf,
    path: PathBuf,
}

impl Given {
    /// Opens the namespace at a path of the node's, which need not be mounted where we run.
    pub(crate) fn open(proc: &Path, path: &Path) -> Result<Self, String> {
        let failed = |error: &dyn std::fmt::Display| {
            format!(
                "its network namespace {} cannot be opened (needs CAP_SYS_PTRACE): {error}",
                path.display()
            )
        };
        let fd = open_on_node(proc, path).map_err(|error| failed(&error))?;
        let netns = Netns::from_fd(fd).map_err(|error| failed(&error))?;
        Ok(Self { netns, proc: proc.to_owned(), path: path.to_owned() })
    }

    /// Whether the runtime still has it there.
    pub(crate) fn is_there(&self) -> bool {
        let there = open_on_node(&self.proc, &self.path).map(std::fs::File::from);
        there.and_then(|file| file.metadata()).is_ok_and(|metadata| metadata.ino() == self.netns.inode())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Opens a file of the node's, by the root of its first process: wherever we run, that is the node's, and links
/// within it lead to the node's files and not to ours.
fn open_on_node(proc: &Path, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    // The kernel's own links are not followed within a root.
    if let Ok(process) = path.strip_prefix("/proc") {
        if process.components().any(|part| !matches!(part, Component::Normal(_))) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it leads out of /proc"));
        }
        return Ok(open(&proc.join(process), flags, Mode::empty())?);
    }
    let root =
        open(&proc.join("1/root"), OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    Ok(openat2(&root, path, how)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_found_by_the_path_of_a_process() {
        let own = Netns::current().expect("a namespace");
        let path = format!("/proc/{}/ns/net", std::process::id());
        let given = Given::open(Path::new("/proc"), Path::new(&path)).expect("opens");
        assert_eq!(given.netns.inode(), own.inode());
        assert!(given.is_there());
    }

    #[test]
    fn what_is_not_there_is_told_with_its_path() {
        for path in ["/run/netns/culvert-no-such-pod", "/proc/../etc/passwd"] {
            let reason = Given::open(Path::new("/proc"), Path::new(path)).expect_err("nothing is there");
            assert!(reason.contains(path), "{reason}");
        }
    }
}
