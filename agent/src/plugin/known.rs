//! The namespaces as control names them, and the file in which the plugin finds them while the agent is away.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use cni::known::{Knowledge, Known, Mode, read};
use proto::node::NodeDirective;
use tokio::sync::watch;

/// A cluster with more is cut, loudly: some 4 MiB of file.
const MAX_NAMESPACES: usize = 30_000;
const FILE: &str = "cni.json";

/// What is known, in memory and in the file.
pub(crate) struct Namespaces {
    path: PathBuf,
    known: Mutex<Option<Known>>,
    /// Whether anything is.
    any: watch::Sender<bool>,
}

impl Namespaces {
    /// In the agent's state directory; with what an agent before this one has left.
    pub(crate) fn open(state: &Path) -> Self {
        let path = state.join(FILE);
        let known = match read(&path) {
            Knowledge::Known(known) => Some(known),
            Knowledge::Never => None,
            Knowledge::Unreadable(error) => {
                tracing::warn!(path = %path.display(), error, "what was known of namespaces cannot be read");
                None
            }
        };
        let any = watch::Sender::new(known.is_some());
        Self { path, known: Mutex::new(known), any }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes what a directive says of namespaces; keeps it where it changes something.
    pub(crate) fn directed(&self, directive: &NodeDirective) {
        let mut held = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // A control of before the namespaces says nothing of them.
        if held.is_none() && !directive.all_namespaces {
            return;
        }
        let mut known =
            if directive.all_namespaces { Known::default() } else { held.clone().unwrap_or_default() };
        for gone in &directive.gone_namespaces {
            known.namespaces.remove(gone);
        }
        for namespace in &directive.namespaces {
            let mode = if namespace.enroll { Mode::InTheMesh } else { Mode::NotInTheMesh };
            known.namespaces.insert(namespace.name.clone(), mode);
        }
        while known.namespaces.len() > MAX_NAMESPACES {
            let cut = known.namespaces.pop_last();
            tracing::error!(?cut, most = MAX_NAMESPACES, "control names too many namespaces");
        }
        if held.as_ref() == Some(&known) {
            return;
        }
        if let Err(error) = keep(&self.path, &known) {
            tracing::error!(path = %self.path.display(), %error, "what is known of namespaces cannot be kept");
        }
        *held = Some(known);
        drop(held);
        self.any.send_replace(true);
    }

    /// What is known, to decide by.
    pub(crate) fn knowledge(&self) -> Knowledge {
        let held = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        held.clone().map_or(Knowledge::Never, Knowledge::Known)
    }

    /// Waits until anything is known.
    pub(crate) async fn known(&self) {
        // The sender lives as long as `self`.
        let _ = self.any.subscribe().wait_for(|any| *any).await;
    }

    /// Whether a namespace is in the mesh, as far as is known.
    pub(crate) fn any_in_the_mesh(&self) -> bool {
        let held = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        held.iter().any(|known| known.namespaces.values().any(|mode| *mode == Mode::InTheMesh))
    }
}

fn keep(path: &Path, known: &Known) -> io::Result<()> {
    super::install::write(path, &serde_json::to_vec_pretty(known)?, 0o600)
}

/// Removes the file that an agent kept in its state directory.
pub(crate) fn forget(state: &Path) -> io::Result<()> {
    match std::fs::remove_file(state.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proto::node::Namespace;

    use super::*;

    fn directive(all: bool, named: &[(&str, bool)], gone: &[&str]) -> NodeDirective {
        let named =
            named.iter().map(|(name, enroll)| Namespace { name: (*name).to_owned(), enroll: *enroll });
        NodeDirective {
            namespaces: named.collect(),
            gone_namespaces: gone.iter().map(ToString::to_string).collect(),
            all_namespaces: all,
            ..NodeDirective::default()
        }
    }

    #[test]
    fn changes_are_added_up_and_found_again_in_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let namespaces = Namespaces::open(folder.path());
        namespaces.directed(&directive(false, &[], &[]));
        assert_eq!(namespaces.knowledge(), Knowledge::Never, "an older control");
        namespaces.directed(&directive(true, &[("default", false), ("old", false)], &[]));
        assert!(!namespaces.any_in_the_mesh());
        namespaces.directed(&directive(false, &[("shop", true)], &["old"]));
        let expected = [("default".to_owned(), Mode::NotInTheMesh), ("shop".to_owned(), Mode::InTheMesh)];
        let expected = Knowledge::Known(Known { namespaces: expected.into() });
        assert_eq!(namespaces.knowledge(), expected);
        assert_eq!(read(namespaces.path()), expected, "the plugin sees the same");
        let next = Namespaces::open(folder.path());
        assert_eq!(next.knowledge(), expected, "and the next agent");
        assert!(next.any_in_the_mesh());
        next.directed(&directive(true, &[("default", false)], &[]));
        assert!(!next.any_in_the_mesh(), "a new stream names all");
    }
}
