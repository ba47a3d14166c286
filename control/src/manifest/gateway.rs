//! Gateways of the Gateway API, as far as they are waypoints.

use serde::Deserialize;

use super::kube::Metadata;

/// The classes that make a Gateway a waypoint of this mesh.
const CLASSES: [&str; 2] = ["culvert-waypoint", "istio-waypoint"];

/// What a waypoint is for (`istio.io/waypoint-for` on its Gateway).
const WAYPOINT_FOR: &str = "istio.io/waypoint-for";

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Gateway {
    pub metadata: Metadata,
    #[serde(default)]
    pub spec: GatewaySpec,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewaySpec {
    pub gateway_class_name: String,
}

/// What is called through a waypoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaypointFor {
    Service,
    Workload,
    All,
    None,
}

impl WaypointFor {
    pub fn services(self) -> bool {
        matches!(self, Self::Service | Self::All)
    }

    pub fn workloads(self) -> bool {
        matches!(self, Self::Workload | Self::All)
    }
}

impl Gateway {
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        match self.is_waypoint().then(|| self.waypoint_for()) {
            Some(None) => {
                let field = format!("metadata.labels[{WAYPOINT_FOR}]");
                Err((field, "use service, workload, all or none".to_owned()))
            }
            Some(Some(_)) | None => Ok(()),
        }
    }

    /// Whether it is a waypoint of this mesh.
    pub fn is_waypoint(&self) -> bool {
        CLASSES.contains(&self.spec.gateway_class_name.as_str())
    }

    /// What it is for; `None` where its label says something else.
    pub fn waypoint_for(&self) -> Option<WaypointFor> {
        match self.metadata.label(WAYPOINT_FOR) {
            None | Some("service") => Some(WaypointFor::Service),
            Some("workload") => Some(WaypointFor::Workload),
            Some("all") => Some(WaypointFor::All),
            Some("none") => Some(WaypointFor::None),
            Some(_) => None,
        }
    }
}
