//! Copies of the last wholly good text of each file, in the state directory.

use std::{
    fs,
    path::{Path, PathBuf},
};

use aws_lc_rs::digest;

use crate::tokens;

/// Where the copies are.
pub struct Kept {
    folder: PathBuf,
}

impl Kept {
    /// In `state/last-good`.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(state: &Path) -> std::io::Result<Self> {
        let folder = state.join("last-good");
        fs::create_dir_all(&folder)?;
        Ok(Self { folder })
    }

    pub(super) fn keep(&self, root: &Path, path: &Path, text: &str) {
        let copy = self.copy(root, path);
        if fs::read(&copy).is_ok_and(|held| held == text.as_bytes()) {
            return;
        }
        if let Err(error) = tokens::write_private(&copy, text.as_bytes()) {
            tracing::warn!(file = %path.display(), "its last good version is not kept for the next start: {error}");
        }
    }

    pub(super) fn text(&self, root: &Path, path: &Path) -> Option<String> {
        fs::read_to_string(self.copy(root, path)).ok()
    }

    pub(super) fn holds(&self, root: &Path, path: &Path) -> bool {
        self.copy(root, path).exists()
    }

    /// Whether there is a copy of any file.
    pub(super) fn holds_any(&self) -> bool {
        fs::read_dir(&self.folder).is_ok_and(|mut entries| entries.next().is_some())
    }

    pub(super) fn forget(&self, root: &Path, path: &Path) {
        // Absent is as good as removed; anything else is found at the next start, and harmless: a file
        // that does not exist has no last good version.
        let _ = fs::remove_file(self.copy(root, path));
    }

    /// A name without slashes, of fixed length, for the path below the folder of manifests.
    fn copy(&self, root: &Path, path: &Path) -> PathBuf {
        let relative = path.strip_prefix(root).unwrap_or(path);
        let digest = digest::digest(&digest::SHA256, relative.as_os_str().as_encoded_bytes());
        let name: String = digest.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        self.folder.join(name)
    }
}
