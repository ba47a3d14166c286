//! `culvert`: installs the mesh in a cluster, says what is wrong and how to mend it, who is in and by what proof, and
//! takes all of it away again. It needs a kubeconfig and nothing else: no helm, and no pod of its own.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod api;
mod check;
#[cfg(test)]
mod cluster;
mod enrolled;
mod install;
mod manifests;
mod object;
mod policies;
mod programs;
mod rollout;
mod status;
mod table;
mod uninstall;
mod waypoint;

use api::Reach;

/// The mesh of a cluster: install it, look at it, take it away.
#[derive(Debug, Parser)]
#[command(name = "culvert", version, max_term_width = 100)]
struct Line {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    reach: Reach,

    /// Namespace of control, agents and ztunnels
    #[arg(long, short, global = true, value_name = "NAME", default_value = manifests::NAMESPACE, help_heading = "Cluster")]
    namespace: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install the mesh, or bring it to this version
    Install(install::Args),
    /// What is wrong with the cluster or the mesh, and how to mend it
    Check(check::Args),
    /// Who is in the mesh, and by what proof
    Status(status::Args),
    /// Make waypoints, list them, take them away
    Waypoint(waypoint::Args),
    /// Let everybody go, and take the mesh away
    Uninstall(uninstall::Args),
}

fn main() -> ExitCode {
    let line = Line::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run(line)));
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("culvert: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(line: Line) -> anyhow::Result<ExitCode> {
    let namespace = line.namespace;
    match line.command {
        Command::Install(args) => install::run(&line.reach, &namespace, &args).await,
        Command::Check(args) => check::run(&line.reach, &namespace, &args).await,
        Command::Status(args) => status::run(&line.reach, &namespace, &args).await,
        Command::Waypoint(args) => waypoint::run(&line.reach, &args).await,
        Command::Uninstall(args) => uninstall::run(&line.reach, &namespace, &args).await,
    }
}
