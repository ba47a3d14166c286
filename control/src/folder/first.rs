//! The first look at the folder, at control's start. What it misses would be taken for gone by every
//! node, so it waits until nobody writes, and refuses to begin from less than the whole.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{Folder, Found};

/// A file that changed since is taken as part of something that is still being written.
const FRESH: Duration = Duration::from_secs(2);
/// Two listings of a fresh folder that far apart must agree …
const REST: Duration = Duration::from_millis(200);
/// … unless it has not rested for this long. Below the five seconds that agents give a pod that is
/// named no more.
const LATEST: Duration = Duration::from_secs(3);

/// Why control cannot begin from this folder.
#[derive(Debug, thiserror::Error)]
pub enum FirstLookError {
    #[error("{}: {reason}; control begins only from the whole folder, since what it misses would be taken for gone", path.display())]
    Unlisted { path: PathBuf, reason: String },
    #[error(
        "{} holds no manifest, and did when control last ran; is it mounted? To begin with an empty mesh, leave one \
         manifest in it (a Namespace, say)",
        path.display()
    )]
    Emptied { path: PathBuf },
}

impl Folder {
    /// Looks at every file for the first time, when the folder has come to rest (within 3 s).
    ///
    /// # Errors
    /// When a part of the folder cannot be listed, or nothing is left in it of what was there when control
    /// last ran: to begin from that would tell the nodes that their pods are gone.
    pub async fn first_look(&mut self) -> Result<(), FirstLookError> {
        let begun = Instant::now();
        let mut found = Found::of(&self.root);
        while found.is_fresh(FRESH) && begun.elapsed() < LATEST {
            tokio::time::sleep(REST).await;
            let again = Found::of(&self.root);
            if again == found {
                break;
            }
            found = again;
        }
        // What is good is kept when it is followed: nobody is to wait for the disk.
        self.look(&Default::default(), &Default::default());
        if let Some((path, reason)) = self.unlisted.first_key_value() {
            return Err(FirstLookError::Unlisted { path: path.clone(), reason: reason.clone() });
        }
        if self.files.is_empty() && self.kept.as_ref().is_some_and(super::Kept::holds_any) {
            return Err(FirstLookError::Emptied { path: self.root.clone() });
        }
        Ok(())
    }
}
