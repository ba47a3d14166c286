//! The discovery service: `DeltaAggregatedResources`.
//!
//! It is a service of its own make: the generated one encodes each answer whole before the first byte of it is
//! sent, which costs tens of megabytes for each node that joins a large mesh.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::SystemTime,
};

use http::{HeaderValue, Request, Response, header::CONTENT_TYPE};
use proto::discovery::DeltaDiscoveryRequest;
use tokio::sync::mpsc;
use tonic::{
    Status, Streaming,
    body::Body,
    codec::Codec,
    codegen::{BoxFuture, Service},
    metadata::MetadataMap,
    server::NamedService,
    transport::server::TcpConnectInfo,
};
use tonic_prost::ProstCodec;
use tracing::info;

use super::{ClientStatus, Clients, Store, answer::Answers, stream::Session};
use crate::{auth::Authenticator, metrics::Metrics};

const METHOD: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// Serves what [`Store`] holds to clients that prove a node.
#[derive(Clone)]
pub struct Discovery {
    pub store: Arc<Store>,
    pub clients: Arc<Clients>,
    pub auth: Arc<Authenticator>,
    pub metrics: Arc<Metrics>,
}

impl NamedService for Discovery {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl Service<Request<Body>> for Discovery {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let discovery = self.clone();
        Box::pin(async move { Ok(discovery.answer(request).await.unwrap_or_else(Status::into_http)) })
    }
}

impl Discovery {
    async fn answer(self, request: Request<Body>) -> Result<Response<Body>, Status> {
        if request.uri().path() != METHOD {
            return Err(Status::unimplemented("of discovery only DeltaAggregatedResources is served"));
        }
        let (head, body) = request.into_parts();
        let node = self.auth.caller(&MetadataMap::from_headers(head.headers)).await?;
        let address = head.extensions.get::<TcpConnectInfo>().and_then(|info| info.remote_addr);
        let decoder = ProstCodec::<DeltaDiscoveryRequest, DeltaDiscoveryRequest>::default().decoder();
        // The first request of a stream that comes back lists all it holds.
        let requests = Streaming::new_request(decoder, body, None, Some(proto::MAX_MESSAGE));
        let answers = self.serve(node, address, requests);
        let mut response = Response::new(Body::new(answers));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        Ok(response)
    }

    /// Serves a stream from now on.
    fn serve(
        self,
        node: String,
        address: Option<SocketAddr>,
        requests: Streaming<DeltaDiscoveryRequest>,
    ) -> Answers {
        let who = match address {
            Some(address) => format!("{node} ({address})"),
            None => node.clone(),
        };
        info!(client = who, "discovery stream opened");
        let client = self.clients.enter(ClientStatus {
            node: node.clone(),
            id: String::new(),
            address,
            connected_since: SystemTime::now(),
            acknowledged: None,
            refused: Default::default(),
        });
        // Room for one answer: the next is made when this one is on its way.
        let (answers, outgoing) = mpsc::channel(1);
        let session = Session::new(client, who.clone(), self.metrics);
        let states = self.store.subscribe();
        let auth = self.auth;
        tokio::spawn(async move {
            let end = answers.clone();
            tokio::select! {
                () = session.run(requests, answers, states) => info!(client = who, "discovery stream closed"),
                () = auth.revoked(&node) => {
                    info!(client = who, "discovery stream ended: it is no waypoint any more");
                    let reason = "the caller is no waypoint any more";
                    let _ = end.send(Err(Status::permission_denied(reason))).await;
                }
            }
        });
        Answers::new(outgoing)
    }
}
