//! A request that has ended, as it is told: a line of the log, in the order in which people look for things.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use mesh::{
    Identity, PolicyKey, RouteKey, Service, ServiceKey, Workload,
    trace::{RequestId, TraceId},
};

use super::Request;
use crate::{
    logging::line::Line,
    record::access::{Millis, list},
};

/// All that is known of a request once it has ended.
#[derive(Debug, Clone)]
pub struct Ended<'a> {
    /// As in `HTTP/1.1`.
    pub protocol: &'a str,
    pub is_grpc: bool,
    pub method: &'a str,
    /// With its query; cut, if it is very long.
    pub path: &'a str,
    pub authority: &'a str,
    pub id: Option<&'a RequestId>,
    pub trace: Option<TraceId>,
    /// 0 where nothing was answered.
    pub status: u16,
    pub grpc_status: Option<u16>,
    /// As in Istio's `response_flags`.
    pub flags: &'static str,
    /// Whether the operator may want to know.
    pub is_failure: bool,
    pub reason: Option<&'a str>,
    pub source: SocketAddr,
    pub source_workload: Option<&'a Arc<Workload>>,
    pub source_identity: Option<&'a Identity>,
    /// Whose token it brought: `ISSUER/SUBJECT`.
    pub principal: Option<&'a str>,
    /// The service that was called, and its port (or the workload's).
    pub service: Option<&'a Arc<Service>>,
    pub called_port: u16,
    /// The service that was chosen for it, and its port.
    pub backend: Option<&'a (ServiceKey, u16)>,
    /// Where it was tried last.
    pub upstream: Option<SocketAddr>,
    pub destination: Option<&'a Arc<Workload>>,
    pub route: Option<(&'a RouteKey, usize, Option<&'a str>)>,
    pub policy: Option<&'a PolicyKey>,
    dry_run: &'a [PolicyKey],
    audited: &'a [PolicyKey],
    pub tries: u32,
    /// Bytes of its body.
    pub received: u64,
    /// Bytes of its answer's.
    pub sent: u64,
    pub age: Duration,
    pub upstream_time: Option<Duration>,
}

impl<'a> Ended<'a> {
    pub(super) fn of(request: &'a Request) -> Self {
        let facts = &request.facts;
        Self {
            protocol: request.protocol,
            is_grpc: request.is_grpc,
            method: &request.method,
            path: &request.path,
            authority: &request.authority,
            id: request.id.as_ref(),
            trace: request.trace,
            status: request.status,
            grpc_status: request.grpc,
            flags: request.flag.name(),
            is_failure: request.flag.is_failure() || request.status >= 500,
            reason: request.reason.as_deref(),
            source: request.source,
            source_workload: facts.source.as_ref(),
            source_identity: facts.source_identity.as_ref(),
            principal: request.principal.as_deref(),
            service: facts.service.as_ref(),
            called_port: request.called_port,
            backend: request.backend.as_ref(),
            upstream: request.upstream,
            destination: facts.destination.as_ref(),
            route: request.route.as_ref().map(|(key, rule, name)| (key, *rule, name.as_deref())),
            policy: request.policy.as_ref(),
            dry_run: &request.dry_run,
            audited: &request.audited,
            tries: request.tries,
            received: request.received,
            sent: request.sent,
            age: request.started.elapsed(),
            upstream_time: request.upstream_time,
        }
    }

    /// As in Istio's `request_protocol`.
    pub(super) fn kind(&self) -> &'static str {
        if self.is_grpc { "grpc" } else { "http" }
    }

    pub(super) fn write(&self, line: &mut Line<'_>) {
        line.text("protocol", self.protocol);
        line.text("method", self.method);
        line.text("authority", self.authority);
        line.text("path", self.path);
        line.number("status", self.status);
        self.grpc_status.iter().for_each(|status| line.number("grpc_status", *status));
        line.text("flags", self.flags);
        self.id.iter().for_each(|id| line.text("request_id", id.as_str()));
        self.trace.iter().for_each(|trace| line.shown("trace_id", trace));
        line.shown("src.addr", self.source);
        if let Some(source) = self.source_workload {
            line.text("src.workload", &source.name);
            line.text("src.namespace", &source.namespace);
        }
        self.source_identity.iter().for_each(|who| line.text("src.identity", &who.to_string()));
        self.principal.iter().for_each(|principal| line.text("request_principal", principal));
        self.service.iter().for_each(|service| line.text("dst.service", &service.key.hostname));
        if let Some((key, port)) = self.backend {
            line.text("backend", &format!("{}:{port}", key.hostname));
        }
        self.upstream.iter().for_each(|address| line.shown("dst.addr", address));
        if let Some(destination) = self.destination {
            line.text("dst.workload", &destination.name);
            line.text("dst.namespace", &destination.namespace);
        }
        if let Some((route, rule, name)) = self.route {
            line.text("route", &route.to_string());
            line.number("rule", rule as u64);
            name.iter().for_each(|name| line.text("rule_name", name));
        }
        self.policy.iter().for_each(|policy| line.text("policy", &policy.to_string()));
        for (name, policies) in [("dry_run", self.dry_run), ("audited", self.audited)] {
            if !policies.is_empty() {
                line.text(name, &list(policies));
            }
        }
        line.number("tries", self.tries);
        line.number("bytes_recv", self.received);
        line.number("bytes_sent", self.sent);
        line.shown("duration", Millis(self.age));
        self.upstream_time.iter().for_each(|time| line.shown("upstream_duration", Millis(*time)));
        self.reason.iter().for_each(|reason| line.text("error", reason));
    }
}
