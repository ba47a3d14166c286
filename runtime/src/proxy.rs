//! What the programs that carry connections have in common, ztunnel and the waypoint: flags, and how they begin.

use std::{fmt, path::PathBuf, process::ExitCode, time::Duration};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{
    config::{Common, Problems, values},
    logging::{self, Logging},
};

/// Threads of a process are not of much use beyond that.
const MOST_WORKERS: usize = 1024;

/// The flags of a program that carries connections.
#[derive(Debug, Clone, clap::Args)]
pub struct Proxy {
    #[command(flatten)]
    pub common: Common,

    /// Form of the access log, a line for each connection or request; none switches it off
    #[arg(long, value_name = "text|json|none", value_parser = access_log, help_heading = "Common")]
    pub access_log: Option<AccessLog>,

    /// Name of the node, as Kubernetes knows it
    #[arg(long, value_name = "NAME", help_heading = "Mesh")]
    pub node: String,

    /// Where control serves discovery and certificates
    #[arg(long, value_name = "https://HOST:PORT", help_heading = "Mesh")]
    pub control: String,

    /// PEM file with the roots that may have signed control's certificate
    #[arg(long, value_name = "FILE", help_heading = "Mesh")]
    pub control_ca: PathBuf,

    /// Name that control's certificate must bear, where it is not the host of --control
    #[arg(long, value_name = "NAME", help_heading = "Mesh")]
    pub control_name: Option<String>,

    /// File with the token that proves to control who this is; read again for each request
    #[arg(long, value_name = "FILE", help_heading = "Mesh")]
    pub token_file: PathBuf,

    /// Trust domain of what it serves
    #[arg(long, value_name = "NAME", default_value = "cluster.local", value_parser = mesh::identity::trust_domain)]
    #[arg(help_heading = "Mesh")]
    pub trust_domain: String,

    /// Further trust domains whose callers are accepted; may be repeated
    #[arg(long, value_name = "NAME", value_parser = mesh::identity::trust_domain, help_heading = "Mesh")]
    pub accept_trust_domain: Vec<String>,

    /// Identifier of the cluster
    #[arg(long, value_name = "ID", default_value = "Kubernetes", help_heading = "Mesh")]
    pub cluster: String,

    /// Threads that carry connections; 0: as many as there are cores
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Limits")]
    pub workers: usize,

    /// How long a new connection waits for the state of the mesh to tell what it is about
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = values::duration, help_heading = "Limits")]
    pub patience: Duration,

    /// How long a TCP connection may take to be made
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = values::duration, help_heading = "Limits")]
    pub dial_timeout: Duration,

    /// How long a TLS handshake may take, on either side
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = values::duration, help_heading = "Limits")]
    pub handshake_timeout: Duration,

    /// How long connections are still served after SIGTERM
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = values::duration, help_heading = "Limits")]
    pub drain_deadline: Duration,
}

/// `--access-log`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLog {
    None,
    As(logging::Format),
}

fn access_log(text: &str) -> Result<AccessLog, String> {
    match text {
        "none" => Ok(AccessLog::None),
        "text" => Ok(AccessLog::As(logging::Format::Text)),
        "json" => Ok(AccessLog::As(logging::Format::Json)),
        _ => Err("write text, json or none".into()),
    }
}

impl Proxy {
    /// What is wrong between values that are each right.
    pub fn check(&self, problems: &mut Problems) {
        longer_than_nothing(
            problems,
            &[("--dial-timeout", self.dial_timeout), ("--handshake-timeout", self.handshake_timeout)],
        );
        if self.workers > MOST_WORKERS {
            problems.add("--workers", Some(self.workers.to_string()), format!("{MOST_WORKERS} at most"));
        }
    }

    /// Threads that carry connections, on so many cores.
    pub fn worker_count(&self, cores: usize) -> usize {
        if self.workers == 0 { cores } else { self.workers }
    }

    /// Trust domains whose callers are accepted.
    pub fn trust_domains(&self) -> Vec<String> {
        let mut domains = vec![self.trust_domain.clone()];
        domains.extend(self.accept_trust_domain.iter().cloned());
        domains
    }

    /// The access log as the flags have it.
    pub fn access_log(&self, logging: &Logging) -> logging::AccessLog {
        match self.access_log {
            Some(AccessLog::None) => logging::AccessLog::none(),
            Some(AccessLog::As(format)) => logging.access_log(Some(format)),
            None => logging.access_log(None),
        }
    }
}

/// Tells of times that may not be zero.
pub fn longer_than_nothing(problems: &mut Problems, times: &[(&str, Duration)]) {
    for (flag, time) in times {
        if time.is_zero() {
            problems.add(*flag, Some("0".into()), "must be longer than nothing");
        }
    }
}

/// Sets up logging, and runs a program on one thread, which is not one of those that carry connections, until it ends;
/// what it fails with goes to standard error.
pub fn run<E: fmt::Display>(
    program: &str,
    common: &Common,
    body: impl AsyncFnOnce(&Logging) -> Result<(), E>,
) -> ExitCode {
    let fail = |error: &dyn fmt::Display| {
        eprintln!("{program}: {error:#}");
        ExitCode::FAILURE
    };
    let logging = match logging::init(common.log_format, &common.log_level) {
        Ok(logging) => logging,
        Err(error) => return fail(&error),
    };
    raise_descriptor_limit();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let outcome = runtime.block_on(body(&logging));
    logging.flush();
    outcome.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
}

/// A connection takes up to two descriptors; the default limit of 1,024 is soon reached.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files cannot be raised; connections may fail for want of descriptors");
    }
}
