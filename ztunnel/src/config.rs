//! The flags of ztunnel, and the settings that follow from them.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use runtime::{
    config::{Problems, values},
    proxy::{Proxy, longer_than_nothing},
};

use crate::{
    dns, foreign,
    shared::Settings,
    sockets::{Keepalive, SocketOptions},
};

/// The layer-4 proxy of a node: takes the connections of enrolled pods, carries them through mutual-TLS
/// tunnels (HBONE), and decides who may talk to whom.
#[derive(Debug, clap::Parser)]
#[command(name = "ztunnel", version)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) proxy: Proxy,

    /// `proxy ztunnel`, which Istio's chart has on the command line: passed over, so that the chart fits
    #[arg(hide = true, value_parser = ["proxy", "ztunnel"])]
    pub(crate) as_istio_has_it: Vec<String>,

    /// Name of ztunnel's own pod, by which control reports it; ztunnel-NODE unless given
    #[arg(long, value_name = "NAME", help_heading = "Mesh")]
    pub(crate) pod_name: Option<String>,

    /// Namespace of ztunnel's own pod. istiod serves it only if that is the namespace of the token
    #[arg(long, value_name = "NAME", default_value = "culvert-system", help_heading = "Mesh")]
    pub(crate) pod_namespace: String,

    /// PEM file with roots to trust besides those that control hands out; read again when it changes
    #[arg(long, value_name = "FILE", help_heading = "Mesh")]
    pub(crate) extra_roots: Option<PathBuf>,

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

    /// Bind each worker to a core of its own: for nodes whose cores are set aside for ztunnel
    #[arg(long, help_heading = "Limits")]
    pub(crate) bind_workers: bool,

    /// Connections that one pod may have at a time; one more is reset
    #[arg(long, value_name = "N", default_value_t = 50_000, help_heading = "Limits")]
    pub(crate) max_connections_per_pod: usize,

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
        self.proxy.check(problems);
        let times =
            [("--keepalive-time", self.keepalive_time), ("--keepalive-interval", self.keepalive_interval)];
        longer_than_nothing(problems, &times);
        if self.max_connections_per_pod == 0 {
            problems.add("--max-connections-per-pod", Some("0".into()), "a pod needs at least one");
        }
    }

    pub(crate) fn settings(&self) -> Settings {
        let hbone = hbone::Settings {
            dial_timeout: self.proxy.dial_timeout,
            handshake_timeout: self.proxy.handshake_timeout,
            client_idle: self.tunnel_idle,
            ..hbone::Settings::default()
        };
        let keepalive = Keepalive {
            idle: self.keepalive_time,
            interval: self.keepalive_interval,
            retries: self.keepalive_probes,
        };
        Settings {
            node: self.proxy.node.as_str().into(),
            trust_domain: self.proxy.trust_domain.as_str().into(),
            cluster_domain: self.cluster_domain.trim_matches('.').to_ascii_lowercase().into(),
            dns: self.dns,
            resolver: self.resolver.or_else(foreign::resolver).map(|ip| SocketAddr::new(ip, dns::PORT)),
            sockets: SocketOptions { keepalive, dial_timeout: self.proxy.dial_timeout },
            hbone,
            connections_per_pod: self.max_connections_per_pod,
            pod_grace: self.pod_grace,
            patience: self.proxy.patience,
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
        assert_eq!((args.proxy.worker_count(3), args.proxy.trust_domains().len()), (3, 1));
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
