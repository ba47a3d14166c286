//! Envoy as a waypoint: it ends HBONE, routes the requests within by their paths, and carries them on, plainly or by
//! HBONE of its own.
//!
//! It is built as Istio builds its waypoints, of listeners within the process, and of nothing that this bench does not
//! need: no filters, no access log, no telemetry but its own counters.

use std::{fmt::Write as _, net::IpAddr};

use interop::pki::Credentials;

use super::{
    load::{PORTS, path},
    plan::{Onward, Version},
};

/// Where it tells its counters, on loopback of its pod.
pub(super) const ADMIN: u16 = 15000;
/// HBONE's port.
const HBONE: u16 = 15008;

/// A service behind it.
pub(super) struct Behind {
    pub(super) address: IpAddr,
    pub(super) routes: usize,
    pub(super) onward: Onward,
    pub(super) backend: IpAddr,
}

/// Its whole configuration, for its pod at `listen`.
pub(super) fn configuration(listen: IpAddr, services: &[Behind], credentials: &Credentials) -> String {
    let mut hosts = String::new();
    let mut listeners = String::new();
    let mut clusters = String::new();
    for (service, behind) in services.iter().enumerate() {
        for (version, port, target) in PORTS {
            let name = format!("s{service}p{port}");
            let authority = format!("{}:{port}", behind.address);
            let _ = write!(
                hosts,
                "            - name: {name}
              domains: [ \"{authority}\" ]
              routes:
              - match: {{ connect_matcher: {{}} }}
                route: {{ cluster: to-{name}, timeout: 0s, upgrade_configs: [ {{ upgrade_type: CONNECT, connect_config: {{}} }} ] }}
"
            );
            listeners += &inner(&name, behind.routes);
            clusters += &internal(&format!("to-{name}"), &name, Version::One);
            let endpoint = format!("{}:{target}", behind.backend);
            match behind.onward {
                Onward::Plain => {
                    clusters += &plain(&format!("backend-{name}"), behind.backend, target, version)
                }
                Onward::Hbone => {
                    clusters += &internal(&format!("backend-{name}"), &format!("tunnel-{name}"), version);
                    listeners += &tunnel(&name, &endpoint);
                    clusters += &peer(&name, behind.backend, credentials);
                }
            }
        }
    }
    let tls = interop::envoy::tls(credentials);
    format!(
        r#"admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {ADMIN} }} }} }}
bootstrap_extensions:
- name: envoy.bootstrap.internal_listener
  typed_config: {{ "@type": type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener }}
static_resources:
  listeners:
  - name: hbone
    address: {{ socket_address: {{ address: {listen}, port_value: {HBONE} }} }}
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
          http2_protocol_options: {{ allow_connect: true, max_concurrent_streams: 1000 }}
          upgrade_configs: [ {{ upgrade_type: CONNECT }} ]
          stream_idle_timeout: 0s
          generate_request_id: false
          route_config:
            virtual_hosts:
{hosts}          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
{listeners}  clusters:
{clusters}"#
    )
}

/// What Istio asks of it where nobody asks for anything else: a backend may refuse streams before it has said how many it
/// takes.
const RETRY: &str = "retry_policy: { retry_on: \"connect-failure,refused-stream\", num_retries: 2 }";

/// The listener that routes what came out of a tunnel.
fn inner(name: &str, routes: usize) -> String {
    let mut rules = String::new();
    for route in 0..routes {
        let path = path(route);
        let _ = writeln!(
            rules,
            "              - {{ match: {{ prefix: \"{path}\" }}, route: {{ cluster: backend-{name}, timeout: 0s, {RETRY} }} }}"
        );
    }
    format!(
        r#"  - name: {name}
    internal_listener: {{}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: requests
          codec_type: AUTO
          http2_protocol_options: {{ max_concurrent_streams: 1000 }}
          stream_idle_timeout: 0s
          route_config:
            virtual_hosts:
            - name: all
              domains: [ "*" ]
              routes:
{rules}          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
"#
    )
}

/// The listener that puts a connection to a backend into a tunnel.
fn tunnel(name: &str, target: &str) -> String {
    format!(
        r#"  - name: tunnel-{name}
    internal_listener: {{}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: tunnel
          cluster: peer-{name}
          idle_timeout: 0s
          tunneling_config: {{ hostname: "{target}" }}
"#
    )
}

/// More than any load has at a time.
const BREAKERS: &str =
    "{ thresholds: [ { max_connections: 100000, max_pending_requests: 100000, max_requests: 100000 } ] }";

fn protocol(version: Version) -> String {
    let options = match version {
        Version::One => "http_protocol_options: {}",
        Version::Two => "http2_protocol_options: {}",
    };
    format!(
        r#"    circuit_breakers: {BREAKERS}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ {options} }}
"#
    )
}

/// A cluster that is a listener of the same process.
fn internal(name: &str, listener: &str, version: Version) -> String {
    let protocol = protocol(version);
    format!(
        r#"  - name: {name}
    connect_timeout: 5s
    load_assignment:
      cluster_name: {name}
      endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ envoy_internal_address: {{ server_listener_name: {listener}, endpoint_id: "{listener}" }} }} }} }} ] }} ]
    transport_socket:
      name: envoy.transport_sockets.internal_upstream
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport
        transport_socket:
          name: envoy.transport_sockets.raw_buffer
          typed_config: {{ "@type": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer }}
{protocol}"#
    )
}

fn fixed(name: &str, address: IpAddr, port: u16) -> String {
    format!(
        r#"  - name: {name}
    type: STATIC
    connect_timeout: 5s
    load_assignment:
      cluster_name: {name}
      endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ socket_address: {{ address: {address}, port_value: {port} }} }} }} }} ] }} ]
"#
    )
}

fn plain(name: &str, address: IpAddr, port: u16, version: Version) -> String {
    fixed(name, address, port) + &protocol(version)
}

/// The ztunnel in front of a backend.
fn peer(name: &str, address: IpAddr, credentials: &Credentials) -> String {
    let tls = interop::envoy::tls(credentials);
    let transport = format!(
        r#"    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context:
{tls}
"#
    );
    fixed(&format!("peer-{name}"), address, HBONE) + &protocol(Version::Two) + &transport
}
