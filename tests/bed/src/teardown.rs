//! Taking a world down by its id alone: its own end, a signal, and the sweep of what dead owners left
//! all come through here.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};

use crate::netns;

/// What every name of a world begins with.
pub(crate) const PREFIX: &str = "cv";
/// The file in a world's folder that says who owns it.
const OWNER: &str = "owner";
/// What the owner file of a kept world says.
const KEPT: &str = "kept";

/// The folder that holds every world's folder.
pub(crate) fn worlds() -> PathBuf {
    std::env::temp_dir().join("culvert-bed")
}

/// Where cgroup v2 is mounted on this machine.
pub(crate) fn cgroup2() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read the mounts")?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, at, kind) = (fields.next()?, fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(at))
        })
        .next()
        .context("no cgroup2 is mounted; try: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

/// Writes who owns the world, so that a later sweep can tell a live one from a leftover.
pub(crate) fn claim(folder: &Path) -> Result<()> {
    let pid = std::process::id();
    let since = start_time(pid).context("own start time")?;
    fs::write(folder.join(OWNER), format!("{pid} {since}\n")).context("write the owner file")
}

/// Marks a world as kept: only [`remove_world`] removes it then.
pub(crate) fn keep(folder: &Path) -> Result<()> {
    fs::write(folder.join(OWNER), format!("{KEPT}\n")).context("write the owner file")
}

/// When a process started, in clock ticks since boot: tells a reused pid from the old one.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold spaces; it ends with the last parenthesis. Field 22 is the start time.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn has_owner(folder: &Path) -> bool {
    let Ok(text) = fs::read_to_string(folder.join(OWNER)) else {
        // Just being made, or half removed: a minute decides which.
        let age = fs::metadata(folder).and_then(|m| m.modified()).ok().and_then(|at| at.elapsed().ok());
        return age.is_some_and(|age| age < Duration::from_secs(60));
    };
    if text.trim() == KEPT {
        return true;
    }
    let mut fields = text.split_whitespace().map(str::parse::<u64>);
    match (fields.next(), fields.next()) {
        (Some(Ok(pid)), Some(Ok(since))) => u32::try_from(pid).ok().and_then(start_time) == Some(since),
        (Some(_) | None, Some(_) | None) => false,
    }
}

/// Removes every world whose owner is gone; the ids removed.
///
/// # Errors
/// The first thing that could not be removed.
pub fn sweep() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    let Ok(entries) = fs::read_dir(worlds()) else { return Ok(removed) };
    for entry in entries {
        let entry = entry?;
        if entry.path().is_dir() && !has_owner(&entry.path()) {
            let id = entry.file_name().to_string_lossy().into_owned();
            remove_world(&id)?;
            removed.push(id);
        }
    }
    Ok(removed)
}

/// The ids of the worlds that were kept.
pub fn kept() -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(worlds()) else { return Ok(Vec::new()) };
    let is_kept =
        |folder: &Path| fs::read_to_string(folder.join(OWNER)).is_ok_and(|text| text.trim() == KEPT);
    let mut ids = Vec::new();
    for entry in entries {
        let entry = entry?;
        if is_kept(&entry.path()) {
            ids.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(ids)
}

/// Removes a world: its processes, mounts, namespaces, cgroups and folder, whatever of them is left.
///
/// # Errors
/// The first thing that could not be removed; the rest is tried all the same.
pub fn remove_world(id: &str) -> Result<()> {
    let mut first = None;
    let mut note = |step: Result<()>| {
        if let Err(error) = step {
            first.get_or_insert(error);
        }
    };
    let name = format!("{PREFIX}{id}");
    if let Ok(root) = cgroup2() {
        note(kill_cgroup(&root.join(&name)));
    }
    let folder = worlds().join(id);
    note(unmount_below(&folder));
    note(remove_namespaces(&name));
    if folder.exists() {
        note(fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display())));
    }
    first.map_or(Ok(()), |error| Err(error.context(format!("take down world {id}"))))
}

/// Kills every process of the cgroup and its children, then removes them.
fn kill_cgroup(cgroup: &Path) -> Result<()> {
    if !cgroup.exists() {
        return Ok(());
    }
    let switch = cgroup.join("cgroup.kill");
    fs::write(&switch, "1").with_context(|| format!("write {} (kernel 5.14 or newer)", switch.display()))?;
    let children: Vec<PathBuf> = fs::read_dir(cgroup)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.is_dir())
        .collect();
    for path in children.iter().chain([&cgroup.to_path_buf()]) {
        remove_cgroup(path)?;
    }
    Ok(())
}

/// A cgroup can go once its last process has been torn down, a moment after its death.
fn remove_cgroup(cgroup: &Path) -> Result<()> {
    let start = Instant::now();
    loop {
        match fs::remove_dir(cgroup) {
            Ok(()) => return Ok(()),
            Err(_) if start.elapsed() < Duration::from_secs(3) => {
                std::thread::sleep(Duration::from_millis(2))
            }
            Err(error) => return Err(error).with_context(|| format!("remove cgroup {}", cgroup.display())),
        }
    }
}

fn unmount_below(folder: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read the mounts")?;
    let below = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|at| Path::new(at).starts_with(folder));
    let mut below: Vec<&str> = below.collect();
    below.reverse();
    for at in below {
        umount2(at, MntFlags::MNT_DETACH).with_context(|| format!("unmount {at}"))?;
    }
    Ok(())
}

/// Removes the namespaces called `name` or `name-…`.
fn remove_namespaces(name: &str) -> Result<()> {
    let Ok(entries) = fs::read_dir(netns::FOLDER) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let file = entry.file_name().to_string_lossy().into_owned();
        if file.strip_prefix(name).is_some_and(|rest| rest.starts_with('-')) {
            remove_namespace(&file)?;
        }
    }
    Ok(())
}

/// Removes one named namespace; its links go with it.
pub(crate) fn remove_namespace(name: &str) -> Result<()> {
    let path = Path::new(netns::FOLDER).join(name);
    // Not mounted any more is as good as unmounted.
    let _ = umount2(&path, MntFlags::MNT_DETACH);
    fs::remove_file(&path).with_context(|| format!("remove network namespace {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_pid_is_not_the_owner() {
        let folder = tempfile::tempdir().unwrap();
        claim(folder.path()).unwrap();
        assert!(has_owner(folder.path()));
        fs::write(folder.path().join(OWNER), format!("{} 1\n", std::process::id())).unwrap();
        assert!(!has_owner(folder.path()));
        keep(folder.path()).unwrap();
        assert!(has_owner(folder.path()));
    }
}
