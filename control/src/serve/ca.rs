//! The certificate service: a node gets certificates only for service accounts of its own pods, a waypoint for its own.

use std::{
    collections::BTreeMap,
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
use crate::{auth::Authenticator, compile::LocalPod, metrics::Metrics, shards::Pods};

/// A node → the pods there that may have certificates; a waypoint → itself. The one rule of who may be whom.
pub struct Entitled {
    trust_domain: Arc<str>,
    by_node: RwLock<BTreeMap<Arc<str>, Pods>>,
}

impl Entitled {
    /// Nobody yet.
    pub fn new(trust_domain: Arc<str>) -> Self {
        Self { trust_domain, by_node: RwLock::default() }
    }

    /// These from now on, of the nodes that are named; nobody, where there is nothing.
    pub fn update(&self, nodes: BTreeMap<Arc<str>, Option<Pods>>) {
        let mut by_node = self.by_node.write().unwrap_or_else(PoisonError::into_inner);
        for (node, pods) in nodes {
            match pods {
                Some(pods) => drop(by_node.insert(node, pods)),
                None => drop(by_node.remove(&node)),
            }
        }
    }

    /// Whether `node` runs pods of that identity.
    pub fn allows(&self, node: &str, identity: &Identity) -> bool {
        let by_node = self.by_node.read().unwrap_or_else(PoisonError::into_inner);
        let is = |pod: &Arc<LocalPod>| {
            *pod.namespace == *identity.namespace() && *pod.service_account == *identity.service_account()
        };
        let pods = by_node.get(node).into_iter().flat_map(|pods| pods.iter());
        *self.trust_domain == *identity.trust_domain() && { pods }.any(is)
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
        let node = self.auth.caller(request.metadata()).await?;
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
