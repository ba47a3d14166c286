//! The source is a folder of YAML: one file for each group of pods.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::world::{World, node_name};

pub(crate) struct Folder {
    manifests: PathBuf,
    state: PathBuf,
}

impl Folder {
    /// Writes the whole world into `place`.
    pub(crate) fn write(place: &Path, world: &World) -> Result<Self> {
        let folder = Self { manifests: place.join("manifests"), state: place.join("state") };
        for path in [&folder.manifests, &folder.state] {
            fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
        }
        folder.file("common.yaml", &world.common())?;
        for group in 0..world.groups() {
            folder.group(world, group)?;
        }
        Ok(folder)
    }

    /// Writes the file of a group anew.
    pub(crate) fn group(&self, world: &World, group: usize) -> Result<()> {
        let objects = [world.services(group), world.policies(group), world.pods(group)].concat();
        self.file(&format!("group-{group:05}.yaml"), &objects)
    }

    /// As an editor does it: whole, under its name at once.
    fn file(&self, name: &str, objects: &[Value]) -> Result<()> {
        let mut text = String::new();
        for object in objects {
            text += "---\n";
            text += &serde_yaml_ng::to_string(object).context("write YAML")?;
        }
        let (hidden, path) = (self.manifests.join(format!(".{name}")), self.manifests.join(name));
        fs::write(&hidden, text)
            .and_then(|()| fs::rename(&hidden, &path))
            .with_context(|| format!("write {}", path.display()))
    }

    pub(crate) fn options(&self) -> Vec<String> {
        let text = |path: &Path| path.display().to_string();
        vec!["--manifests".into(), text(&self.manifests), "--state".into(), text(&self.state)]
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.state.join("ca/root.pem")
    }

    /// The token files of the first nodes.
    pub(crate) fn tokens(&self, nodes: usize) -> Vec<PathBuf> {
        (0..nodes).map(|node| self.state.join("tokens").join(node_name(node))).collect()
    }
}
