//! The certificate service: a node gets certificates only for service accounts of its own pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use identity::{Identity, authority::AuthorityError};
use prost_types::value::Kind;
use proto::ca::{
    IstioCertificateRequest, IstioCertificateResponse,
    istio_certificate_service_server::IstioCertificateService,
};
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use super::Signer;
use crate::{auth::Authenticator, metrics::Metrics};

/// A node → the identities that run there. The one rule of who may be whom.
#[derive(Default)]
pub struct Entitled {
    by_node: RwLock<BTreeMap<String, BTreeSet<Identity>>>,
}

impl Entitled {
    /// These from now on.
    pub fn set(&self, by_node: BTreeMap<String, BTreeSet<Identity>>) {
        *self.by_node.write().unwrap_or_else(PoisonError::into_inner) = by_node;
    }

    /// Whether `node` runs pods of that identity.
    pub fn allows(&self, node: &str, identity: &Identity) -> bool {
        let by_node = self.by_node.read().unwrap_or_else(PoisonError::into_inner);
        by_node.get(node).is_some_and(|identities| identities.contains(identity))
    }
}

/// Signs for nodes.
pub struct Certificates {
    pub signer: Signer,
    pub auth: Arc<Authenticator>,
    pub entitled: Arc<Entitled>,
    /// Longest life of a certificate, and what is given where none is asked for.
    pub lifetime: Duration,
    pub metrics: Arc<Metrics>,
}

#[tonic::async_trait]
impl IstioCertificateService for Certificates {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let node = self.auth.node(request.metadata()).await?;
        let answer = self.sign(&node, &request.into_inner());
        self.metrics.certificate(answer.is_ok());
        match answer {
            Ok((identity, cert_chain)) => {
                info!(node, %identity, "certificate issued");
                Ok(Response::new(IstioCertificateResponse { cert_chain }))
            }
            Err(status) => {
                warn!(node, "certificate refused: {}", status.message());
                Err(status)
            }
        }
    }
}

impl Certificates {
    fn sign(&self, node: &str, request: &IstioCertificateRequest) -> Result<(Identity, Vec<String>), Status> {
        let identity = impersonated(request)?;
        if !self.entitled.allows(node, &identity) {
            let reason = format!("no enrolled pod of {identity} runs on node {node}");
            return Err(Status::permission_denied(reason));
        }
        let asked = u64::try_from(request.validity_duration).unwrap_or(0);
        let lifetime = match Duration::from_secs(asked) {
            Duration::ZERO => self.lifetime,
            asked => asked.min(self.lifetime),
        };
        match self.signer.current().sign(&request.csr, &identity, lifetime) {
            Ok(chain) => Ok((identity, chain)),
            Err(error @ AuthorityError::BadRequest(_)) => Err(Status::invalid_argument(error.to_string())),
            Err(
                error @ (AuthorityError::File { .. }
                | AuthorityError::Unusable { .. }
                | AuthorityError::Sign(_)),
            ) => Err(Status::internal(error.to_string())),
        }
    }
}

/// The identity that is asked for. A node has none of its own here, so it must ask for a pod's.
fn impersonated(request: &IstioCertificateRequest) -> Result<Identity, Status> {
    let field = request.metadata.as_ref().and_then(|metadata| metadata.fields.get("ImpersonatedIdentity"));
    let Some(Kind::StringValue(name)) = field.and_then(|value| value.kind.as_ref()) else {
        return Err(Status::invalid_argument("metadata names no ImpersonatedIdentity"));
    };
    name.parse().map_err(|error: mesh::InvalidIdentity| Status::invalid_argument(error.to_string()))
}
