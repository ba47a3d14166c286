//! The world of the bench of DNS: one resolver on a node of its own, and two pods that ask it from nodes with the
//! same way to it, one without a mesh and one with it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use bed::{Pod, PodSpec, Process, World};
use node::dns::{A, Resolver, resolved};

use super::{Way, load::Asked};
use crate::verify::total;

/// What only the resolver knows.
const ELSEWHERE: &str = "elsewhere.example.com";
/// The part of it by which the resolver knows it.
const KNOWN: &str = "elsewhere";
/// Its address, one for documentation (RFC 5737).
const THERE: [u8; 4] = [192, 0, 2, 7];
/// What only the mesh knows.
const SERVICE: &str = "shop.mesh.svc.cluster.local";

/// Everything that runs while the bench does. The processes go before the world they live in.
pub(super) struct Scene {
    ztunnel: Process,
    programs: Vec<Process>,
    resolver: Resolver,
    outside: Pod,
    inside: Pod,
    service: Ipv4Addr,
    world: World,
}

/// What ztunnel and the resolver have heard up to a moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Evidence {
    captured: u64,
    passed_on: u64,
    upstream: u64,
}

impl Scene {
    pub(super) fn build(ztunnel_options: &[String]) -> Result<Self> {
        let world = World::new(&["bare", "a", "far"])?;
        world.manifests().namespace("plain", false)?;
        world.manifests().namespace("mesh", true)?;
        let outside = world.pod(PodSpec::new("plain", "client", "bare"))?;
        let inside = world.pod(PodSpec::new("mesh", "client", "a"))?;
        let resolver = world.pod(PodSpec::new("plain", "resolver", "far"))?;
        let [IpAddr::V4(service), _] = world.service(7, "mesh", "shop", &[("app", "client")], &[(80, 80)])?
        else {
            bail!("the Service has no IPv4 address");
        };
        let resolver = Resolver::start(&resolver, Some((KNOWN, THERE)))?;
        let control = world.start_control().context("start control")?;
        let node = world.node("a");
        let agent = node.spawn_agent("agent", &[])?;
        let options: Vec<&str> = ztunnel_options.iter().map(String::as_str).collect();
        let mut ztunnel = node.spawn_ztunnel("ztunnel", &options)?;
        node.wait_ztunnel(&mut ztunnel).context("wait for ztunnel")?;
        Ok(Self { ztunnel, programs: vec![control, agent], resolver, outside, inside, service, world })
    }

    /// Waits until the mesh answers.
    pub(super) fn settle(&self) -> Result<()> {
        let found = resolved(&self.inside, self.at(), SERVICE, A)?;
        ensure!(found == [IpAddr::V4(self.service)], "{SERVICE} has the addresses {found:?}");
        Ok(())
    }

    fn at(&self) -> SocketAddr {
        self.resolver.at[0]
    }

    /// What is asked for a query to take that way.
    pub(super) fn asked(&self, way: Way) -> Asked<'_> {
        let (pod, name, address) = match way {
            Way::NoMesh => (&self.outside, ELSEWHERE, THERE.into()),
            Way::PassedOn => (&self.inside, ELSEWHERE, THERE.into()),
            Way::Answered => (&self.inside, SERVICE, self.service),
        };
        Asked { pod, resolver: self.at(), name, address }
    }

    /// The process whose CPU is told.
    pub(super) fn ztunnel(&self) -> u32 {
        self.ztunnel.pid()
    }

    pub(super) fn evidence(&self) -> Result<Evidence> {
        let metrics = self.world.node("a").metrics().context("read ztunnel's metrics")?;
        Ok(Evidence {
            captured: total(&metrics, "istio_dns_requests_total"),
            passed_on: total(&metrics, "istio_dns_upstream_requests_total"),
            upstream: self.resolver.asked() as u64,
        })
    }

    /// Fails unless every one of `queries` since `before` has taken that way.
    pub(super) fn check(&self, way: Way, before: &Evidence, queries: usize) -> Result<()> {
        self.evidence()?.since(before).check(way, queries as u64)
    }

    /// The ends of our programs' logs, for a failed run.
    pub(super) fn logs(&self) -> String {
        let processes = self.programs.iter().chain([&self.ztunnel]);
        processes
            .map(|process| format!("--- end of {}\n{}\n", process.name(), process.log_tail(10)))
            .collect()
    }
}

impl Evidence {
    fn since(self, before: &Self) -> Self {
        Self {
            captured: self.captured - before.captured,
            passed_on: self.passed_on - before.passed_on,
            upstream: self.upstream - before.upstream,
        }
    }

    fn check(self, way: Way, queries: u64) -> Result<()> {
        let (captured, passed_on, upstream) = match way {
            Way::NoMesh => (0, 0, queries),
            Way::PassedOn => (queries, queries, queries),
            Way::Answered => (queries, 0, 0),
        };
        ensure!(
            (self.captured, self.passed_on, self.upstream) == (captured, passed_on, upstream),
            "{queries} queries did not go the way {way}: {self:?}"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_that_took_another_way_is_noticed() {
        let seen = |captured, passed_on, upstream| Evidence { captured, passed_on, upstream };
        assert!(seen(0, 0, 8).check(Way::NoMesh, 8).is_ok());
        assert!(seen(8, 8, 8).check(Way::PassedOn, 8).is_ok());
        assert!(seen(8, 0, 0).check(Way::Answered, 8).is_ok());
        assert!(seen(7, 7, 8).check(Way::PassedOn, 8).is_err(), "one went round ztunnel");
        assert!(seen(8, 1, 1).check(Way::Answered, 8).is_err(), "one was passed on");
        assert!(seen(8, 8, 8).check(Way::NoMesh, 8).is_err(), "captured");
    }
}
