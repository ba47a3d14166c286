//! A peer that has said all it has to say and hears no more: END_STREAM, then a reset with NO_ERROR
//! (RFC 9113, section 8.1). What it said must arrive whole, with an end rather than a reset behind it.

use std::io::{self, ErrorKind};

use hbone::copy::{End, Meter, relay};
use sim::{Pipe, World, pipe, run};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::{JoinHandle, spawn_local},
};
use tokio_rustls::TlsAcceptor;

/// More than fits the app's pipe, so that most of it still waits when the reset comes.
const ANSWER: usize = 1 << 20;

/// A foreign server that answers one CONNECT at once, whole, and drops the request.
async fn answered(world: &std::rc::Rc<World>) -> (Pipe, JoinHandle<End>) {
    let (near, far) = world.wire();
    let called = world.clone();
    spawn_local(async move {
        let certified = called.called_store.current(&called.called).expect("a certificate");
        let config = called.called_store.server_config(&certified);
        let tls = TlsAcceptor::from(config).accept(far).await.expect("a handshake");
        let mut h2 = h2::server::handshake(tls).await.expect("a preface");
        while let Some(Ok((request, mut respond))) = h2.accept().await {
            let mut send = respond.send_response(http::Response::new(()), false).expect("sent");
            send.send_data(vec![7; ANSWER].into(), true).expect("sent");
            // A server that drops a request it has answered says NO_ERROR: h2 does so by itself.
            drop(request);
        }
    });
    let pool = world.pool();
    let dial = async move || io::Result::Ok(near);
    let (tunnel, _) = pool.open(&world.key(), dial, &world.connect()).await.expect("opened");
    let (link, app, _wire) = pipe(16 << 10, None);
    let end = spawn_local(async move {
        let end = relay(link, tunnel, &Meter::new(), std::future::pending()).await;
        drop(pool);
        end
    });
    (app, end)
}

async fn read_answer(app: &mut Pipe) {
    let mut answer = vec![0; ANSWER];
    app.read_exact(&mut answer).await.expect("the whole answer");
    assert!(answer.iter().all(|byte| *byte == 7));
    assert_eq!(app.read(&mut answer).await.expect("an end, not a reset"), 0);
}

#[test]
fn a_complete_answer_survives_the_reset_behind_it() {
    run(async {
        let world = World::new().await;
        let (mut app, end) = answered(&world).await;
        read_answer(&mut app).await;
        app.shutdown().await.expect("an end");
        assert!(matches!(end.await.expect("an end"), End::Finished));
    });
}

#[test]
fn whoever_talks_on_to_it_is_reset() {
    run(async {
        let world = World::new().await;
        let (mut app, end) = answered(&world).await;
        read_answer(&mut app).await;
        app.write_all(b"are you still there?").await.expect("written");
        assert!(matches!(end.await.expect("an end"), End::ResetByRemote));
        let error = app.read(&mut [0; 10]).await.expect_err("a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    });
}
