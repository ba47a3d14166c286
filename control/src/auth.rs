//! Who calls: every call to control carries a node's token.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

use tonic::{Status, metadata::MetadataMap};

use crate::tokens::Tokens;

/// Takes callers for the node their token proves, as long as that node is part of the mesh.
pub struct Authenticator {
    tokens: Arc<Tokens>,
    nodes: RwLock<BTreeSet<String>>,
}

impl Authenticator {
    /// Knows no node yet.
    pub fn new(tokens: Arc<Tokens>) -> Self {
        Self { tokens, nodes: RwLock::default() }
    }

    /// The nodes of the mesh from now on. A node that is taken out is refused, whatever its token says.
    pub fn set_nodes(&self, nodes: BTreeSet<String>) {
        *self.nodes.write().unwrap_or_else(PoisonError::into_inner) = nodes;
    }

    /// The calling node.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`, with what is wrong with the token.
    pub fn node(&self, metadata: &MetadataMap) -> Result<String, Status> {
        let header = metadata.get("authorization").ok_or_else(|| {
            Status::unauthenticated("no authorization header: send Bearer and the node's token")
        })?;
        let token = header
            .to_str()
            .ok()
            .and_then(|header| header.strip_prefix("Bearer "))
            .ok_or_else(|| Status::unauthenticated("the authorization header is not a Bearer token"))?;
        let node = self
            .tokens
            .verify(token.trim(), SystemTime::now())
            .map_err(|error| Status::unauthenticated(error.to_string()))?;
        if self.nodes.read().unwrap_or_else(PoisonError::into_inner).contains(&node) {
            Ok(node)
        } else {
            Err(Status::unauthenticated(format!("no Node object is named {node}")))
        }
    }
}
