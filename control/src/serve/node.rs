//! The node service: reports in, directives out.

use std::sync::Arc;

use proto::node::{NodeDirective, NodeReport, node_service_server::NodeService};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info};

use crate::{
    auth::Authenticator,
    nodes::{Directives, Nodes, Wanted},
};

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
        let mut sent: Option<(Arc<Directives>, Wanted)> = None;
        loop {
            // A directive without pods says that the node has none, and its agent lets go of those it has.
            // So nothing is said before the first state is compiled, nor of a node that control does not
            // know; of one that it knows, that it has none is said, too.
            let wanted = newest.borrow_and_update().clone();
            let told = sent.as_ref().map(|(told, before)| (&**told, before));
            if let Some(news) = wanted.news(&self.node, told) {
                debug!(
                    node = self.node,
                    pods = news.pods.len(),
                    namespaces = news.namespaces.len(),
                    "directive"
                );
                if directives.send(Ok(news)).await.is_err() {
                    return Ok(());
                }
                let of_it = wanted.of(&self.node).cloned();
                sent = of_it.map(|of_it| (wanted, of_it));
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
    use crate::{compile::LocalPod, publish::Clients, shards::Outline};

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
            let pod = |name: &&str| {
                Arc::new(LocalPod {
                    uid: (*name).into(),
                    namespace: "shop".into(),
                    name: (*name).into(),
                    service_account: "web".into(),
                    addresses: Default::default(),
                    enroll: true,
                    answer_dns: None,
                    annotated: Default::default(),
                    captured: false,
                    waypoint: false,
                    special: None,
                })
            };
            let nodes = nodes.iter().map(|(node, pods)| ((*node).into(), pods.iter().map(pod).collect()));
            self.settle(Outline { nodes: nodes.collect(), ..Outline::default() });
        }

        /// Node a without pods, and these namespaces.
        fn namespaces(&self, namespaces: &[(&str, bool)]) {
            let namespaces = namespaces.iter().map(|(name, enroll)| ((*name).into(), *enroll)).collect();
            let nodes = [("a".into(), [].into())].into();
            self.settle(Outline { nodes, namespaces: Arc::new(namespaces), ..Outline::default() });
        }

        fn settle(&self, outline: Outline) {
            let touched = ["a", "b"].map(Arc::from).into();
            self.nodes.settle(&outline, &touched, 1, &Arc::new(Clients::default()), "cluster.local");
        }

        async fn hears(&mut self, pods: &[&str]) {
            let directive = self.directives.recv().await.unwrap().unwrap();
            let names: Vec<&str> = directive.pods.iter().map(|pod| pod.name.as_str()).collect();
            assert_eq!(names, pods);
        }

        /// Whether all namespaces are named, which, and which are gone.
        async fn hears_namespaces(&mut self) -> (bool, Vec<(String, bool)>, Vec<String>) {
            let directive = self.directives.recv().await.unwrap().unwrap();
            let named = directive.namespaces.into_iter().map(|namespace| (namespace.name, namespace.enroll));
            (directive.all_namespaces, named.collect(), directive.gone_namespaces)
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

    #[tokio::test(start_paused = true)]
    async fn of_namespaces_only_what_has_changed_is_said() {
        let mut bed = Bed::new();
        let named = |names: &[(&str, bool)]| -> Vec<(String, bool)> {
            names.iter().map(|(name, enroll)| ((*name).to_owned(), *enroll)).collect()
        };
        bed.namespaces(&[("default", false), ("shop", true)]);
        let all = named(&[("default", false), ("shop", true)]);
        assert_eq!(bed.hears_namespaces().await, (true, all, Vec::new()));
        bed.namespaces(&[("default", false), ("shop", true)]);
        bed.hears_nothing().await;
        bed.namespaces(&[("bank", true), ("shop", false)]);
        let changed = named(&[("bank", true), ("shop", false)]);
        assert_eq!(bed.hears_namespaces().await, (false, changed, vec!["default".to_owned()]));
    }
}
