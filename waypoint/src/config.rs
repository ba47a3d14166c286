//! The flags of the waypoint, and the settings that follow from them.

use std::{net::SocketAddr, path::PathBuf, thread, time::Duration};

use identity::Identity;
use mesh::trace::Sampling;
use runtime::{
    config::{Common, Problems, values},
    logging,
};

use crate::{
    shared::Settings,
    trace::export::{self, Reporter},
};

/// The layer-7 proxy of the services that name it: routes what is called through it by its content, and carries it on
/// in the caller's name.
#[derive(Debug, clap::Parser)]
#[command(name = "waypoint", version)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) common: Common,

    /// Form of the access log, one line for each request; none switches it off
    #[arg(long, value_name = "text|json|none", value_parser = access_log, help_heading = "Common")]
    pub(crate) access_log: Option<AccessLog>,

    /// Namespace of this waypoint
    #[arg(long, value_name = "NAME", help_heading = "Mesh")]
    pub(crate) namespace: String,

    /// Name of this waypoint's pod
    #[arg(long, value_name = "NAME", help_heading = "Mesh")]
    pub(crate) name: String,

    /// Service account of this waypoint
    #[arg(long, value_name = "NAME", help_heading = "Mesh")]
    pub(crate) service_account: String,

    /// Name of the node, as Kubernetes knows it
    #[arg(long, value_name = "NAME", help_heading = "Mesh")]
    pub(crate) node: String,

    /// Where control serves discovery and certificates
    #[arg(long, value_name = "https://HOST:PORT", help_heading = "Mesh")]
    pub(crate) control: String,

    /// PEM file with the roots that may have signed control's certificate
    #[arg(long, value_name = "FILE", help_heading = "Mesh")]
    pub(crate) control_ca: PathBuf,

    /// Name that control's certificate must bear, where it is not the host of --control
    #[arg(long, value_name = "NAME", help_heading = "Mesh")]
    pub(crate) control_name: Option<String>,

    /// File with the token that proves who this is; read again for each request
    #[arg(long, value_name = "FILE", help_heading = "Mesh")]
    pub(crate) token_file: PathBuf,

    /// Trust domain of this waypoint
    #[arg(long, value_name = "NAME", default_value = "cluster.local", value_parser = mesh::identity::trust_domain)]
    #[arg(help_heading = "Mesh")]
    pub(crate) trust_domain: String,

    /// Further trust domains whose callers are accepted; may be repeated
    #[arg(long, value_name = "NAME", value_parser = mesh::identity::trust_domain, help_heading = "Mesh")]
    pub(crate) accept_trust_domain: Vec<String>,

    /// Identifier of the cluster
    #[arg(long, value_name = "ID", default_value = "Kubernetes", help_heading = "Mesh")]
    pub(crate) cluster: String,

    /// Network that this waypoint is in
    #[arg(long, value_name = "NAME", default_value = "", help_heading = "Mesh")]
    pub(crate) network: String,

    /// Where callers' ztunnels dial
    #[arg(long, value_name = "ADDR", default_value = "[::]:15008", help_heading = "Mesh")]
    pub(crate) listen: SocketAddr,

    /// Collector that spans are sent to (OTLP over gRPC); without one the headers of traces pass as they came
    #[arg(long, value_name = "http[s]://HOST:PORT", help_heading = "Traces")]
    pub(crate) otlp_endpoint: Option<String>,

    /// Roots that may have signed the collector's certificate, a PEM file or what is in one; without it those of the
    /// system
    #[arg(long, value_name = "FILE|PEM", help_heading = "Traces")]
    pub(crate) otlp_ca: Option<String>,

    /// Traces that are recorded of those that begin here; one that a caller has begun is recorded if he does
    #[arg(long, value_name = "PERCENT", default_value = "1", value_parser = sampling, help_heading = "Traces")]
    pub(crate) trace_sampling: Sampling,

    /// Threads that carry connections; 0: as many as there are cores
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Limits")]
    pub(crate) workers: usize,

    /// Tunnels of callers at a time; one more is closed
    #[arg(long, value_name = "N", default_value_t = 20_000, help_heading = "Limits")]
    pub(crate) max_tunnels: usize,

    /// Connections of callers at a time, in all tunnels together; one more is refused
    #[arg(long, value_name = "N", default_value_t = 100_000, help_heading = "Limits")]
    pub(crate) max_connections: usize,

    /// Connections that one caller, by its address, may have of them
    #[arg(long, value_name = "N", default_value_t = 20_000, help_heading = "Limits")]
    pub(crate) max_connections_per_source: usize,

    /// How long a new connection waits for the state of the mesh
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = values::duration, help_heading = "Limits")]
    pub(crate) patience: Duration,

    /// How long a TCP connection may take to be made
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = values::duration, help_heading = "Limits")]
    pub(crate) dial_timeout: Duration,

    /// How long a TLS handshake may take, on either side
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = values::duration, help_heading = "Limits")]
    pub(crate) handshake_timeout: Duration,

    /// How long a connection to a backend is kept without requests
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = values::duration, help_heading = "Limits")]
    pub(crate) backend_idle: Duration,

    /// How long the head of a request in HTTP/1 may take, once it has begun
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = values::duration, help_heading = "Limits")]
    pub(crate) head_timeout: Duration,

    /// How long a caller's connection may go without a request
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = values::duration, help_heading = "Limits")]
    pub(crate) http_idle: Duration,

    /// How long callers are still taken after SIGTERM, while it is not ready any more: their ztunnels learn a little
    /// later that this waypoint leaves
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = values::duration, help_heading = "Limits")]
    pub(crate) linger: Duration,

    /// How long connections are still served after SIGTERM and --linger
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = values::duration, help_heading = "Limits")]
    pub(crate) drain_deadline: Duration,
}

/// `--access-log`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AccessLog {
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

fn sampling(text: &str) -> Result<Sampling, String> {
    text.parse()
}

impl Args {
    /// What is wrong between values that are each right.
    pub(crate) fn check(&self, problems: &mut Problems) {
        let times = [
            ("--dial-timeout", self.dial_timeout),
            ("--handshake-timeout", self.handshake_timeout),
            ("--backend-idle", self.backend_idle),
            ("--head-timeout", self.head_timeout),
            ("--http-idle", self.http_idle),
        ];
        for (flag, time) in times {
            if time.is_zero() {
                problems.add(flag, Some("0".into()), "must be longer than nothing");
            }
        }
        if let Some(uri) = &self.otlp_endpoint
            && let Err(reason) = export::endpoint(uri, self.otlp_ca.as_deref())
        {
            problems.add("--otlp-endpoint", Some(uri.clone()), reason);
        }
        let limits = [
            ("--workers", self.workers, 1024),
            ("--max-tunnels", self.max_tunnels, 1_000_000),
            ("--max-connections", self.max_connections, 10_000_000),
            ("--max-connections-per-source", self.max_connections_per_source, 10_000_000),
        ];
        for (flag, number, most) in limits {
            if number > most {
                problems.add(flag, Some(number.to_string()), format!("{most} at most"));
            }
        }
    }

    pub(crate) fn worker_count(&self) -> usize {
        let cores = || thread::available_parallelism().map_or(1, usize::from);
        if self.workers == 0 { cores() } else { self.workers }
    }

    /// Trust domains whose callers are accepted.
    pub(crate) fn trust_domains(&self) -> Vec<String> {
        let mut domains = vec![self.trust_domain.clone()];
        domains.extend(self.accept_trust_domain.iter().cloned());
        domains
    }

    /// Who reports spans.
    pub(crate) fn reporter(&self) -> Reporter {
        Reporter {
            gateway: self.service_account.clone(),
            namespace: self.namespace.clone(),
            pod: self.name.clone(),
            node: self.node.clone(),
            cluster: self.cluster.clone(),
        }
    }

    pub(crate) fn settings(&self) -> Settings {
        let hbone = hbone::Settings {
            dial_timeout: self.dial_timeout,
            handshake_timeout: self.handshake_timeout,
            ..hbone::Settings::default()
        };
        Settings {
            identity: Identity::new(
                self.trust_domain.as_str(),
                self.namespace.as_str(),
                self.service_account.as_str(),
            ),
            network: self.network.as_str().into(),
            hbone,
            max_tunnels: self.max_tunnels,
            max_connections: self.max_connections,
            max_connections_per_source: self.max_connections_per_source,
            patience: self.patience,
            dial_timeout: self.dial_timeout,
            backend_idle: self.backend_idle,
            http_idle: self.http_idle,
            head_timeout: self.head_timeout,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use runtime::config::{Stop, resolve_from};

    use super::*;

    fn resolve(flags: &[&str]) -> Result<Args, Stop> {
        let line = [
            "waypoint",
            "--namespace",
            "shop",
            "--name",
            "wp-1",
            "--service-account",
            "wp",
            "--node",
            "a",
            "--control",
            "https://c:1",
            "--control-ca",
            "ca",
            "--token-file",
            "t",
        ];
        let line = line.iter().chain(flags).map(OsString::from);
        resolve_from(line, &|_| None, |args: &Args, problems| args.check(problems))
    }

    #[test]
    fn the_defaults_are_right_by_themselves() {
        let args = resolve(&[]).unwrap();
        assert_eq!(args.settings().identity.to_string(), "spiffe://cluster.local/ns/shop/sa/wp");
        assert!(args.worker_count() >= 1);
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let stop = resolve(&["--workers", "5000", "--backend-idle", "0s"]).unwrap_err();
        let Stop::Problems(problems) = stop else { panic!("{stop:?}") };
        assert_eq!(problems.iter().count(), 2, "{problems}");
    }

    #[tokio::test]
    async fn a_collector_is_named_by_where_it_listens_and_a_rate_is_a_percentage() {
        for good in ["http://otel:4317", "http://[::1]:4317/"] {
            let args = resolve(&["--otlp-endpoint", good, "--trace-sampling", "0.5"]).unwrap();
            assert_eq!(args.trace_sampling.to_string(), "0.5");
        }
        for bad in ["otel:4317", "grpc://otel:4317", "http://otel:4317/v1/traces", "http://", "http://a b"] {
            let stop = resolve(&["--otlp-endpoint", bad]).unwrap_err();
            assert!(matches!(stop, Stop::Problems(_)), "{bad}: {stop:?}");
        }
        assert!(resolve(&["--otlp-endpoint", "https://otel:4317", "--otlp-ca", "/nowhere"]).is_err());
        assert!(resolve(&["--trace-sampling", "101"]).is_err());
    }
}
