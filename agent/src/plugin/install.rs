//! Puts the plugin where the container runtime finds it: the program among the node's CNI programs, its entry in
//! the configuration that the runtime picks. Both are repaired when somebody rewrites them, and outlive the agent,
//! since a pod that starts without the agent is to be refused and not to be let through.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use notify::{RecursiveMode, Watcher as _};
use serde_json::Value;

use cni::conflist;

/// Changes come in bursts; they are looked at this long after the last one.
const SETTLED: Duration = Duration::from_millis(100);
/// It is looked at this often in any case.
const ANYWAY: Duration = Duration::from_secs(30);
/// Between two repairs: longer with each, since somebody else may repair what we do.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// A configuration has some KiB.
const MAX_FILE: u64 = 1 << 20;
/// What a configuration that is no list is renamed to when it becomes one: no runtime reads such a name.
const SAVED: &str = "culvert-saved";

/// Where things go.
#[derive(Debug, Clone)]
pub(crate) struct Install {
    /// The node's directory of CNI programs.
    pub(crate) bin_dir: PathBuf,
    /// The node's directory of CNI configurations.
    pub(crate) conf_dir: PathBuf,
}

/// The configuration that the runtime picks, as it is now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) path: PathBuf,
    /// What its plugins are, in their order.
    pub(crate) types: Vec<String>,
    /// Whether our entry is in it, as it should be.
    pub(crate) in_place: bool,
}

/// Why it is not installed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    #[error("{what} {}: {error}", path.display())]
    System { what: &'static str, path: PathBuf, error: io::Error },
    #[error("the CNI configuration {} is left alone: {problem}. No pod is captured before it starts until it is put right", path.display())]
    Malformed { path: PathBuf, problem: conflist::Malformed },
    #[error("no CNI configuration is in {} yet: it is waited for", .0.display())]
    NoConfiguration(PathBuf),
}

fn failed(what: &'static str, path: &Path) -> impl Fn(io::Error) -> InstallError {
    let path = path.to_owned();
    move |error| InstallError::System { what, path: path.clone(), error }
}

impl Install {
    /// Copies the program there, unless it is there to the byte. Whether it had to.
    pub(crate) fn program(&self, from: &Path) -> Result<bool, InstallError> {
        let to = self.bin_dir.join(cni::PLUGIN);
        let program = fs::read(from).map_err(failed("cannot read the CNI plugin", from))?;
        if fs::read(&to).is_ok_and(|there| there == program) {
            return Ok(false);
        }
        write(&to, &program, 0o755).map_err(failed("cannot install the CNI plugin", &to))?;
        Ok(true)
    }

    /// Puts the entry into the configuration that the runtime picks. Which file was changed, if one was.
    pub(crate) fn entry(&self, entry: &Value) -> Result<Option<PathBuf>, InstallError> {
        let Some(path) = self.configurations()?.into_iter().next() else {
            return Err(InstallError::NoConfiguration(self.conf_dir.clone()));
        };
        let malformed = |problem| InstallError::Malformed { path: path.clone(), problem };
        let text = read(&path)?;
        let mode = fs::metadata(&path).map_or(0o600, |metadata| metadata.permissions().mode() & 0o777);
        if is_list(&path) {
            let Some(changed) = conflist::insert(&text, entry).map_err(malformed)? else { return Ok(None) };
            write(&path, changed.as_bytes(), mode)
                .map_err(failed("cannot write the CNI configuration", &path))?;
            return Ok(Some(path));
        }
        let list =
            conflist::convert(&text).and_then(|list| Ok(conflist::insert(&list, entry)?.unwrap_or(list)));
        let list = list.map_err(malformed)?;
        let to = path.with_extension("conflist");
        write(&to, list.as_bytes(), mode).map_err(failed("cannot write the CNI configuration", &to))?;
        // Until then the runtime picks the old one, which sorts before.
        fs::rename(&path, saved(&path)).map_err(failed("cannot rename the CNI configuration", &path))?;
        Ok(Some(to))
    }

    /// How the configuration that the runtime picks stands. Changes nothing.
    pub(crate) fn look(&self, entry: &Value) -> Result<Chain, InstallError> {
        let Some(path) = self.configurations()?.into_iter().next() else {
            return Err(InstallError::NoConfiguration(self.conf_dir.clone()));
        };
        let malformed = |problem| InstallError::Malformed { path: path.clone(), problem };
        let text = read(&path)?;
        let text = if is_list(&path) { text } else { conflist::convert(&text).map_err(malformed)? };
        let types = conflist::types(&text).map_err(malformed)?;
        let in_place = conflist::insert(&text, entry).map_err(malformed)?.is_none();
        let in_place = in_place && self.bin_dir.join(cni::PLUGIN).is_file();
        Ok(Chain { path, types, in_place })
    }

    /// Takes entry and program away. What was changed.
    pub(crate) fn remove(&self) -> Result<Vec<PathBuf>, InstallError> {
        let mut changed = Vec::new();
        for path in self.configurations()?.into_iter().filter(|path| is_list(path)) {
            let text = read(&path)?;
            // What is not understood has nothing of ours.
            let Ok(Some(without)) = conflist::remove(&text) else { continue };
            let mode = fs::metadata(&path).map_or(0o600, |metadata| metadata.permissions().mode() & 0o777);
            write(&path, without.as_bytes(), mode)
                .map_err(failed("cannot write the CNI configuration", &path))?;
            self.give_back(&path, &without)?;
            changed.push(path);
        }
        let program = self.bin_dir.join(cni::PLUGIN);
        match fs::remove_file(&program) {
            Ok(()) => changed.push(program),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("cannot remove the CNI plugin", &program)(error)),
        }
        Ok(changed)
    }

    /// A list that was made of a single configuration becomes that again, unless somebody has changed it since.
    fn give_back(&self, list: &Path, text: &str) -> Result<(), InstallError> {
        for extension in ["conf", "json"] {
            let single = list.with_extension(extension);
            let saved = saved(&single);
            let Ok(kept) = fs::read_to_string(&saved) else { continue };
            let parsed = |text: &str| serde_json::from_str::<Value>(text).ok();
            let same = conflist::convert(&kept).is_ok_and(|kept| parsed(&kept) == parsed(text));
            let done = if same && !single.exists() {
                fs::rename(&saved, &single).and_then(|()| fs::remove_file(list))
            } else {
                fs::remove_file(&saved)
            };
            done.map_err(failed("cannot give back the CNI configuration", &single))?;
        }
        Ok(())
    }

    /// What the runtime would read, in its order.
    fn configurations(&self) -> Result<Vec<PathBuf>, InstallError> {
        let listed = match fs::read_dir(&self.conf_dir) {
            Ok(listed) => listed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("cannot list", &self.conf_dir)(error)),
        };
        let read = |path: &PathBuf| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("conf" | "conflist" | "json")) && path.is_file()
        };
        let mut paths: Vec<PathBuf> = listed.flatten().map(|entry| entry.path()).filter(read).collect();
        paths.sort();
        Ok(paths)
    }

    /// Installs, and keeps installed, on a thread of its own, until the program ends or `ended` is dropped.
    pub(crate) fn keep(self, program: PathBuf, entry: Value) -> io::Result<Keeper> {
        let (events, happened) = channel();
        let sender = events.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading is no change: our own look would lead to the next one.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                let _ = sender.send(true);
            }
        });
        let mut watcher = watcher.map_err(io::Error::other)?;
        let _ = fs::create_dir_all(&self.conf_dir);
        if let Err(error) = watcher.watch(&self.conf_dir, RecursiveMode::NonRecursive) {
            tracing::warn!(%error, directory = %self.conf_dir.display(), "looked at every {ANYWAY:?} only");
        }
        let thread = thread::Builder::new().name("cni".to_owned()).spawn(move || {
            let _watcher = watcher;
            self.run(&program, &entry, &happened);
        })?;
        Ok(Keeper { events, thread: Some(thread) })
    }

    fn run(&self, program: &Path, entry: &Value, happened: &Receiver<bool>) {
        let mut wait = BACK_OFF.0;
        let mut last_problem = String::new();
        loop {
            let looked = Instant::now();
            match self.program(program).and_then(|copied| Ok((copied, self.entry(entry)?))) {
                Ok((copied, changed)) => {
                    last_problem.clear();
                    if copied || changed.is_some() {
                        let path = changed.as_deref().unwrap_or(&self.bin_dir).display();
                        tracing::info!(%path, copied, "the CNI plugin is installed");
                        // Whoever wrote it may do so again at once.
                        thread::sleep(wait);
                        wait = (wait * 2).min(BACK_OFF.1);
                    }
                }
                Err(problem) => {
                    let problem = problem.to_string();
                    if problem != last_problem {
                        tracing::warn!("{problem}");
                    }
                    last_problem = problem;
                }
            }
            match happened.recv_timeout(ANYWAY) {
                Ok(true) => loop {
                    match happened.recv_timeout(SETTLED) {
                        Ok(true) => {}
                        Ok(false) | Err(RecvTimeoutError::Disconnected) => return,
                        Err(RecvTimeoutError::Timeout) => break,
                    }
                },
                Ok(false) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if looked.elapsed() >= ANYWAY {
                wait = BACK_OFF.0;
            }
        }
    }
}

/// The thread that keeps the plugin installed.
pub(crate) struct Keeper {
    events: std::sync::mpsc::Sender<bool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.events.send(false);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn is_list(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "conflist")
}

fn saved(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(SAVED);
    path.with_file_name(name)
}

fn read(path: &Path) -> Result<String, InstallError> {
    let bounded = fs::metadata(path).and_then(|metadata| {
        if metadata.len() > MAX_FILE {
            Err(io::Error::other("it is too large"))
        } else {
            fs::read_to_string(path)
        }
    });
    bounded.map_err(failed("cannot read the CNI configuration", path))
}

/// Writes beside, syncs and renames: whoever reads meets the old or the new.
pub(super) fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    // A name that no runtime reads.
    name.push(".culvert-new");
    let beside = directory.join(name);
    let mut file = File::create(&beside)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bed() -> (tempfile::TempDir, Install, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let install = Install { bin_dir: folder.path().join("bin"), conf_dir: folder.path().join("net.d") };
        fs::create_dir(&install.bin_dir).expect("bin");
        fs::create_dir(&install.conf_dir).expect("net.d");
        let program = folder.path().join("plugin");
        fs::write(&program, "one").expect("a program");
        (folder, install, program)
    }

    fn entry() -> Value {
        json!({"type": cni::PLUGIN})
    }

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp"}]}"#;
    const SINGLE: &str = r#"{"cniVersion":"1.0.0","name":"n","type":"bridge"}"#;

    #[test]
    fn the_first_configuration_is_the_one_and_all_goes_again() {
        let (_folder, install, program) = bed();
        assert!(matches!(install.entry(&entry()), Err(InstallError::NoConfiguration(_))));
        let (first, second) =
            (install.conf_dir.join("10-a.conflist"), install.conf_dir.join("20-b.conflist"));
        fs::write(&second, LIST).expect("writes");
        fs::write(&first, LIST).expect("writes");
        fs::write(install.conf_dir.join("00-kubeconfig"), "x").expect("writes");
        assert!(install.program(&program).expect("copies"));
        assert!(!install.program(&program).expect("is there"));
        assert!(!install.look(&entry()).expect("looks").in_place);
        assert_eq!(install.entry(&entry()).expect("inserts"), Some(first.clone()));
        let chain = install.look(&entry()).expect("looks");
        assert_eq!((chain.in_place, chain.types), (true, vec!["ptp".to_owned(), cni::PLUGIN.to_owned()]));
        assert_eq!(install.entry(&entry()).expect("is there"), None);
        assert_eq!(fs::read_to_string(&second).expect("reads"), LIST);
        assert_eq!(install.remove().expect("removes").len(), 2);
        assert!(!fs::read_to_string(&first).expect("reads").contains(cni::PLUGIN));
        assert_eq!(install.remove().expect("nothing is left"), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_single_configuration_is_converted_and_given_back() {
        let (_folder, install, _) = bed();
        let single = install.conf_dir.join("10-a.conf");
        fs::write(&single, SINGLE).expect("writes");
        let list = install.conf_dir.join("10-a.conflist");
        assert_eq!(install.entry(&entry()).expect("converts"), Some(list.clone()));
        assert!(!single.exists());
        install.remove().expect("removes");
        assert_eq!(fs::read_to_string(&single).expect("given back"), SINGLE);
        assert_eq!(fs::read_dir(&install.conf_dir).expect("lists").count(), 1);
    }

    #[test]
    fn a_malformed_configuration_is_left_as_it_is() {
        let (_folder, install, _) = bed();
        let first = install.conf_dir.join("10-a.conflist");
        fs::write(&first, "{").expect("writes");
        fs::write(install.conf_dir.join("20-b.conflist"), LIST).expect("writes");
        let problem = install.entry(&entry()).expect_err("left alone").to_string();
        assert!(problem.contains("10-a.conflist") && problem.contains("no JSON"), "{problem}");
        assert_eq!(fs::read_to_string(&first).expect("reads"), "{");
    }

    #[test]
    fn what_somebody_overwrites_is_repaired() {
        let (_folder, install, program) = bed();
        let path = install.conf_dir.join("10-a.conflist");
        fs::write(&path, LIST).expect("writes");
        let keeper = install.clone().keep(program, entry()).expect("keeps");
        for _ in 0..2 {
            let begun = Instant::now();
            while !fs::read_to_string(&path).expect("reads").contains(cni::PLUGIN) {
                assert!(begun.elapsed() < Duration::from_secs(10), "not repaired");
                thread::sleep(Duration::from_millis(20));
            }
            fs::write(&path, LIST).expect("overwrites");
        }
        drop(keeper);
    }
}
