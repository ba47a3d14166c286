//! Which tunnel a connection takes, and what becomes of tunnels.

use std::{cell::Cell, future::pending, io, rc::Rc, time::Duration};

use hbone::{
    Settings,
    client::{OpenError, Pool},
    copy::End,
};
use http::StatusCode;
use sim::{Caller, Pipe, World, run};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::spawn_local,
    time::{Instant, sleep},
};

async fn ping_pong(a: &mut Pipe, b: &mut Pipe) {
    let mut buffer = [0; 4];
    a.write_all(b"ping").await.expect("written");
    b.read_exact(&mut buffer).await.expect("read");
    b.write_all(b"pong").await.expect("written");
    a.read_exact(&mut buffer).await.expect("read");
    assert_eq!(&buffer, b"pong");
}

#[test]
fn both_ends_learn_who_the_other_is() {
    run(async {
        let world = World::new().await;
        let (caller, accepted) = world.pair(&world.pool()).await;
        assert_eq!(caller.info.peer, world.called);
        assert_eq!(caller.info.baggage.expect("baggage").service_name, "called");
        assert!(!caller.info.reused);
        assert_eq!(accepted.caller, world.caller);
        assert_eq!(accepted.authority, "10.0.0.2:8080");
        let forwarded = accepted.forwarded.expect("forwarded");
        assert_eq!(forwarded.source, "10.0.0.1:4711".parse().expect("an address"));
        assert_eq!(forwarded.host.as_deref(), Some("called.default.svc.cluster.local"));
    });
}

#[test]
fn a_full_tunnel_gets_a_second_one() {
    run(async {
        let world = World::with_settings(Settings { max_streams: 3, ..Settings::default() }).await;
        // The called node says 3; the caller must heed it, not its own idea.
        let pool = Pool::new(Settings::default(), world.calling_store.clone());
        let mut open = Vec::new();
        for _ in 0..7 {
            open.push(world.pair(&pool).await);
        }
        assert_eq!(world.wires.borrow().len(), 3);
        for (caller, accepted) in &mut open {
            ping_pong(&mut caller.app, &mut accepted.app).await;
        }
        let mut streams: Vec<_> = pool.summaries().iter().map(|tunnel| tunnel.streams).collect();
        streams.sort_unstable();
        assert_eq!(streams, [1, 3, 3]);
        // A seat that comes free is taken again.
        open.drain(..3).for_each(drop);
        sleep(Duration::from_millis(10)).await;
        open.push(world.pair(&pool).await);
        assert_eq!(world.wires.borrow().len(), 3);
    });
}

#[test]
fn many_who_come_at_once_share_one_dial() {
    run(async {
        let world = World::new().await;
        let pool = world.pool();
        let opening: Vec<_> = (0..150)
            .map(|_| {
                let (world, pool) = (world.clone(), pool.clone());
                spawn_local(async move { world.open(&pool).await.expect("opened") })
            })
            .collect();
        let mut open: Vec<Caller> = Vec::new();
        for opening in opening {
            open.push(opening.await.expect("opened"));
        }
        assert_eq!(world.wires.borrow().len(), 1);
        assert_eq!(open.iter().filter(|caller| !caller.info.reused).count(), 1);
    });
}

#[test]
fn many_who_come_at_once_heed_the_peers_limit() {
    run(async {
        let world = World::with_settings(Settings { max_streams: 10, ..Settings::default() }).await;
        let pool = Pool::new(Settings::default(), world.calling_store.clone());
        let opening: Vec<_> = (0..35)
            .map(|_| {
                let (world, pool) = (world.clone(), pool.clone());
                spawn_local(async move { world.open(&pool).await.expect("opened") })
            })
            .collect();
        let mut open: Vec<Caller> = Vec::new();
        for opening in opening {
            open.push(opening.await.expect("opened"));
        }
        assert_eq!(world.wires.borrow().len(), 4);
    });
}

#[test]
fn a_dial_that_fails_is_answered_to_all_who_wait() {
    run(async {
        let world = World::new().await;
        let pool = world.pool();
        let dials = Rc::new(Cell::new(0));
        let opening: Vec<_> = (0..50)
            .map(|_| {
                let (world, pool, dials) = (world.clone(), pool.clone(), dials.clone());
                spawn_local(async move {
                    let dial = async move || -> io::Result<Pipe> {
                        dials.set(dials.get() + 1);
                        sleep(Duration::from_millis(100)).await;
                        Err(io::ErrorKind::ConnectionRefused.into())
                    };
                    pool.open(&world.key(), dial, &world.connect()).await.map(drop)
                })
            })
            .collect();
        for opening in opening {
            let error = opening.await.expect("answered").expect_err("nobody listens");
            assert!(matches!(error, OpenError::Dial { .. }), "{error}");
        }
        assert_eq!(dials.get(), 1);
        assert!(pool.summaries().is_empty());
        world.pair(&pool).await;
    });
}

#[test]
fn a_caller_who_gives_up_does_not_take_the_dial_with_it() {
    run(async {
        let world = World::new().await;
        let pool = world.pool();
        let slow = {
            let world = world.clone();
            async move || {
                sleep(Duration::from_millis(500)).await;
                io::Result::Ok(world.dial())
            }
        };
        let first = {
            let (world, pool) = (world.clone(), pool.clone());
            spawn_local(async move { pool.open(&world.key(), slow, &world.connect()).await.map(drop) })
        };
        sleep(Duration::from_millis(100)).await;
        let second = {
            let (world, pool) = (world.clone(), pool.clone());
            spawn_local(async move { world.open(&pool).await })
        };
        sleep(Duration::from_millis(100)).await;
        first.abort();
        let caller = second.await.expect("goes on").expect("opened");
        assert!(caller.info.reused);
        assert_eq!(world.wires.borrow().len(), 1);
    });
}

#[test]
fn bulk_gets_a_tunnel_of_its_own_and_their_number_is_bounded() {
    run(async {
        let world = World::new().await;
        let pool = world.pool();
        let mut busy = Vec::new();
        for _ in 0..6 {
            let (mut caller, mut accepted) = world.pair(&pool).await;
            let moving = spawn_local(async move {
                let piece = vec![1; 1 << 20];
                for _ in 0..8 {
                    caller.app.write_all(&piece).await.expect("written");
                }
                caller
            });
            let mut sink = vec![0; 8 << 20];
            accepted.app.read_exact(&mut sink).await.expect("read");
            busy.push((moving.await.expect("moved"), accepted));
            // No time has passed: what has moved is not forgotten.
        }
        assert_eq!(world.wires.borrow().len(), Settings::default().max_bulk_tunnels);
        assert!(pool.summaries().iter().all(|tunnel| tunnel.bulk));
        // A while later the tunnels are as good as any.
        sleep(Duration::from_secs(10)).await;
        assert!(pool.summaries().iter().all(|tunnel| !tunnel.bulk));
    });
}

#[test]
fn an_idle_tunnel_is_closed_and_a_carried_connection_is_not() {
    run(async {
        let world = World::new().await;
        let pool = world.pool();
        let (mut caller, mut accepted) = world.pair(&pool).await;
        sleep(Duration::from_secs(3600)).await;
        ping_pong(&mut caller.app, &mut accepted.app).await;
        drop((caller, accepted));
        sleep(Duration::from_secs(50)).await;
        assert_eq!(pool.summaries().len(), 1, "not yet");
        sleep(Duration::from_secs(20)).await;
        assert!(pool.summaries().is_empty());
        assert!(matches!(world.served.borrow()[..], [Ok(_)]), "the called node sees an orderly end");
    });
}

#[test]
fn a_drained_tunnel_serves_to_the_end_and_takes_nothing_new() {
    run(async {
        let world = World::new().await;
        let pool = world.pool();
        let (mut caller, mut accepted) = world.pair(&pool).await;
        world.drain();
        sleep(Duration::from_millis(10)).await;
        world.undrain();
        ping_pong(&mut caller.app, &mut accepted.app).await;
        let (mut second, mut taken) = world.pair(&pool).await;
        ping_pong(&mut second.app, &mut taken.app).await;
        ping_pong(&mut caller.app, &mut accepted.app).await;
        assert_eq!(world.wires.borrow().len(), 2);
        assert!(world.served.borrow().is_empty());
        caller.app.shutdown().await.expect("an end");
        accepted.app.shutdown().await.expect("an end");
        assert!(matches!(caller.end.await.expect("an end"), End::Finished));
        sleep(Duration::from_secs(1)).await;
        assert!(matches!(world.served.borrow()[..], [Ok(_)]));
    });
}

#[test]
fn connections_go_on_while_the_peer_drains() {
    run(async {
        // Opens that race with GOAWAYs are tried again: none fails.
        let world = World::new().await;
        let pool = world.pool();
        for round in 0..200u32 {
            if round % 10 == 3 {
                world.drain();
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
                world.undrain();
            }
            let (mut caller, mut accepted) = world.pair(&pool).await;
            ping_pong(&mut caller.app, &mut accepted.app).await;
        }
        assert!(world.wires.borrow().len() >= 2);
    });
}

#[test]
fn a_peer_that_falls_silent_is_found_out() {
    run(async {
        let world = World::new().await;
        let pool = world.pool();
        let (mut caller, mut accepted) = world.pair(&pool).await;
        ping_pong(&mut caller.app, &mut accepted.app).await;
        let start = Instant::now();
        world.wires.borrow()[0].cut();
        assert!(matches!(caller.end.await.expect("an end"), End::Failed(_)));
        assert!(matches!(accepted.end.await.expect("an end"), End::Failed(_)));
        let took = start.elapsed();
        assert!(took > Duration::from_secs(20) && took < Duration::from_secs(45), "{took:?}");
        assert!(pool.summaries().is_empty());
        let (mut caller, mut accepted) = world.pair(&pool).await;
        ping_pong(&mut caller.app, &mut accepted.app).await;
    });
}

#[test]
fn a_short_silence_does_no_harm() {
    run(async {
        let world = World::new().await;
        let (mut caller, mut accepted) = world.pair(&world.pool()).await;
        let wire = world.wires.borrow()[0].clone();
        for _ in 0..5 {
            wire.cut();
            caller.app.write_all(b"kept").await.expect("written");
            sleep(Duration::from_secs(15)).await;
            wire.mend();
            let mut kept = [0; 4];
            accepted.app.read_exact(&mut kept).await.expect("arrives");
            sleep(Duration::from_secs(15)).await;
        }
    });
}

#[test]
fn a_refusal_has_its_status() {
    run(async {
        let world = World::new().await;
        let pool = world.pool();
        *world.judge.borrow_mut() = Box::new(|_| Some(StatusCode::UNAUTHORIZED));
        let error = world.open(&pool).await.map(drop).expect_err("refused");
        assert!(matches!(error, OpenError::Refused { status: StatusCode::UNAUTHORIZED, .. }), "{error}");
        *world.judge.borrow_mut() = Box::new(|_| None);
        world.pair(&pool).await;
        assert_eq!(world.wires.borrow().len(), 1, "a refusal costs no tunnel");
    });
}

#[test]
fn timeouts_name_what_was_late() {
    run(async {
        let world = World::new().await;
        let pool = world.pool();
        let never = async move || pending::<io::Result<Pipe>>().await;
        let error = pool.open(&world.key(), never, &world.connect()).await.map(drop).expect_err("late");
        assert!(matches!(error, OpenError::Timeout { what: "accept a TCP connection", .. }), "{error}");

        let silent = {
            let world = world.clone();
            async move || {
                let (near, far) = world.wire();
                std::mem::forget(far);
                io::Result::Ok(near)
            }
        };
        let error = pool.open(&world.key(), silent, &world.connect()).await.map(drop).expect_err("late");
        assert!(matches!(error, OpenError::Timeout { what: "finish the TLS handshake", .. }), "{error}");

        // The peer answers PINGs but not the CONNECT.
        let (world, held) = (World::new().await, Rc::new(Cell::new(0)));
        let counted = held.clone();
        *world.judge.borrow_mut() = Box::new(move |_| {
            counted.set(counted.get() + 1);
            None
        });
        let patient = Settings { connect_timeout: Duration::ZERO, ..Settings::default() };
        let pool = Pool::new(patient, world.calling_store.clone());
        let error = world.open(&pool).await.map(drop).expect_err("late");
        assert!(matches!(error, OpenError::Timeout { what: "answer the CONNECT", .. }), "{error}");
    });
}

#[test]
fn what_is_not_wanted_any_more_retires() {
    run(async {
        let world = World::new().await;
        let pool = world.pool();
        let (mut caller, mut accepted) = world.pair(&pool).await;
        assert_eq!(pool.retain(|key| key.source != world.caller), 1);
        ping_pong(&mut caller.app, &mut accepted.app).await;
        world.pair(&pool).await;
        assert_eq!(world.wires.borrow().len(), 2, "nothing new enters the old tunnel");
    });
}

#[test]
fn an_identity_that_is_not_held_opens_nothing() {
    run(async {
        let world = World::new().await;
        let pool = world.pool();
        world.calling_store.release(&world.caller);
        let error = world.open(&pool).await.map(drop).expect_err("nothing to show");
        assert!(matches!(error, OpenError::Certificate(_)), "{error}");
        assert!(world.wires.borrow().is_empty(), "nothing was dialled");
    });
}
