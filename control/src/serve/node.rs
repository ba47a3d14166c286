//! The node service: reports in, directives out.

use std::sync::Arc;

use proto::node::{NodeDirective, NodeReport, node_service_server::NodeService};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info};

use crate::{auth::Authenticator, nodes::Nodes};

/// Serves agents.
pub struct NodeReports {
    pub nodes: Arc<Nodes>,
    pub auth: Arc<Authenticator>,
}

#[tonic::async_trait]
impl NodeService for NodeReports {
    type SyncStream = ReceiverStream<Result<NodeDirective, Status>>;

    async fn sync(
        &self,
        request: Request<Streaming<NodeReport>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let node = self.auth.node(request.metadata())?;
        info!(node, "agent connected");
        let (directives, outgoing) = mpsc::channel(1);
        let agent = Agent::new(self.nodes.clone(), node);
        tokio::spawn(async move {
            if let Err(status) = agent.run(request.into_inner(), &directives).await {
                let _ = directives.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

/// A connected agent; counted as long as it is.
struct Agent {
    nodes: Arc<Nodes>,
    node: String,
}

impl Agent {
    fn new(nodes: Arc<Nodes>, node: String) -> Self {
        nodes.count_agent(&node, true);
        Self { nodes, node }
    }

    async fn run(
        self,
        mut reports: Streaming<NodeReport>,
        directives: &mpsc::Sender<Result<NodeDirective, Status>>,
    ) -> Result<(), Status> {
        let mut newest = self.nodes.directives();
        let mut sent: Option<NodeDirective> = None;
        loop {
            // The first directive is sent even if it names no pod.
            let wanted = newest.borrow_and_update().get(&self.node).cloned().unwrap_or_default();
            if sent.as_ref() != Some(&wanted) {
                debug!(node = self.node, pods = wanted.pods.len(), "directive");
                if directives.send(Ok(wanted.clone())).await.is_err() {
                    return Ok(());
                }
                sent = Some(wanted);
            }
            tokio::select! {
                changed = newest.changed() => if changed.is_err() { return Ok(()) },
                () = directives.closed() => return Ok(()),
                report = reports.next() => match report {
                    Some(Ok(report)) if report.node.is_empty() || report.node == self.node => {
                        self.nodes.report(&self.node, report);
                    }
                    Some(Ok(report)) => {
                        let reason = format!("the token is node {}'s, the report is for {}", self.node, report.node);
                        return Err(Status::permission_denied(reason));
                    }
                    Some(Err(_)) | None => return Ok(()),
                },
            }
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        info!(node = self.node, "agent gone");
        self.nodes.count_agent(&self.node, false);
    }
}
