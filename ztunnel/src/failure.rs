//! Why a connection is not carried, and how that and every other end is told in its record.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use hbone::{client::OpenError, copy};
use http::StatusCode;
use identity::assertion::{BadAssertion, CannotAssert};
use mesh::{Decision, PlanError, PolicyKey, Refusal};
use runtime::record::{Connection as Record, End, Tcp};

use crate::{
    dns::Unresolved,
    live::{Carried, Path, Stop, allowed_by},
    shared::Unknown,
};

/// Why a connection is not carried.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Unknown(#[from] Unknown),
    #[error("{0} is not an address of this pod")]
    NotThePod(IpAddr),
    #[error("{0} is ztunnel's own listener")]
    OwnListener(SocketAddr),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("{to} cannot be reached: {source}")]
    Dial { to: SocketAddr, source: io::Error },
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It must be passed, and there is no way round it.
    #[error("the waypoint {waypoint} did not take it: {source}")]
    Waypoint { waypoint: Box<str>, source: OpenError },
    #[error(transparent)]
    Assert(#[from] CannotAssert),
    #[error(transparent)]
    Assertion(#[from] BadAssertion),
    #[error("the endpoint {host} has no address: {source}")]
    Unresolved { host: Box<str>, source: Arc<Unresolved> },
    #[error("the pod has no address of the family of {0}")]
    NoSourceAddress(SocketAddr),
    #[error("{0} is no name of this pod, nor of a service of it")]
    NotThisHost(Box<str>),
    #[error("no workload or service is called {0}")]
    UnknownHost(Box<str>),
    #[error("service {0} has no port {1}")]
    NoSuchPort(Box<str>, u16),
    #[error("the pod has as many connections as it may")]
    PodLimit,
    #[error("the caller's socket failed: {0}")]
    Caller(io::Error),
    #[error("the caller gave up while its destination was dialled")]
    CallerGone,
    #[error("ended before it was connected: {0}")]
    Stopped(Stop),
}

impl Failure {
    /// The reason's name in metrics.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Unknown(unknown) => unknown.name(),
            Self::NotThePod(_) | Self::NotThisHost(_) => "not-this-pod",
            Self::OwnListener(_) => "own-listener",
            Self::Plan(PlanError::Incomplete) | Self::Refused(Refusal::Incomplete) => "state-incomplete",
            Self::Plan(PlanError::NoSuchPort(..)) | Self::NoSuchPort(..) => "no-such-port",
            Self::Plan(PlanError::NoHealthyEndpoint(_)) => "no-healthy-endpoint",
            Self::Plan(PlanError::WaypointUnavailable(_)) => "no-waypoint",
            Self::Plan(_) => "no-plan",
            Self::Refused(Refusal::WaypointRequired) => "waypoint-required",
            Self::Waypoint { source: OpenError::Refused { .. }, .. } => "waypoint-refused",
            Self::Waypoint { .. } => "waypoint-unreachable",
            Self::Assert(_) | Self::Assertion(_) => "assertion",
            Self::Refused(_) | Self::Stopped(Stop::Refused(_)) => "policy",
            Self::Open(OpenError::Refused { .. }) => "peer-refused",
            Self::Open(OpenError::Certificate(_)) => "no-certificate",
            Self::Open(_) => "tunnel",
            Self::Dial { .. } => "dial",
            Self::Unresolved { .. } => "unresolved",
            Self::NoSourceAddress(_) => "address-family",
            Self::UnknownHost(_) => "unknown-host",
            Self::PodLimit => "pod-limit",
            Self::Caller(_) | Self::CallerGone => "caller-gone",
            Self::Stopped(_) => "ended",
        }
    }

    /// The answer to a CONNECT that fails so (hbone.md: 401 policy, 400 not this workload, 503 dial).
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Refused(_) | Self::Assertion(_) | Self::Stopped(Stop::Refused(_)) => {
                StatusCode::UNAUTHORIZED
            }
            Self::NotThePod(_) | Self::NotThisHost(_) | Self::NoSuchPort(..) => StatusCode::BAD_REQUEST,
            Self::Unknown(_)
            | Self::OwnListener(_)
            | Self::Plan(_)
            | Self::Dial { .. }
            | Self::Unresolved { .. }
            | Self::Open(_)
            | Self::Waypoint { .. }
            | Self::Assert(_)
            | Self::NoSourceAddress(_)
            | Self::UnknownHost(_)
            | Self::PodLimit
            | Self::Caller(_)
            | Self::CallerGone
            | Self::Stopped(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn end(&self) -> End {
        match self {
            Self::Refused(_)
            | Self::Assertion(_)
            | Self::NotThePod(_)
            | Self::NotThisHost(_)
            | Self::OwnListener(_)
            | Self::PodLimit
            | Self::Stopped(Stop::Refused(_)) => End::Denied,
            Self::Unknown(Unknown::Identity) | Self::Assert(_) => End::IdentityFailed,
            Self::Open(source) | Self::Waypoint { source, .. } => end_of_open(source),
            Self::Stopped(Stop::PodGone | Stop::Ends) => End::Drained,
            Self::Caller(_) | Self::CallerGone => End::ResetBySource,
            Self::Unknown(_)
            | Self::Plan(_)
            | Self::Dial { .. }
            | Self::Unresolved { .. }
            | Self::NoSourceAddress(_)
            | Self::UnknownHost(_)
            | Self::NoSuchPort(..) => End::ConnectFailed,
        }
    }

    /// The policy to blame.
    fn policy(&self) -> Option<&PolicyKey> {
        match self {
            Self::Refused(refusal) | Self::Stopped(Stop::Refused(refusal)) => refused_by(refusal),
            _ => None,
        }
    }

    /// Tells it in the record of a connection that was not carried.
    pub(crate) fn tell(&self, carried: &Carried) {
        carried.records(|record| {
            record.end_because(self.end(), self);
        });
        if let Some(policy) = self.policy() {
            carried.judging_record(|record| record.policy(policy));
        }
    }
}

/// How a connection ended for which no tunnel was opened.
fn end_of_open(error: &OpenError) -> End {
    match error {
        OpenError::Refused { status, .. } if *status == StatusCode::UNAUTHORIZED => End::Denied,
        OpenError::Certificate(_) | OpenError::WrongIdentity { .. } | OpenError::Rejected { .. } => {
            End::IdentityFailed
        }
        OpenError::Tls { .. } => End::TlsFailed,
        OpenError::Dial { .. }
        | OpenError::Timeout { .. }
        | OpenError::Silent { .. }
        | OpenError::Refused { .. }
        | OpenError::Broken { .. }
        | OpenError::TooManyTunnels { .. }
        | OpenError::BadRequest { .. } => End::ConnectFailed,
    }
}

fn refused_by(refusal: &Refusal) -> Option<&PolicyKey> {
    match refusal {
        Refusal::Denied(policy) | Refusal::NotAllowed(policy) | Refusal::PolicyMissing(policy) => {
            Some(policy)
        }
        Refusal::Incomplete | Refusal::NotItsWaypoint(_) | Refusal::WaypointRequired => None,
    }
}

/// Writes into a record what was decided.
pub(crate) fn tell_decision(decision: &Decision, record: &mut Record) {
    if let Some(policy) = allowed_by(decision) {
        record.policy(policy);
    }
    if !decision.dry_run.is_empty() {
        record.dry_run(&decision.dry_run);
    }
}

/// Writes how a carried connection ended.
pub(crate) fn tell_end(end: &copy::End, carried: &Carried) {
    carried.progress();
    let inbound = carried.path.get() == Path::InboundHbone;
    match (end, carried.reason()) {
        (copy::End::Stopped, Some(Stop::Refused(refusal))) => {
            carried.records(|record| record.end_because(End::Denied, &refusal));
            if let Some(policy) = refused_by(&refusal) {
                carried.judging_record(|record| record.policy(policy));
            }
        }
        (copy::End::Stopped, reason) => {
            let reason = reason.unwrap_or(Stop::Ends);
            carried.records(|record| record.end_because(End::Drained, &reason));
        }
        (copy::End::Finished, _) => carried.records(|record| record.end(End::Finished)),
        (copy::End::ResetByLocal, _) if inbound => carried.records(|r| r.end(End::ResetByDestination)),
        (copy::End::ResetByRemote, _) if inbound => carried.records(|r| r.end(End::ResetBySource)),
        (copy::End::ResetByLocal, _) => carried.records(|record| record.end(End::ResetBySource)),
        (copy::End::ResetByRemote, _) => carried.records(|record| record.end(End::ResetByDestination)),
        (copy::End::Failed(error), _) => carried.records(|record| record.end_because(End::Broken, error)),
    }
}

/// What the kernel measured, in the record's form.
pub(crate) fn tcp(stats: capture::TcpStats) -> Tcp {
    Tcp {
        rtt: std::time::Duration::from_micros(stats.srtt_us.into()),
        retransmits: stats.retransmits,
        delivery_rate: stats.delivery_rate,
    }
}
