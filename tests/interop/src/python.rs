//! Programs in Python on packages of PyPI: clients and servers of other implementations than ours.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use bed::{Job, Pod};

use crate::tools::{Place, run};

/// gRPC's own core, in C.
pub const GRPC: Package = Package {
    name: "grpcio",
    // What it asks for comes with it.
    requirements: &["grpcio==1.85.1", "typing-extensions==4.16.0"],
    why: "a foreign implementation of gRPC",
};
/// WebSockets (RFC 6455).
pub const WEBSOCKETS: Package = Package {
    name: "websockets",
    requirements: &["websockets==17.4"],
    why: "a client and server of WebSockets",
};

/// Packages that belong together.
#[derive(Debug, Clone, Copy)]
pub struct Package {
    name: &'static str,
    requirements: &'static [&'static str],
    why: &'static str,
}

impl Package {
    /// The folder with the package, filled from PyPI at first use, under `target/tools`.
    pub fn ensure(&self, root: &Path) -> Result<PathBuf> {
        let place = Place::take(root, self.name)?;
        let folder = place.folder.join(self.requirements.join("_"));
        if folder.is_dir() {
            return Ok(folder);
        }
        eprintln!("fetching {} (PyPI): {}", self.requirements.join(", "), self.why);
        let scratch = place.folder.join("fetch");
        if scratch.exists() {
            fs::remove_dir_all(&scratch).with_context(|| format!("remove {}", scratch.display()))?;
        }
        run(Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--target"])
            .arg(&scratch)
            .args(self.requirements)
            .env("PIP_ROOT_USER_ACTION", "ignore")
            .env("PIP_DISABLE_PIP_VERSION_CHECK", "1"))?;
        fs::rename(&scratch, &folder).with_context(|| format!("put it to {}", folder.display()))?;
        Ok(folder)
    }
}

/// A program in a pod, on the packages in a folder.
pub fn program(pod: &Pod, packages: &Path, program: &str) -> Job {
    pod.job("python3").args(["-u", "-c", program]).env("PYTHONPATH", packages)
}
