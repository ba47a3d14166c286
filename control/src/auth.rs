//! Who calls: every call to control carries a token that proves a node, or a waypoint.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

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
    callers: RwLock<BTreeSet<String>>,
}

impl Authenticator {
    /// Knows nobody yet.
    pub fn new(proof: Proof) -> Self {
        Self { proof, callers: RwLock::default() }
    }

    /// The nodes and waypoints of the mesh from now on. Who is taken out is refused, whatever its token says.
    pub fn set_callers(&self, callers: BTreeSet<String>) {
        *self.callers.write().unwrap_or_else(PoisonError::into_inner) = callers;
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
        if self.callers.read().unwrap_or_else(PoisonError::into_inner).contains(&caller) {
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
