//! The state of the discovery session: what is asked, what is held, what each answer changes. No I/O
//! here; it outlives the streams, so that a new stream goes on where the old one ended.

use std::collections::HashMap;

use mesh::{Editor, PolicyKey, ServiceKey, Snapshot};
use proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, ROUTES_TYPE,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource, Status},
};

use crate::convert::{Address, Converter, Invalid};

/// `google.rpc.Code.INVALID_ARGUMENT`.
const INVALID_ARGUMENT: i32 = 3;
/// A refusal names this many resources, and counts the rest.
const NAMED_REFUSALS: usize = 20;

/// What is held, and the mesh that is made of it.
pub(crate) struct Session {
    converter: Converter,
    snapshot: Snapshot,
    /// Resource name → what it became and in which version.
    addresses: HashMap<Box<str>, (Held, String)>,
    policies: HashMap<Box<str>, (PolicyKey, String)>,
    /// Policies that were refused and never held, with the key they are marked by.
    unusable: HashMap<Box<str>, PolicyKey>,
    /// Only a waypoint asks for routes.
    wants_routes: bool,
    routes: HashMap<Box<str>, (ServiceKey, String)>,
}

/// A held resource's key in the mesh.
enum Held {
    Workload,
    Service(ServiceKey),
}

/// What an answer led to.
pub(crate) struct Outcome {
    /// The acknowledgement, or the refusal.
    pub(crate) reply: DeltaDiscoveryRequest,
    /// Names and reasons of what was refused; the rest was applied.
    pub(crate) refused: Vec<(String, Invalid)>,
}

impl Session {
    pub(crate) fn new(trust_domain: &str, cluster: &str) -> Self {
        let mut editor = Snapshot::default().edit();
        editor.set_cluster(cluster);
        Self {
            converter: Converter::new(trust_domain),
            snapshot: editor.finish(),
            addresses: HashMap::new(),
            policies: HashMap::new(),
            unusable: HashMap::new(),
            wants_routes: false,
            routes: HashMap::new(),
        }
    }

    /// The session of a waypoint, which is told of routes, too.
    pub(crate) fn with_routes(self, wants_routes: bool) -> Self {
        Self { wants_routes, ..self }
    }

    pub(crate) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The first requests of a stream: everything of both types, less what is held in its newest version.
    pub(crate) fn open(&self, node: &Node) -> Vec<DeltaDiscoveryRequest> {
        let subscribe = |type_url: &str, held: Vec<(String, String)>| DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: vec!["*".to_owned()],
            initial_resource_versions: held.into_iter().collect(),
            ..Default::default()
        };
        let addresses = self.addresses.iter().map(|(name, (_, version))| (name.to_string(), version.clone()));
        let policies = self.policies.iter().map(|(name, (_, version))| (name.to_string(), version.clone()));
        // Policies first: a workload should not become known before what guards it.
        let mut requests = vec![
            subscribe(AUTHORIZATION_TYPE, policies.collect()),
            subscribe(ADDRESS_TYPE, addresses.collect()),
        ];
        if self.wants_routes {
            let routes = self.routes.iter().map(|(name, (_, version))| (name.to_string(), version.clone()));
            requests.push(subscribe(ROUTES_TYPE, routes.collect()));
        }
        requests[0].node = Some(node.clone());
        requests
    }

    /// Applies one answer as one new snapshot.
    pub(crate) fn receive(&mut self, answer: DeltaDiscoveryResponse) -> Outcome {
        let mut editor = self.snapshot.edit();
        let mut refused = Vec::new();
        match answer.type_url.as_str() {
            ADDRESS_TYPE => {
                for name in &answer.removed_resources {
                    self.remove_address(&mut editor, name);
                }
                for resource in answer.resources {
                    if let Err(refusal) = self.put_address(&mut editor, resource) {
                        refused.push(refusal);
                    }
                }
                editor.mark_addresses_complete();
            }
            AUTHORIZATION_TYPE => {
                for name in &answer.removed_resources {
                    self.remove_policy(&mut editor, name);
                }
                for resource in answer.resources {
                    if let Err(refusal) = self.put_policy(&mut editor, resource) {
                        refused.push(refusal);
                    }
                }
                editor.mark_policies_complete();
            }
            ROUTES_TYPE => {
                for name in &answer.removed_resources {
                    if let Some((key, _)) = self.routes.remove(name.as_str()) {
                        editor.remove_routes(&key);
                    }
                }
                for resource in answer.resources {
                    if let Err(refusal) = self.put_routes(&mut editor, resource) {
                        refused.push(refusal);
                    }
                }
                editor.mark_routes_complete();
            }
            other => refused.push(("the whole answer".to_owned(), Invalid::Type(other.to_owned()))),
        }
        self.snapshot = editor.finish();
        let reply = DeltaDiscoveryRequest {
            type_url: answer.type_url,
            response_nonce: answer.nonce,
            error_detail: error_detail(&refused),
            ..Default::default()
        };
        Outcome { reply, refused }
    }

    fn put_address(&mut self, editor: &mut Editor, resource: Resource) -> Result<(), (String, Invalid)> {
        let converted = payload(&resource, ADDRESS_TYPE)
            .and_then(|payload| self.converter.address(&resource.name, payload));
        let held = match converted {
            Ok(Address::Workload(workload)) => {
                editor.put_workload(workload);
                Held::Workload
            }
            Ok(Address::Service(service)) => {
                let key = service.key.clone();
                editor.put_service(service);
                Held::Service(key)
            }
            Err(reason) => return Err((resource.name, reason)),
        };
        let name = resource.name.into_boxed_str();
        // A name may have changed sides: what it was before is gone.
        match (self.addresses.get(&name), &held) {
            (Some((Held::Workload, _)), Held::Service(_)) => editor.remove_workload(&name),
            (Some((Held::Service(key), _)), Held::Workload) => editor.remove_service(key),
            (Some((Held::Service(old), _)), Held::Service(new)) if old != new => editor.remove_service(old),
            (Some((Held::Service(_), _)), Held::Service(_))
            | (Some((Held::Workload, _)), Held::Workload)
            | (None, _) => {}
        }
        self.addresses.insert(name, (held, resource.version));
        Ok(())
    }

    fn remove_address(&mut self, editor: &mut Editor, name: &str) {
        match self.addresses.remove(name) {
            Some((Held::Workload, _)) => editor.remove_workload(name),
            Some((Held::Service(key), _)) => editor.remove_service(&key),
            None => {}
        }
    }

    /// What is refused leaves the last good routes of the service. Where there are none, nothing is routed to it: what
    /// its routes would have kept out must not get in.
    fn put_routes(&mut self, editor: &mut Editor, resource: Resource) -> Result<(), (String, Invalid)> {
        let converted = payload(&resource, ROUTES_TYPE)
            .and_then(|payload| self.converter.routes(&resource.name, payload));
        match converted {
            Ok(routes) => {
                let name = resource.name.into_boxed_str();
                self.routes.insert(name, (routes.service.clone(), resource.version));
                editor.put_routes(routes);
                Ok(())
            }
            Err(reason) => {
                if !self.routes.contains_key(resource.name.as_str())
                    && let Ok(closed) = self.converter.closed_routes(&resource.name)
                {
                    // Without a version: it is sent again when the stream opens anew.
                    let held = (closed.service.clone(), String::new());
                    self.routes.insert(resource.name.as_str().into(), held);
                    editor.put_routes(closed);
                }
                Err((resource.name, reason))
            }
        }
    }

    fn put_policy(&mut self, editor: &mut Editor, resource: Resource) -> Result<(), (String, Invalid)> {
        let (scope, reason) = match payload(&resource, AUTHORIZATION_TYPE) {
            Ok(payload) => match self.converter.authorization(&resource.name, payload) {
                Ok(policy) => {
                    let name = resource.name.into_boxed_str();
                    self.unusable.remove(&name);
                    let key = policy.key.clone();
                    editor.put_policy(policy);
                    let old = self.policies.insert(name, (key.clone(), resource.version));
                    if let Some((old, _)) = old.filter(|(old, _)| *old != key) {
                        editor.remove_policy(&old);
                    }
                    return Ok(());
                }
                Err(refused) => (refused.scope, refused.reason),
            },
            Err(reason) => (None, reason),
        };
        // The last good version stays in force; where there is none, whoever it is for is refused.
        if !self.policies.contains_key(resource.name.as_str())
            && let Ok(key) = self.converter.policy_key("name", &resource.name)
        {
            match scope {
                Some(scope) => editor.mark_policy_unusable_in(&key, scope),
                None => editor.mark_policy_unusable(&key),
            }
            self.unusable.insert(resource.name.as_str().into(), key);
        }
        Err((resource.name, reason))
    }

    fn remove_policy(&mut self, editor: &mut Editor, name: &str) {
        let held = self.policies.remove(name).map(|(key, _)| key);
        if let Some(key) = held.or_else(|| self.unusable.remove(name)) {
            editor.remove_policy(&key);
        }
    }
}

fn payload<'a>(resource: &'a Resource, type_url: &str) -> Result<&'a [u8], Invalid> {
    match &resource.resource {
        Some(any) if any.type_url == type_url => Ok(&any.value),
        Some(any) => Err(Invalid::Type(any.type_url.clone())),
        None => Err(Invalid::Missing { field: "resource" }),
    }
}

fn error_detail(refused: &[(String, Invalid)]) -> Option<Status> {
    if refused.is_empty() {
        return None;
    }
    let named = refused.iter().take(NAMED_REFUSALS).map(|(name, reason)| format!("{name}: {reason}"));
    let mut message = named.collect::<Vec<_>>().join("; ");
    if refused.len() > NAMED_REFUSALS {
        message.push_str(&format!("; and {} more", refused.len() - NAMED_REFUSALS));
    }
    Some(Status { code: INVALID_ARGUMENT, message, details: Vec::new() })
}

#[cfg(test)]
mod tests;
