//! Who calls: every call to control carries a token that proves a node, or a waypoint.

use std::{collections::BTreeSet, sync::Arc, time::SystemTime};

use tokio::sync::watch;
use tonic::{Status, metadata::MetadataMap};

use crate::{
    kubernetes::Reviews,
    tokens::{self, Tokens},
};

/// What a token is, and who can tell.
pub enum Proof {
    /// Folder mode: a token that control has made.
    Ours(Arc<Tokens>),
    /// A service account's token that is bound to a pod; the API server can tell.
    Pods(Box<Reviews>),
}

/// Takes callers for the node or the waypoint that their token proves, as long as that is part of the mesh.
pub struct Authenticator {
    proof: Proof,
    callers: watch::Sender<BTreeSet<String>>,
}

impl Authenticator {
    /// Knows nobody yet.
    pub fn new(proof: Proof) -> Self {
        Self { proof, callers: watch::Sender::default() }
    }

    /// The nodes and waypoints of the mesh from now on. Who is taken out is refused, whatever its token says.
    pub fn set_callers(&self, callers: BTreeSet<String>) {
        self.callers.send_if_modified(|before| {
            let differs = *before != callers;
            *before = callers;
            differs
        });
    }

    /// Waits until a caller who was let in is a waypoint no more. A node is let go on with what it has begun: whoever
    /// takes its Node object away for a moment takes no state from its ztunnel.
    pub async fn revoked(&self, caller: &str) {
        if tokens::as_waypoint(caller).is_none() {
            return std::future::pending().await;
        }
        let mut callers = self.callers.subscribe();
        // The sender lives as long as `self`.
        let _ = callers.wait_for(|callers| !callers.contains(caller)).await;
    }

    /// The calling node, or waypoint by the name that [`tokens::waypoint`] gives it.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`, with what is wrong with the token; `UNAVAILABLE` if that cannot be found out.
    pub async fn caller(&self, metadata: &MetadataMap) -> Result<String, Status> {
        let token = bearer(metadata)?;
        let caller = match &self.proof {
            Proof::Ours(tokens) => tokens
                .verify(token, SystemTime::now())
                .map_err(|error| Status::unauthenticated(error.to_string()))?,
            Proof::Pods(reviews) => reviews.caller(token).await?,
        };
        if self.callers.borrow().contains(&caller) {
            return Ok(caller);
        }
        Err(Status::unauthenticated(match tokens::as_waypoint(&caller) {
            Some((namespace, pod)) => format!(
                "pod {namespace}/{pod} is no waypoint that is known (yet), and its service account may not speak for a \
                 node (--node-service-account)"
            ),
            None => format!("no Node object is named {caller}"),
        }))
    }

    /// The calling node; a waypoint is none.
    ///
    /// # Errors
    /// As of [`Self::caller`], and `PERMISSION_DENIED` for a waypoint.
    pub async fn node(&self, metadata: &MetadataMap) -> Result<String, Status> {
        let caller = self.caller(metadata).await?;
        match tokens::as_waypoint(&caller) {
            None => Ok(caller),
            Some((namespace, pod)) => {
                Err(Status::permission_denied(format!("the waypoint {namespace}/{pod} is no node")))
            }
        }
    }
}

fn bearer(metadata: &MetadataMap) -> Result<&str, Status> {
    let header = metadata.get("authorization").ok_or_else(|| {
        Status::unauthenticated("no authorization header: send Bearer and the node's token")
    })?;
    let token = header.to_str().ok().and_then(|header| header.strip_prefix("Bearer "));
    let token =
        token.ok_or_else(|| Status::unauthenticated("the authorization header is not a Bearer token"))?;
    Ok(token.trim())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_waypoint_that_is_none_any_more_is_told_apart_from_a_node() {
        let folder = tempfile::tempdir().unwrap();
        let made = Tokens::load_or_create(folder.path()).unwrap();
        let auth = Authenticator::new(Proof::Ours(Arc::new(made)));
        let waypoint = tokens::waypoint("shop", "wp-1");
        let callers = |all: &[&str]| auth.set_callers(all.iter().map(ToString::to_string).collect());
        callers(&[&waypoint, "a"]);
        let within = Duration::from_secs(1);
        assert!(tokio::time::timeout(within, auth.revoked(&waypoint)).await.is_err(), "it is one");
        callers(&[&waypoint]);
        assert!(
            tokio::time::timeout(within, auth.revoked(&waypoint)).await.is_err(),
            "others concern it not"
        );
        assert!(tokio::time::timeout(within, auth.revoked("a")).await.is_err(), "a node keeps its state");
        callers(&[]);
        assert!(tokio::time::timeout(within, auth.revoked(&waypoint)).await.is_ok());
    }
}
