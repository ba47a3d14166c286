//! The flags of ztunnel, and the settings that follow from them.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use runtime::{
    config::{Common, Problems, values},
    logging,
};

use crate::{
    dns, foreign,
    shared::Settings,
    sockets::{Keepalive, SocketOptions},
    worker,
};

/// The layer-4 proxy of a node: takes the connections of enrolled pods, carries them through mutual-TLS
/// tunnels (HBONE), and decides who may talk to whom.
#[derive(Debug, clap::Parser)]
#[command(name = "ztunnel", version)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) common: Common,

    /// Form of the access log, one line for each connection; none switches it off
    #[arg(long, value_name = "text|json|none", value_parser = access_log, help_heading = "Common")]
    pub(crate) access_log: Option<AccessLog>,

    /// `proxy ztunnel`, which Istio's chart has on the command line: passed over, so that the chart fits
    #[arg(hide = true, value_parser = ["proxy", "ztunnel"])]
    pub(crate) as_istio_has_it: Vec<String>,

    /// Name of the node, as Kubernetes knows it
    #[arg(long, value_name = "NAME", help_heading = "Mesh")]
    pub(crate) node: String,

    /// Name of ztunnel's own pod, by which control reports it; ztunnel-NODE unless given
    #[arg(long, value_name = "NAME", help_heading = "Mesh")]
    pub(crate) pod_name: Option<String>,

    /// Namespace of ztunnel's own pod. istiod serves it only if that is the namespace of the token
    #[arg(long, value_name = "NAME", default_value = "culvert-system", help_heading = "Mesh")]
    pub(crate) pod_namespace: String,

    /// Where control serves discovery and certificates
    #[arg(long, value_name = "https://HOST:PORT", help_heading = "Mesh")]
    pub(crate) control: String,

    /// PEM file with the roots that may have signed control's certificate
    #[arg(long, value_name = "FILE", help_heading = "Mesh")]
    pub(crate) control_ca: PathBuf,

    /// Name that control's certificate must bear, where it is not the host of --control
    #[arg(long, value_name = "NAME", help_heading = "Mesh")]
    pub(crate) control_name: Option<String>,

    /// File with the token that proves which node this is; read again for each request
    #[arg(long, value_name = "FILE", help_heading = "Mesh")]
    pub(crate) token_file: PathBuf,

    /// Trust domain of this node's pods
    #[arg(long, value_name = "NAME", default_value = "cluster.local", value_parser = mesh::identity::trust_domain)]
    #[arg(help_heading = "Mesh")]
    pub(crate) trust_domain: String,

    /// Further trust domains whose callers are accepted; may be repeated
    #[arg(long, value_name = "NAME", value_parser = mesh::identity::trust_domain, help_heading = "Mesh")]
    pub(crate) accept_trust_domain: Vec<String>,

    /// PEM file with roots to trust besides those that control hands out; read again when it changes
    #[arg(long, value_name = "FILE", help_heading = "Mesh")]
    pub(crate) extra_roots: Option<PathBuf>,

    /// Identifier of the cluster
    #[arg(long, value_name = "ID", default_value = "Kubernetes", help_heading = "Mesh")]
    pub(crate) cluster: String,

    /// Suffix of the host names of Kubernetes services
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local", help_heading = "Mesh")]
    pub(crate) cluster_domain: String,

    /// Whether names of the mesh are answered in the place of a pod's resolver, unless the pod's annotation says otherwise
    #[arg(long, value_name = "on|off", default_value = "on", value_parser = switch, action = clap::ArgAction::Set, help_heading = "Mesh")]
    pub(crate) dns: bool,

    /// Resolver for the queries of pods that a foreign CNI plugin has captured, whose own is not known; the first of
    /// /etc/resolv.conf unless given
    #[arg(long, value_name = "IP", help_heading = "Mesh")]
    pub(crate) resolver: Option<IpAddr>,

    /// Folder in bpffs where the agent pins the capture of pods
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/culvert", help_heading = "Node")]
    pub(crate) pins: PathBuf,

    /// Socket on which the agent (or a foreign CNI's agent) names the pods, by ZDS
    #[arg(long, value_name = "PATH", default_value = "/run/culvert/zds.sock", help_heading = "Node")]
    pub(crate) zds_socket: PathBuf,

    /// Socket on which the agent keeps keys and certificates from one ztunnel to the next
    #[arg(long, value_name = "PATH", default_value = "/run/culvert/handover.sock", help_heading = "Node")]
    pub(crate) handover_socket: PathBuf,

    /// Threads that carry connections; 0: as many as there are cores
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Limits")]
    pub(crate) workers: usize,

    /// Bind each worker to a core of its own: for nodes whose cores are set aside for ztunnel
    #[arg(long, help_heading = "Limits")]
    pub(crate) bind_workers: bool,

    /// Connections that one pod may have at a time; one more is reset
    #[arg(long, value_name = "N", default_value_t = 50_000, help_heading = "Limits")]
    pub(crate) max_connections_per_pod: usize,

    /// How long a new connection waits for the state of the mesh, or for its pod to appear in it
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = values::duration, help_heading = "Limits")]
    pub(crate) patience: Duration,

    /// How long a TCP connection may take to be made
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = values::duration, help_heading = "Limits")]
    pub(crate) dial_timeout: Duration,

    /// How long a TLS handshake may take, on either side
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = values::duration, help_heading = "Limits")]
    pub(crate) handshake_timeout: Duration,

    /// How long an outbound tunnel without connections is kept
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = values::duration, help_heading = "Limits")]
    pub(crate) tunnel_idle: Duration,

    /// How long a connection may be silent before the kernel asks whether the peer is still there
    #[arg(long, value_name = "TIME", default_value = "180s", value_parser = values::duration, help_heading = "Limits")]
    pub(crate) keepalive_time: Duration,

    /// How long it waits for an answer before it asks again
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = values::duration, help_heading = "Limits")]
    pub(crate) keepalive_interval: Duration,

    /// How often it asks in vain before the connection is dead
    #[arg(long, value_name = "N", default_value_t = 3, help_heading = "Limits")]
    pub(crate) keepalive_probes: u32,

    /// How long the connections of a pod that is gone may go on
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = values::duration, help_heading = "Limits")]
    pub(crate) pod_grace: Duration,

    /// How long connections are still served after SIGTERM
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

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("write on or off".into()),
    }
}

impl Args {
    /// What is wrong between values that are each right.
    pub(crate) fn check(&self, problems: &mut Problems) {
        let mut positive = |flag: &str, time: Duration| {
            if time.is_zero() {
                problems.add(flag, Some("0".into()), "must be longer than nothing");
            }
        };
        positive("--dial-timeout", self.dial_timeout);
        positive("--handshake-timeout", self.handshake_timeout);
        positive("--keepalive-time", self.keepalive_time);
        positive("--keepalive-interval", self.keepalive_interval);
        if self.max_connections_per_pod == 0 {
            problems.add("--max-connections-per-pod", Some("0".into()), "a pod needs at least one");
        }
        if self.workers > 1024 {
            problems.add("--workers", Some(self.workers.to_string()), "1024 at most");
        }
    }

    pub(crate) fn worker_count(&self) -> usize {
        if self.workers == 0 { worker::available_cores() } else { self.workers }
    }

    /// Trust domains whose callers are accepted.
    pub(crate) fn trust_domains(&self) -> Vec<String> {
        let mut domains = vec![self.trust_domain.clone()];
        domains.extend(self.accept_trust_domain.iter().cloned());
        domains
    }

    pub(crate) fn settings(&self) -> Settings {
        let hbone = hbone::Settings {
            dial_timeout: self.dial_timeout,
            handshake_timeout: self.handshake_timeout,
            client_idle: self.tunnel_idle,
            ..hbone::Settings::default()
        };
        let keepalive = Keepalive {
            idle: self.keepalive_time,
            interval: self.keepalive_interval,
            retries: self.keepalive_probes,
        };
        Settings {
            node: self.node.as_str().into(),
            trust_domain: self.trust_domain.as_str().into(),
            cluster_domain: self.cluster_domain.trim_matches('.').to_ascii_lowercase().into(),
            dns: self.dns,
            resolver: self.resolver.or_else(foreign::resolver).map(|ip| SocketAddr::new(ip, dns::PORT)),
            sockets: SocketOptions { keepalive, dial_timeout: self.dial_timeout },
            hbone,
            connections_per_pod: self.max_connections_per_pod,
            pod_grace: self.pod_grace,
            patience: self.patience,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use runtime::config::{Stop, resolve_from};

    use super::*;

    fn resolve(flags: &[&str]) -> Result<Args, Stop> {
        let line =
            ["ztunnel", "--node", "a", "--control", "https://c:1", "--control-ca", "ca", "--token-file", "t"];
        let line = line.iter().chain(flags).map(OsString::from);
        resolve_from(line, &|_| None, |args: &Args, problems| args.check(problems))
    }

    #[test]
    fn the_defaults_are_right_by_themselves() {
        let args = resolve(&[]).unwrap();
        let settings = args.settings();
        assert_eq!(&*settings.trust_domain, "cluster.local");
        assert_eq!(settings.sockets.keepalive.idle, Duration::from_secs(180));
        assert!(args.worker_count() >= 1);
    }

    #[test]
    fn the_words_of_istios_chart_are_passed_over_and_no_others() {
        let args = resolve(&["--pod-namespace=istio-system", "proxy", "ztunnel"]).unwrap();
        assert_eq!(args.pod_namespace, "istio-system");
        assert!(matches!(resolve(&["proxy", "sidecar"]), Err(Stop::Clap(_))));
    }

    #[test]
    fn a_trust_domain_that_is_none_is_refused() {
        for flags in [["--trust-domain", "Cluster.local"], ["--accept-trust-domain", "a/b"]] {
            let Err(stop) = resolve(&flags) else { panic!("{flags:?} was taken") };
            assert!(format!("{stop:?}").contains("trust domain is made of"), "{stop:?}");
        }
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let stop = resolve(&["--max-connections-per-pod", "0", "--dial-timeout", "0s"]).unwrap_err();
        let Stop::Problems(problems) = stop else { panic!("{stop:?}") };
        assert_eq!(problems.iter().count(), 2, "{problems}");
    }
}
