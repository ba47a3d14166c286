//! The inbound verdict: may this caller reach this workload, decided from one snapshot.
//!
//! In this order: a call that was brought by somebody who is no waypoint of the workload is refused, and so is one
//! that was not brought by a waypoint where one is required; a DENY policy that matches refuses; a policy that is for the workload and is not held
//! refuses; without any ALLOW policy for the workload it is allowed; an ALLOW policy that matches allows;
//! else it is refused. Where several policies say the same, the first by name is named, so that equal
//! states give equal answers. What a policy means is settled in [`crate::compiled`].

use std::net::IpAddr;

use crate::{
    Action, Identity, Passage, PolicyKey, Snapshot, Workload, compiled::Facts, index::Compiled,
    policies::Applied,
};

/// The most dry-run policies one decision names.
const MOST_DRY_RUN: usize = 16;

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
    /// The waypoint that brought it, where `source` is who called that waypoint. Policies judge the caller; of the
    /// waypoint it is asked whether control has named it for this workload.
    pub through: Option<&'a Passage>,
}

/// The verdict, and what dry-run policies would have said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub verdict: Verdict,
    /// Policies in dry-run that would have changed the verdict, were they enforced: each DENY that matches
    /// what is allowed; each ALLOW that matches what no ALLOW policy matched; and, where there is no
    /// enforced ALLOW policy, the first ALLOW in dry-run if none of them matches. In order of their names,
    /// 16 at most. What is refused by a DENY or for a missing policy has none.
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
    #[error("{}", denied(.0))]
    Denied(PolicyKey),
    /// ALLOW policies are there and none matches; the first of them is named.
    #[error("no ALLOW policy matches (policy {0} among them)")]
    NotAllowed(PolicyKey),
    #[error("policy {0} selects this workload and could not be read or was never received")]
    PolicyMissing(PolicyKey),
    #[error("{0} is no waypoint of this workload, and speaks for another")]
    NotItsWaypoint(Identity),
    #[error("this workload is to be called through its waypoint only (culvert.dev/waypoint: required)")]
    WaypointRequired,
}

fn denied(policy: &PolicyKey) -> String {
    if policy.is_peer_authentication() {
        return "the caller has no identity (plaintext), and a PeerAuthentication is STRICT".to_owned();
    }
    format!("denied by policy {policy}")
}

impl Snapshot {
    /// Judges one attempt: DENY before ALLOW; a policy that is referenced and missing refuses.
    pub fn admit(&self, attempt: &Attempt<'_>) -> Decision {
        if !self.is_complete() {
            return Decision { verdict: Verdict::Refuse(Refusal::Incomplete), dry_run: Vec::new() };
        }
        if let Some(refusal) = self.wrong_way(attempt) {
            return Decision { verdict: Verdict::Refuse(refusal), dry_run: Vec::new() };
        }
        let facts = Facts::of(attempt);
        let applied = self.policies.applied_to(attempt.destination);
        let verdict = applied.verdict(&facts);
        let dry_run = applied.would_change(&verdict, &facts);
        Decision { verdict, dry_run }
    }

    /// What is wrong with the way that the call took, whoever calls.
    fn wrong_way(&self, attempt: &Attempt<'_>) -> Option<Refusal> {
        let workload = attempt.destination;
        if let Some(passage) = attempt.through
            && !self.vouches(passage, workload)
        {
            return Some(Refusal::NotItsWaypoint(passage.waypoint.clone()));
        }
        let required = workload
            .waypoint_required
            .as_ref()
            .filter(|required| required.covers(attempt.destination_port))?;
        let passed = attempt.through.map(|passage| &passage.waypoint).or(attempt.source);
        let suffices = passed.is_some_and(|passed| self.is_required_waypoint(passed, required, workload));
        (!suffices).then_some(Refusal::WaypointRequired)
    }
}

impl Applied<'_> {
    fn verdict(&self, facts: &Facts<'_>) -> Verdict {
        if let Some(key) = self.first_match(Action::Deny, facts) {
            return Verdict::Refuse(Refusal::Denied(key.clone()));
        }
        if let Some(key) = self.missing {
            return Verdict::Refuse(Refusal::PolicyMissing(key.clone()));
        }
        let Some(first) = self.first_allow(false) else { return Verdict::Allow(None) };
        match self.first_match(Action::Allow, facts) {
            Some(key) => Verdict::Allow(Some(key.clone())),
            None => Verdict::Refuse(Refusal::NotAllowed(first.clone())),
        }
    }

    /// The first enforced policy by name that does `action` and matches.
    fn first_match(&self, action: Action, facts: &Facts<'_>) -> Option<&PolicyKey> {
        let mut best: Option<&Compiled> = None;
        for compiled in self.named(action, false) {
            if best.is_none_or(|best| compiled.policy.key < best.policy.key) && compiled.matches(facts) {
                best = Some(compiled);
            }
        }
        for scoped in self.scopes {
            best = scoped.index(action, false).first_match(facts, best);
        }
        best.map(|compiled| &compiled.policy.key)
    }

    /// The first ALLOW policy by name, matching or not.
    fn first_allow(&self, dry_run: bool) -> Option<&PolicyKey> {
        let scoped =
            self.scopes.into_iter().filter_map(|scoped| scoped.index(Action::Allow, dry_run).first());
        scoped.chain(self.named(Action::Allow, dry_run).map(|compiled| &compiled.policy.key)).min()
    }

    fn would_change(&self, verdict: &Verdict, facts: &Facts<'_>) -> Vec<PolicyKey> {
        let mut names = match verdict {
            Verdict::Allow(_) => self.dry_matches(Action::Deny, facts),
            Verdict::Refuse(Refusal::NotAllowed(_)) => self.dry_matches(Action::Allow, facts),
            Verdict::Refuse(
                Refusal::Incomplete
                | Refusal::Denied(_)
                | Refusal::PolicyMissing(_)
                | Refusal::NotItsWaypoint(_)
                | Refusal::WaypointRequired,
            ) => Vec::new(),
        };
        if let (Verdict::Allow(None), Some(first)) = (verdict, self.first_allow(true))
            && self.dry_matches(Action::Allow, facts).is_empty()
        {
            names.push(first);
        }
        names.sort_unstable();
        names.dedup();
        names.into_iter().take(MOST_DRY_RUN).cloned().collect()
    }

    /// Every policy in dry-run that does `action` and matches, in no order, some of them twice.
    fn dry_matches(&self, action: Action, facts: &Facts<'_>) -> Vec<&PolicyKey> {
        let named = self.named(action, true).filter(|compiled| compiled.matches(facts));
        let mut names: Vec<_> = named.map(|compiled| &compiled.policy.key).collect();
        names.extend(self.scopes.iter().flat_map(|scoped| scoped.index(action, true).all_matches(facts)));
        names
    }

    fn named(&self, action: Action, dry_run: bool) -> impl Iterator<Item = &Compiled> {
        let wanted = move |c: &&&Compiled| c.policy.action == action && c.policy.dry_run == dry_run;
        self.named.iter().filter(wanted).copied()
    }
}
