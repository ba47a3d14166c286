//! Who calls: every call to control carries a token that proves a node.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

use tonic::{Status, metadata::MetadataMap};

use crate::{kubernetes::Reviews, tokens::Tokens};

/// What a token is, and who can tell.
pub enum Proof {
    /// Folder mode: a token that control has made.
    Ours(Arc<Tokens>),
    /// A service account's token that is bound to a pod; the API server can tell.
    Pods(Box<Reviews>),
}

/// Takes callers for the node their token proves, as long as that node is part of the mesh.
pub struct Authenticator {
    proof: Proof,
    nodes: RwLock<BTreeSet<String>>,
}

impl Authenticator {
    /// Knows no node yet.
    pub fn new(proof: Proof) -> Self {
        Self { proof, nodes: RwLock::default() }
    }

    /// The nodes of the mesh from now on. A node that is taken out is refused, whatever its token says.
    pub fn set_nodes(&self, nodes: BTreeSet<String>) {
        *self.nodes.write().unwrap_or_else(PoisonError::into_inner) = nodes;
    }

    /// The calling node.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`, with what is wrong with the token; `UNAVAILABLE` if that cannot be found out.
    pub async fn node(&self, metadata: &MetadataMap) -> Result<String, Status> {
        let token = bearer(metadata)?;
        let node = match &self.proof {
            Proof::Ours(tokens) => tokens
                .verify(token, SystemTime::now())
                .map_err(|error| Status::unauthenticated(error.to_string()))?,
            Proof::Pods(reviews) => reviews.node(token).await?,
        };
        if self.nodes.read().unwrap_or_else(PoisonError::into_inner).contains(&node) {
            Ok(node)
        } else {
            Err(Status::unauthenticated(format!("no Node object is named {node}")))
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
