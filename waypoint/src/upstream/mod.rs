//! Towards the endpoints: which one, by which connection, and what is kept for the next request.
//!
//! A connection to an endpoint is one caller's: what the destination has judged for one is never used by another.
//! Tunnels between two ends are shared, since each CONNECT in them is judged by itself.
//!
//! A caller that brings an assertion is judged at the destination. Of one that brings none the destination sees this
//! waypoint only: it is judged here, by the same function, so that nobody gets rid of what is said of him by saying
//! less.

mod balance;
mod connect;
mod pool;

use std::{rc::Rc, sync::Arc};

use ::http::{Request, Response};
use hbone::client::{OpenError, Pool as Tunnels};
use hyper::body::Incoming;
use mesh::{Attempt, Passage, Refusal, Target, Tunnel, Verdict};

pub(crate) use balance::{choose, endpoint, endpoint_in};
pub(crate) use connect::Io;

use self::{balance::Loads, pool::Pools};
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
}

/// A backend has answered.
pub(crate) struct Sent {
    pub(crate) response: Response<Incoming>,
    pub(crate) busy: Busy,
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
            tunnels: Tunnels::new(shared.settings.hbone.clone(), shared.store.clone()),
            pools: Rc::new(Pools::new(shared.settings.backend_idle)),
            loads: Loads::default(),
            shared,
        }
    }

    /// Opens a connection to an endpoint, in the caller's name.
    pub(crate) async fn open(&self, call: &Call, target: &Target) -> Result<Io, Failure> {
        self.judge(call, target)?;
        connect::open(self, call, target).await
    }

    /// Whether a caller of whom the destination will not be told may call it.
    fn judge(&self, call: &Call, target: &Target) -> Result<(), Refusal> {
        // What has no ztunnel is judged by nobody, whoever calls it.
        if call.assertion.is_some() || target.workload.tunnel == Tunnel::None {
            return Ok(());
        }
        let settings = &self.shared.settings;
        let passage = Passage { waypoint: settings.identity.clone(), behind: call.claims.behind.clone() };
        let decision = self.shared.mesh.current().admit(&Attempt {
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

    /// Sends a request to an endpoint, by a connection that was kept or a new one.
    pub(crate) async fn send(
        &self,
        call: &Rc<Call>,
        target: &Target,
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
        let response = pool::send(self, call, target, version, request, handover).await?;
        Ok(Sent { response, busy })
    }

    /// Lets go of what was idle for too long.
    pub(crate) fn sweep(&self) {
        self.pools.sweep();
        self.loads.sweep();
    }
}
