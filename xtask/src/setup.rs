//! Installing what is missing: Debian's packages by apt-get, each with the reason.
//!
//! A package that brings a service must not start it: the demo and the tests run their own, in their own
//! namespaces. So while apt-get works, policy-rc.d says no to every start.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    shell,
    tool_table::{TOOLS, Tool, Use},
};

/// Installs everything that any task needs.
pub(crate) fn everything() -> Result<()> {
    ensure(&[Use::Demo, Use::Test, Use::Bench])?;
    println!("nothing is missing");
    Ok(())
}

/// Installs what these uses need and the machine lacks; quick when nothing is missing.
pub(crate) fn ensure(uses: &[Use]) -> Result<()> {
    let wanted = TOOLS.iter().filter(|tool| tool.uses.iter().any(|one| uses.contains(one)));
    let missing: Vec<&Tool> = wanted.filter(|tool| !tool.is_there()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for tool in &missing {
        println!("  installing  {:<18} {}", tool.package, tool.why);
    }
    let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    install(&packages)?;
    if let Some(tool) = missing.iter().find(|tool| !tool.is_there()) {
        bail!("package {} was installed, but {} is still missing", tool.package, tool.program);
    }
    Ok(())
}

impl Tool {
    fn is_there(&self) -> bool {
        match self.program.strip_prefix('/') {
            Some(_) => Path::new(self.program).exists(),
            None => shell::which(self.program).is_some(),
        }
    }
}

fn install(packages: &[&str]) -> Result<()> {
    if shell::which("apt-get").is_none() {
        bail!("no apt-get on this machine; install by its own means: {}", packages.join(" "));
    }
    shell::demand_root("installing packages")?;
    let _no_services = NoServices::begin()?;
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["-q", "-o", "Dpkg::Use-Pty=0"]).args(args).stdin(Stdio::null()).stdout(Stdio::null());
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    shell::run(&mut apt(&["update"]), "read the package lists")?;
    let mut command = apt(&["install", "--yes", "--no-install-recommends"]);
    shell::run(command.args(packages), &format!("install {}", packages.join(" ")))
}

/// While it lives, packages may not start services. What policy-rc.d was before comes back.
struct NoServices {
    path: PathBuf,
    before: Option<(Vec<u8>, fs::Permissions)>,
}

impl NoServices {
    fn begin() -> Result<Self> {
        let path = PathBuf::from("/usr/sbin/policy-rc.d");
        let before = match fs::read(&path) {
            Ok(bytes) => Some((bytes, fs::metadata(&path)?.permissions())),
            Err(_) => None,
        };
        fs::write(&path, "#!/bin/sh\n# Written by cargo xtask while it installs packages.\nexit 101\n")
            .with_context(|| format!("write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Self { path, before })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        let restored = match &self.before {
            None => fs::remove_file(&self.path),
            Some((bytes, permissions)) => fs::write(&self.path, bytes)
                .and_then(|()| fs::set_permissions(&self.path, permissions.clone())),
        };
        if let Err(error) = restored {
            eprintln!("warning: {} was not restored: {error}", self.path.display());
        }
    }
}
