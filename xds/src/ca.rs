//! Certificates from control (or istiod): `istio.v1.auth.IstioCertificateService`.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use identity::{Identity, IssueError, Issued, Issuer};
use prost_types::{Struct, Value, value::Kind};
use proto::ca::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient};
use tonic::{Code, Request, transport::Channel};

use crate::{
    Control, ControlError,
    control::{causes, name_cluster},
};

/// A certificate that takes longer is asked for again.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Asks control's certificate service, on one connection that is made again when it broke or when the
/// trusted roots changed. The token is read again for each request.
pub struct CaClient {
    shared: Arc<Shared>,
}

struct Shared {
    control: Control,
    cluster: String,
    /// Asked for; the authority may give less.
    validity: Duration,
    channel: Mutex<Option<Open>>,
}

struct Open {
    roots: Vec<u8>,
    channel: Channel,
}

impl CaClient {
    /// Asks for certificates that are valid for `validity`, as a node of `cluster`: istiod looks there for the pod
    /// whose identity is asked for.
    pub fn new(control: Control, cluster: impl Into<String>, validity: Duration) -> Self {
        let (cluster, channel) = (cluster.into(), Mutex::new(None));
        Self { shared: Arc::new(Shared { control, cluster, validity, channel }) }
    }
}

impl Issuer for CaClient {
    fn issue(
        &self,
        identity: &Identity,
        csr_pem: String,
    ) -> Pin<Box<dyn Future<Output = Result<Issued, IssueError>> + Send>> {
        let (shared, identity) = (self.shared.clone(), identity.clone());
        Box::pin(async move { shared.issue(&identity, csr_pem).await })
    }
}

impl Shared {
    async fn issue(&self, identity: &Identity, csr_pem: String) -> Result<Issued, IssueError> {
        let unavailable = |error: ControlError| IssueError::Unavailable(error.to_string());
        let channel = self.channel().await.map_err(unavailable)?;
        let mut request = self.request(identity, csr_pem);
        request.metadata_mut().insert("authorization", self.control.bearer().await.map_err(unavailable)?);
        match IstioCertificateServiceClient::new(channel).create_certificate(request).await {
            Ok(answer) => Ok(Issued { chain_pem: answer.into_inner().cert_chain }),
            Err(status) => Err(refusal(&status)),
        }
    }

    fn request(&self, identity: &Identity, csr: String) -> Request<IstioCertificateRequest> {
        let asked_for = Value { kind: Some(Kind::StringValue(identity.to_string())) };
        let mut request = Request::new(IstioCertificateRequest {
            csr,
            validity_duration: i64::try_from(self.validity.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(Struct { fields: [("ImpersonatedIdentity".to_owned(), asked_for)].into() }),
        });
        name_cluster(request.metadata_mut(), &self.cluster);
        request.set_timeout(TIMEOUT);
        request
    }

    async fn channel(&self) -> Result<Channel, ControlError> {
        let roots = self.control.roots().await?;
        let mut open = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = open.as_ref().filter(|open| open.roots == roots) {
            return Ok(open.channel.clone());
        }
        let channel = self.control.lazy(&roots)?;
        *open = Some(Open { roots, channel: channel.clone() });
        Ok(channel)
    }
}

fn refusal(status: &tonic::Status) -> IssueError {
    match status.code() {
        Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument | Code::FailedPrecondition => {
            IssueError::Denied(status.message().to_owned())
        }
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => IssueError::Unavailable(causes(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_of_which_cluster_the_pod_is() {
        let control = Control {
            uri: "https://istiod:15012".into(),
            ca: "ca".into(),
            token: "token".into(),
            server_name: None,
        };
        let client = CaClient::new(control, "west", Duration::from_secs(3600));
        let identity = Identity::new("cluster.local", "shop", "web");
        let request = client.shared.request(&identity, "csr".into());
        // istiod looks for the pod among those of that cluster, and refuses without.
        assert_eq!(request.metadata().get("clusterid").unwrap(), "west");
        let fields = &request.get_ref().metadata.as_ref().unwrap().fields;
        let asked_for = Some(Kind::StringValue("spiffe://cluster.local/ns/shop/sa/web".into()));
        assert_eq!(fields["ImpersonatedIdentity"].kind, asked_for);
    }
}
