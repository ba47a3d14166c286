//! `cargo xtask demo`: the story of the mesh, told with real programs and checked at every step.

use std::path::Path;

use anyhow::Result;
use bed::World;

use crate::{build, setup, shell, tool_table::Use};

mod cast;
mod chapters;
mod hints;
pub(crate) mod interrupt;
pub(crate) mod stage;
mod traffic;

use cast::Cast;
use stage::Stage;

/// How much of each log a failure shows.
pub(crate) const LOG_LINES: usize = 15;

/// How to end.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave everything running at the end, with hints for what to try.
    #[arg(long)]
    keep: bool,
    /// Remove what an earlier `--keep` left running.
    #[arg(long, conflicts_with = "keep")]
    down: bool,
}

/// Builds what is missing and plays.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    shell::demand_root("the demo")?;
    if args.down {
        return down();
    }
    setup::ensure(&[Use::Demo])?;
    build::run(root, &build::Args::default())?;
    let cast = play_built()?;
    if args.keep {
        chapters::leave_something_to_try(&cast)?;
        let world = cast.stay()?;
        hints::print(&world);
    }
    Ok(())
}

/// Plays with the programs that are there.
pub(crate) fn play_built() -> Result<Cast> {
    bed::sweep()?;
    let world = World::new(&["a", "b"])?;
    let id = world.id().to_owned();
    interrupt::watch("removing the demo's world", move || bed::remove_world(&id))?;
    play(world)
}

/// Plays every chapter, and gives the cast back so that it can be kept. A failure shows the ends of all
/// logs first, because the world goes with it.
fn play(world: World) -> Result<Cast> {
    let mut stage = Stage::open();
    stage.title("CULVERT", "a stream under the road: the road never notices");
    let mut cast = stage.check("two nodes, seven pods, real servers, Culvert beside them", || {
        let folder = world.folder().to_owned();
        let cast = Cast::gather(world)?;
        Ok((cast, format!("network namespaces of this machine; logs and manifests in {}", folder.display())))
    })?;
    stage.picture(&cast.picture());
    chapters::all(&mut stage, &mut cast)
        .inspect_err(|_| eprintln!("\n{}", cast.world.log_tails(LOG_LINES)))?;
    stage.curtain();
    Ok(cast)
}

fn down() -> Result<()> {
    let kept = bed::kept()?;
    for id in &kept {
        bed::remove_world(id)?;
    }
    match kept.len() {
        0 => println!("nothing was kept; what a killed demo has left goes with: cargo xtask sweep"),
        1 => println!("the kept demo was removed"),
        more => println!("{more} kept demos were removed"),
    }
    Ok(())
}
