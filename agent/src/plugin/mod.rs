//! The agent's side of the CNI plugin: it answers what the plugin asks of a pod that is about to start, keeps what
//! is known of namespaces for when it is away, and keeps the plugin installed.

mod install;
mod known;
mod serve;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Value, json};

pub(crate) use self::{
    install::{Chain, Install, InstallError, Keeper},
    known::Namespaces,
    serve::{Desk, Listener},
};

/// How the plugin is to be set up.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) socket: PathBuf,
    pub(crate) install: Install,
    /// The program to install.
    pub(crate) program: PathBuf,
    /// Namespaces whose pods start without asking.
    pub(crate) exempt: Vec<String>,
}

impl Options {
    /// The plugin's entry in the CNI configuration.
    fn entry(&self, namespaces: &Namespaces) -> Value {
        json!({
            "type": cni::PLUGIN,
            "socket": self.socket,
            "state": namespaces.path(),
            "exemptNamespaces": self.exempt,
        })
    }

    /// How the node's CNI configuration stands now. Changes nothing.
    pub(crate) fn look(&self, namespaces: &Namespaces) -> Result<Chain, InstallError> {
        self.install.look(&self.entry(namespaces))
    }

    /// Installs the plugin once the namespaces are known (before, it would refuse every pod of the node), and keeps
    /// it installed for as long as the answer is held.
    pub(crate) async fn keep(&self, namespaces: &Namespaces) -> std::io::Result<Keeper> {
        namespaces.known().await;
        self.install.clone().keep(self.program.clone(), self.entry(namespaces))
    }
}

/// Takes away what an agent has installed: pods start without the mesh again.
pub(crate) fn remove(install: &Install, socket: &Path, state: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut removed = install.remove()?;
    if std::fs::remove_file(socket).is_ok() {
        removed.push(socket.to_owned());
    }
    known::forget(state)?;
    Ok(removed)
}

/// The namespaces, shared by who hears of them and who decides by them.
pub(crate) fn namespaces(state: &Path) -> Arc<Namespaces> {
    Arc::new(Namespaces::open(state))
}
