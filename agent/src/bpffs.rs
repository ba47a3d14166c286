//! The filesystem that pins live in: mounted where nobody has, and left in order.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

/// Whether a bpffs is at this path.
pub(crate) fn is_there(path: &Path) -> nix::Result<bool> {
    Ok(statfs(path)?.filesystem_type() == BPF_FS_MAGIC)
}

/// Mounts a bpffs at a folder, as systemd does, unless there is one. Whether it had to.
pub(crate) fn ensure(path: &Path) -> anyhow::Result<bool> {
    let shown = path.display();
    if is_there(path).with_context(|| format!("{shown} cannot be looked at"))? {
        return Ok(false);
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=700"))
        .with_context(|| format!("a bpffs cannot be mounted at {shown} (needs CAP_SYS_ADMIN)"))?;
    Ok(true)
}

/// Removes what all pods of the node shared, and the state, if no pod is captured. Whether it did.
pub(crate) fn leave_nothing(pins: &Path, state: &Path) -> io::Result<bool> {
    let pods: PathBuf = pins.join("pods");
    let captured = match fs::read_dir(&pods) {
        Ok(mut pods) => pods.next().is_some(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    if captured {
        return Ok(false);
    }
    for folder in [pins, state] {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_captured_is_left_and_what_is_not_goes() {
        let folder = tempfile::tempdir().expect("a folder");
        let (pins, state) = (folder.path().join("pins"), folder.path().join("state"));
        assert!(leave_nothing(&pins, &state).expect("nothing is there"));
        fs::create_dir_all(pins.join("pods/u1")).expect("a pod");
        fs::create_dir_all(&state).expect("state");
        assert!(!leave_nothing(&pins, &state).expect("looks"));
        assert!(pins.exists() && state.exists());
        fs::remove_dir(pins.join("pods/u1")).expect("detached");
        assert!(leave_nothing(&pins, &state).expect("removes"));
        assert!(!pins.exists() && !state.exists());
    }

    #[test]
    fn a_folder_of_another_filesystem_is_told_from_a_bpffs() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(is_there(folder.path()), Ok(false));
        let missing = ensure(&folder.path().join("missing")).expect_err("nothing is there");
        assert!(format!("{missing:#}").contains("cannot be looked at"), "{missing:#}");
    }
}
