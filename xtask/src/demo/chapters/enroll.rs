//! Joining the mesh: one label, nothing restarted, an open connection goes on.

use std::time::Instant;

use anyhow::Result;
use bed::report;

use crate::demo::{
    cast::{Cast, PATIENCE, REDIS},
    stage::{Stage, span},
    traffic::RedisSession,
};

/// Chapter: the namespace gets its label.
pub(crate) fn enroll(stage: &mut Stage, cast: &mut Cast, mut early: RedisSession) -> Result<()> {
    stage.chapter(
        "Enrollment: one label",
        "The namespace gets the label that Istio's ambient mode uses. On each node the agent attaches eBPF \
         inside the pods' network namespaces, proves with a connection of its own that capture works, and \
         only then are the peers told to use mutual TLS.",
    );
    stage.show("kind: Namespace\nmetadata:\n  name: shop\n  labels: {istio.io/dataplane-mode: ambient}");
    let took =
        stage.check("every pod of the shop is captured, measured, and known so on both nodes", || {
            let start = Instant::now();
            cast.world.manifests().namespace("shop", true)?;
            report::wait_enrolled(&cast.mesh.nodes, &cast.shop(), true, PATIENCE)?;
            let took = start.elapsed();
            Ok((took, format!("{} pods, {} from the file's change", cast.shop().len(), span(took))))
        })?;
    stage.fact("six pods enrolled, label to mutual TLS", span(took));
    stage.check("no server was restarted", || {
        Stage::demand(cast.servers_run()?, || "a server has ended".to_owned())?;
        let pids: Vec<String> = cast.server_pids().iter().map(ToString::to_string).collect();
        Ok(((), format!("process ids {}, as before", pids.join(", "))))
    })?;
    stage.check("the connection from before still works", || {
        let answer = early.ask("INCR visits")?;
        Stage::demand(answer == "2", || format!("visits = {answer}"))?;
        Ok(((), format!("visits = {answer}, on the connection that was opened without a mesh")))
    })?;
    // It began in plain text and ends so; the wire is read again once its last segment is through.
    drop(early);
    let closed = || Ok((cast.storefront.netns().connections_to(REDIS)? == 0).then_some(()));
    bed::eventually(PATIENCE, "the early connection to be closed", closed)?;
    Ok(())
}
