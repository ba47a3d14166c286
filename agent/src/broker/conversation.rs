//! One ztunnel's connection: hello, the snapshot, then what changes; one message, one acknowledgement.

use std::{collections::BTreeMap, io, os::fd::AsFd, sync::Arc, time::Duration};

use capture::Netns;
use prost::Message;
use proto::workload::zds::{
    AddWorkload, DelWorkload, KeepWorkload, SnapshotSent, Version, WorkloadRequest, WorkloadResponse,
    ZdsHello, workload_request::Payload, workload_response,
};
use tokio::time::{Instant, sleep_until, timeout};

use super::Shared;
use crate::seqpacket::Connection;

/// A ztunnel says hello as soon as it is connected.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);
/// An acknowledgement may take as long as opening a pod's listeners under load.
const ACK_PATIENCE: Duration = Duration::from_secs(10);
/// A pod that was refused is offered again; ztunnel itself tries again that often.
const OFFER_AGAIN: Duration = Duration::from_secs(5);

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("it hung up")]
    HungUp,
    #[error("its socket failed: {0}")]
    Socket(#[from] io::Error),
    #[error("it sent what is not ZDS: {0}")]
    Malformed(#[from] prost::DecodeError),
    #[error("it speaks version {0} of ZDS, and this agent version 1")]
    Version(i32),
    #[error("it sent a message although none was asked for")]
    Unasked,
    #[error("it did not {0} within {1:?}")]
    Silent(&'static str, Duration),
}

/// What a connection has told its ztunnel.
#[derive(Default)]
struct Told {
    /// By uid: the entry's number, and when to offer it again if it was refused.
    pods: BTreeMap<String, (u64, Option<Instant>)>,
    snapshot: bool,
}

/// The next message.
enum Next {
    Add { uid: String, number: u64, request: AddWorkload, netns: Arc<Netns> },
    Keep { uid: String, number: u64 },
    Del { uid: String },
    Snapshot,
}

/// Talks until either side ends it.
pub(super) async fn hold(shared: &Shared, connection: &Connection) {
    let id = shared.connect();
    tracing::info!(connection = id, "a ztunnel connected");
    let Err(ended) = speak(shared, connection, id).await;
    shared.disconnect(id);
    match ended {
        Ended::HungUp => tracing::info!(connection = id, "a ztunnel left; its pods stay captured"),
        ended => {
            tracing::warn!(connection = id, "the ztunnel is disconnected: {ended}; its pods stay captured")
        }
    }
}

async fn speak(shared: &Shared, connection: &Connection, id: u64) -> Result<std::convert::Infallible, Ended> {
    let hello = match timeout(HELLO_PATIENCE, connection.receive()).await {
        Err(_) => return Err(Ended::Silent("say hello", HELLO_PATIENCE)),
        Ok(packet) => ZdsHello::decode(packet?.ok_or(Ended::HungUp)?.bytes.as_slice())?,
    };
    if hello.version != i32::from(Version::V1) {
        return Err(Ended::Version(hello.version));
    }
    shared.state(id, "waits until every pod of the node is known");
    let mut changed = shared.changed.subscribe();
    let mut told = Told::default();
    loop {
        changed.borrow_and_update();
        match told.next(shared) {
            Some(next) => tell(shared, connection, id, &mut told, next).await?,
            None => {
                let again = told.pods.values().filter_map(|(_, again)| *again).min();
                let again = again.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
                tokio::select! {
                    _ = changed.changed() => {}
                    () = sleep_until(again) => {}
                    packet = connection.receive() => {
                        return Err(if packet?.is_some() { Ended::Unasked } else { Ended::HungUp });
                    }
                }
            }
        }
    }
}

/// Sends one message and takes its acknowledgement into account.
async fn tell(
    shared: &Shared,
    connection: &Connection,
    id: u64,
    told: &mut Told,
    next: Next,
) -> Result<(), Ended> {
    let payload = match &next {
        Next::Add { request, .. } => Payload::Add(request.clone()),
        Next::Keep { uid, .. } => Payload::Keep(KeepWorkload { uid: uid.clone() }),
        Next::Del { uid } => Payload::Del(DelWorkload { uid: uid.clone() }),
        Next::Snapshot => Payload::SnapshotSent(SnapshotSent {}),
    };
    let netns = match &next {
        Next::Add { netns, .. } => Some(netns.as_fd()),
        Next::Keep { .. } | Next::Del { .. } | Next::Snapshot => None,
    };
    let message = WorkloadRequest { payload: Some(payload) }.encode_to_vec();
    let exchange = async {
        connection.send(&message, netns).await?;
        connection.receive().await
    };
    let answer = match timeout(ACK_PATIENCE, exchange).await {
        Err(_) => return Err(Ended::Silent("acknowledge", ACK_PATIENCE)),
        Ok(packet) => WorkloadResponse::decode(packet?.ok_or(Ended::HungUp)?.bytes.as_slice())?,
    };
    let refusal = match answer.payload {
        Some(workload_response::Payload::Ack(ack)) => ack.error,
        None => String::new(),
    };
    match next {
        Next::Add { uid, number, .. } if refusal.is_empty() => {
            shared.acknowledged(id, &uid, number);
            told.pods.insert(uid, (number, None));
        }
        Next::Add { uid, number, .. } => {
            tracing::warn!(connection = id, uid, refusal, "a ztunnel refused a pod; it is offered again");
            told.pods.insert(uid, (number, Some(Instant::now() + OFFER_AGAIN)));
        }
        Next::Keep { uid, number } => {
            if refusal.is_empty() {
                shared.acknowledged(id, &uid, number);
            } else {
                tracing::warn!(connection = id, uid, refusal, "a ztunnel does not have a pod it should keep");
            }
            told.pods.insert(uid, (number, None));
        }
        Next::Del { uid } => {
            if !refusal.is_empty() {
                tracing::warn!(connection = id, uid, refusal, "a ztunnel did not let go of a pod");
            }
            told.pods.remove(&uid);
        }
        Next::Snapshot => {
            if !refusal.is_empty() {
                tracing::warn!(connection = id, refusal, "a ztunnel could not reconcile its pods");
            }
            told.snapshot = true;
            shared.state(id, "knows every pod");
            shared.informed.send_modify(|informed| *informed += 1);
        }
    }
    Ok(())
}

impl Told {
    /// What differs first between the table and what was told.
    fn next(&self, shared: &Shared) -> Option<Next> {
        let table = shared.lock();
        if !table.complete && !self.snapshot {
            return None;
        }
        let stale = |(uid, (number, _)): &(&String, &(u64, Option<Instant>))| {
            table.pods.get(*uid).is_none_or(|entry| entry.number != *number)
        };
        if let Some((uid, _)) = self.pods.iter().find(stale) {
            return Some(Next::Del { uid: uid.clone() });
        }
        let now = Instant::now();
        for (uid, entry) in &table.pods {
            let number = entry.number;
            match (self.pods.get(uid), &entry.netns) {
                (Some((_, None)), _) => {}
                (Some((_, Some(again))), _) if *again > now => {}
                (_, Some(netns)) => {
                    let request = AddWorkload { uid: uid.clone(), workload_info: Some(entry.info.clone()) };
                    return Some(Next::Add { uid: uid.clone(), number, request, netns: netns.clone() });
                }
                // The protocol knows it before the end of the snapshot only.
                (None, None) if !self.snapshot => return Some(Next::Keep { uid: uid.clone(), number }),
                (_, None) => {}
            }
        }
        (!self.snapshot).then_some(Next::Snapshot)
    }
}
