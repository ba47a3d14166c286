//! The source is a folder of YAML: one file for each group of pods.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    source::Source,
    world::{Shape, World, node_name},
};

pub(crate) struct Folder {
    place: PathBuf,
}

impl Folder {
    pub(crate) fn new(place: &Path) -> Self {
        Self { place: place.to_owned() }
    }

    fn manifests(&self) -> PathBuf {
        self.place.join("manifests")
    }

    fn state(&self) -> PathBuf {
        self.place.join("state")
    }

    /// Writes the file of a group anew.
    fn group(&self, world: &World, group: usize) -> Result<()> {
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
        let (hidden, path) = (self.manifests().join(format!(".{name}")), self.manifests().join(name));
        fs::write(&hidden, text)
            .and_then(|()| fs::rename(&hidden, &path))
            .with_context(|| format!("write {}", path.display()))
    }
}

impl Source for Folder {
    fn name(&self) -> &'static str {
        "folder"
    }

    fn empty(&mut self) -> Result<Vec<String>> {
        let mut folder = Self::new(&self.place.join("empty"));
        folder.fill(&World::new(Shape { workloads: 1, services: 1, policies: 0, nodes: 1 }))?;
        Ok(folder.options())
    }

    fn fill(&mut self, world: &World) -> Result<()> {
        for path in [self.manifests(), self.state()] {
            fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        }
        self.file("common.yaml", &world.common())?;
        (0..world.groups()).try_for_each(|group| self.group(world, group))
    }

    fn options(&self) -> Vec<String> {
        let text = |path: PathBuf| path.display().to_string();
        vec!["--manifests".into(), text(self.manifests()), "--state".into(), text(self.state())]
    }

    fn root(&self) -> Result<PathBuf> {
        Ok(self.state().join("ca/root.pem"))
    }

    fn tokens(&self, nodes: usize) -> Result<Vec<PathBuf>> {
        Ok((0..nodes).map(|node| self.state().join("tokens").join(node_name(node))).collect())
    }

    fn further(&self) -> usize {
        0
    }

    /// One comes, one goes.
    fn steps(&self) -> u64 {
        2
    }

    fn change(&self, _: &World, after: &World, groups: &[usize]) -> Result<Instant> {
        groups.iter().try_for_each(|group| self.group(after, *group))?;
        Ok(Instant::now())
    }
}
