//! ztunnel killed with SIGKILL: the wire stays silent, also for what apps write long after, and a new
//! ztunnel takes over.

use anyhow::Result;
use node::{Scene, leak::nothing_leaks_after_sigkill};

#[test]
fn nothing_leaks_after_sigkill_not_even_from_an_idle_connection() -> Result<()> {
    let scene =
        Scene::start(&[("mesh", "client", "a"), ("mesh", "server", "b"), ("mesh", "neighbour", "a")])?;
    nothing_leaks_after_sigkill(scene, |_| Ok(()), |programs| programs.node.spawn_ztunnel("ztunnel-2", &[]))
}
