//! The way out: takes the capture of every pod of the node away.

use capture::NodeOptions;

use super::{
    kernel::{Hand, Kernel},
    machine::{Answer, Step},
};
use crate::state::State;

/// Takes the capture of every pod away, those whose connections are alive included.
///
/// # Errors
/// With each pod whose capture could not be taken away.
pub(crate) fn uninstall(options: NodeOptions, state: &State) -> Result<usize, Vec<String>> {
    let kernel = Kernel::open(options, None).map_err(|error| vec![error.to_string()])?;
    // First: what is spliced goes through ztunnel again, for as long as that can carry it.
    kernel.splice(None).map_err(|error| vec![error.to_string()])?;
    let wanted = state.load().unwrap_or_default();
    let pinned = kernel.pinned().map_err(|error| vec![error.to_string()])?;
    let mut failures = Vec::new();
    for uid in &pinned {
        let netns =
            wanted.iter().find(|pod| pod.uid == *uid).map(|pod| pod.netns.clone()).unwrap_or_default();
        let mut hand = Hand::default();
        // Through its namespace the routing goes too; without one the programs and pins go.
        let _ = kernel.perform(uid, &netns, Step::Attach, &mut hand);
        if let Answer::Failed(reason) = kernel.perform(uid, &netns, Step::Detach, &mut hand) {
            failures.push(format!("pod {uid}: {reason}"));
        }
    }
    if failures.is_empty() { Ok(pinned.len()) } else { Err(failures) }
}
