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

use crate::{Control, ControlError, control::causes};

/// A certificate that takes longer is asked for again.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Asks control's certificate service, on one connection that is made again when it broke or when the
/// trusted roots changed. The token is read again for each request.
pub struct CaClient {
    shared: Arc<Shared>,
}

struct Shared {
    control: Control,
    /// Asked for; the authority may give less.
    validity: Duration,
    channel: Mutex<Option<Open>>,
}

struct Open {
    roots: Vec<u8>,
    channel: Channel,
}

impl CaClient {
    /// Asks for certificates that are valid for `validity`.
    pub fn new(control: Control, validity: Duration) -> Self {
        Self { shared: Arc::new(Shared { control, validity, channel: Mutex::new(None) }) }
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
        let asked_for = Value { kind: Some(Kind::StringValue(identity.to_string())) };
        let mut request = Request::new(IstioCertificateRequest {
            csr: csr_pem,
            validity_duration: i64::try_from(self.validity.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(Struct { fields: [("ImpersonatedIdentity".to_owned(), asked_for)].into() }),
        });
        request.metadata_mut().insert("authorization", self.control.bearer().await.map_err(unavailable)?);
        request.set_timeout(TIMEOUT);
        match IstioCertificateServiceClient::new(channel).create_certificate(request).await {
            Ok(answer) => Ok(Issued { chain_pem: answer.into_inner().cert_chain }),
            Err(status) => Err(refusal(&status)),
        }
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
