//! Follows the folder: the kernel says that something happened, a look at the settled folder says what.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use notify::{
    Event, EventKind, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind},
};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::Folder;

/// The folder is looked at when nothing has happened for this long …
const SETTLED: Duration = Duration::from_millis(60);
/// … or for this long, where all that is known to have been written is complete …
const COMPLETE: Duration = Duration::from_millis(10);
/// … or this long after the first thing that happened.
const LATEST: Duration = Duration::from_millis(300);
/// A file that is open for writing is taken as it is after resting this long.
const RESTING: Duration = Duration::from_secs(2);
/// The folder is looked at this often in any case: not every file system reports every change.
const ANYWAY: Duration = Duration::from_secs(5);

type Happened = notify::Result<Event>;

/// Follows `folder` on a thread of its own, until nobody listens any more. The number grows with each
/// look that changed something.
///
/// # Errors
/// When the thread cannot be started.
pub fn watch(folder: Folder) -> io::Result<watch::Receiver<u64>> {
    watch_resting(folder, RESTING)
}

/// As [`watch`], with another time after which a file that is open for writing is taken as it is.
pub(super) fn watch_resting(mut folder: Folder, resting: Duration) -> io::Result<watch::Receiver<u64>> {
    folder.rest = SETTLED;
    let (changes, followers) = watch::channel(0);
    let (events, happened) = channel();
    let (open, written) = (BTreeMap::new(), BTreeSet::new());
    let mut follower = Follower { folder, changes, events, open, written, watched: None, resting };
    // Before this returns: whoever starts to write from now on is seen to do so.
    follower.rewatch();
    thread::Builder::new().name("folder".to_owned()).spawn(move || follower.run(&happened))?;
    Ok(followers)
}

struct Follower {
    folder: Folder,
    changes: watch::Sender<u64>,
    /// For the kernel's watcher to put its events into.
    events: Sender<Happened>,
    /// Files that somebody writes, and when they were last written to.
    open: BTreeMap<PathBuf, Instant>,
    /// Files that were written since the last look.
    written: BTreeSet<PathBuf>,
    watched: Option<Watched>,
    resting: Duration,
}

/// The kernel's watch, and which folder it is on: a folder that is replaced is another one.
struct Watched {
    _watcher: notify::RecommendedWatcher,
    folder: (u64, u64),
}

impl Follower {
    fn run(mut self, happened: &Receiver<Happened>) {
        // Of the first look.
        self.folder.keep();
        // Something may have happened between the first look and the watch.
        let mut look_at = Instant::now();
        let mut first_event: Option<Instant> = None;
        while !self.changes.is_closed() {
            match happened.recv_timeout(look_at.saturating_duration_since(Instant::now())) {
                Ok(event) => {
                    if self.take(event) {
                        let now = Instant::now();
                        let first = *first_event.get_or_insert(now);
                        let settled = if self.open.is_empty() { COMPLETE } else { SETTLED };
                        look_at = (now + settled).min(first + LATEST);
                    }
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {}
                // `self` holds a sender.
                Err(RecvTimeoutError::Disconnected) => return,
            }
            first_event = None;
            look_at = Instant::now() + self.look();
        }
    }

    /// Looks at the folder; how long until the next look if nothing happens.
    fn look(&mut self) -> Duration {
        self.rewatch();
        let now = Instant::now();
        self.open.retain(|_, written| now.duration_since(*written) < self.resting);
        let open: BTreeSet<PathBuf> = self.open.keys().cloned().collect();
        // A file that is still being written stays among the written ones until it is read.
        let (later, written) =
            std::mem::take(&mut self.written).into_iter().partition(|path| open.contains(path));
        self.written = later;
        let outcome = self.folder.look(&written, &open);
        if outcome.changed {
            self.changes.send_modify(|number| *number += 1);
        }
        self.folder.keep();
        let rested =
            self.open.values().map(|written| self.resting.saturating_sub(now.duration_since(*written)));
        rested.chain(outcome.again).min().unwrap_or(ANYWAY)
    }

    /// Takes an event in; whether the folder is to be looked at for it.
    fn take(&mut self, event: Happened) -> bool {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                debug!("the watch of the folder reports {error}; everything is looked at");
                return true;
            }
        };
        match event.kind {
            // Our own reading is among these.
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                for path in event.paths {
                    self.open.remove(&path);
                    self.written.insert(path);
                }
                true
            }
            EventKind::Access(_) => false,
            EventKind::Modify(ModifyKind::Data(_)) => {
                for path in event.paths {
                    self.open.insert(path.clone(), Instant::now());
                    self.written.insert(path);
                }
                true
            }
            EventKind::Modify(ModifyKind::Name(_)) | EventKind::Remove(_) | EventKind::Create(_) => {
                for path in event.paths {
                    self.open.remove(&path);
                }
                true
            }
            EventKind::Modify(_) | EventKind::Any | EventKind::Other => true,
        }
    }

    /// Puts the kernel's watch on the folder, or on the folder that has come in its place.
    fn rewatch(&mut self) {
        let root = self.folder.root.clone();
        let Some(folder) = number(&root) else {
            self.watched = None;
            return;
        };
        if self.watched.as_ref().is_some_and(|watched| watched.folder == folder) {
            return;
        }
        let events = self.events.clone();
        let watcher = notify::recommended_watcher(move |event| drop(events.send(event)))
            .and_then(|mut watcher| watcher.watch(&root, RecursiveMode::Recursive).map(|()| watcher));
        match watcher {
            Ok(watcher) => self.watched = Some(Watched { _watcher: watcher, folder }),
            Err(error) => {
                warn!("{} cannot be watched ({error}); it is looked at every {ANYWAY:?}", root.display());
            }
        }
    }
}

fn number(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}
