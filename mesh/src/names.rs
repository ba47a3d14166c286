//! What a host name means to a pod: the service it names, and the addresses to tell.
//!
//! A function of one snapshot, the pod's namespace and the cluster's domain. What is not found here is not
//! known not to exist: whoever asked is then to ask the pod's own resolver. Nothing here reads a message.

use std::{net::IpAddr, sync::Arc};

use crate::{Service, Snapshot};

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// The namespace of the pod: its own services come first.
    pub namespace: &'a str,
    /// The network of the pod: only addresses in it can be dialled.
    pub network: &'a str,
    /// The suffix of Kubernetes' host names: `cluster.local`.
    pub cluster_domain: &'a str,
}

/// The addresses that are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    V4,
    V6,
}

/// The address ranges out of which control gives an address to a host that has none: 240.240.0.0/16, of a block that
/// was never given out (RFC 1112 §4), and 2001:2::/48, kept for measurements (RFC 5180).
pub fn is_automatic(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets()[..2] == [240, 240],
        IpAddr::V6(v6) => v6.segments()[..3] == [0x2001, 2, 0],
    }
}

impl Family {
    fn is_of(self, address: IpAddr) -> bool {
        address.is_ipv4() == (self == Self::V4)
    }
}

/// A name of the mesh.
#[derive(Debug, Clone)]
pub struct Named {
    pub service: Arc<Service>,
    /// The name that was meant, where a search domain had been put behind it, without a final dot.
    pub alias: Option<String>,
    /// Every address of the name, of both families and in no order. Never empty.
    pub addresses: Vec<IpAddr>,
}

impl Named {
    /// The addresses of a family; none where the name is offered in the other one only.
    pub fn of(&self, family: Family) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().copied().filter(move |&address| family.is_of(address))
    }
}

impl Snapshot {
    /// Finds a host name: in lower case, without a final dot.
    ///
    /// In this order: the name itself; the short forms of a Kubernetes service (`name`, `name.namespace`,
    /// `name.namespace.svc`); a name that a pod's search domains were put behind (`host.ns.svc.DOMAIN`,
    /// `host.svc.DOMAIN`, `host.DOMAIN`). Each may be met by a wildcard (`*.example.com`), the longest first.
    ///
    /// Of services in several namespaces with one host name, the asker's own comes first, then the one of the namespace
    /// that the name has in it, then the first by namespace. Under the cluster's domain nobody else is believed, and no
    /// wildcard. One without any address is not found.
    pub fn resolve(&self, asker: &Asker<'_>, name: &str) -> Option<Named> {
        if let Some(found) = self.by_host(asker, name).or_else(|| self.by_short_name(asker, name)) {
            return Some(Named { alias: None, ..found });
        }
        let inside = name.strip_suffix(asker.cluster_domain)?.strip_suffix('.')?;
        let mut bare = [None; 3];
        bare[2] = Some(inside);
        bare[1] = inside.strip_suffix(".svc");
        bare[0] = bare[1].and_then(|rest| rest.strip_suffix(asker.namespace)?.strip_suffix('.'));
        bare.into_iter().flatten().filter(|meant| meant.contains('.')).find_map(|meant| {
            let found = self.by_host(asker, meant).or_else(|| self.by_search(asker, meant))?;
            Some(Named { alias: Some(meant.to_owned()), ..found })
        })
    }

    fn by_host(&self, asker: &Asker<'_>, name: &str) -> Option<Named> {
        if let Some(found) = self.best(asker, name) {
            return Some(found);
        }
        // Under the cluster's domain names are Services', and every name that a pod asks for is sought there first.
        if is_under(name, asker.cluster_domain) {
            return None;
        }
        let mut rest = name;
        while let Some((_, parent)) = rest.split_once('.') {
            if let Some(found) = self.best(asker, &format!("*.{parent}")) {
                return Some(found);
            }
            rest = parent;
        }
        None
    }

    /// A Kubernetes service by the forms that a resolver without search domains asks for.
    fn by_short_name(&self, asker: &Asker<'_>, name: &str) -> Option<Named> {
        let Asker { namespace, cluster_domain, .. } = asker;
        let full = match (name.split('.').count(), name.strip_suffix(".svc")) {
            (1, _) => format!("{name}.{namespace}.svc.{cluster_domain}"),
            (2, None) => format!("{name}.svc.{cluster_domain}"),
            (3, Some(_)) => format!("{name}.{cluster_domain}"),
            _ => return None,
        };
        self.best(asker, &full)
    }

    /// `name.namespace` with the asker's own domain behind it; unless that may be a pod (`db-0.db`) of a service
    /// in its own namespace, which the pod's resolver knows.
    fn by_search(&self, asker: &Asker<'_>, meant: &str) -> Option<Named> {
        let (_, second) = meant.split_once('.').filter(|(_, second)| !second.contains('.'))?;
        let Asker { namespace, cluster_domain, .. } = asker;
        let own = format!("{second}.{namespace}.svc.{cluster_domain}");
        if self.services_named(&own).next().is_some() { None } else { self.by_short_name(asker, meant) }
    }

    fn best(&self, asker: &Asker<'_>, hostname: &str) -> Option<Named> {
        // `NAME.NAMESPACE.svc.DOMAIN` is of that namespace alone, but for an asker whose own has such a name, too.
        let inside = is_under(hostname, asker.cluster_domain);
        let owns = |service: &Service| {
            let front =
                hostname.strip_suffix(asker.cluster_domain).and_then(|front| front.strip_suffix(".svc."));
            front
                .and_then(|front| front.split_once('.'))
                .is_some_and(|(_, owner)| *owner == *service.key.namespace)
        };
        let rank = |service: &Service| (*service.key.namespace != *asker.namespace, !owns(service));
        let named =
            self.services_named(hostname).filter(|service| !inside || owns(service) || !rank(service).0);
        let mut found: Vec<&Arc<Service>> = named.collect();
        found.sort_by(|a, b| (rank(a), &a.key).cmp(&(rank(b), &b.key)));
        found.into_iter().find_map(|service| {
            let addresses = self.told_of(asker, service);
            (!addresses.is_empty()).then(|| Named { service: service.clone(), alias: None, addresses })
        })
    }

    /// The virtual addresses of a service, or of a headless one those of its healthy endpoints.
    fn told_of(&self, asker: &Asker<'_>, service: &Service) -> Vec<IpAddr> {
        if !service.addresses.is_empty() {
            let here = service.addresses.iter().filter(|at| *at.network == *asker.network);
            return here.map(|at| at.address).collect();
        }
        let usable = self.endpoints(&service.key).filter(|workload| {
            (workload.healthy || service.allow_unhealthy) && *workload.network == *asker.network
        });
        let addresses = usable.flat_map(|workload| workload.addresses.iter().copied());
        addresses.filter(|&address| service.families.contain(address)).collect()
    }
}

/// Whether a name is a domain or under it.
fn is_under(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain).is_some_and(|front| front.is_empty() || front.ends_with('.'))
}
