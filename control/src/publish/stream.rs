//! One discovery stream: requests in, the difference to the newest state out.

use std::{sync::Arc, time::Duration};

use proto::discovery::DeltaDiscoveryRequest;
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, StreamExt};
use tonic::Status;
use tracing::{debug, warn};

use super::{
    State, Type,
    answer::Answer,
    clients::Entered,
    subscription::{Part, Received, Subscription, TooMany},
};
use crate::metrics::Metrics;

/// A client that asks for policies is expected to ask for workloads, too, within this time; until then
/// no policy is taken from it.
const PATIENCE: Duration = Duration::from_secs(1);

/// The state of one stream.
pub(super) struct Session {
    client: Entered,
    /// For the log.
    who: String,
    metrics: Arc<Metrics>,
    addresses: Subscription,
    policies: Subscription,
    /// Asked for by waypoints only.
    routes: Subscription,
    patient: bool,
}

impl Session {
    pub(super) fn new(client: Entered, who: String, metrics: Arc<Metrics>) -> Self {
        Self {
            client,
            who,
            metrics,
            addresses: Subscription::new(Type::Address),
            policies: Subscription::new(Type::Authorization),
            routes: Subscription::new(Type::Routes),
            patient: true,
        }
    }

    /// Serves the stream to its end. The next answer is made when there is room for it, from what is
    /// newest then: a slow client skips states, and holds up nobody.
    pub(super) async fn run(
        mut self,
        mut requests: impl Stream<Item = Result<DeltaDiscoveryRequest, Status>> + Unpin,
        answers: mpsc::Sender<Result<Answer, Status>>,
        mut states: watch::Receiver<Arc<State>>,
    ) {
        let patience = tokio::time::sleep(PATIENCE);
        tokio::pin!(patience);
        loop {
            let state = states.borrow_and_update().clone();
            while let Some(answer) = self.next(&state) {
                debug!(
                    client = self.who,
                    r#type = answer.r#type.name(),
                    resources = answer.resources.len(),
                    removed = answer.removed.len(),
                    generation = state.generation,
                    "discovery answer"
                );
                if answers.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
            self.report();
            tokio::select! {
                () = &mut patience, if self.patient => self.patient = false,
                changed = states.changed() => if changed.is_err() { return },
                () = answers.closed() => return,
                request = requests.next() => match request {
                    Some(Ok(request)) => {
                        if let Err(status) = self.receive(request, &state) {
                            warn!(client = self.who, "discovery stream ended: {}", status.message());
                            let _ = answers.send(Err(status)).await;
                            return;
                        }
                    }
                    Some(Err(status)) => {
                        debug!(client = self.who, "discovery stream broke: {}", status.message());
                        return;
                    }
                    None => return,
                },
            }
        }
    }

    /// New policies, then the workloads that name them, then what nobody names any more: at no moment a
    /// workload names a policy that its ztunnel does not hold, which would refuse its callers.
    fn next(&mut self, state: &State) -> Option<Answer> {
        let mut answer = self.policies.next(state, Part::Early);
        if answer.is_none() && self.policies.is_early_sent(state) {
            answer = self.addresses.next(state, Part::Whole);
        }
        let addresses_due = self.patient && !self.addresses.is_open();
        if answer.is_none() && !addresses_due && self.addresses.is_sent(state) {
            answer = self.policies.next(state, Part::Whole);
        }
        // Routes come when what they lead to is known.
        if answer.is_none() && !addresses_due && self.addresses.is_sent(state) {
            answer = self.routes.next(state, Part::Whole);
        }
        let answer = answer?;
        self.metrics.pushed(answer.r#type);
        Some(answer)
    }

    fn receive(&mut self, request: DeltaDiscoveryRequest, state: &State) -> Result<(), Status> {
        if let Some(node) = &request.node {
            self.client.update(|client| client.id.clone_from(&node.id));
        }
        let Some(r#type) = Type::of(&request.type_url) else {
            debug!(client = self.who, type_url = request.type_url, "asked for a type that is not published");
            return Ok(());
        };
        let subscription = match r#type {
            Type::Address => &mut self.addresses,
            Type::Authorization => &mut self.policies,
            Type::Routes => &mut self.routes,
        };
        match subscription.receive(request, state) {
            Ok(Received::Request | Received::Acknowledged) => {}
            Ok(Received::Refused(reason)) => {
                warn!(client = self.who, r#type = r#type.name(), "resources refused: {reason}");
                self.metrics.refused(r#type);
                self.client.update(|client| drop(client.refused.insert(r#type.name(), reason)));
            }
            Err(TooMany) => {
                return Err(Status::resource_exhausted("the stream subscribes to too many names"));
            }
        }
        Ok(())
    }

    fn report(&self) {
        let acknowledged = self.addresses.is_open().then(|| self.addresses.acknowledged());
        self.client.update(|client| client.acknowledged = acknowledged);
    }
}
