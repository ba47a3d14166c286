//! Peers that are not as they should be, and peers of another make: plain rustls and h2 over a pipe.

use std::{io, pin::Pin, sync::Arc, time::Duration};

use hbone::{
    Settings,
    client::{Key, OpenError, Pool},
    copy::{Meter, relay},
    server::ServeError,
};
use http::{Method, Request, StatusCode, Version};
use identity::{Identity, Store, StoreOptions, authority::Authority};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use sim::{Obliging, Pipe, World, pipe, run};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    task::spawn_local,
    time::sleep,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

fn name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::IpAddr::from([10, 0, 0, 2]).into())
}

/// A store of another node that holds `identity`.
async fn store_of(authority: &Arc<Authority>, identity: &Identity, options: StoreOptions) -> Arc<Store> {
    let store = Store::new(Arc::new(Obliging(authority.clone())), options);
    store.hold(identity);
    store.certified(identity).await.expect("a certificate");
    store
}

/// A foreign client's configuration, with a certificate of `identity`.
async fn client_config(world: &World, identity: &Identity) -> Arc<ClientConfig> {
    let store = store_of(&world.authority, identity, StoreOptions::default()).await;
    let certified = store.current(identity).expect("a certificate");
    store.client_config(&certified, &Arc::from([world.called.clone()]))
}

/// A foreign client: plain rustls and h2.
async fn foreign(world: &std::rc::Rc<World>, identity: &Identity) -> h2::client::SendRequest<bytes::Bytes> {
    let config = client_config(world, identity).await;
    let tls = TlsConnector::from(config).connect(name(), world.dial()).await.expect("a handshake");
    let (sender, connection) = h2::client::handshake(tls).await.expect("a preface");
    spawn_local(async move { drop(connection.await) });
    sender
}

fn connect(authority: &str) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = authority.parse().expect("a uri");
    request
}

async fn status(sender: &mut h2::client::SendRequest<bytes::Bytes>, request: Request<()>) -> StatusCode {
    let (response, _send) = sender.send_request(request, false).expect("sent");
    response.await.expect("answered").status()
}

async fn still_serves(world: &std::rc::Rc<World>) {
    let (mut caller, mut accepted) = world.pair(&world.pool()).await;
    caller.app.write_all(b"hello").await.expect("written");
    let mut hello = [0; 5];
    accepted.app.read_exact(&mut hello).await.expect("read");
}

#[test]
fn another_identity_than_the_expected_one() {
    run(async {
        let world = World::new().await;
        let expected: Arc<[Identity]> = Arc::from([Identity::new("cluster.local", "default", "other")]);
        let key = Key { expected: expected.clone(), ..world.key() };
        let error = world
            .open_with(&world.pool(), &key, &world.connect(), std::future::pending())
            .await
            .map(drop)
            .expect_err("wrong");
        match error {
            OpenError::WrongIdentity { found, expected: wanted, .. } => {
                assert_eq!((found, wanted), (world.called.clone(), expected));
            }
            other => panic!("{other}"),
        }
        sleep(Duration::from_secs(1)).await;
        let served = world.served.borrow();
        let [Err(ServeError::Handshake { reason, .. })] = &served[..] else { panic!("{served:?}") };
        assert!(reason.contains("CertificateUnknown"), "{reason}");
    });
}

#[test]
fn a_caller_of_another_trust_domain() {
    run(async {
        let world = World::new().await;
        let rogue = Identity::new("other.domain", "default", "caller");
        let store = store_of(&world.authority, &rogue, StoreOptions::default()).await;
        let pool = Pool::new(Settings::default(), store);
        let key = Key { source: rogue, ..world.key() };
        let error = world
            .open_with(&pool, &key, &world.connect(), std::future::pending())
            .await
            .map(drop)
            .expect_err("refused");
        // The refusal comes after our handshake looked complete.
        assert!(matches!(error, OpenError::Rejected { .. }), "{error}");
        sleep(Duration::from_secs(1)).await;
        let served = world.served.borrow();
        let [Err(ServeError::Handshake { reason, .. })] = &served[..] else { panic!("{served:?}") };
        assert!(reason.contains("spiffe://other.domain/ns/default/sa/caller"), "{reason}");
    });
}

#[test]
fn a_herd_with_a_rejected_certificate_dials_once() {
    run(async {
        let world = World::new().await;
        let rogue = Identity::new("other.domain", "default", "caller");
        let store = store_of(&world.authority, &rogue, StoreOptions::default()).await;
        let pool = Pool::new(Settings::default(), store);
        let opening: Vec<_> = (0..20)
            .map(|_| {
                let (world, pool) = (world.clone(), pool.clone());
                let key = Key { source: rogue.clone(), ..world.key() };
                spawn_local(async move {
                    world.open_with(&pool, &key, &world.connect(), std::future::pending()).await.map(drop)
                })
            })
            .collect();
        for opening in opening {
            let error = opening.await.expect("answered").expect_err("refused");
            assert!(matches!(error, OpenError::Rejected { .. }), "{error}");
        }
        assert_eq!(world.wires.borrow().len(), 1);
    });
}

#[test]
fn a_root_that_is_not_ours() {
    run(async {
        let world = World::new().await;
        let stranger = Arc::new(Authority::ephemeral("cluster.local").expect("an authority"));
        // A caller whose certificate another root signed, and who trusts that root only.
        let store = store_of(&stranger, &world.caller, StoreOptions::default()).await;
        let pool = Pool::new(Settings::default(), store.clone());
        let error = world.open(&pool).await.map(drop).expect_err("untrusted");
        assert!(matches!(error, OpenError::Tls { .. }), "{error}");
        // It now trusts us; we still do not trust it.
        store.set_roots(world.authority.root_pem()).expect("a root");
        let error = world.open(&pool).await.map(drop).expect_err("untrusted");
        assert!(matches!(error, OpenError::Rejected { .. }), "{error}");
        // And when our side is told of its root, new connections succeed.
        world.called_store.set_roots(stranger.root_pem()).expect("a root");
        world.open(&pool).await.expect("trusted both ways");
    });
}

#[test]
fn no_client_certificate() {
    run(async {
        let world = World::new().await;
        let mut roots = RootCertStore::empty();
        let certified = world.called_store.current(&world.called).expect("a certificate");
        roots.roots.extend(certified.roots.roots.iter().cloned());
        let mut config = ClientConfig::builder_with_provider(identity::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(trusting::Anybody(identity::provider())))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let mut tls =
            TlsConnector::from(Arc::new(config)).connect(name(), world.dial()).await.expect("half way");
        let error = tls.read(&mut [0; 1]).await.expect_err("refused");
        assert!(error.to_string().contains("CertificateRequired"), "{error}");
        sleep(Duration::from_secs(1)).await;
        assert!(matches!(world.served.borrow()[..], [Err(ServeError::Handshake { .. })]));
        still_serves(&world).await;
    });
}

#[test]
fn a_handshake_that_never_ends() {
    run(async {
        let world = World::new().await;
        // One byte a second of what might become a ClientHello.
        let mut loris = world.dial();
        let dripping = spawn_local(async move {
            for byte in [22, 3, 1, 2, 0].into_iter().chain(std::iter::repeat(1)) {
                if loris.write_all(&[byte]).await.is_err() {
                    return;
                }
                sleep(Duration::from_secs(1)).await;
            }
        });
        // One that finishes TLS and never says a word of HTTP/2.
        let config = client_config(&world, &world.caller).await;
        let mute = TlsConnector::from(config).connect(name(), world.dial()).await.expect("a handshake");
        still_serves(&world).await;
        dripping.await.expect("thrown out");
        assert!(
            matches!(
                world.served.borrow()[..],
                [Err(ServeError::HandshakeTimeout { .. }), Err(ServeError::HandshakeTimeout { .. })]
            ),
            "{:?}",
            world.served.borrow()
        );
        drop(mute);
    });
}

#[test]
fn garbage_at_every_layer() {
    run(async {
        let world = World::new().await;
        // Instead of TLS.
        let mut raw = world.dial();
        raw.write_all(&[0x47; 4000]).await.expect("written");
        sleep(Duration::from_secs(1)).await;
        // Instead of HTTP/2.
        let config = client_config(&world, &world.caller).await;
        let connector = TlsConnector::from(config);
        let mut tls = connector.connect(name(), world.dial()).await.expect("a handshake");
        tls.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
        tls.flush().await.expect("flushed");
        sleep(Duration::from_secs(1)).await;
        // Frames that are none.
        let mut tls = connector.connect(name(), world.dial()).await.expect("a handshake");
        tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("written");
        tls.write_all(&[0xff; 100]).await.expect("written");
        tls.flush().await.expect("flushed");
        let mut rest = Vec::new();
        tls.read_to_end(&mut rest).await.expect("a GOAWAY and an end");
        sleep(Duration::from_secs(1)).await;
        assert_eq!(world.served.borrow().len(), 3);
        assert!(world.served.borrow().iter().all(Result::is_err), "{:?}", world.served.borrow());
        still_serves(&world).await;
    });
}

#[test]
fn records_that_were_tampered_with() {
    run(async {
        let world = World::new().await;
        let (near, mut middle_near) = world.wire();
        let (mut middle_far, far) = world.wire();
        world.serve(far);
        // A man in the middle who flips one bit, once the handshake is over.
        spawn_local(async move {
            let mut buffer = vec![0; 64 << 10];
            let mut seen = 0;
            loop {
                let mut back = vec![0; 64 << 10];
                tokio::select! {
                    count = middle_near.read(&mut buffer) => {
                        let Ok(count @ 1..) = count else { return };
                        seen += count;
                        if seen > 20_000 {
                            buffer[count - 1] ^= 1;
                        }
                        if middle_far.write_all(&buffer[..count]).await.is_err() { return }
                    }
                    count = middle_far.read(&mut back) => {
                        let Ok(count @ 1..) = count else { return };
                        if middle_near.write_all(&back[..count]).await.is_err() { return }
                    }
                }
            }
        });
        let pool = world.pool();
        let dial = async move || io::Result::Ok(near);
        let (tunnel, _info) = pool.open(&world.key(), dial, &world.connect()).await.expect("opened");
        let (link, mut app, _wire) = pipe(64 << 10, None);
        spawn_local(async move { relay(link, tunnel, &Meter::new(), std::future::pending()).await });
        let mut accepted = world.accepted().await;
        let piece = [9; 1000];
        for _ in 0..40 {
            if app.write_all(&piece).await.is_err() {
                break;
            }
            sleep(Duration::from_millis(1)).await;
        }
        let mut read = Vec::new();
        let error = accepted.app.read_to_end(&mut read).await.expect_err("a reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(read.iter().all(|byte| *byte == 9));
        let error = app.read(&mut [0; 1]).await.expect_err("a reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        sleep(Duration::from_secs(1)).await;
        assert!(
            matches!(world.served.borrow()[..], [Err(ServeError::Broken { .. })]),
            "{:?}",
            world.served.borrow()
        );
    });
}

#[test]
fn requests_that_are_refused_here() {
    run(async {
        let world = World::new().await;
        let mut sender = foreign(&world, &world.caller).await;
        let mut get = connect("http://10.0.0.2:8080/");
        *get.method_mut() = Method::GET;
        assert_eq!(status(&mut sender, get).await, StatusCode::BAD_REQUEST);
        for bad in ["10.0.0.2", "10.0.0.2:0", "x_y..z:1", "10.0.0.2:99999"] {
            let Ok(uri) = bad.parse::<http::Uri>() else { continue };
            let mut request = connect("10.0.0.2:8080");
            *request.uri_mut() = uri;
            assert_eq!(status(&mut sender, request).await, StatusCode::BAD_REQUEST, "{bad}");
        }
        let mut odd = connect("10.0.0.2:8080");
        odd.headers_mut().insert("baggage", "=%%%,".parse().expect("a value"));
        odd.headers_mut().insert("forwarded", "nonsense".parse().expect("a value"));
        assert_eq!(status(&mut sender, odd).await, StatusCode::OK, "reports are not worth a refusal");
    });
}

#[test]
fn headers_beyond_measure() {
    run(async {
        let world = World::new().await;
        let mut sender = foreign(&world, &world.caller).await;
        // Some: refused, and the tunnel lives on.
        let mut big = connect("10.0.0.2:8080");
        for index in 0..20 {
            let name = http::HeaderName::try_from(format!("x-{index}")).expect("a name");
            big.headers_mut().insert(name, "a".repeat(4000).parse().expect("a value"));
        }
        let (response, _send) = sender.send_request(big, false).expect("sent");
        match response.await {
            Ok(response) => assert_eq!(response.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
            Err(error) => assert!(error.is_reset() || error.is_go_away(), "{error}"),
        }
        still_serves(&world).await;
        // Far too many: whatever comes back, others are not disturbed.
        let mut sender = foreign(&world, &world.caller).await;
        let mut huge = connect("10.0.0.2:8080");
        for index in 0..400 {
            let name = http::HeaderName::try_from(format!("x-{index}")).expect("a name");
            huge.headers_mut().insert(name, "a".repeat(4000).parse().expect("a value"));
        }
        let (response, _send) = sender.send_request(huge, false).expect("sent");
        assert!(response.await.map_or(true, |response| response.status() != StatusCode::OK));
        still_serves(&world).await;
    });
}

#[test]
fn streams_that_are_opened_and_reset_at_once() {
    run(async {
        let world = World::new().await;
        let config = client_config(&world, &world.caller).await;
        let tls = TlsConnector::from(config).connect(name(), world.dial()).await.expect("a handshake");
        let mut frames = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        for stream in (1..20_001u32).step_by(2) {
            let id = stream.to_be_bytes();
            // HEADERS (END_HEADERS): literals for :method and :authority. Then RST_STREAM (CANCEL).
            let block = b"\x02\x07CONNECT\x01\x0d10.0.0.2:8080";
            frames.extend_from_slice(&[0, 0, block.len() as u8, 1, 4]);
            frames.extend_from_slice(&id);
            frames.extend_from_slice(block);
            frames.extend_from_slice(&[0, 0, 4, 3, 0]);
            frames.extend_from_slice(&id);
            frames.extend_from_slice(&[0, 0, 0, 8]);
        }
        let (mut read, mut write) = tokio::io::split(tls);
        let writing = spawn_local(async move { write.write_all(&frames).await });
        let mut answer = Vec::new();
        let _ = read.read_to_end(&mut answer).await;
        drop(writing.await);
        world.one_ended().await;
        {
            let served = world.served.borrow();
            let [Err(ServeError::Broken { reason, .. })] = &served[..] else { panic!("{served:?}") };
            assert!(reason.contains("excessive load"), "{reason}");
        }
        still_serves(&world).await;
    });
}

/// A foreign server: plain rustls (which sends session tickets) and h2; echoes.
fn foreign_server(world: &std::rc::Rc<World>, refuse_first: bool) -> Pipe {
    let (near, far) = world.wire();
    let world = world.clone();
    spawn_local(async move {
        let certified = world.called_store.current(&world.called).expect("a certificate");
        let mut config = (*world.called_store.server_config(&certified)).clone();
        config.send_tls13_tickets = 4;
        config.session_storage = rustls::server::ServerSessionMemoryCache::new(16);
        let tls = TlsAcceptor::from(Arc::new(config)).accept(far).await.expect("a handshake");
        let mut h2 = h2::server::handshake(tls).await.expect("a preface");
        let mut refused = !refuse_first;
        while let Some(Ok((request, mut respond))) = h2.accept().await {
            if !refused {
                refused = true;
                respond.send_reset(h2::Reason::REFUSED_STREAM);
                continue;
            }
            spawn_local(async move {
                let mut body = request.into_body();
                let mut send = respond.send_response(http::Response::new(()), false).expect("sent");
                while let Some(Ok(data)) = body.data().await {
                    body.flow_control().release_capacity(data.len()).expect("released");
                    send.send_data(data, false).expect("echoed");
                }
                send.send_data(bytes::Bytes::new(), true).expect("ended");
            });
        }
    });
    near
}

#[test]
fn a_foreign_server_is_understood() {
    run(async {
        let world = World::new().await;
        let pool = world.pool();
        let near = foreign_server(&world, false);
        let dial = async move || io::Result::Ok(near);
        let (tunnel, info) = pool.open(&world.key(), dial, &world.connect()).await.expect("opened");
        assert_eq!(info.baggage, None);
        let (link, mut app, _wire) = pipe(64 << 10, None);
        let end =
            spawn_local(async move { relay(link, tunnel, &Meter::new(), std::future::pending()).await });
        let question: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        let mut echo = vec![0; question.len()];
        let (mut read, mut write) = tokio::io::split(&mut app);
        let (wrote, got) = tokio::join!(write.write_all(&question), read.read_exact(&mut echo));
        wrote.expect("written");
        got.expect("read");
        assert!(echo == question);
        app.shutdown().await.expect("an end");
        assert_eq!(app.read(&mut echo).await.expect("an end"), 0);
        assert!(matches!(end.await.expect("an end"), hbone::copy::End::Finished));
    });
}

#[test]
fn a_refused_stream_is_tried_once_more_elsewhere() {
    run(async {
        let world = World::new().await;
        let pool = world.pool();
        // A tunnel that refuses its second stream, having served the first.
        let world_of_dial = world.clone();
        let first = async move || io::Result::Ok(foreign_server(&world_of_dial, false));
        let (_tunnel, _) = pool.open(&world.key(), first, &world.connect()).await.expect("opened");
        sleep(Duration::from_secs(1)).await;
        pool.retain(|_| false);
        // A fresh dial whose only stream is refused: nothing is left to try, and the error says so.
        let world_of_dial = world.clone();
        let refusing = async move || io::Result::Ok(foreign_server(&world_of_dial, true));
        let error = pool.open(&world.key(), refusing, &world.connect()).await.map(drop).expect_err("refused");
        assert!(matches!(error, OpenError::Broken { .. }), "{error}");
        // The next one starts afresh.
        world.pair(&pool).await;
    });
}

/// Key updates in mid-stream, by a peer whose rustls does them.
#[test]
fn keys_are_updated_when_the_peer_asks() {
    run(async {
        let world = World::new().await;
        let config = client_config(&world, &world.caller).await;
        let tls = TlsConnector::from(config).connect(name(), world.dial()).await.expect("a handshake");
        let shared = SharedTls(std::rc::Rc::new(std::cell::RefCell::new(tls)));
        let (mut sender, connection) =
            h2::client::Builder::new().handshake::<_, bytes::Bytes>(shared.clone()).await.expect("a preface");
        spawn_local(async move { drop(connection.await) });
        let (response, mut send) = sender.send_request(connect("10.0.0.2:8080"), false).expect("sent");
        let mut body = response.await.expect("accepted").into_body();
        let mut accepted = world.accepted().await;
        for round in 0..10u8 {
            shared.0.borrow_mut().get_mut().1.refresh_traffic_keys().expect("TLS 1.3");
            send.send_data(bytes::Bytes::from(vec![round; 1000]), false).expect("sent");
            let mut read = [0; 1000];
            accepted.app.read_exact(&mut read).await.expect("arrives under the new keys");
            assert_eq!(read, [round; 1000]);
            accepted.app.write_all(&read).await.expect("written");
            let mut back = 0;
            while back < 1000 {
                let data = body.data().await.expect("data").expect("comes back");
                body.flow_control().release_capacity(data.len()).expect("released");
                back += data.len();
            }
        }
    });
}

/// A TLS stream whose session can be reached while h2 owns it.
#[derive(Clone)]
struct SharedTls(std::rc::Rc<std::cell::RefCell<tokio_rustls::client::TlsStream<Pipe>>>);

impl AsyncRead for SharedTls {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        out: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_read(cx, out)
    }
}

impl AsyncWrite for SharedTls {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_write(cx, bytes)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_flush(cx)
    }
    fn poll_shutdown(
        self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_shutdown(cx)
    }
}

#[test]
fn random_bytes_after_the_handshake_never_hang_us() {
    for seed in 0..20 {
        run(async move {
            let world = World::new().await;
            let config = client_config(&world, &world.caller).await;
            let mut tls =
                TlsConnector::from(config).connect(name(), world.dial()).await.expect("a handshake");
            let mut rng = sim::Rng::new(seed);
            tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("written");
            // SETTINGS first, so that what follows is looked at.
            tls.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.expect("written");
            for _ in 0..50 {
                let payload = rng.bytes(200);
                let kind = rng.below(12) as u8;
                let (flags, stream) = (rng.draw() as u8 & 0x2d, rng.below(8) as u8);
                let mut frame = vec![0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream];
                frame.extend_from_slice(&payload[..usize::from(payload.len() as u8)]);
                if tls.write_all(&frame).await.is_err() {
                    break;
                }
            }
            let _ = tls.shutdown().await;
            let mut rest = Vec::new();
            let _ = tls.read_to_end(&mut rest).await;
            drop(tls);
            world.one_ended().await;
            still_serves(&world).await;
        });
    }
}
