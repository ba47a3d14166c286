//! Peers that are gone without a word: who waits for them is told soon, turns to another, and loses nothing.

use std::{cell::Cell, future::pending, io, rc::Rc, sync::Arc, time::Duration};

use hbone::{
    client::{OpenError, PATIENCE, Peers, Pool},
    copy::{Meter, relay},
};
use sim::{Pipe, World, pipe, run};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::spawn_local,
    time::{Instant, sleep},
};
use tokio_rustls::TlsAcceptor;

struct Stage {
    world: Rc<World>,
    peers: Arc<Peers>,
    pool: Pool,
    /// How often what the app has said was asked for.
    asked: Rc<Cell<u32>>,
}

impl Stage {
    async fn new() -> Self {
        let (world, peers) = (World::new().await, Arc::<Peers>::default());
        let pool = Pool::with_peers(world.settings.clone(), world.calling_store.clone(), peers.clone());
        Self { world, peers, pool, asked: Rc::default() }
    }

    /// Opens a connection of an app that has said "hello", and how long that took; it is echoed if it was opened.
    async fn open(&self) -> (Result<(), OpenError>, Duration) {
        let world = self.world.clone();
        self.open_by(async move || io::Result::Ok(world.dial())).await
    }

    async fn open_by(
        &self,
        dial: impl AsyncFnOnce() -> io::Result<Pipe> + 'static,
    ) -> (Result<(), OpenError>, Duration) {
        let Self { world, pool, asked, .. } = self;
        let (before, begin) = (asked.get(), Instant::now());
        let mut early = |buffer: &mut [u8]| {
            asked.set(asked.get() + 1);
            buffer[..5].copy_from_slice(b"hello");
            5
        };
        let patience = Some(PATIENCE);
        let opened = pool.open_with(&world.key(), dial, &world.connect(), &mut early, patience).await;
        let took = begin.elapsed();
        let Ok((tunnel, _)) = opened else { return (opened.map(drop), took) };
        let (link, mut app, _wire) = pipe(64 << 10, None);
        spawn_local(async move { relay(link, tunnel, &Meter::new(), pending()).await });
        if asked.get() == before {
            // What was not asked for is still in the app's socket.
            app.write_all(b"hello").await.expect("written");
        }
        let mut accepted = world.accepted().await;
        let mut heard = [0; 5];
        accepted.app.read_exact(&mut heard).await.expect("said");
        assert_eq!(&heard, b"hello");
        (Ok(()), took)
    }
}

#[test]
fn a_tunnel_that_has_fallen_silent_is_left_in_two_seconds_and_nothing_is_lost() {
    run(async {
        let stage = Stage::new().await;
        let (mut held, mut echo) = stage.world.pair(&stage.pool).await;
        stage.open().await.0.expect("opened");
        sleep(Duration::from_secs(5)).await;
        let (asked, wire) = (stage.asked.get(), stage.world.wires.borrow()[0].clone());
        wire.cut();
        let (failed, took) = stage.open().await;
        let error = failed.expect_err("nobody is there");
        assert!(matches!(error, OpenError::Silent { .. }) && error.unanswered().is_some(), "{error}");
        assert!((1900..2200).contains(&took.as_millis()), "{took:?}");
        assert_eq!(stage.asked.get(), asked, "what the app has said is there still");
        assert!(stage.peers.avoids(stage.world.key().peer.ip()));
        // Where it is chosen all the same it is dialled anew; what runs in the old tunnel waits.
        let (opened, took) = stage.open().await;
        opened.expect("opened");
        assert!(took < Duration::from_millis(100), "{took:?}");
        assert_eq!((stage.world.wires.borrow().len(), stage.peers.marked()), (2, 0));
        held.app.write_all(b"ping").await.expect("written");
        sleep(Duration::from_secs(10)).await;
        wire.mend();
        let mut heard = [0; 4];
        echo.app.read_exact(&mut heard).await.expect("it was not broken");
        assert_eq!(&heard, b"ping");
    });
}

#[test]
fn a_silence_that_ends_is_forgiven() {
    run(async {
        let stage = Stage::new().await;
        let (mut held, mut echo) = stage.world.pair(&stage.pool).await;
        let wire = stage.world.wires.borrow()[0].clone();
        wire.cut();
        held.app.write_all(b"ping").await.expect("written");
        sleep(Duration::from_secs(4)).await;
        assert_eq!(stage.peers.marked(), 1);
        wire.mend();
        let mut heard = [0; 4];
        echo.app.read_exact(&mut heard).await.expect("arrives");
        sleep(Duration::from_secs(1)).await;
        assert_eq!(stage.peers.marked(), 0);
        stage.open().await.0.expect("opened");
        assert_eq!(stage.world.wires.borrow().len(), 1, "by the same tunnel");
    });
}

#[test]
fn what_was_said_to_a_peer_that_was_just_heard_is_never_said_to_another() {
    run(async {
        let stage = Stage::new().await;
        stage.open().await.0.expect("opened");
        stage.open().await.0.expect("opened");
        stage.world.wires.borrow()[0].cut();
        // Of many at once each counts as the first.
        let (one, other) = tokio::join!(stage.open(), stage.open());
        for (failed, took) in [one, other] {
            let error = failed.expect_err("nobody is there");
            assert!(error.unanswered().is_none(), "{error}");
            assert!(took > Duration::from_secs(15), "{took:?}");
        }
        assert_eq!((stage.asked.get(), stage.peers.tally().losses()), (4, 1));
    });
}

#[test]
fn a_dial_is_left_after_its_patience_and_goes_on() {
    run(async {
        let stage = Stage::new().await;
        let (world, answers) = (stage.world.clone(), Rc::new(tokio::sync::Notify::new()));
        let late = answers.clone();
        let dial = async move || {
            late.notified().await;
            io::Result::Ok(world.dial())
        };
        let (failed, took) = stage.open_by(dial).await;
        let error = failed.expect_err("late");
        assert!(error.unanswered().is_some(), "{error}");
        assert_eq!((took, stage.asked.get(), stage.peers.marked()), (PATIENCE, 0, 1));
        // It has answered after all: who comes next finds its tunnel, and the mark is gone.
        answers.notify_one();
        sleep(Duration::from_millis(100)).await;
        assert_eq!(stage.peers.marked(), 0);
        let (opened, took) = stage.open_by(async || panic!("there is a tunnel")).await;
        opened.expect("opened");
        assert!(took < Duration::from_millis(100), "{took:?}");
    });
}

/// A node that takes one stream, and says of all others that it has not looked at them.
async fn takes_one(world: Rc<World>, far: Pipe) {
    let certified = world.called_store.certified(&world.called).await.expect("a certificate");
    let acceptor = TlsAcceptor::from(world.called_store.server_config(&certified));
    let tls = acceptor.accept(far).await.expect("a handshake");
    let mut connection = h2::server::handshake(tls).await.expect("a preface");
    let mut taken = Vec::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        if taken.is_empty() {
            let sending = respond.send_response(http::Response::new(()), false).expect("answered");
            taken.push((request, sending));
        } else {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
        }
    }
}

#[test]
fn who_is_silent_after_a_tunnel_that_took_no_more_is_left_for_another_peer() {
    run(async {
        let stage = Stage::new().await;
        let (world, key) = (&stage.world, stage.world.key());
        let (near, far) = world.wire();
        spawn_local(takes_one(world.clone(), far));
        let held = stage.pool.open(&key, async || io::Result::Ok(near), &world.connect()).await;
        let _held = held.expect("the first");
        sleep(Duration::from_secs(5)).await;
        let (near, _nobody) = world.wire();
        let (failed, took) = stage.open_by(async || io::Result::Ok(near)).await;
        let error = failed.expect_err("nobody is there");
        assert!(error.unanswered().is_some(), "{error}");
        assert!((PATIENCE..PATIENCE * 2).contains(&took), "{took:?}");
        assert_eq!((stage.asked.get(), stage.peers.marked()), (0, 1), "what the app has said is there still");
    });
}

#[test]
fn an_answer_by_a_tunnel_that_was_there_takes_the_mark_away() {
    run(async {
        let stage = Stage::new().await;
        stage.open().await.0.expect("opened");
        let peer = stage.world.key().peer;
        // Another worker's dial has failed.
        stage.peers.lost(peer.ip(), &"nobody took the connection");
        assert_eq!(stage.peers.marked(), 1);
        stage.open_by(async || panic!("there is a tunnel")).await.0.expect("opened");
        assert_eq!(stage.peers.marked(), 0);
    });
}

#[test]
fn what_is_refused_marks_nobody() {
    run(async {
        let stage = Stage::new().await;
        *stage.world.judge.borrow_mut() = Box::new(|_| Some(http::StatusCode::UNAUTHORIZED));
        let error = stage.open().await.0.expect_err("refused");
        assert!(matches!(error, OpenError::Refused { .. }) && error.unanswered().is_none(), "{error}");
        let refused = async || Err(io::ErrorKind::PermissionDenied.into());
        stage.pool.retain(|_| false);
        assert!(stage.open_by(refused).await.0.is_err());
        assert_eq!(stage.peers.tally().losses(), 0);
        let nobody = async || Err(io::ErrorKind::HostUnreachable.into());
        assert!(stage.open_by(nobody).await.0.is_err());
        assert_eq!(stage.peers.tally().losses(), 1);
    });
}
