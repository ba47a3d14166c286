//! Source assertions: by them a destination learns, and is sure of, who calls when a waypoint brings the call.
//!
//! The source's ztunnel signs with the key of the caller's own certificate: this caller, at this address, called this
//! through this waypoint, now. The waypoint hands it on. The destination's ztunnel verifies the chain against its own
//! trust bundle and the signature against the leaf. Whether that waypoint may speak for others at that destination is
//! not decided here: that is `mesh`'s.
//!
//! What cannot be done with one: use it a minute later, through another waypoint (the tunnel proves who brings it),
//! for another destination, or for another caller (a waypoint compares it with who has its tunnel).

mod cache;
mod sign;
mod verify;
mod wire;

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

pub use cache::{Assertions, Verified};
use mesh::{Behind, Identity};

/// The header of a CONNECT that carries it.
pub const HEADER: &str = "culvert-source";

/// The authority of a CONNECT that brings a newer one and nothing else: a connection may outlive the one that it began
/// with.
pub const REFRESH: &str = "assertion.culvert.internal:1";

/// How long one is good for.
pub const LIFE: Duration = Duration::from_secs(60);

/// One is handed out for so long before the next is signed: whoever gets it has most of its life left.
pub const FRESH: Duration = Duration::from_secs(20);

/// It may be from so far in the future: clocks differ.
const SKEW: Duration = Duration::from_secs(30);

/// The longest header that is looked at, in bytes.
pub const LONGEST: usize = 12 << 10;

/// What is asserted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Claims {
    pub caller: Identity,
    /// The caller's address, as its app has it.
    pub address: IpAddr,
    /// Who may bring the call.
    pub waypoint: Identity,
    /// What was called.
    pub behind: Behind,
}

/// Why an assertion is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadAssertion {
    #[error("the assertion of the caller is not in a format we know: {0}")]
    Malformed(&'static str),
    #[error("the assertion of the caller has version {0}, we read version 1")]
    Version(u8),
    #[error("the assertion of {caller} ended {} s ago", .ago.as_secs())]
    Expired { caller: Identity, ago: Duration },
    #[error("the assertion of {caller} is from {} s in the future; do the nodes' clocks agree?", .by.as_secs())]
    Future { caller: Identity, by: Duration },
    #[error("the assertion says {claimed}, and its certificate {found}")]
    WrongCaller { claimed: Identity, found: String },
    #[error("the certificate of {caller} in the assertion is not trusted here: {reason}")]
    Untrusted { caller: Identity, reason: String },
    #[error("the assertion of {0} was not signed with its certificate's key")]
    Forged(Identity),
    #[error("the assertion of {caller} is for {wanted}, and {found} brought it")]
    WrongWaypoint { caller: Identity, wanted: Box<Identity>, found: Box<Identity> },
}

/// Why none can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CannotAssert {
    #[error("the key of {0} does not sign by ECDSA P-256, which assertions are signed by")]
    WrongKey(Identity),
    #[error("cannot sign for {identity}: {reason}")]
    Sign { identity: Identity, reason: String },
    #[error("the chain or the names of {0} are too large for an assertion")]
    TooLarge(Identity),
}

/// Reads who calls, by the assertion's own word: nothing is verified. For a waypoint, which knows its caller by TLS.
///
/// # Errors
/// If it is none of ours.
pub fn claims(header: &str) -> Result<(Claims, SystemTime), BadAssertion> {
    let bytes = wire::decode(header)?;
    let read = wire::read(&bytes)?;
    Ok((read.claims, read.issued + LIFE))
}

#[cfg(test)]
mod tests;
