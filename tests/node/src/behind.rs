//! A waypoint on node b and services behind it: the stage of its tests, without what is each one's own.

use anyhow::Result;
use bed::{Manifests, Mesh, Pod, World, waypoint::ServiceManifest};

use crate::Scene;

/// A service, the pod that serves it, and whether it is called through the waypoint.
pub type Named<'a> = (&'a str, &'a str, bool);

impl Scene {
    /// As [`Scene::start`], with services of the namespace `mesh`, all with the same ports (name, port, target port): the
    /// first is at 10.96.0.1, the next at 10.96.0.2. The waypoint `mesh/wp` is started by the test, in the pod that comes
    /// with the scene.
    pub fn behind_waypoint(
        pods: &[(&str, &str, &str)],
        ports: &[(&str, u16, u16)],
        services: &[Named<'_>],
        more: impl FnOnce(&Manifests) -> Result<()>,
    ) -> Result<(Self, Pod)> {
        let made = |world: &World| {
            let manifests = world.manifests();
            manifests.waypoint("mesh", "wp", "service")?;
            let pod = world.waypoint_pod("mesh", "wp", "b")?;
            for (number, (name, app, is_behind)) in (1..).zip(services) {
                manifests.service(&ServiceManifest {
                    namespace: "mesh",
                    name,
                    number,
                    labels: if *is_behind { &[("istio.io/use-waypoint", "wp")] } else { &[] },
                    selector: &[("app", app)],
                    ports,
                })?;
            }
            more(manifests)?;
            Ok(pod)
        };
        Self::start_by(pods, made, Mesh::start)
    }
}
