//! The node service: reports in, directives out.

use std::sync::Arc;

use proto::node::{NodeDirective, NodeReport, node_service_server::NodeService};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
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
        let node = self.auth.node(request.metadata()).await?;
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
        mut reports: impl Stream<Item = Result<NodeReport, Status>> + Unpin,
        directives: &mpsc::Sender<Result<NodeDirective, Status>>,
    ) -> Result<(), Status> {
        let mut newest = self.nodes.directives();
        let mut sent: Option<NodeDirective> = None;
        loop {
            // A directive without pods says that the node has none, and its agent lets go of those it has.
            // So nothing is said before the first state is compiled, nor of a node that control does not
            // know; of one that it knows, that it has none is said, too.
            let wanted = newest.borrow_and_update().get(&self.node).cloned();
            if let Some(wanted) = wanted.filter(|wanted| sent.as_ref() != Some(wanted)) {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        compile::{Compiled, LocalPod},
        publish::Clients,
    };

    /// An agent that listens, and control's knowledge of it.
    struct Bed {
        nodes: Arc<Nodes>,
        directives: mpsc::Receiver<Result<NodeDirective, Status>>,
    }

    impl Bed {
        fn new() -> Self {
            let nodes = Nodes::open(None);
            let agent = Agent::new(nodes.clone(), "a".to_owned());
            let (sender, directives) = mpsc::channel(1);
            tokio::spawn(async move { agent.run(tokio_stream::pending(), &sender).await });
            Self { nodes, directives }
        }

        fn compiled(&self, nodes: &[(&str, &[&str])]) {
            let pod = |name: &&str| LocalPod {
                uid: (*name).into(),
                namespace: "shop".into(),
                name: (*name).into(),
                service_account: "web".into(),
                addresses: Vec::new(),
                netns: "".into(),
                enroll: true,
                annotated: Default::default(),
            };
            let nodes = nodes.iter().map(|(node, pods)| ((*node).into(), pods.iter().map(pod).collect()));
            let compiled = Arc::new(Compiled { nodes: nodes.collect(), ..Compiled::default() });
            self.nodes.settle(&compiled, 1, &Arc::new(Clients::default()), "cluster.local");
        }

        async fn hears(&mut self, pods: &[&str]) {
            let directive = self.directives.recv().await.unwrap().unwrap();
            let names: Vec<&str> = directive.pods.iter().map(|pod| pod.name.as_str()).collect();
            assert_eq!(names, pods);
        }

        async fn hears_nothing(&mut self) {
            let silence = tokio::time::timeout(Duration::from_secs(60), self.directives.recv()).await;
            assert!(silence.is_err(), "{silence:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_said_before_the_first_state_nor_of_a_node_that_is_not_known() {
        let mut bed = Bed::new();
        bed.hears_nothing().await;
        bed.compiled(&[("b", &["other"])]);
        bed.hears_nothing().await;
        bed.compiled(&[("a", &[])]);
        bed.hears(&[]).await;
        bed.compiled(&[("a", &["web"]), ("b", &[])]);
        bed.hears(&["web"]).await;
        bed.compiled(&[]);
        bed.hears_nothing().await;
        bed.compiled(&[("a", &["web"])]);
        bed.hears_nothing().await;
        bed.compiled(&[("a", &[])]);
        bed.hears(&[]).await;
    }
}
