//! The kernel programs: the toolchain they need, and their build.
//!
//! They are Rust for the target `bpfel-unknown-none`, which rustup ships no `core` for and whose linker
//! is `bpf-linker`. Two things are therefore got once and kept under `target/tools/`:
//!
//! - **`rust-src`**, the sources of `core`. `rustup component add` where rustup can download; else
//!   Debian's package of the same release, from a private package list whose mirror is the one this
//!   machine already uses. It is not put into the toolchain's own sysroot: a directory of ours is named
//!   to rustc as sysroot, and `cargo -Z build-std` looks for the sources there.
//! - **`bpf-linker`**, built against the LLVM that rustc itself uses, so that both speak one bitcode.
//!
//! Nothing outside `target/` is written, except by rustup. What is installed is said, with the reason.

use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const TARGET: &str = "bpfel-unknown-none";
/// Relative to the root of the repository.
const TARGET_DIR: &str = "target/bpf";
const LINKER_VERSION: &str = "0.13";
/// The Debian suite whose `rust-src` follows the stable releases of Rust.
const DEBIAN_SUITE: &str = "trixie-backports";

/// What building the kernel programs needs beyond cargo.
#[derive(Debug)]
pub(crate) struct Toolchain {
    /// `bpf-linker`.
    pub(crate) linker: PathBuf,
    /// A sysroot that holds the sources of `core`.
    pub(crate) sysroot: PathBuf,
}

/// Finds the toolchain of the kernel programs, or installs it under `target/tools/` of the repository.
pub(crate) fn ensure_toolchain(root: &Path) -> Result<Toolchain> {
    let rustc = Rustc::ask(root)?;
    let tools = root.join("target/tools");
    fs::create_dir_all(&tools).with_context(|| format!("make {}", tools.display()))?;
    let sysroot = ensure_rust_src(root, &rustc, &tools)?;
    let linker = ensure_linker(root, &rustc, &tools)?;
    Ok(Toolchain { linker, sysroot })
}

/// Builds the kernel programs to `target/bpf/culvert.o` and returns that path.
///
/// Cargo decides whether there is anything to do; the object's file is touched only when it changed.
pub(crate) fn build(root: &Path) -> Result<PathBuf> {
    run(kernel_cargo(root, "build")?.arg("--quiet"), "build the kernel programs")?;
    let target_dir = root.join(TARGET_DIR);
    let built = target_dir.join(TARGET).join("release/culvert");
    let object = target_dir.join("culvert.o");
    let bytes = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    if fs::read(&object).ok().as_deref() != Some(&bytes[..]) {
        let new = object.with_extension("new");
        fs::write(&new, &bytes).with_context(|| format!("write {}", new.display()))?;
        fs::rename(&new, &object).with_context(|| format!("write {}", object.display()))?;
    }
    Ok(object)
}

/// Clippy over the kernel programs, which are a workspace of their own.
pub(crate) fn lints(root: &Path) -> Result<()> {
    let mut cargo = kernel_cargo(root, "clippy")?;
    run(cargo.args(["--quiet", "--", "--deny", "warnings"]), "lints of the kernel programs")
}

/// A cargo command on the kernel programs, with their target, toolchain and flags.
fn kernel_cargo(root: &Path, verb: &str) -> Result<Command> {
    let toolchain = ensure_toolchain(root)?;
    let flags = [
        format!("--sysroot={}", toolchain.sysroot.display()),
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
    ];
    let mut cargo = cargo(root);
    cargo
        .args([verb, "--release", "-Zbuild-std=core", "--target", TARGET])
        .arg("--manifest-path")
        .arg(root.join("ebpf/kernel/Cargo.toml"))
        .arg("--target-dir")
        .arg(root.join(TARGET_DIR))
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &toolchain.linker)
        // -Z on a stable cargo: `core` for a target without a ready-made one.
        .env("RUSTC_BOOTSTRAP", "1");
    Ok(cargo)
}

/// What rustc says of itself.
struct Rustc {
    sysroot: PathBuf,
    /// `1.95.0`
    release: String,
    /// `22`
    llvm: String,
}

impl Rustc {
    fn ask(root: &Path) -> Result<Self> {
        let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]).current_dir(root))?;
        let version = output(Command::new("rustc").arg("-vV").current_dir(root))?;
        let field = |name: &str| {
            version
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(|value| value.trim().to_owned())
                .with_context(|| format!("rustc -vV says no {name:?}"))
        };
        let llvm = field("LLVM version:")?;
        Ok(Self {
            sysroot: sysroot.trim().into(),
            release: field("release:")?,
            llvm: llvm.split('.').next().unwrap_or(&llvm).to_owned(),
        })
    }
}

/// Where `cargo -Z build-std` looks for `core` in a sysroot.
fn library(sysroot: &Path) -> PathBuf {
    sysroot.join("lib/rustlib/src/rust/library")
}

fn ensure_rust_src(root: &Path, rustc: &Rustc, tools: &Path) -> Result<PathBuf> {
    let present = |sysroot: &Path| library(sysroot).join("core/Cargo.toml").is_file();
    if present(&rustc.sysroot) {
        return Ok(rustc.sysroot.clone());
    }
    let ours = tools.join(format!("sysroot-{}", rustc.release));
    if present(&ours) {
        return Ok(ours);
    }
    say(&format!("rust-src {}: the kernel programs compile `core` from source", rustc.release));
    if with_rustup(root) && present(&rustc.sysroot) {
        return Ok(rustc.sysroot.clone());
    }
    say(&format!("rustup cannot add it here; taking Debian's package ({DEBIAN_SUITE})"));
    let unpacked = from_debian(rustc, tools)?;
    let parent = library(&ours).parent().context("a sysroot has a parent")?.to_owned();
    fs::create_dir_all(&parent).with_context(|| format!("make {}", parent.display()))?;
    fs::rename(&unpacked, library(&ours))
        .with_context(|| format!("move {} to {}", unpacked.display(), library(&ours).display()))?;
    // Package lists and what else was unpacked: a failure to remove them is no failure of the build.
    let _ = fs::remove_dir_all(tools.join("apt"));
    if !present(&ours) {
        bail!("Debian's rust-src package has no library/core; add rust-src to the toolchain by hand");
    }
    Ok(ours)
}

fn with_rustup(root: &Path) -> bool {
    Command::new("rustup")
        .args(["component", "add", "rust-src"])
        .current_dir(root)
        .env("RUSTUP_MAX_RETRIES", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Downloads and unpacks Debian's `rust-src` of this very release; returns the path of `library/`.
fn from_debian(rustc: &Rustc, tools: &Path) -> Result<PathBuf> {
    let apt = tools.join("apt");
    for dir in ["lists/partial", "cache/archives/partial", "unpacked"] {
        fs::create_dir_all(apt.join(dir)).with_context(|| format!("make {}", apt.join(dir).display()))?;
    }
    let targets = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(SITE) $(RELEASE)",
        "Created-By: Packages",
    ]))?;
    let mirror = targets
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(_, release)| !release.contains("security"))
        .map(|(site, _)| site)
        .context("apt-get knows no package mirror; add rust-src to the toolchain by hand")?;
    let list = apt.join("sources.list");
    fs::write(&list, format!("deb {mirror} {DEBIAN_SUITE} main\n"))
        .with_context(|| format!("write {}", list.display()))?;
    let apt_get = || {
        let mut command = Command::new("apt-get");
        let option = |name: &str, path: &Path| format!("{name}={}", path.display());
        command
            .current_dir(&apt)
            .args(["-q", "-o", &option("Dir::Etc::sourcelist", &list), "-o", "Dir::Etc::sourceparts=-"])
            .args(["-o", &option("Dir::State::lists", &apt.join("lists"))])
            .args(["-o", &option("Dir::Cache", &apt.join("cache"))])
            // The mirror of a private list is read as the caller, not as apt's own user.
            .args(["-o", "APT::Sandbox::User=root", "-o", "APT::Get::List-Cleanup=0"]);
        command
    };
    run(apt_get().arg("update").stdout(Stdio::null()), "read Debian's package list")?;
    run(
        apt_get().arg("download").arg(format!("rust-src={}+*", rustc.release)).stdout(Stdio::null()),
        &format!("download Debian's rust-src {}", rustc.release),
    )?;
    let package = fs::read_dir(&apt)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get downloaded no package")?;
    let unpacked = apt.join("unpacked");
    run(Command::new("dpkg").arg("-x").arg(&package).arg(&unpacked), "unpack rust-src")?;
    fs::remove_file(&package).with_context(|| format!("remove {}", package.display()))?;
    let library = unpacked.join(format!("usr/src/rustc-{}/library", rustc.release));
    if !library.is_dir() {
        bail!("{}: not there; has Debian's rust-src package changed its layout?", library.display());
    }
    Ok(library)
}

fn ensure_linker(root: &Path, rustc: &Rustc, tools: &Path) -> Result<PathBuf> {
    let linker = tools.join("bin/bpf-linker");
    // Asking it also finds one whose LLVM has gone with another toolchain.
    let version = Command::new(&linker).arg("--version").output();
    let is_ours = |version: &str| {
        version.trim().strip_prefix("bpf-linker ").is_some_and(|version| version.starts_with(LINKER_VERSION))
    };
    let stamp = tools.join("bpf-linker.llvm");
    let built_for = fs::read_to_string(&stamp).unwrap_or_default();
    if version.is_ok_and(|out| is_ours(&String::from_utf8_lossy(&out.stdout))) && built_for == rustc.llvm {
        return Ok(linker);
    }
    say(&format!("bpf-linker {LINKER_VERSION}: links the kernel programs; about a minute and a half"));
    let lib = rustc.sysroot.join("lib");
    let prefix = tools.join("llvm");
    link_llvm(rustc, &lib, &prefix.join("lib"))?;
    let mut install = cargo(root);
    install
        .args(["install", "bpf-linker", "--locked", "--force", "--quiet", "--no-default-features"])
        .args(["--version", &format!("^{LINKER_VERSION}"), "--features", &format!("llvm-{}", rustc.llvm)])
        .arg("--root")
        .arg(tools)
        .arg("--target-dir")
        .arg(tools.join("build"))
        .env("LLVM_PREFIX", &prefix)
        .env("CARGO_ENCODED_RUSTFLAGS", format!("-Clink-arg=-Wl,-rpath,{}", lib.display()));
    run(&mut install, "build bpf-linker")?;
    fs::write(&stamp, &rustc.llvm).with_context(|| format!("write {}", stamp.display()))?;
    // Half a gigabyte that nothing needs any more; a failure to remove it is no failure of the build.
    let _ = fs::remove_dir_all(tools.join("build"));
    Ok(linker)
}

/// Gives rustc's own `libLLVM.so.22.1-rust-…` the plain name that bpf-linker's build asks for.
fn link_llvm(rustc: &Rustc, lib: &Path, to: &Path) -> Result<()> {
    let name = format!("libLLVM.so.{}", rustc.llvm);
    let llvm = fs::read_dir(lib)
        .with_context(|| format!("list {}", lib.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&name)))
        .with_context(|| format!("{} has no {name}*; is this a rustup toolchain?", lib.display()))?;
    fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    let link = to.join("libLLVM.so");
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(&llvm, &link).with_context(|| format!("link {}", link.display()))
}

/// A cargo that does not inherit what the surrounding cargo (running this xtask) has set.
fn cargo(root: &Path) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(root);
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_DIR", "CARGO_BUILD_TARGET"] {
        command.env_remove(name);
    }
    command
}

fn run(command: &mut Command, what: &str) -> Result<()> {
    let status = command.status().with_context(|| format!("{what}: start {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{what}: {:?} ended with {status}", command.get_program());
    }
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("start {:?}", command.get_program()))?;
    if !out.status.success() {
        bail!("{:?}: {}", command, String::from_utf8_lossy(&out.stderr).trim());
    }
    String::from_utf8(out.stdout).with_context(|| format!("{:?} answered no text", command.get_program()))
}

fn say(line: &str) {
    eprintln!("  installing  {line}");
}
