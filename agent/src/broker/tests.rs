//! The broker against ztunnels made of a few lines.

use std::{fs::File, io, os::unix::fs::MetadataExt, path::PathBuf, time::Duration};

use prost::Message;
use proto::workload::zds::{
    Ack, Version, WorkloadRequest, WorkloadResponse, ZdsHello, workload_request::Payload, workload_response,
};
use tokio::time::timeout;

use super::*;
use crate::seqpacket::Connection;

struct Fixture {
    broker: Broker,
    holdings: mpsc::UnboundedReceiver<Holding>,
    path: PathBuf,
    connected: Gauge,
    _directory: tempfile::TempDir,
}

fn fixture() -> Fixture {
    let _directory = tempfile::tempdir().expect("a directory");
    let path = _directory.path().join("zds.sock");
    let (sender, holdings) = mpsc::unbounded_channel();
    let connected = Gauge::default();
    let broker = Broker::new(sender, connected.clone());
    tokio::spawn(broker.clone().serve(Listener::bind(&path).expect("binds")));
    Fixture { broker, holdings, path, connected, _directory }
}

fn info(name: &str) -> WorkloadInfo {
    WorkloadInfo {
        name: name.into(),
        namespace: "shop".into(),
        service_account: "sa".into(),
        culvert_answer_dns: None,
    }
}

fn netns() -> Arc<Netns> {
    Arc::new(Netns::current().expect("a namespace"))
}

/// Long enough for any machine; only a test that fails waits for it.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), future).await.unwrap_or_else(|_| panic!("never saw {what}"))
}

impl Fixture {
    async fn ztunnel(&self) -> Ztunnel {
        let connection = Connection::connect(&self.path).expect("connects");
        let hello = ZdsHello { version: Version::V1.into() }.encode_to_vec();
        connection.send(&hello, None).await.expect("sends");
        Ztunnel { connection }
    }

    async fn holding(&mut self) -> Holding {
        soon("a holding", self.holdings.recv()).await.expect("the broker lives")
    }
}

struct Ztunnel {
    connection: Connection,
}

impl Ztunnel {
    /// The next message in short: `add u1 cart`, `del u1`, `keep u1`, `snapshot`.
    async fn hears(&self) -> String {
        let packet = soon("a message", self.connection.receive()).await.expect("reads").expect("a packet");
        let request = WorkloadRequest::decode(packet.bytes.as_slice()).expect("ZDS");
        let descriptor = packet.descriptor.map(File::from);
        match request.payload.expect("a payload") {
            Payload::Add(add) => {
                let inode = descriptor.expect("a namespace").metadata().expect("stat").ino();
                assert_eq!(inode, netns().inode(), "another namespace came along");
                format!("add {} {}", add.uid, add.workload_info.expect("names").name)
            }
            other => {
                assert!(descriptor.is_none());
                match other {
                    Payload::Keep(keep) => format!("keep {}", keep.uid),
                    Payload::Del(del) => format!("del {}", del.uid),
                    Payload::SnapshotSent(_) => "snapshot".into(),
                    Payload::Add(_) => unreachable!("matched above"),
                }
            }
        }
    }

    async fn answers(&self, error: &str) {
        let ack = workload_response::Payload::Ack(Ack { error: error.into() });
        let response = WorkloadResponse { payload: Some(ack) }.encode_to_vec();
        self.connection.send(&response, None).await.expect("sends");
    }

    /// Expects these messages and acknowledges each.
    async fn takes(&self, expected: &[&str]) {
        for expected in expected {
            assert_eq!(self.hears().await, *expected);
            self.answers("").await;
        }
    }

    async fn sees_the_end(&self) {
        let end = soon("the end", self.connection.receive()).await;
        assert!(
            matches!(&end, Ok(None))
                || end.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset),
            "{end:?}"
        );
    }
}

#[tokio::test]
async fn a_ztunnel_gets_every_pod_then_the_end_of_the_snapshot_then_what_changes() {
    let mut world = fixture();
    world.broker.put("u1", info("cart"), netns());
    world.broker.keep("u2", info("gone"));
    let ztunnel = world.ztunnel().await;
    // Nothing is said before everything is known: what a snapshot does not name, ztunnel drops.
    world.broker.put("u3", info("late"), netns());
    world.broker.complete();
    ztunnel.takes(&["add u1 cart", "keep u2", "add u3 late", "snapshot"]).await;
    let mut held = vec![world.holding().await, world.holding().await, world.holding().await];
    held.sort();
    assert_eq!(held, [("u1".into(), true), ("u2".into(), true), ("u3".into(), true)]);

    world.broker.put("u4", info("new"), netns());
    ztunnel.takes(&["add u4 new"]).await;
    assert_eq!(world.holding().await, ("u4".into(), true));
    world.broker.remove("u1");
    ztunnel.takes(&["del u1"]).await;
    assert_eq!(world.holding().await, ("u1".into(), false));
    // Another namespace under the same uid is another pod.
    world.broker.put("u3", info("again"), netns());
    ztunnel.takes(&["del u3", "add u3 again"]).await;
    assert_eq!(world.holding().await, ("u3".into(), false));
    assert_eq!(world.holding().await, ("u3".into(), true));
}

/// So does uninstalling: the ztunnel then drops every pod that is not named.
#[tokio::test]
async fn an_empty_table_is_told_too_and_whoever_waits_for_that_is_told() {
    let world = fixture();
    let ztunnel = world.ztunnel().await;
    let informed = world.broker.informed();
    tokio::pin!(informed);
    let early = timeout(Duration::from_millis(100), &mut informed).await;
    assert!(early.is_err(), "nothing was complete yet");
    world.broker.keep("left", WorkloadInfo::default());
    world.broker.complete();
    ztunnel.takes(&["keep left", "snapshot"]).await;
    soon("the word that a ztunnel knows", informed).await;
}

#[tokio::test]
async fn a_pod_is_held_as_long_as_one_live_ztunnel_has_acknowledged_it() {
    let mut world = fixture();
    world.broker.put("u1", info("cart"), netns());
    world.broker.complete();
    let first = world.ztunnel().await;
    first.takes(&["add u1 cart", "snapshot"]).await;
    assert_eq!(world.holding().await, ("u1".into(), true));
    let second = world.ztunnel().await;
    second.takes(&["add u1 cart", "snapshot"]).await;
    // Both are told what changes.
    world.broker.put("u2", info("new"), netns());
    second.takes(&["add u2 new"]).await;
    assert_eq!(world.holding().await, ("u2".into(), true));
    assert_eq!(first.hears().await, "add u2 new");
    // The first goes with its answer owed: what the second holds stays held.
    drop(first);
    world.broker.put("u3", info("newer"), netns());
    second.takes(&["add u3 newer"]).await;
    assert_eq!(world.holding().await, ("u3".into(), true));
    drop(second);
    let mut lost = vec![world.holding().await, world.holding().await, world.holding().await];
    lost.sort();
    assert_eq!(lost, [("u1".into(), false), ("u2".into(), false), ("u3".into(), false)]);
    soon("nobody connected", async {
        while world.connected.get() != 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_pod_is_not_held_and_offered_again() {
    let mut world = fixture();
    world.broker.put("u1", info("cart"), netns());
    world.broker.complete();
    let ztunnel = world.ztunnel().await;
    assert_eq!(ztunnel.hears().await, "add u1 cart");
    ztunnel.answers("no listener").await;
    ztunnel.takes(&["snapshot"]).await;
    assert!(world.holdings.try_recv().is_err());
    ztunnel.takes(&["add u1 cart"]).await;
    assert_eq!(world.holding().await, ("u1".into(), true));
}

#[tokio::test(start_paused = true)]
async fn who_breaks_the_protocol_is_disconnected_and_the_others_are_not() {
    let world = fixture();
    world.broker.put("u1", info("cart"), netns());
    world.broker.complete();
    let good = world.ztunnel().await;
    good.takes(&["add u1 cart", "snapshot"]).await;

    let mute = Connection::connect(&world.path).expect("connects");
    let stranger = Connection::connect(&world.path).expect("connects");
    stranger.send(b"\xff\xff\xff", None).await.expect("sends");
    Ztunnel { connection: stranger }.sees_the_end().await;
    let future = Connection::connect(&world.path).expect("connects");
    future.send(&[8, 2], None).await.expect("sends");
    Ztunnel { connection: future }.sees_the_end().await;
    let lazy = world.ztunnel().await;
    assert_eq!(lazy.hears().await, "add u1 cart");
    lazy.sees_the_end().await;
    let eager = world.ztunnel().await;
    eager.takes(&["add u1 cart", "snapshot"]).await;
    eager.answers("").await;
    eager.sees_the_end().await;
    Ztunnel { connection: mute }.sees_the_end().await;

    world.broker.remove("u1");
    good.takes(&["del u1"]).await;
}
