//! A foreign ztunnel (`--peer-ztunnel`), fed by our agent over ZDS and by our control over xDS.
//!
//! It is configured the way Istio's is: by environment, with its token and root certificate in the
//! folders that it looks into. It listens on the fixed ports 15001, 15006 and 15008 in each pod.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use bed::{Node, Process, World};

/// What an agent beside a foreign ztunnel is told.
pub(crate) const AGENT_OPTIONS: &[&str] = &["--foreign-ztunnel"];

/// The foreign program.
pub(crate) struct Peer {
    program: PathBuf,
}

impl Peer {
    /// Fails unless the program is there and our agent can capture for it.
    pub(crate) fn new(program: &Path) -> Result<Self> {
        if !program.is_file() {
            bail!("--peer-ztunnel {}: there is no such file", program.display());
        }
        let agent = bed::mesh::program("agent")?;
        let help = std::process::Command::new(&agent).arg("--help").output().context("run agent --help")?;
        if !String::from_utf8_lossy(&help.stdout).contains(AGENT_OPTIONS[0]) {
            bail!(
                "--peer-ztunnel is not possible with this build: a foreign ztunnel listens on the fixed ports \
                 15001, 15006 and 15008 and marks its packets 0x539, and this agent cannot capture for it \
                 (it has no option {})",
                AGENT_OPTIONS[0]
            );
        }
        Ok(Self { program: program.canonicalize()? })
    }

    /// Starts it on a node. Does not wait.
    pub(crate) fn start(&self, world: &World, node: &Node) -> Result<Process> {
        let folder = node.folder().join("peer");
        let place = |from: &Path, to: &str| {
            let to = folder.join(to);
            fs::create_dir_all(to.parent().unwrap_or(&folder))?;
            fs::copy(from, &to).with_context(|| format!("copy {} to {}", from.display(), to.display()))
        };
        place(&world.token(node), "var/run/secrets/tokens/istio-token")?;
        place(&world.root_certificate(), "var/run/secrets/istio/root-cert.pem")?;
        let control = world.control_uri();
        let address = node.addresses()[0].to_string();
        node.job(&self.program)
            .folder(folder)
            .arg("proxy")
            .arg("ztunnel")
            .env("XDS_ADDRESS", &control)
            .env("CA_ADDRESS", &control)
            .env("CLUSTER_ID", "Kubernetes")
            .env("NODE_NAME", node.name())
            .env("POD_NAME", format!("ztunnel-{}", node.name()))
            .env("POD_NAMESPACE", "culvert-system")
            .env("SERVICE_ACCOUNT", "ztunnel")
            .env("INSTANCE_IP", address)
            .env("PROXY_MODE", "shared")
            .env("INPOD_ENABLED", "true")
            .env("INPOD_UDS", node.zds_socket())
            .env("RUST_LOG", "info")
            .spawn(&format!("{}-peer", node.name()))
    }
}
