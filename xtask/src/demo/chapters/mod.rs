//! The story, chapter by chapter. Each chapter leaves the world as the next one expects it.

use anyhow::Result;

use super::{cast::Cast, stage::Stage};

mod crash;
mod enroll;
mod leave;
mod policy;
mod requests;
mod tokens;
mod trace;
mod waypoint;
mod wire;

/// Plays every chapter in order.
pub(crate) fn all(stage: &mut Stage, cast: &mut Cast) -> Result<()> {
    let early = wire::before(stage, cast)?;
    enroll::enroll(stage, cast, early)?;
    wire::after(stage, cast)?;
    policy::who_is_calling(stage, cast)?;
    policy::refused(stage, cast)?;
    policy::edited_live(stage, cast)?;
    policy::same_node(stage, cast)?;
    waypoint::play(stage, cast)?;
    leave::leave_and_return(stage, cast)?;
    crash::kill(stage, cast)
}

/// For a world that is kept: the policy that refuses the intern is put back.
pub(crate) fn leave_something_to_try(cast: &Cast) -> Result<()> {
    policy::restore_readers(&cast.world)
}
