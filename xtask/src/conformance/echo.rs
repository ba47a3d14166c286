//! The image of the suite's pods: its own, or a stand-in where that cannot be pulled.

use std::{
    fmt,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::suite::Suite;
use crate::{image, kind::cluster::Cluster, shell};

/// Who can pull it has it by then.
const PULL: Duration = Duration::from_secs(60);

/// The image, and its name in the suite's manifests.
#[derive(Debug)]
pub(super) struct Echo {
    name: String,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// The nodes pull it themselves.
    Own,
    /// One of docker's, brought to the nodes by the name of the suite's.
    Instead { image: String, what: &'static str },
}

impl Echo {
    /// The suite's own if it can be pulled and no other is asked for. tests/app has been built.
    pub(super) fn choose(root: &Path, suite: &Suite, given: Option<&str>) -> Result<Self> {
        let name = suite.echo_image()?;
        let source = match given {
            Some(image) => Source::Instead { image: image.to_owned(), what: "as was asked for" },
            None if can_pull(&name)? => Source::Own,
            None => Source::Instead {
                image: stand_in(root)?,
                what: "the stand-in of tests/app: the suite's own could not be pulled",
            },
        };
        Ok(Self { name, source })
    }

    /// Brings it to the nodes.
    pub(super) fn load(&self, cluster: &Cluster) -> Result<()> {
        let Source::Instead { image, .. } = &self.source else { return Ok(()) };
        docker(&["tag", image, &self.name])?;
        let loaded = cluster.load(std::slice::from_ref(&self.name));
        // On this machine nothing keeps a name that is not its own.
        docker(&["rmi", "--no-prune", &self.name])?;
        loaded
    }
}

impl fmt::Display for Echo {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Own => write!(out, "{}", self.name),
            Source::Instead { image, what } => write!(out, "{image} in place of {} ({what})", self.name),
        }
    }
}

/// Puts the traffic program into an image under the names by which the suite calls it.
fn stand_in(root: &Path) -> Result<String> {
    let name = image::name("echo");
    let mut build = Command::new("docker");
    let context = root.join("target/image/app");
    let file = image::dockerfile(&root.join("tests/conformance/echo.Dockerfile"), &context)?;
    build.args(["build", "--quiet", "--tag", &name, "--file"]).arg(file).arg(&context);
    shell::output(&mut build, &format!("build the image {name}"))?;
    Ok(name)
}

/// Pulls it, within the limit.
fn can_pull(name: &str) -> Result<bool> {
    let mut pull = Command::new("docker");
    pull.args(["pull", "--quiet", name]).stdout(Stdio::null()).stderr(Stdio::null());
    let (mut pull, begin) = (pull.spawn().context("start docker")?, Instant::now());
    while begin.elapsed() < PULL {
        if let Some(status) = pull.try_wait().context("wait for docker")? {
            return Ok(status.success());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    pull.kill().context("stop docker")?;
    pull.wait().context("wait for docker")?;
    Ok(false)
}

fn docker(args: &[&str]) -> Result<()> {
    shell::output(Command::new("docker").args(args), &format!("docker {}", args.join(" "))).map(drop)
}
