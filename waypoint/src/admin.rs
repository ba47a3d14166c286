//! What the admin server shows of this waypoint: what it routes, and for whom.

use std::sync::Arc;

use mesh::Snapshot;
use runtime::admin::Handlers;
use serde_json::{Value, json};

use crate::{shared::Shared, worker::Workers};

/// Registers the handlers.
pub(crate) fn register(handlers: &Handlers, shared: &Arc<Shared>, workers: &Workers) {
    let (asked, workers) = (shared.clone(), workers.clone());
    handlers.add("/config_dump", "the services behind this waypoint, with their routes", move |_| {
        let (shared, workers) = (asked.clone(), workers.clone());
        async move { Ok(dump(&shared, &workers)) }
    });
}

fn dump(shared: &Shared, workers: &Workers) -> Value {
    let snapshot = shared.mesh.current();
    let identity = &shared.settings.identity;
    let mut services: Vec<_> =
        snapshot.services().filter(|service| snapshot.is_behind(service, identity)).collect();
    services.sort_by(|a, b| a.key.cmp(&b.key));
    json!({
        "identity": identity.to_string(),
        "complete": snapshot.is_complete() && snapshot.has_routes(),
        "callers": shared.vault.len(),
        "tunnels": workers.loads(),
        "services": services.iter().map(|service| self::service(&snapshot, service)).collect::<Vec<_>>(),
    })
}

fn service(snapshot: &Snapshot, service: &mesh::Service) -> Value {
    let routes = snapshot.routes(&service.key);
    let route = |route: &mesh::route::Route| {
        json!({
            "name": route.key.to_string(),
            "kind": format!("{:?}", route.key.kind),
            "port": route.port,
            "rules": route.rules.iter().map(|rule| format!("{rule:?}")).collect::<Vec<_>>(),
        })
    };
    json!({
        "service": service.key.to_string(),
        "routes": routes.map(|routes| routes.routes().iter().map(route).collect::<Vec<_>>()),
    })
}
