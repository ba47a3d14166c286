//! The inbound verdict: may this caller reach this workload, decided from one snapshot.

use std::net::IpAddr;

use crate::{Identity, PolicyKey, Snapshot, Workload};

/// One attempt to reach a workload.
#[derive(Debug, Clone)]
pub struct Attempt<'a> {
    /// The identity TLS proved (or, on one node, the kernel's capture did); `None` for plaintext.
    pub source: Option<&'a Identity>,
    pub source_ip: IpAddr,
    pub destination: &'a Workload,
    pub destination_ip: IpAddr,
    /// The workload's real port.
    pub destination_port: u16,
}

/// The verdict, and what dry-run policies would have said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub verdict: Verdict,
    /// Policies in dry-run that would have changed the verdict.
    pub dry_run: Vec<PolicyKey>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Allowed, by the named ALLOW policy or because no ALLOW policy is for this workload.
    Allow(Option<PolicyKey>),
    Refuse(Refusal),
}

/// Why an attempt is refused; the text is what people read in the access log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the mesh state is not complete yet")]
    Incomplete,
    #[error("denied by policy {0}")]
    Denied(PolicyKey),
    /// ALLOW policies are there and none matches; the first of them is named.
    #[error("no ALLOW policy matches (policy {0} among them)")]
    NotAllowed(PolicyKey),
    #[error("policy {0} selects this workload and could not be read or was never received")]
    PolicyMissing(PolicyKey),
}

impl Snapshot {
    /// Judges one attempt: DENY before ALLOW; a policy that is referenced and missing refuses.
    pub fn admit(&self, _attempt: &Attempt<'_>) -> Decision {
        panic!("stub")
    }
}
