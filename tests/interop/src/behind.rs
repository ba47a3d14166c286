//! A waypoint in front of the world's server: what strangers, and clients of other implementations, speak HTTP with.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Result;
use bed::{Process, World, address, waypoint::ServiceManifest};

use crate::{
    recorder::{self, Recorder},
    scene::Scene,
};

/// Everything that runs. The waypoint goes before the world.
pub struct Behind {
    pub waypoint: Process,
    pub recorder: Arc<Recorder>,
    pub scene: Scene,
}

/// Ports of the service: one that is said to speak HTTP, and one of which nothing is said.
pub const HTTP: u16 = 80;
pub const UNKNOWN: u16 = 81;

impl Behind {
    /// Builds the world, its waypoint with options of its own.
    pub fn start(options: &[&str]) -> Result<Self> {
        Self::start_with(options, &[], |_| Ok(()))
    }

    /// As [`Self::start`], with further ports of the service (name, port, target port), and manifests that `more`
    /// writes before anything starts.
    pub fn start_with(
        options: &[&str],
        ports: &[(&str, u16, u16)],
        more: impl FnOnce(&World) -> Result<()>,
    ) -> Result<Self> {
        let (scene, pod) = Scene::with(|world| {
            let manifests = world.manifests();
            manifests.waypoint("shop", "wp", "service")?;
            let pod = world.waypoint_pod("shop", "wp", "b")?;
            manifests.service(&ServiceManifest {
                namespace: "shop",
                name: "web",
                number: 1,
                labels: &[("istio.io/use-waypoint", "wp")],
                selector: &[("app", "server")],
                ports: &[&[("http", HTTP, recorder::PORT), ("unknown", UNKNOWN, recorder::PORT)], ports]
                    .concat(),
            })?;
            more(world)?;
            Ok(pod)
        })?;
        let recorder = Recorder::start(&scene.server)?;
        let waypoint = scene.world.start_waypoint_as(&pod, "waypoint", options)?;
        Ok(Self { waypoint, recorder, scene })
    }

    /// A port of the service that is called through the waypoint.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(address::service(1)[0], port)
    }
}
