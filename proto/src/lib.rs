//! The wire types: Istio's and Envoy's public protocols that ambient needs, and our own between agent
//! and control. Generated at build time from `protos/`; nothing here decides anything.
#![forbid(unsafe_code)]

use bytes::Bytes;

/// `google.protobuf.Any`, its value behind a reference count, so that one encoded resource can be sent to
/// many clients without a copy of it for each.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Any {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// `istio.workload`: workloads and services.
pub mod workload {
    #![allow(clippy::all, missing_docs, unreachable_pub, reason = "generated")]
    tonic::include_proto!("istio.workload");

    /// ZDS, from agent to node proxy.
    pub mod zds {
        tonic::include_proto!("istio.workload.zds");
    }
}

/// `istio.security`: layer-4 policies.
pub mod security {
    #![allow(clippy::all, missing_docs, unreachable_pub, reason = "generated")]
    tonic::include_proto!("istio.security");
}

/// `istio.v1.auth`: certificates.
pub mod ca {
    #![allow(clippy::all, missing_docs, unreachable_pub, reason = "generated")]
    tonic::include_proto!("istio.v1.auth");
}

/// `culvert.node.v1`: agent and control.
pub mod node {
    #![allow(clippy::all, missing_docs, unreachable_pub, reason = "generated")]
    tonic::include_proto!("culvert.node.v1");
}

/// Nested as the packages are: the generated code refers from here to [`security`].
mod culvert {
    pub mod waypoint {
        pub mod v1 {
            #![allow(clippy::all, missing_docs, unreachable_pub, reason = "generated")]
            tonic::include_proto!("culvert.waypoint.v1");
        }
    }
}

/// See [`culvert`].
mod istio {
    pub(crate) use super::security;
}

/// `culvert.waypoint.v1`: what waypoints are told, and what is told of them.
pub use culvert::waypoint::v1 as waypoint;

/// Modules nested as the packages are: the generated code refers from one to the other.
pub mod envoy {
    #![allow(clippy::all, missing_docs, unreachable_pub, reason = "generated")]
    pub mod config {
        pub mod core {
            pub mod v3 {
                tonic::include_proto!("envoy.config.core.v3");
            }
        }
    }
    pub mod service {
        pub mod discovery {
            pub mod v3 {
                tonic::include_proto!("envoy.service.discovery.v3");
            }
        }
    }
}

/// See [`envoy`].
pub mod google {
    #![allow(clippy::all, missing_docs, unreachable_pub, reason = "generated")]
    pub mod rpc {
        tonic::include_proto!("google.rpc");
    }
}

/// Nested as the packages are; see [`otlp`].
mod opentelemetry {
    #![allow(clippy::all, missing_docs, unreachable_pub, reason = "generated")]
    pub mod proto {
        pub mod collector {
            pub mod trace {
                pub mod v1 {
                    tonic::include_proto!("opentelemetry.proto.collector.trace.v1");
                }
            }
        }
        pub mod common {
            pub mod v1 {
                tonic::include_proto!("opentelemetry.proto.common.v1");
            }
        }
        pub mod resource {
            pub mod v1 {
                tonic::include_proto!("opentelemetry.proto.resource.v1");
            }
        }
        pub mod trace {
            pub mod v1 {
                tonic::include_proto!("opentelemetry.proto.trace.v1");
            }
        }
    }
}

/// OpenTelemetry's protocol, as far as spans need it.
pub mod otlp {
    pub use crate::opentelemetry::proto::{
        collector::trace::v1::*, common::v1::*, resource::v1::*, trace::v1::*,
    };
}

/// Delta discovery (`envoy.service.discovery.v3`) and its node and status.
pub mod discovery {
    pub use crate::envoy::config::core::v3::{Locality, Node};
    pub use crate::envoy::service::discovery::v3::*;
    pub use crate::google::rpc::Status;
}

/// The type URL of [`workload::Address`].
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// The type URL of [`security::Authorization`].
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";
/// The type URL of [`waypoint::ServiceRoutes`].
pub const ROUTES_TYPE: &str = "type.googleapis.com/culvert.waypoint.v1.ServiceRoutes";
/// The type URL of [`waypoint::WorkloadWaypoint`], and its name among the extensions of a workload.
pub const WORKLOAD_WAYPOINT_TYPE: &str = "type.googleapis.com/culvert.waypoint.v1.WorkloadWaypoint";
pub const WORKLOAD_WAYPOINT: &str = "culvert.dev/waypoint";
/// Discovery messages may be this large (bytes): a first answer holds the whole mesh.
pub const MAX_MESSAGE: usize = 200 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    /// Bytes of a known encoding: the field numbers are the contract with foreign peers.
    #[test]
    fn field_numbers_are_the_public_ones() {
        let workload = workload::Workload { uid: "u".into(), hostname: "h".into(), ..Default::default() };
        // 20 << 3 | 2 = 162, 1; 21 << 3 | 2 = 170, 1
        assert_eq!(workload.encode_to_vec(), [162, 1, 1, b'u', 170, 1, 1, b'h']);
        let policy = security::Authorization { dry_run: true, ..Default::default() };
        assert_eq!(policy.encode_to_vec(), [6 << 3, 1]);
        let accounts = security::Match {
            service_accounts: vec![security::ServiceAccountMatch::default()],
            ..Default::default()
        };
        assert_eq!(accounts.encode_to_vec(), [11 << 3 | 2, 0]);
        let request = ca::IstioCertificateRequest { validity_duration: 1, ..Default::default() };
        assert_eq!(request.encode_to_vec(), [3 << 3, 1]);
        let del = workload::zds::DelWorkload { uid: "u".into() };
        assert_eq!(del.encode_to_vec(), [2 << 3 | 2, 1, b'u']);
        let answer =
            discovery::DeltaDiscoveryResponse { removed_resources: vec!["r".into()], ..Default::default() };
        assert_eq!(answer.encode_to_vec(), [6 << 3 | 2, 1, b'r']);
        let span = otlp::Span { name: "n".into(), flags: 1, ..Default::default() };
        // 16 << 3 | 5 = 133, 1
        assert_eq!(span.encode_to_vec(), [5 << 3 | 2, 1, b'n', 133, 1, 1, 0, 0, 0]);
        let status = otlp::Status { code: otlp::status::StatusCode::Error.into(), ..Default::default() };
        assert_eq!(status.encode_to_vec(), [3 << 3, 2]);
    }

    /// What `opentelemetry-proto` 1.x of PyPI, which is generated from the public files, has written.
    const FOREIGN_SPANS: &str = concat!(
        "0aca010a0c0a080a017212030a0178100112b5010a060a016e12017612a6010a10010101010101010101010101010101",
        "01120802020202020202021a03613d31220803030303030303032a017330033905000000000000004106000000000000",
        "004a070a0162120210014a100a0169120b18ffffffffffffffffff014a0e0a0164120921000000000000e03f4a080a01",
        "7912033a01ff4a0c0a016c12072a050a030a01654a100a016b120b32090a070a01711202180950077a0512016d180285",
        "01010300001a0273321a027331",
    );

    #[test]
    fn spans_are_read_as_others_write_them_and_written_alike() {
        let bytes: Vec<u8> = (0..FOREIGN_SPANS.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&FOREIGN_SPANS[at..at + 2], 16).unwrap())
            .collect();
        let request = otlp::ExportTraceServiceRequest::decode(&bytes[..]).unwrap();
        let of_resource = &request.resource_spans[0];
        let of_scope = &of_resource.scope_spans[0];
        let span = &of_scope.spans[0];
        assert_eq!(of_resource.resource.as_ref().unwrap().attributes[0].key, "r");
        assert_eq!((of_resource.schema_url.as_str(), of_scope.schema_url.as_str()), ("s1", "s2"));
        assert_eq!((&span.trace_id[..], &span.span_id[..]), (&[1; 16][..], &[2; 8][..]));
        assert_eq!((span.trace_state.as_str(), &span.parent_span_id[..]), ("a=1", &[3; 8][..]));
        assert_eq!((span.name.as_str(), span.kind()), ("s", otlp::span::SpanKind::Client));
        assert_eq!((span.start_time_unix_nano, span.end_time_unix_nano, span.flags), (5, 6, 0x301));
        let status = span.status.as_ref().unwrap();
        assert_eq!((status.message.as_str(), status.code()), ("m", otlp::status::StatusCode::Error));
        let keys: Vec<&str> = span.attributes.iter().map(|pair| pair.key.as_str()).collect();
        assert_eq!(keys, ["b", "i", "d", "y", "l", "k"]);
        let value = |at: usize| span.attributes[at].value.as_ref().unwrap().value.as_ref().unwrap();
        assert_eq!(value(1), &otlp::any_value::Value::IntValue(-1));
        assert_eq!(value(3), &otlp::any_value::Value::BytesValue(vec![0xff]));
        // Nothing of it is lost: all that there is we know.
        assert_eq!(request.encode_to_vec(), bytes);
    }

    /// Our `Any` and the one of the well-known types are one encoding.
    #[test]
    fn any_is_the_well_known_any() {
        let ours = Any { type_url: ADDRESS_TYPE.into(), value: Bytes::from_static(b"abc") };
        let theirs = prost_types::Any::decode(&ours.encode_to_vec()[..]).unwrap();
        assert_eq!(theirs.type_url, ADDRESS_TYPE);
        assert_eq!(theirs.value, b"abc");
    }
}
