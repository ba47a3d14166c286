//! The discovery service: `DeltaAggregatedResources`.

use std::{sync::Arc, time::SystemTime};

use proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
    aggregated_discovery_service_server::AggregatedDiscoveryService,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::info;

use super::{ClientStatus, Clients, Store, stream::Session};
use crate::{auth::Authenticator, metrics::Metrics};

/// Serves what [`Store`] holds to clients that prove a node.
pub struct Discovery {
    pub store: Arc<Store>,
    pub clients: Arc<Clients>,
    pub auth: Arc<Authenticator>,
    pub metrics: Arc<Metrics>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let node = self.auth.node(request.metadata()).await?;
        let address = request.remote_addr();
        let who = match address {
            Some(address) => format!("{node} ({address})"),
            None => node.clone(),
        };
        info!(client = who, "discovery stream opened");
        let client = self.clients.enter(ClientStatus {
            node,
            id: String::new(),
            address,
            connected_since: SystemTime::now(),
            acknowledged: None,
            refused: Default::default(),
        });
        // Room for one answer: the next is made when this one is on its way.
        let (answers, outgoing) = mpsc::channel(1);
        let session = Session::new(client, who.clone(), self.metrics.clone());
        let states = self.store.subscribe();
        tokio::spawn(async move {
            session.run(request.into_inner(), answers, states).await;
            info!(client = who, "discovery stream closed");
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}
