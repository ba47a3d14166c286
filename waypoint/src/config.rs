//! The flags of the waypoint, and the settings that follow from them.

use std::{net::SocketAddr, time::Duration};

use identity::Identity;
use mesh::trace::Sampling;
use runtime::{
    config::{Problems, values},
    proxy::{Proxy, longer_than_nothing},
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
    pub(crate) proxy: Proxy,

    /// Namespace of this waypoint
    #[arg(long, value_name = "NAME", help_heading = "Mesh")]
    pub(crate) namespace: String,

    /// Name of this waypoint's pod
    #[arg(long, value_name = "NAME", help_heading = "Mesh")]
    pub(crate) name: String,

    /// Service account of this waypoint
    #[arg(long, value_name = "NAME", help_heading = "Mesh")]
    pub(crate) service_account: String,

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

    /// Tunnels of callers at a time; one more is closed
    #[arg(long, value_name = "N", default_value_t = 20_000, help_heading = "Limits")]
    pub(crate) max_tunnels: usize,

    /// Connections of callers at a time, in all tunnels together; one more is refused
    #[arg(long, value_name = "N", default_value_t = 100_000, help_heading = "Limits")]
    pub(crate) max_connections: usize,

    /// Connections that one caller, by its address, may have of them
    #[arg(long, value_name = "N", default_value_t = 20_000, help_heading = "Limits")]
    pub(crate) max_connections_per_source: usize,

    /// How long a connection to a backend is kept without requests
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = values::duration, help_heading = "Limits")]
    pub(crate) backend_idle: Duration,

    /// How long the head of a request in HTTP/1 may take, once it has begun
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = values::duration, help_heading = "Limits")]
    pub(crate) head_timeout: Duration,

    /// How long a caller's connection may go without a request
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = values::duration, help_heading = "Limits")]
    pub(crate) http_idle: Duration,

    /// How long callers are still taken after SIGTERM, before --drain-deadline begins and while it is not ready any more:
    /// their ztunnels learn a little later that this waypoint leaves
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = values::duration, help_heading = "Limits")]
    pub(crate) linger: Duration,
}

fn sampling(text: &str) -> Result<Sampling, String> {
    text.parse()
}

impl Args {
    /// What is wrong between values that are each right.
    pub(crate) fn check(&self, problems: &mut Problems) {
        self.proxy.check(problems);
        let times = [
            ("--backend-idle", self.backend_idle),
            ("--head-timeout", self.head_timeout),
            ("--http-idle", self.http_idle),
        ];
        longer_than_nothing(problems, &times);
        if let Some(uri) = &self.otlp_endpoint
            && let Err(reason) = export::endpoint(uri, self.otlp_ca.as_deref())
        {
            problems.add("--otlp-endpoint", Some(uri.clone()), reason);
        }
        let limits = [
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

    /// Who reports spans.
    pub(crate) fn reporter(&self) -> Reporter {
        Reporter {
            gateway: self.service_account.clone(),
            namespace: self.namespace.clone(),
            pod: self.name.clone(),
            node: self.proxy.node.clone(),
            cluster: self.proxy.cluster.clone(),
        }
    }

    pub(crate) fn settings(&self) -> Settings {
        let hbone = hbone::Settings {
            dial_timeout: self.proxy.dial_timeout,
            handshake_timeout: self.proxy.handshake_timeout,
            ..hbone::Settings::default()
        };
        Settings {
            identity: Identity::new(
                self.proxy.trust_domain.as_str(),
                self.namespace.as_str(),
                self.service_account.as_str(),
            ),
            network: self.network.as_str().into(),
            hbone,
            max_tunnels: self.max_tunnels,
            max_connections: self.max_connections,
            max_connections_per_source: self.max_connections_per_source,
            patience: self.proxy.patience,
            dial_timeout: self.proxy.dial_timeout,
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
        assert_eq!((args.proxy.worker_count(3), args.proxy.trust_domains().len()), (3, 1));
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
