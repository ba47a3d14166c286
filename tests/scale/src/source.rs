//! Where control finds the world: a folder, or an API server.

use std::{path::PathBuf, time::Instant};

use anyhow::Result;

use crate::world::World;

/// What a source is to the steps.
pub(crate) trait Source {
    /// As the results call it.
    fn name(&self) -> &'static str;

    /// Options of control for a mesh with next to nothing in it. Asked before the world is there.
    fn empty(&mut self) -> Result<Vec<String>>;

    /// Brings the whole world in.
    fn fill(&mut self, world: &World) -> Result<()>;

    /// Options of control for this world.
    fn options(&self) -> Vec<String>;

    /// The root of control's certificate, in a file. Asked once control is ready.
    fn root(&self) -> Result<PathBuf>;

    /// Files with the tokens of the first nodes.
    fn tokens(&self, nodes: usize) -> Result<Vec<PathBuf>>;

    /// Workloads besides the world's own.
    fn further(&self) -> usize;

    /// How often subscribers may be told of a pod that another takes the place of, and of that one, together.
    fn steps(&self) -> u64;

    /// Brings these groups from one edition to the next; when the last of it was written.
    fn change(&self, before: &World, after: &World, groups: &[usize]) -> Result<Instant>;
}
