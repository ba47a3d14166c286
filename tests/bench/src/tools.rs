//! The programs of others that a run needs, looked for before anything is built.

use std::{env, path::PathBuf};

use anyhow::{Result, bail};

/// A program, the Debian package that has it, and what it is for.
pub(crate) type Tool = (&'static str, &'static str, &'static str);

const NGINX: Tool = ("nginx", "nginx-light", "the web server under load");
const IP: Tool = ("ip", "iproute2", "network namespaces");

/// Of the bench of layer 4.
pub(crate) const L4: [Tool; 5] = [
    ("iperf3", "iperf3", "bulk transfer"),
    ("wrk", "wrk", "HTTP load"),
    NGINX,
    ("sockperf", "sockperf", "latency"),
    IP,
];

/// Of the bench of layer 7.
pub(crate) const L7: [Tool; 3] = [("h2load", "nghttp2-client", "HTTP load"), NGINX, IP];

const PERF: Tool = ("perf", "linux-perf", "the CPU profile");

/// Fails with one line that names everything that is missing.
pub(crate) fn require(loads: &[Tool], profile: bool) -> Result<()> {
    let missing: Vec<Tool> = loads
        .iter()
        .copied()
        .chain(profile.then_some(PERF))
        .filter(|(program, _, _)| find(program).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<String> =
        missing.iter().map(|(program, _, purpose)| format!("{program} ({purpose})")).collect();
    let packages: Vec<&str> = missing.iter().map(|(_, package, _)| *package).collect();
    bail!(
        "missing: {}; `cargo xtask setup` installs them, or: apt-get install --no-install-recommends {}",
        list.join(", "),
        packages.join(" ")
    );
}

/// Where a program is: on PATH, or in the folders of the superuser that PATH often lacks.
fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn what_is_there_is_found_and_what_is_not_is_not() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-anywhere").is_none());
    }
}
