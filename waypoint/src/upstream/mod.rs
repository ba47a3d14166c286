//! Towards the endpoints: which one, by which connection, and what is kept for the next request.
//!
//! A connection to an endpoint is one caller's: what the destination has judged for one is never used by another.
//! Tunnels between two ends are shared, since each CONNECT in them is judged by itself.
//!
//! A caller that brings an assertion is judged at the destination. Of one that brings none the destination sees this
//! waypoint only: it is judged here, by the same function, so that nobody gets rid of what is said of him by saying
//! less.

mod ahead;
mod balance;
mod connect;
mod names;
mod pool;
mod tls;

use std::{
    hash::{Hash, Hasher},
    ops::Deref,
    rc::Rc,
    sync::Arc,
};

use ::http::{Request, Response};
use hbone::client::{OpenError, Pool as Tunnels};
use hyper::body::Incoming;
use mesh::{Attempt, Identity, Passage, Refusal, Snapshot, Target, Tunnel, Verdict, route::BackendTls};

pub(crate) use balance::{choose, endpoint_in};
pub(crate) use connect::Io;

use self::{
    balance::Loads,
    names::Names,
    pool::{Lease, Pools},
    tls::Configs,
};
use crate::{
    arrival::{Call, Failure},
    body::{Body, Busy},
    http::Handover,
    request::Version,
    shared::Shared,
};

/// Everything of one worker that leads to endpoints.
pub(crate) struct Upstream {
    shared: Arc<Shared>,
    tunnels: Tunnels,
    pools: Rc<Pools>,
    loads: Loads,
    names: Names,
    configs: Configs,
}

/// An endpoint that was chosen, and how TLS is begun with it.
#[derive(Clone)]
pub(crate) struct Endpoint {
    target: Target,
    pub(crate) tls: Option<Same>,
    /// Another may be chosen in its place: it is not waited for to the end.
    pub(crate) is_hasty: bool,
}

/// Endpoints tried where none could be reached, the first among them; the last one is waited for.
pub(crate) const REACHES: u32 = 3;

impl Deref for Endpoint {
    type Target = Target;

    fn deref(&self) -> &Target {
        &self.target
    }
}

/// What is of one policy, as it was told once: compared by where it is, since each change makes another.
#[derive(Clone)]
pub(crate) struct Same(Arc<BackendTls>);

impl PartialEq for Same {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Same {}

impl Hash for Same {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

/// A backend has answered.
pub(crate) struct Sent {
    pub(crate) response: Response<Incoming>,
    pub(crate) hold: Hold,
}

/// What is to be kept as long as an answer lasts; the connection goes back when nothing more is read from it.
pub(crate) struct Hold {
    _busy: Busy,
    /// On the heap: HTTP/2 has none, and would have the room for it.
    _lease: Option<Box<Lease>>,
}

/// A backend has not answered.
pub(crate) struct Unsent {
    /// The request's body, where no backend has looked at the request.
    pub(crate) body: Option<Body>,
    pub(crate) reason: SendError,
}

/// Why a backend has not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error(transparent)]
    Connect(#[from] Failure),
    #[error("the backend's HTTP failed: {0}")]
    Http(String),
}

impl SendError {
    /// Whether the destination's policy has refused the caller.
    pub(crate) fn is_refusal(&self) -> bool {
        use ::http::StatusCode;
        match self {
            Self::Connect(Failure::Open(OpenError::Refused { status, .. })) => {
                *status == StatusCode::UNAUTHORIZED
            }
            Self::Connect(Failure::Refused(_)) => true,
            Self::Connect(_) | Self::Http(_) => false,
        }
    }
}

impl Upstream {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            tunnels: Tunnels::with_peers(
                shared.settings.hbone.clone(),
                shared.store.clone(),
                shared.peers.clone(),
            ),
            pools: Rc::new(Pools::new(shared.settings.backend_idle)),
            loads: Loads::default(),
            names: Names::default(),
            configs: Configs::default(),
            shared,
        }
    }

    /// Opens a connection to an endpoint, in the caller's name; `version` is what is to be spoken, `None`: no HTTP.
    pub(crate) async fn open(
        &self,
        call: &Call,
        endpoint: &Endpoint,
        version: Option<Version>,
    ) -> Result<Io, Failure> {
        self.judge(call, endpoint)?;
        let io = connect::open(self, call, endpoint, version).await?;
        match &endpoint.tls {
            None => Ok(io),
            Some(with) => {
                let patience = self.shared.settings.dial_timeout;
                tls::begin(&self.configs, with, version, (io, endpoint.address), patience).await
            }
        }
    }

    fn judge(&self, call: &Call, target: &Target) -> Result<(), Refusal> {
        judge(&self.shared.mesh.current(), &self.shared.settings.identity, call, target)
    }

    /// Sends a request to an endpoint, by a connection that was kept or a new one.
    pub(crate) async fn send(
        &self,
        call: &Rc<Call>,
        target: &Endpoint,
        version: Version,
        request: Request<Body>,
        handover: Option<&Handover>,
    ) -> Result<Sent, Unsent> {
        // Also where a connection was kept: it was judged when it was opened.
        if let Err(refusal) = self.judge(call, target) {
            let reason = SendError::Connect(refusal.into());
            return Err(Unsent { body: Some(request.into_body()), reason });
        }
        let busy = Busy::with(&self.loads.of(target.address));
        let (response, lease) = match version {
            Version::One => pool::one(self, call, target, request, handover).await?,
            Version::Two => (pool::two(self, call, target, request).await?, None),
        };
        // Also by a connection that was kept: somebody else's dial may have failed meanwhile.
        self.shared.peers.answered(target.address.ip());
        Ok(Sent { response, hold: Hold { _busy: busy, _lease: lease.map(Box::new) } })
    }

    /// Lets go of what was idle for too long.
    pub(crate) fn sweep(&self) {
        self.pools.sweep();
        self.loads.sweep();
        self.names.sweep();
    }
}

/// Whether a caller of whom the destination will not be told may call it.
fn judge(snapshot: &Snapshot, waypoint: &Identity, call: &Call, target: &Target) -> Result<(), Refusal> {
    // What has no ztunnel is judged by nobody, whoever calls it.
    if call.assertion.is_some() || target.workload.tunnel == Tunnel::None {
        return Ok(());
    }
    let passage = Passage { waypoint: waypoint.clone(), behind: call.claims.behind.clone() };
    let decision = snapshot.admit(&Attempt {
        source: Some(&call.claims.caller),
        source_ip: call.claims.address,
        destination: &target.workload,
        destination_ip: target.address.ip(),
        destination_port: target.address.port(),
        through: Some(&passage),
    });
    match decision.verdict {
        Verdict::Allow(_) => Ok(()),
        Verdict::Refuse(refusal) => Err(refusal),
    }
}

#[cfg(test)]
mod tests {
    use identity::assertion::Claims;
    use mesh::{
        Action, Behind, Clause, GatewayAddress, Match, Policy, PolicyKey, Rule, Scope, ServiceKey,
        StringMatch, Workload,
    };

    use super::*;
    use crate::{arrival::Called, limits::Limits, vault::Vault};

    fn who(name: &str) -> Identity {
        Identity::new("cluster.local", "shop", name)
    }

    fn pod(name: &str, address: [u8; 4]) -> Workload {
        let mut pod = Workload::named(format!("c//Pod/shop/{name}"), "shop", name);
        pod.service_account = name.into();
        pod.addresses = vec![address.into()];
        pod.tunnel = Tunnel::Hbone;
        pod
    }

    /// The pod `web`, which is called by its address through the waypoint `wp`, and denied to the intern.
    fn mesh() -> (Snapshot, Target) {
        let front = ServiceKey { namespace: "shop".into(), hostname: "wp".into() };
        let mut wp = pod("wp", [10, 0, 0, 5]);
        wp.services.insert(front.clone(), Vec::new());
        let mut web = pod("web", [10, 0, 0, 1]);
        web.waypoint = Some(GatewayAddress::Host { service: front, hbone_port: 15008 });
        let intern = StringMatch::Exact("cluster.local/ns/shop/sa/intern".into());
        let of = Match { principals: vec![intern], ..Match::default() };
        let mut editor = Snapshot::default().edit();
        editor.mark_addresses_complete();
        editor.mark_policies_complete();
        editor.put_workload(wp);
        editor.put_workload(web.clone());
        editor.put_policy(Policy {
            key: PolicyKey { namespace: "shop".into(), name: "no-intern".into() },
            scope: Scope::Namespace,
            action: Action::Deny,
            dry_run: false,
            rules: vec![Rule { clauses: vec![Clause { matches: vec![of] }] }],
        });
        let address = ([10, 0, 0, 1], 8080).into();
        (editor.finish(), Target { workload: Arc::new(web), address, service: None })
    }

    fn call(caller: &str, target: &Target) -> Call {
        let claims = Claims {
            caller: who(caller),
            address: [10, 0, 0, 9].into(),
            waypoint: who("wp"),
            behind: Behind::Workload(target.workload.uid.clone()),
        };
        let called = Called::Workload(target.workload.clone());
        Call {
            source: ([10, 0, 0, 9], 0).into(),
            workload: None,
            called,
            address: None,
            port: 8080,
            assertion: None,
            _counted: Limits::new(1, 1).count(claims.address).unwrap(),
            claims,
        }
    }

    #[test]
    fn who_asserts_nothing_is_judged_as_the_caller_and_not_as_the_waypoint() {
        let (snapshot, target) = mesh();
        let judged = |call: &Call| judge(&snapshot, &who("wp"), call, &target);
        assert_eq!(judged(&call("client", &target)), Ok(()));
        assert!(matches!(judged(&call("intern", &target)), Err(Refusal::Denied(_))));
        let mut asserted = call("intern", &target);
        asserted.assertion = Some(Vault::default().put(&asserted.claims, "x", std::time::SystemTime::now()));
        assert_eq!(judged(&asserted), Ok(()), "the destination is told, and judges");
    }
}
