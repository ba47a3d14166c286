//! Strangers at port 15008: refused as HBONE's rules say, while an honest connection goes on beside them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bed::Pod;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode};
use interop::{
    apps::{CLOSED, ECHO, Innocent},
    hostile::{self, Http2, Offer, TurnedAway},
    pki::Credentials,
    scene::{HBONE, Scene},
};
use mesh::Identity;
use rustls::AlertDescription;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::Runtime,
    time::timeout,
};

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs an attack while an honest connection talks; afterwards it must still talk, and all must live.
fn beside_an_innocent(scene: &mut Scene, attack: impl AsyncFnOnce(&Scene) -> Result<()>) {
    let innocent = Innocent::start(&scene.client, &scene.server).unwrap();
    innocent.still_talks().unwrap();
    runtime().block_on(attack(scene)).unwrap();
    innocent.still_talks().unwrap();
    // A new connection is served as well.
    Innocent::start(&scene.client, &scene.server).unwrap().finish().unwrap();
    let longest = innocent.finish().unwrap();
    assert!(longest < Duration::from_secs(5), "the innocent connection waited {longest:?} for an answer");
    scene.all_alive().unwrap();
}

#[test]
fn a_handshake_that_is_not_mutual_tls_13_of_our_trust_is_refused_with_the_right_alert() {
    let mut scene = Scene::start().unwrap();
    beside_an_innocent(&mut scene, async |scene| {
        let (from, door) = (scene.outside.netns(), scene.door());
        let honest = scene.credentials("outside", "stranger")?;
        let rogue = scene.rogue("shop", "client")?;
        let elsewhere = scene.credentials_of(Identity::new("other.domain", "shop", "client"))?;

        let refused = async |what: &'static str, offer: Offer<'_>| {
            hostile::refused(from, door, &offer).await.with_context(|| what)
        };
        let alert = TurnedAway::Alert;
        ensure!(
            refused("no certificate", Offer::anonymous()).await?
                == alert(AlertDescription::CertificateRequired)
        );
        let mut tls12 = hostile::dial(from, door)?;
        tls12.write_all(&hostile::client_hello_tls12()).await?;
        let mut answer = Vec::new();
        timeout(hostile::PATIENCE, tls12.read_to_end(&mut answer))
            .await
            .context("TLS 1.2 is not refused")??;
        // One record: a fatal alert, protocol_version (70).
        ensure!(
            answer.first() == Some(&21) && answer.ends_with(&[2, 70]),
            "TLS 1.2 was answered {answer:02x?}"
        );
        ensure!(
            refused("ChaCha20", Offer::chacha(&honest)).await? == alert(AlertDescription::HandshakeFailure)
        );
        let domain = refused("trust domain", Offer::usual(&elsewhere)).await?;
        ensure!(domain == alert(AlertDescription::CertificateUnknown), "trust domain: {domain:?}");
        let root = refused("rogue root", Offer::usual(&rogue)).await?;
        ensure!(matches!(root, TurnedAway::Alert(_)), "rogue root: {root:?}");
        // The same client with the right certificate is let in: the refusals were not for another reason.
        let mut http = Http2::open(from, door, &honest).await?;
        ensure!(http.connect(&scene.server.at(ECHO).to_string()).await? == StatusCode::OK);
        Ok(())
    });
}

#[test]
fn bytes_that_are_no_tls_or_no_http2_end_the_connection_only() {
    let mut scene = Scene::start().unwrap();
    beside_an_innocent(&mut scene, async |scene| {
        let (from, door) = (scene.outside.netns(), scene.door());
        let honest = scene.credentials("outside", "stranger")?;
        for garbage in
            [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0xff; 4096], &[0x16, 0x03, 0x01, 0xff, 0xff, 0x01]]
        {
            let mut stream = hostile::dial(from, door)?;
            stream.write_all(garbage).await?;
            stream.shutdown().await?;
            ends(&mut stream).await.context("garbage instead of TLS")?;
        }
        // After the preface and an empty SETTINGS: a frame of an unknown length of rubbish; a DATA frame on
        // stream 0; HEADERS whose block is no HPACK; a PUSH_PROMISE from a client; a WINDOW_UPDATE of zero.
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
        let frames: [&[u8]; 6] = [
            &[0xff; 300],
            &[0, 0, 1, 0, 0, 0, 0, 0, 0, 65],
            &[0, 0, 4, 1, 4, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff],
            &[0, 0, 4, 5, 4, 0, 0, 0, 1, 0, 0, 0, 2],
            &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0, 0, 5, 4, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5],
        ];
        for frame in frames {
            let mut stream = hostile::handshake(from, door, &Offer::usual(&honest)).await?;
            stream.write_all(preface).await?;
            stream.write_all(frame).await?;
            stream.flush().await?;
            ends(&mut stream).await.with_context(|| format!("garbage frame {frame:?}"))?;
        }
        let mut stream = hostile::handshake(from, door, &Offer::usual(&honest)).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: server\r\n\r\n").await?;
        ends(&mut stream).await.context("HTTP/1.1 within TLS")
    });
}

/// Reads until the peer ends the connection; what it says before (SETTINGS, GOAWAY) does not matter.
async fn ends(stream: &mut (impl AsyncReadExt + Unpin)) -> Result<()> {
    let mut said = Vec::new();
    // An error is an end as well: a reset, or a TLS close that is not clean.
    drop(
        timeout(hostile::PATIENCE * 2, stream.read_to_end(&mut said))
            .await
            .context("the peer keeps it open")?,
    );
    Ok(())
}

#[test]
fn requests_that_hbone_does_not_allow_get_their_status() {
    let more = |world: &bed::World| {
        world.manifests().authorization_policy(
            "shop",
            "only-client",
            "selector:\n  matchLabels:\n    app: other\naction: ALLOW\nrules:\n- from:\n  - source:\n      principals: [\"cluster.local/ns/shop/sa/client\"]\n",
        )
    };
    let (mut scene, ()) = Scene::with(more).unwrap();
    beside_an_innocent(&mut scene, async |scene| {
        let honest = scene.credentials("outside", "stranger")?;
        let mut http = Http2::open(scene.outside.netns(), scene.door(), &honest).await?;
        let server = &scene.server;
        let cases = [
            ("its own port", server.at(ECHO).to_string(), StatusCode::OK),
            ("another pod's address", scene.other.at(ECHO).to_string(), StatusCode::BAD_REQUEST),
            ("an address of nobody", "192.0.2.9:80".to_owned(), StatusCode::BAD_REQUEST),
            ("loopback", format!("127.0.0.1:{ECHO}"), StatusCode::BAD_REQUEST),
            ("no port", server.v4().to_string(), StatusCode::BAD_REQUEST),
            ("port 0", format!("{}:0", server.v4()), StatusCode::BAD_REQUEST),
            (
                "an unknown hostname",
                format!("no-such.shop.svc.cluster.local:{ECHO}"),
                StatusCode::SERVICE_UNAVAILABLE,
            ),
            ("a closed port", server.at(CLOSED).to_string(), StatusCode::SERVICE_UNAVAILABLE),
            ("ztunnel's own port", server.at(HBONE).to_string(), StatusCode::SERVICE_UNAVAILABLE),
        ];
        for (what, authority, expected) in &cases {
            let status = http.connect(authority).await.with_context(|| format!("CONNECT to {what}"))?;
            ensure!(status == *expected, "CONNECT to {what} ({authority}): {status}, not {expected}");
        }
        for method in [Method::GET, Method::POST, Method::OPTIONS] {
            let request =
                Request::builder().method(&method).uri(format!("https://{}/", server.at(ECHO))).body(())?;
            let status = http.ask(request, true).await.with_context(|| method.to_string())?;
            ensure!(status == StatusCode::BAD_REQUEST, "{method}: {status}");
        }
        let mut guarded = Http2::open(scene.outside.netns(), scene.other.at(HBONE), &honest).await?;
        let status = guarded.connect(&scene.other.at(ECHO).to_string()).await?;
        ensure!(status == StatusCode::UNAUTHORIZED, "refused by policy: {status}");
        let allowed = scene.credentials("shop", "client")?;
        let mut guarded = Http2::open(scene.outside.netns(), scene.other.at(HBONE), &allowed).await?;
        let status = guarded.connect(&scene.other.at(ECHO).to_string()).await?;
        ensure!(status == StatusCode::OK, "allowed by policy: {status}");
        // After all that the first connection still takes a request.
        let status = http.connect(&server.at(ECHO).to_string()).await?;
        ensure!(status == StatusCode::OK, "the connection is of no use after the refusals: {status}");
        Ok(())
    });
}

#[test]
fn oversized_headers_and_floods_of_resets_cost_their_sender_only() {
    let mut scene = Scene::start().unwrap();
    beside_an_innocent(&mut scene, async |scene| {
        let honest = scene.credentials("outside", "stranger")?;
        let authority = scene.server.at(ECHO).to_string();
        for kilobytes in [70, 1024] {
            let mut http = Http2::open(scene.outside.netns(), scene.door(), &honest).await?;
            let mut request = Request::builder().method(Method::CONNECT).uri(&authority).body(())?;
            for number in 0..kilobytes {
                let name = http::HeaderName::from_bytes(format!("x-padding-{number}").as_bytes())?;
                request.headers_mut().insert(name, HeaderValue::from_str(&"p".repeat(1000))?);
            }
            match http.ask(request, false).await {
                Ok(status) => ensure!(status.is_client_error(), "{kilobytes} KB of headers: {status}"),
                // A reset of the stream, or of the whole connection for the flood of CONTINUATION.
                Err(_refused) => {}
            }
        }
        rapid_reset(scene, &honest, &authority).await
    });
}

/// Opens and resets streams as fast as it can; the peer may end the connection over it.
async fn rapid_reset(scene: &Scene, honest: &Credentials, authority: &str) -> Result<()> {
    let http = Http2::open(scene.outside.netns(), scene.door(), honest).await?;
    for _ in 0..5000 {
        let Ok(mut requests) = http.requests.clone().ready().await else { return Ok(()) };
        let request = Request::builder().method(Method::CONNECT).uri(authority).body(())?;
        let Ok((_answer, mut sending)) = requests.send_request(request, false) else { return Ok(()) };
        sending.send_reset(h2::Reason::CANCEL);
    }
    Ok(())
}

#[test]
fn handshakes_that_never_end_are_ended() {
    const STRANGERS: usize = 60;
    let mut scene = Scene::start().unwrap();
    beside_an_innocent(&mut scene, async |scene| {
        let (from, door) = (scene.outside.netns(), scene.door());
        let honest = scene.credentials("outside", "stranger")?;
        let start = Instant::now();
        let mut silent = Vec::new();
        let mut half = Vec::new();
        let mut no_http = Vec::new();
        for _ in 0..STRANGERS {
            silent.push(hostile::dial(from, door)?);
            let mut stream = hostile::dial(from, door)?;
            // The beginning of a ClientHello that promises 512 bytes.
            stream.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00]).await?;
            half.push(stream);
        }
        for _ in 0..STRANGERS / 4 {
            no_http.push(hostile::handshake(from, door, &Offer::usual(&honest)).await?);
        }
        serves_a_newcomer(scene, &honest, &scene.server).await?;
        // One drips a byte at a time, faster than any timeout between bytes.
        let mut drip = hostile::dial(from, door)?;
        drip.write_all(&[0x16, 0x03, 0x01, 0x40, 0x00]).await?;
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if drip.write_all(&[1]).await.is_err() {
                break;
            }
            if start.elapsed() > Duration::from_secs(45) {
                bail!("a ClientHello at two bytes a second is listened to for {:?}", start.elapsed());
            }
        }
        for stream in silent.iter_mut().chain(&mut half) {
            ends(stream).await.context("a TLS handshake that never ends")?;
        }
        for stream in &mut no_http {
            ends(stream).await.context("an HTTP/2 handshake that never begins")?;
        }
        Ok(())
    });
}

/// A well-behaved tunnel is still opened, and carries.
async fn serves_a_newcomer(scene: &Scene, honest: &Credentials, server: &Pod) -> Result<()> {
    let mut http = Http2::open(scene.outside.netns(), scene.door(), honest).await?;
    let (mut sending, mut receiving) = http.tunnel(&server.at(ECHO).to_string()).await?;
    sending.send_data(Bytes::from_static(b"hello"), true)?;
    let mut heard = Vec::new();
    while let Some(chunk) = timeout(hostile::PATIENCE, receiving.data()).await.context("no echo")? {
        heard.extend_from_slice(&chunk?);
    }
    ensure!(heard == b"hello", "the newcomer heard {heard:?}");
    Ok(())
}
