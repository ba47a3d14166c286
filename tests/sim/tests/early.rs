//! What an app says before its tunnel is open rides with the request.

use std::{cell::Cell, io, rc::Rc};

use hbone::copy::{End, Meter, relay};
use sim::{Pipe, World, pipe, run};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::spawn_local,
};
use tokio_rustls::TlsAcceptor;

/// Gives `said` at the first call; nobody may ask twice.
fn says(said: &'static [u8], asked: &Rc<Cell<u32>>) -> impl FnMut(&mut [u8]) -> usize + 'static {
    let asked = asked.clone();
    move |buffer| {
        asked.set(asked.get() + 1);
        buffer[..said.len()].copy_from_slice(said);
        said.len()
    }
}

#[test]
fn what_was_said_early_comes_first_and_counts() {
    run(async {
        let world = World::new().await;
        let (pool, meter, asked) = (world.pool(), Rc::new(Meter::new()), Rc::default());
        let (world_of_dial, counted) = (world.clone(), meter.clone());
        let dial = async move || io::Result::Ok(world_of_dial.dial());
        let mut early = says(b"early, ", &asked);
        let opened = pool.open_with(&world.key(), dial, &world.connect(), &mut early, None).await;
        let (tunnel, _info) = opened.expect("opened");
        let (link, mut app, _wire) = pipe(64 << 10, None);
        let end = spawn_local(async move { relay(link, tunnel, &counted, std::future::pending()).await });
        app.write_all(b"late").await.expect("written");
        app.shutdown().await.expect("an end");
        let mut accepted = world.accepted().await;
        let mut heard = Vec::new();
        accepted.app.read_to_end(&mut heard).await.expect("all of it");
        assert_eq!(heard, b"early, late");
        accepted.app.shutdown().await.expect("an end");
        assert!(matches!(end.await.expect("an end"), End::Finished));
        assert_eq!((meter.sent(), asked.get()), (11, 1));
    });
}

/// A foreign server that serves the first stream of a tunnel, as an echo, and refuses all others.
fn serves_one(world: &Rc<World>) -> Pipe {
    let (near, far) = world.wire();
    let world = world.clone();
    spawn_local(async move {
        let certified = world.called_store.current(&world.called).expect("a certificate");
        let config = world.called_store.server_config(&certified);
        let tls = TlsAcceptor::from(config).accept(far).await.expect("a handshake");
        let mut h2 = h2::server::handshake(tls).await.expect("a preface");
        let mut served = false;
        while let Some(Ok((request, mut respond))) = h2.accept().await {
            if std::mem::replace(&mut served, true) {
                respond.send_reset(h2::Reason::REFUSED_STREAM);
                continue;
            }
            spawn_local(async move {
                let mut body = request.into_body();
                let mut send = respond.send_response(http::Response::new(()), false).expect("sent");
                while let Some(Ok(data)) = body.data().await {
                    send.send_data(data, false).expect("echoed");
                }
            });
        }
    });
    near
}

#[test]
fn it_is_said_again_where_the_request_is_tried_again() {
    run(async {
        let world = World::new().await;
        let (pool, asked) = (world.pool(), Rc::default());
        let dial = |world: &Rc<World>| {
            let world = world.clone();
            async move || io::Result::Ok(serves_one(&world))
        };
        let (_held, _) = pool.open(&world.key(), dial(&world), &world.connect()).await.expect("opened");
        // The tunnel is there, and refuses: the request goes over a new one, with what was said.
        let mut early = says(b"hear me", &asked);
        let opened = pool.open_with(&world.key(), dial(&world), &world.connect(), &mut early, None).await;
        let (tunnel, info) = opened.expect("opened elsewhere");
        assert!(!info.reused);
        let (link, mut app, _wire) = pipe(64 << 10, None);
        spawn_local(async move { relay(link, tunnel, &Meter::new(), std::future::pending()).await });
        let mut echo = [0; 7];
        app.read_exact(&mut echo).await.expect("the echo");
        assert_eq!((&echo, asked.get()), (b"hear me", 1));
    });
}
