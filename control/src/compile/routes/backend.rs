//! What a route refers to as a backend: a Service, a ServiceEntry, or either by its host name.

use mesh::{
    ServiceKey,
    route::{Protocol, To},
};

use super::is_of_requests;
use crate::{
    compile::{
        Compiler,
        standing::Unresolved,
        waypoints::{ISTIO_NETWORKING, is_service, is_service_entry},
    },
    manifest::{Kind, ObjectKey, Reference},
};

/// How a backend is named.
#[derive(Clone, Copy, PartialEq)]
enum Named {
    Service,
    ServiceEntry,
    /// A host of the namespace, whoever makes it a service.
    Hostname,
}

impl Named {
    fn of(to: &Reference) -> Option<Self> {
        let (group, kind) = (to.group.as_deref(), to.kind.as_deref());
        if is_service(group, kind, "Service") {
            Some(Self::Service)
        } else if is_service_entry(group, kind) {
            Some(Self::ServiceEntry)
        } else {
            (group == Some(ISTIO_NETWORKING) && kind == Some("Hostname")).then_some(Self::Hostname)
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::ServiceEntry => "ServiceEntry",
            Self::Hostname => "Hostname",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::ServiceEntry => "ServiceEntry",
            Self::Hostname => "host",
        }
    }

    /// As a ReferenceGrant names it.
    fn target(self, name: &str) -> (&'static str, &'static str, &str) {
        let group = if self == Self::Service { "" } else { ISTIO_NETWORKING };
        (group, self.kind(), name)
    }
}

/// A backend as a ReferenceGrant names it: its group, kind and name.
pub(crate) fn granted_as(to: &Reference) -> Option<(&'static str, &'static str, &str)> {
    Named::of(to).map(|named| named.target(&to.name))
}

impl Compiler<'_, '_> {
    /// `called` are the services that the route is for: to go on to what was called nobody has to permit.
    pub(super) fn backend(
        &self,
        key: &ObjectKey,
        to: &Reference,
        called: &[ServiceKey],
    ) -> Result<To, Unresolved> {
        let named = Named::of(to).ok_or_else(|| {
            let kind = to.kind.as_deref().unwrap_or_default();
            let message = format!("a backend is a Service, a ServiceEntry or a Hostname, and not a {kind}");
            Unresolved::new("kind", "InvalidKind", message)
        })?;
        let (namespace, name) = (to.namespace.as_deref().unwrap_or(&key.namespace), &*to.name);
        let service = match named {
            Named::Service => Some(self.service_key(namespace, name)),
            Named::Hostname => Some(ServiceKey { namespace: namespace.into(), hostname: name.into() }),
            Named::ServiceEntry => self.hosts_of(namespace, name).into_iter().next(),
        };
        let what = format!("{} {namespace}/{name}", named.word());
        let is_called = service.as_ref().is_some_and(|service| called.contains(service));
        if *namespace != *key.namespace && !is_called && !self.is_granted(key, namespace, named.target(name))
        {
            let message = format!("no ReferenceGrant permits it to refer to {what}");
            return Err(Unresolved::new("namespace", "RefNotPermitted", message));
        }
        let missing = |part, message| Unresolved::new(part, "BackendNotFound", message);
        if named == Named::ServiceEntry && self.hosts_of(namespace, name).len() > 1 {
            let message = format!("{what} has several hosts: name one of them, by the kind Hostname");
            return Err(missing("name", message));
        }
        let held = service.as_ref().and_then(|service| Some((service, self.out.services.get(service)?)));
        let (service, held) = held.ok_or_else(|| missing("name", format!("there is no {what}")))?;
        if held.passthrough || service.hostname.starts_with('*') {
            let message = format!("{what} has no endpoints of its own (resolution NONE, or a wildcard)");
            return Err(missing("name", message));
        }
        let port =
            to.port.ok_or_else(|| missing("port", format!("a {} as backend needs a port", named.kind())))?;
        if !held.ports.iter().any(|mapping| mapping.service_port == port) {
            return Err(missing("port", format!("{what} has no port {port}")));
        }
        let said = self.protocols(service).into_iter().find(|(of, _)| *of == port);
        let in_tls =
            self.tls.get(service).into_iter().flatten().any(|tls| tls.port.is_none_or(|of| of == port));
        let unsupported = match said {
            // Within TLS that is begun with it HTTP is what a policy for it means.
            Some((_, Protocol::Tcp)) if is_of_requests(key) && !in_tls => Some("no HTTP"),
            Some((_, Protocol::Http1)) if key.kind == Kind::GRPCRoute => {
                Some("HTTP/1, which carries no calls")
            }
            _ => None,
        };
        if let Some(speaks) = unsupported {
            let message = format!("port {port} of {what} speaks {speaks}");
            return Err(Unresolved::new("port", "UnsupportedProtocol", message));
        }
        Ok(To::Service { service: service.clone(), port })
    }

    /// Whether a grant of that namespace lets the route refer to something of it.
    fn is_granted(&self, key: &ObjectKey, namespace: &str, target: (&str, &str, &str)) -> bool {
        let grants = self.view.objects.iter().filter(|(of, _)| *of.namespace == *namespace);
        let kind = format!("{:?}", key.kind);
        grants
            .filter_map(|(_, object)| object.grant())
            .any(|grant| grant.permits(&kind, &key.namespace, target))
    }
}
