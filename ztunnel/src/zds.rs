//! The client side of ZDS: the agent tells, over a Unix SEQPACKET socket, which pods are this ztunnel's,
//! each with its network namespace as a descriptor.
//!
//! It speaks the protocol and reconnects; what a pod means is [`Pods`]' business. A lost agent changes
//! nothing for the pods that are known: they are served on, and reconciled once a new agent has sent its
//! whole list.

use std::{collections::HashSet, io, os::fd::OwnedFd, path::Path, time::Duration};

use prost::Message;
use proto::workload::zds::{
    Ack, AddWorkload, Version, WorkloadRequest, WorkloadResponse, ZdsHello, workload_request,
    workload_response,
};
use tokio::time::sleep;

use crate::seqpacket::Wire;

/// Waits between attempts to reach the agent, doubled after each failure.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// A pod as ZDS names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodInfo {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) service_account: String,
    /// Whether its DNS queries are answered, where it says so itself.
    pub(crate) answer_dns: Option<bool>,
}

/// Who serves the pods.
pub(crate) trait Pods {
    /// Starts serving a pod; a pod that is known already with that namespace stays as it is.
    fn add(&mut self, pod: PodInfo, netns: OwnedFd) -> impl Future<Output = Result<(), String>>;
    /// Ends serving a pod; one that is not known is no error.
    fn delete(&mut self, uid: &str);
    fn knows(&self, uid: &str) -> bool;
    /// The agent's whole list is in: every other pod is gone.
    fn retain(&mut self, named: &HashSet<String>);
    /// Whether the agent is there.
    fn connected(&mut self, connected: bool);
}

/// Why a conversation with the agent ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the agent's socket {0} cannot be reached: {1}; is the agent running?")]
    Unreachable(String, io::Error),
    #[error("the agent hung up")]
    HungUp,
    #[error("the socket to the agent failed: {0}")]
    Socket(#[from] io::Error),
    #[error("the agent sent what is not ZDS: {0}")]
    Malformed(String),
}

/// Talks to the agent for ever.
pub(crate) async fn run(path: &Path, pods: &mut impl Pods) {
    let mut wait = BACK_OFF.0;
    let mut told = false;
    loop {
        let mut conversation = Conversation { named: HashSet::new(), complete: false, heard: false };
        let ended = conversation.hold(path, pods).await;
        pods.connected(false);
        if conversation.heard {
            wait = BACK_OFF.0;
            told = false;
        }
        if !told {
            tracing::warn!("{ended}; the pods known so far are served on, trying again");
            told = true;
        }
        sleep(wait.mul_f64(rand::random_range(0.75..1.25))).await;
        wait = (wait * 2).min(BACK_OFF.1);
    }
}

struct Conversation {
    named: HashSet<String>,
    complete: bool,
    heard: bool,
}

impl Conversation {
    /// Talks until the conversation ends, and says why it did.
    async fn hold(&mut self, path: &Path, pods: &mut impl Pods) -> Ended {
        self.speak(path, pods).await.err().unwrap_or(Ended::HungUp)
    }

    async fn speak(&mut self, path: &Path, pods: &mut impl Pods) -> Result<(), Ended> {
        let wire = Wire::connect(path).map_err(|e| Ended::Unreachable(path.display().to_string(), e))?;
        wire.send(&ZdsHello { version: Version::V1.into() }.encode_to_vec(), None).await?;
        tracing::info!(path = %path.display(), "connected to the agent");
        pods.connected(true);
        while let Some(packet) = wire.receive().await? {
            let request = WorkloadRequest::decode(packet.bytes.as_slice())
                .map_err(|e| Ended::Malformed(e.to_string()))?;
            let payload =
                request.payload.ok_or_else(|| Ended::Malformed("a request without payload".into()))?;
            self.heard = true;
            let outcome = self.obey(payload, packet.descriptors, pods).await;
            if let Err(reason) = &outcome {
                tracing::warn!("{reason}");
            }
            let ack = Ack { error: outcome.err().unwrap_or_default() };
            let response = WorkloadResponse { payload: Some(workload_response::Payload::Ack(ack)) };
            wire.send(&response.encode_to_vec(), None).await?;
        }
        Ok(())
    }

    async fn obey(
        &mut self,
        payload: workload_request::Payload,
        descriptors: Vec<OwnedFd>,
        pods: &mut impl Pods,
    ) -> Result<(), String> {
        match payload {
            workload_request::Payload::Add(add) => {
                let (pod, netns) = parse_add(add, descriptors)?;
                self.named.insert(pod.uid.clone());
                pods.add(pod, netns).await
            }
            workload_request::Payload::Keep(keep) => {
                let known = pods.knows(&keep.uid);
                let answer =
                    if known { Ok(()) } else { Err(format!("pod {} is not known here: add it", keep.uid)) };
                self.named.insert(keep.uid);
                answer
            }
            workload_request::Payload::Del(del) => {
                self.named.remove(&del.uid);
                pods.delete(&del.uid);
                Ok(())
            }
            workload_request::Payload::SnapshotSent(_) => {
                if !self.complete {
                    self.complete = true;
                    pods.retain(&self.named);
                }
                Ok(())
            }
        }
    }
}

fn parse_add(add: AddWorkload, descriptors: Vec<OwnedFd>) -> Result<(PodInfo, OwnedFd), String> {
    let uid = add.uid;
    if uid.is_empty() || uid.contains(['/', '\0']) || uid.starts_with('.') {
        return Err(format!("{uid:?} is no pod identifier"));
    }
    let info = add.workload_info.ok_or_else(|| format!("pod {uid} came without names"))?;
    if info.name.is_empty() || info.namespace.is_empty() || info.service_account.is_empty() {
        return Err(format!("pod {uid} came without name, namespace or service account"));
    }
    let [netns] = <[OwnedFd; 1]>::try_from(descriptors).map_err(|got| {
        format!("pod {uid} came with {} descriptors instead of its network namespace", got.len())
    })?;
    let pod = PodInfo {
        uid,
        namespace: info.namespace,
        name: info.name,
        service_account: info.service_account,
        answer_dns: info.culvert_answer_dns,
    };
    Ok((pod, netns))
}

#[cfg(test)]
mod tests {
    use std::{
        io::IoSlice,
        os::fd::{AsFd, AsRawFd},
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use nix::sys::socket::{
        AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, accept, bind, listen,
        recv, sendmsg, socket,
    };
    use proto::workload::zds::{DelWorkload, SnapshotSent, WorkloadInfo};

    use super::*;

    #[derive(Default)]
    struct Known {
        pods: Vec<(PodInfo, OwnedFd)>,
        connections: Arc<AtomicUsize>,
    }

    impl Pods for Known {
        async fn add(&mut self, pod: PodInfo, netns: OwnedFd) -> Result<(), String> {
            if pod.name == "broken" {
                return Err("its listeners cannot be opened".into());
            }
            self.pods.retain(|(known, _)| known.uid != pod.uid);
            self.pods.push((pod, netns));
            Ok(())
        }
        fn delete(&mut self, uid: &str) {
            self.pods.retain(|(known, _)| known.uid != uid);
        }
        fn knows(&self, uid: &str) -> bool {
            self.pods.iter().any(|(known, _)| known.uid == uid)
        }
        fn retain(&mut self, named: &HashSet<String>) {
            self.pods.retain(|(known, _)| named.contains(&known.uid));
        }
        fn connected(&mut self, connected: bool) {
            self.connections.fetch_add(usize::from(connected), Ordering::SeqCst);
        }
    }

    fn request(payload: workload_request::Payload) -> Vec<u8> {
        WorkloadRequest { payload: Some(payload) }.encode_to_vec()
    }

    fn add(uid: &str, name: &str) -> Vec<u8> {
        let info = WorkloadInfo {
            name: name.into(),
            namespace: "shop".into(),
            service_account: "web".into(),
            ..Default::default()
        };
        request(workload_request::Payload::Add(AddWorkload { uid: uid.into(), workload_info: Some(info) }))
    }

    fn del(uid: &str) -> Vec<u8> {
        request(workload_request::Payload::Del(DelWorkload { uid: uid.into() }))
    }

    fn complete() -> Vec<u8> {
        request(workload_request::Payload::SnapshotSent(SnapshotSent {}))
    }

    /// The agent's end, blocking: takes the hello, sends each packet, and returns the acknowledged errors.
    fn agent(listener: &OwnedFd, packets: &[(Vec<u8>, bool)]) -> (OwnedFd, Vec<String>) {
        let peer = crate::fd::own(accept(listener.as_raw_fd()).unwrap());
        let mut buffer = [0; 256];
        let n = recv(peer.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
        assert_eq!(ZdsHello::decode(&buffer[..n]).unwrap().version(), Version::V1);
        let mut errors = Vec::new();
        for (packet, with_descriptor) in packets {
            let null = std::fs::File::open("/dev/null").unwrap();
            let raw = [null.as_raw_fd()];
            let rights = [ControlMessage::ScmRights(&raw)];
            let control: &[ControlMessage<'_>] = if *with_descriptor { &rights } else { &[] };
            sendmsg::<()>(peer.as_raw_fd(), &[IoSlice::new(packet)], control, MsgFlags::empty(), None)
                .unwrap();
            let n = recv(peer.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
            let response = WorkloadResponse::decode(&buffer[..n]).unwrap();
            let Some(workload_response::Payload::Ack(ack)) = response.payload else { panic!("no ack") };
            errors.push(ack.error);
        }
        (peer, errors)
    }

    fn listening(path: &Path) -> OwnedFd {
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::empty(), None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        listen(&listener.as_fd(), Backlog::new(4).unwrap()).unwrap();
        listener
    }

    async fn until(what: &str, mut met: impl FnMut() -> bool) {
        for _ in 0..2000 {
            if met() {
                return;
            }
            sleep(Duration::from_millis(5)).await;
        }
        panic!("never saw: {what}");
    }

    #[tokio::test]
    async fn pods_come_with_their_namespace_and_are_reconciled_after_a_new_snapshot() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("zds.sock");
        let listener = listening(&path);
        let connections = Arc::new(AtomicUsize::new(0));
        let mut pods = Known { connections: connections.clone(), ..Known::default() };
        let first: Vec<(Vec<u8>, bool)> = vec![
            (add("uid-a", "a"), true),
            (add("uid-b", "b"), true),
            (add("uid-c", "c"), false),
            (add("uid-d", "broken"), true),
            (add("../x", "x"), true),
            (complete(), false),
            (del("uid-unknown"), false),
        ];
        let second: Vec<(Vec<u8>, bool)> = vec![(add("uid-b", "b"), true), (complete(), false)];
        let agents = tokio::task::spawn_blocking(move || {
            let (peer, errors) = agent(&listener, &first);
            drop(peer);
            (errors, agent(&listener, &second))
        });
        {
            let talk = run(&path, &mut pods);
            tokio::pin!(talk);
            let twice = until("a second connection", || connections.load(Ordering::SeqCst) == 2);
            tokio::select! { () = &mut talk => unreachable!(), () = twice => {} }
            let (errors, (_peer, later)) =
                tokio::select! { () = talk => unreachable!(), agents = agents => agents.unwrap() };
            assert_eq!(errors[0], "");
            assert_eq!(errors[1], "");
            assert!(errors[2].contains("network namespace"), "{errors:?}");
            assert!(errors[3].contains("listeners"), "{errors:?}");
            assert!(errors[4].contains("no pod identifier"), "{errors:?}");
            assert_eq!(errors[5..], ["", ""]);
            assert_eq!(later, ["", ""]);
        }
        let names: Vec<&str> = pods.pods.iter().map(|(pod, _)| pod.name.as_str()).collect();
        assert_eq!(names, ["b"], "the pod that the second agent did not name is gone");
    }
}
