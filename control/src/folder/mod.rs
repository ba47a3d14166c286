//! A folder of manifests, followed live.
//!
//! What counts as a change, and what does not:
//! - a file is read when its writer has closed it, or has let it rest for two seconds;
//! - a file that became empty is being written: its objects stay until it says something or is removed;
//! - a file that vanished is gone only if it is still gone after a moment (editors rename around);
//! - names that begin with a dot, end with `~`, or do not end with `.yaml` or `.yml` are not manifests;
//! - a folder that cannot be listed forgets nothing;
//! - the whole folder without any manifest, where there were some, forgets nothing either: so looks a mount
//!   that went away. Whoever means it leaves one manifest, a Namespace say.
//!
//! The last text of each file that was wholly good is kept in the state directory, so that "the last
//! good version holds" is also true across a restart of control.

mod first;
mod kept;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime},
};

pub use first::FirstLookError;
pub use kept::Kept;
pub use watch::watch;

use crate::{
    manifest::{Parsed, parse},
    objects::Objects,
};

/// A file that is gone for this long is deleted.
const GONE_AFTER: Duration = Duration::from_millis(200);
/// Deeper folders are not looked into (links may lead in a circle).
const MAX_DEPTH: usize = 16;
/// Larger files are refused (bytes).
const MAX_FILE: u64 = 64 * 1024 * 1024;
/// Files that are read at a time: a bound on texts in memory.
const AT_ONCE: usize = 64;
/// Fewer files are not worth a thread.
const FEW: usize = 4;
/// What is said of a folder that lost all its manifests.
const EMPTIED: &str =
    "no manifest is left in it; is it mounted? (to take everything away, leave one manifest)";

/// The folder and what its files hold.
pub struct Folder {
    root: PathBuf,
    objects: Arc<Mutex<Objects>>,
    kept: Option<Kept>,
    files: BTreeMap<PathBuf, Seen>,
    /// A file that changed more recently is left for later, unless its writer is known to have closed it.
    rest: Duration,
    /// Folders of which nothing is known since the last look, and why.
    unlisted: BTreeMap<PathBuf, String>,
    /// Good texts that are still to be kept: that takes the disk's time, and nobody is to wait for it.
    to_keep: BTreeMap<PathBuf, String>,
}

/// A file as it was last read.
#[derive(Debug, Clone)]
struct Seen {
    stamp: Stamp,
    missing_since: Option<Instant>,
}

/// What differs when a file was written or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

/// What a look at the folder led to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Objects or problems may differ from before.
    pub changed: bool,
    /// Something is still to be decided: look again after this time.
    pub again: Option<Duration>,
}

impl Outcome {
    fn look_again(&mut self, after: Duration) {
        self.again = Some(self.again.map_or(after, |again| again.min(after)));
    }
}

impl Folder {
    /// A folder that was not looked at yet.
    pub fn new(root: PathBuf, kept: Option<Kept>) -> Self {
        let (files, unlisted, to_keep) = Default::default();
        Self { root, objects: Arc::default(), kept, files, rest: Duration::ZERO, unlisted, to_keep }
    }

    /// What the files hold; shared with whoever compiles it.
    pub fn objects(&self) -> Arc<Mutex<Objects>> {
        self.objects.clone()
    }

    /// Looks at every file, and keeps what is good. Those in `written` are read even if they look unchanged,
    /// those in `open` not at all: somebody is writing them.
    pub fn scan(&mut self, written: &BTreeSet<PathBuf>, open: &BTreeSet<PathBuf>) -> Outcome {
        let outcome = self.look(written, open);
        self.keep();
        outcome
    }

    /// As [`Self::scan`]; what is good is still to be kept.
    fn look(&mut self, written: &BTreeSet<PathBuf>, open: &BTreeSet<PathBuf>) -> Outcome {
        let mut outcome = Outcome::default();
        let mut found = Found::of(&self.root);
        if found.files.is_empty() && found.unlisted.is_empty() && !self.files.is_empty() {
            found.unlisted.insert(self.root.clone(), EMPTIED.to_owned());
        }
        let mut to_read = Vec::new();
        for (path, stamp) in &found.files {
            if open.contains(path) {
                continue;
            }
            let seen = self.files.get(path);
            let same = seen.is_some_and(|seen| seen.stamp == *stamp);
            let closed = written.contains(path);
            if !same && !closed && stamp.age().is_some_and(|age| age < self.rest) {
                // The word that somebody writes it may be on its way still.
                outcome.look_again(self.rest);
                continue;
            }
            if !same || closed {
                to_read.push((path, *stamp));
            }
        }
        for some in to_read.chunks(AT_ONCE) {
            for (path, stamp, text) in read_all(some) {
                let first = !self.files.contains_key(path);
                outcome.changed |= self.take(path, text, first);
                self.files.insert(path.clone(), Seen { stamp, missing_since: None });
            }
        }
        self.sweep(&found, open, &mut outcome);
        self.complain(found.unlisted, &mut outcome);
        outcome
    }

    /// Forgets what is gone. A folder that could not be listed says nothing of its files.
    fn sweep(&mut self, found: &Found, open: &BTreeSet<PathBuf>, outcome: &mut Outcome) {
        let now = Instant::now();
        let mut gone = Vec::new();
        for (path, seen) in &mut self.files {
            let unknown = found.unlisted.keys().any(|folder| path.starts_with(folder));
            if found.files.contains_key(path) || unknown || open.contains(path) {
                seen.missing_since = None;
                continue;
            }
            let missing = now.duration_since(*seen.missing_since.get_or_insert(now));
            if missing >= GONE_AFTER {
                gone.push(path.clone());
            } else {
                outcome.look_again(GONE_AFTER - missing);
            }
        }
        for path in gone {
            self.files.remove(&path);
            self.to_keep.remove(&path);
            self.lock().remove(&path);
            if let Some(kept) = &self.kept {
                kept.forget(&self.root, &path);
            }
            tracing::info!(file = %path.display(), "manifest removed");
            outcome.changed = true;
        }
    }

    /// Says of which folders nothing is known, and takes it back of those that are known again.
    fn complain(&mut self, unlisted: BTreeMap<PathBuf, String>, outcome: &mut Outcome) {
        if unlisted == self.unlisted {
            return;
        }
        outcome.changed = true;
        for folder in self.unlisted.keys().filter(|folder| !unlisted.contains_key(*folder)) {
            self.lock().remove(folder);
        }
        for (folder, reason) in &unlisted {
            self.refuse(folder, format!("{reason}: what its files held holds"));
        }
        self.unlisted = unlisted;
    }

    /// Takes a file in as it was read; whether anything differs.
    fn take(&mut self, path: &Path, text: Result<Option<Text>, String>, first: bool) -> bool {
        let Text { text, parsed } = match text {
            Ok(Some(text)) => text,
            // It is gone between listing and reading; the next look decides.
            Ok(None) => return false,
            Err(reason) => {
                if first {
                    self.bring_back(path);
                }
                return self.refuse(path, reason);
            }
        };
        let Some(parsed) = parsed else {
            // A new empty file holds nothing, and that is all there is to say of it.
            let held = !first || self.kept.as_ref().is_some_and(|kept| kept.holds(&self.root, path));
            if first {
                self.bring_back(path);
            }
            let reason = "it is empty; what it held before holds until it says something or is removed";
            return held && self.refuse(path, reason.to_owned());
        };
        let good = is_good(&parsed);
        if first && !good {
            self.bring_back(path);
        }
        tracing::info!(
            file = %path.display(), objects = parsed.objects.len(), problems = parsed.problems.len(), "manifest read"
        );
        self.lock().apply(path, parsed);
        if good && self.kept.is_some() {
            self.to_keep.insert(path.to_owned(), text);
        }
        true
    }

    /// Keeps the good texts that were read.
    fn keep(&mut self) {
        for (path, text) in std::mem::take(&mut self.to_keep) {
            if let Some(kept) = &self.kept {
                kept.keep(&self.root, &path, &text);
            }
        }
    }

    /// After a start: what held of this file when control last ran.
    fn bring_back(&self, path: &Path) {
        if let Some(text) = self.kept.as_ref().and_then(|kept| kept.text(&self.root, path)) {
            self.lock().apply(path, parse(path, &text));
        }
    }

    fn refuse(&self, path: &Path, reason: String) -> bool {
        self.lock().unreadable(path, reason);
        true
    }

    fn lock(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Folder {
    /// Who looks once and does not follow it has kept what he has seen, too.
    fn drop(&mut self) {
        self.keep();
    }
}

/// A manifest's text, and what it says; nothing if it is empty.
struct Text {
    text: String,
    parsed: Option<Parsed>,
}

/// A file as it was read.
type Read<'f> = (&'f PathBuf, Stamp, Result<Option<Text>, String>);

/// Reads files, on all cores where there are several.
fn read_all<'f>(files: &[(&'f PathBuf, Stamp)]) -> Vec<Read<'f>> {
    let read = |&(path, stamp): &(&'f PathBuf, Stamp)| -> Read<'f> {
        let text = read_text(path, stamp).map(|text| {
            text.map(|text| {
                let parsed = (!text.trim().is_empty()).then(|| parse(path, &text));
                Text { text, parsed }
            })
        });
        (path, stamp, text)
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let share = files.len().div_ceil(cores);
    if share < FEW {
        return files.iter().map(read).collect();
    }
    thread::scope(|scope| {
        let of_each =
            files.chunks(share).map(|some| scope.spawn(move || some.iter().map(read).collect::<Vec<_>>()));
        let begun: Vec<_> = of_each.collect();
        let joined = begun.into_iter().map(|part| part.join());
        joined.flat_map(|part| part.unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

/// The text of a manifest; `None` where there is no such file any more, or the reason why it is of no use.
fn read_text(path: &Path, stamp: Stamp) -> Result<Option<String>, String> {
    if stamp.length > MAX_FILE {
        return Err(format!("it has {} bytes, more than {MAX_FILE}", stamp.length));
    }
    match fs::read(path).map(String::from_utf8) {
        Ok(Ok(text)) => Ok(Some(text)),
        Ok(Err(_)) => Err("it is not UTF-8 text".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("it cannot be read: {error}")),
    }
}

fn is_good(parsed: &Parsed) -> bool {
    parsed.refused.is_empty() && !parsed.unreadable
}

/// Whether a file of that name is a manifest.
fn is_manifest(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    (name.ends_with(".yaml") || name.ends_with(".yml")) && !name.starts_with(['.', '#'])
}

/// The files below a folder.
#[derive(Default, PartialEq, Eq)]
struct Found {
    files: BTreeMap<PathBuf, Stamp>,
    unlisted: BTreeMap<PathBuf, String>,
}

impl Found {
    fn of(root: &Path) -> Self {
        let mut found = Self::default();
        found.list(root, 0);
        found
    }

    /// Whether something in it was written within `time`; a clock that goes wrong says yes.
    fn is_fresh(&self, time: Duration) -> bool {
        self.files.values().any(|stamp| stamp.age().is_none_or(|age| age < time))
    }

    fn list(&mut self, folder: &Path, depth: usize) {
        let entries = match fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
            Ok(entries) => entries,
            // A folder within that vanished is no folder any more.
            Err(error) if error.kind() == io::ErrorKind::NotFound && depth > 0 => return,
            Err(error) => {
                self.unlisted.insert(folder.to_owned(), format!("it cannot be listed: {error}"));
                return;
            }
        };
        for entry in entries {
            let path = entry.path();
            let hidden = entry.file_name().to_str().is_none_or(|name| name.starts_with('.'));
            // Follows links: a mounted ConfigMap is links all the way.
            if hidden {
                continue;
            }
            let metadata = match fs::metadata(&path) {
                Ok(metadata) => metadata,
                Err(error) => {
                    // A link that leads nowhere is no file; of what cannot be asked, nothing is known.
                    if error.kind() != io::ErrorKind::NotFound {
                        let reason = format!("{} cannot be looked at: {error}", path.display());
                        self.unlisted.insert(folder.to_owned(), reason);
                    }
                    continue;
                }
            };
            if metadata.is_dir() && depth < MAX_DEPTH {
                self.list(&path, depth + 1);
            } else if metadata.is_file() && is_manifest(&path) {
                self.files.insert(path, Stamp::of(&metadata));
            }
        }
    }
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }

    /// How long ago it was written; `None` for the future.
    fn age(&self) -> Option<Duration> {
        let (seconds, nanoseconds) = self.modified;
        let since = Duration::new(seconds.max(0).unsigned_abs(), u32::try_from(nanoseconds).unwrap_or(0));
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + since).ok()
    }
}

#[cfg(test)]
mod tests;
