//! `cargo xtask image`: one image per program, each a static binary and its bill of materials on nothing.
//!
//! Only what a program needs is in its image, so there is nothing else to update: no shell, no libc, no roots. Images of
//! the profile `dev` are made of the programs that the tests use, with the libraries that these are linked to.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{build, ebpf, setup, shell, tool_table::Use};

mod libraries;
mod sbom;

pub(crate) use libraries::dockerfile;

/// The version of the workspace, which is the tag of its images.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// What a cluster runs.
pub(crate) const SHIPPED: [&str; 4] = ["control", "agent", "ztunnel", "waypoint"];
/// The program in the agent's image that the agent installs on its node.
const CNI_PLUGIN: &str = "culvert-cni";
/// The traffic program of the tests.
pub(crate) const TRAFFIC: &str = "app";

/// How a program is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Profile {
    /// Optimised, as shipped.
    Release,
    /// As tests and the demo use it: built faster.
    Dev,
}

impl Profile {
    /// As the command line has it.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dev => "dev",
        }
    }
}

/// Which images to build.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How to compile.
    #[arg(long, value_enum, default_value = "release")]
    pub(crate) profile: Profile,
    /// The traffic program of the tests, too.
    #[arg(long)]
    pub(crate) with_app: bool,
}

/// Builds the images, and says how large they are.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    for (name, bytes) in build(root, args)? {
        println!("{name:<28} {:>6.1} MB", bytes as f64 / 1e6);
    }
    Ok(())
}

/// Builds the images. Their names and sizes.
pub(crate) fn build(root: &Path, args: &Args) -> Result<Vec<(String, u64)>> {
    let mut programs = SHIPPED.to_vec();
    if args.with_app {
        programs.push(TRAFFIC);
    }
    build_programs(root, &programs, args.profile)
}

/// Builds the images of these programs alone. Their names and sizes.
pub(crate) fn build_programs(root: &Path, programs: &[&str], profile: Profile) -> Result<Vec<(String, u64)>> {
    demand_docker()?;
    setup::ensure(&[Use::Image])?;
    if programs.contains(&"agent") {
        ebpf::build(root)?;
    }
    let target = target(root)?;
    let binaries = match profile {
        Profile::Release => link_statically(root, programs, profile, &target)?,
        Profile::Dev => {
            build::with_tests(root)?;
            build::target_folder(root).join("debug")
        }
    };
    // It runs on the nodes themselves, whatever libraries they have.
    let plugin = match (profile, programs.contains(&"agent")) {
        (Profile::Dev, true) => link_statically(root, &["cni"], profile, &target)?,
        _ => binaries.clone(),
    };
    let parts = Parts { binaries, plugin, target };
    programs.iter().map(|program| image(root, program, profile, &parts)).collect()
}

/// `culvert/agent:0.1.0`
pub(crate) fn name(program: &str) -> String {
    format!("culvert/{program}:{VERSION}")
}

/// Fails unless a docker is there that answers.
pub(crate) fn demand_docker() -> Result<()> {
    if shell::which("docker").is_none() {
        bail!(
            "no docker in the PATH: install it (Debian: apt-get install docker.io), or any that has `docker build`"
        );
    }
    let mut info = Command::new("docker");
    let info = info.args(["info", "--format", "{{.ServerVersion}}"]).stdout(Stdio::null());
    if !info.stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        bail!(
            "docker is installed, and its daemon does not answer: start it (systemctl start docker, or dockerd)"
        );
    }
    Ok(())
}

/// The gnu target of this machine: its glibc links statically, names by DNS included.
fn target(root: &Path) -> Result<String> {
    let version = shell::output(Command::new("rustc").arg("-vV").current_dir(root), "ask rustc")?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    if !host.ends_with("-linux-gnu") {
        bail!("images are built for Linux with glibc; rustc's host is {host}");
    }
    Ok(host.to_owned())
}

/// Where the programs are, and for what machine.
struct Parts {
    binaries: PathBuf,
    /// The folder of the CNI plugin.
    plugin: PathBuf,
    target: String,
}

/// Links the programs statically; returns the folder they are in.
fn link_statically(root: &Path, programs: &[&str], profile: Profile, target: &str) -> Result<PathBuf> {
    let mut cargo = shell::cargo(root);
    cargo.args(["build", "--locked", "--target", target]);
    for program in programs {
        cargo.args(["--package", program]);
    }
    if programs.contains(&"agent") {
        cargo.args(["--package", "cni"]);
    }
    let (folder, variable) = match profile {
        Profile::Release => ("release", "RELEASE"),
        Profile::Dev => ("debug", "DEV"),
    };
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    // With --target these flags are for what is shipped alone, not for build scripts and macros.
    let flags = format!("CARGO_TARGET_{}_RUSTFLAGS", target.replace('-', "_").to_uppercase());
    cargo.env(flags, "-Ctarget-feature=+crt-static");
    cargo.env(format!("CARGO_PROFILE_{variable}_DEBUG"), "false");
    cargo.env(format!("CARGO_PROFILE_{variable}_STRIP"), "symbols");
    shell::run(&mut cargo, "build the programs, linked statically")?;
    Ok(build::target_folder(root).join(target).join(folder))
}

/// Puts the parts of an image beside each other, and builds it.
fn image(root: &Path, program: &str, profile: Profile, parts: &Parts) -> Result<(String, u64)> {
    let context = root.join("target/image").join(program);
    let failed = || format!("fill {}", context.display());
    fs::create_dir_all(&context).with_context(failed)?;
    let (from, to) = (parts.binaries.join(program), context.join(program));
    match profile {
        Profile::Release => fs::copy(from, to).map(drop).with_context(failed)?,
        Profile::Dev => {
            let mut strip = Command::new("strip");
            shell::run(strip.arg("-o").arg(to).arg(&from), &format!("strip {}", from.display()))?;
        }
    }
    libraries::put(&context, (profile == Profile::Dev).then_some(&*parts.binaries.join(program)))?;
    if program == "agent" {
        // The agent installs it on the node.
        fs::copy(parts.plugin.join(CNI_PLUGIN), context.join(CNI_PLUGIN)).with_context(failed)?;
    }
    let bill = sbom::of(root, program, VERSION, &parts.target)?;
    fs::write(context.join("sbom.json"), serde_json::to_vec_pretty(&bill)?).with_context(failed)?;
    let name = name(program);
    let mut docker = Command::new("docker");
    docker.args(["build", "--quiet", "--tag", &name]);
    docker.args(["--build-arg", &format!("VERSION={VERSION}")]);
    docker.args(["--build-arg", &format!("REVISION={}", revision(root))]);
    let file = dockerfile(&root.join(format!("deploy/images/{program}.Dockerfile")), &context)?;
    docker.arg("--file").arg(file).arg(&context);
    shell::output(&mut docker, &format!("build the image {name}"))?;
    let mut inspect = Command::new("docker");
    let size = inspect.args(["image", "inspect", "--format", "{{.Size}}", &name]);
    let size = shell::output(size, &format!("look at the image {name}"))?;
    Ok((name, size.trim().parse().context("the size of an image")?))
}

/// The commit, where there is one: a copy of the sources has none.
fn revision(root: &Path) -> String {
    let mut git = Command::new("git");
    git.args(["rev-parse", "--short=12", "HEAD"]).current_dir(root).stderr(Stdio::null());
    shell::output(&mut git, "ask git").map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}
