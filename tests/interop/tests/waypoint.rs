//! The waypoint among strangers: HTTP/2 as its standard has it, and requests that are made to harm.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::atomic::Ordering,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bed::{Pod, eventually};
use interop::{
    behind::{Behind, HTTP, UNKNOWN},
    ensure_httpwg,
    httpwg::Verdicts,
    recorder::{BROKEN, DEAF, ENDLESS, Heard},
    scene::root,
};

const PATIENCE: Duration = Duration::from_secs(20);
/// What an attack may cost the waypoint in memory.
const MOST_MEMORY: u64 = 48 << 20;

/// Cases of httpwg that are answered otherwise than it wants them to be: it takes a reset for a request that is malformed,
/// where we answer 400 (or 501), as a server may (RFC 9113, 8.1.1); of trailers h2 lets nothing pass that is no field, and
/// for the rest of a pushed request's head it waits before it refuses it.
const KNOWN: [&str; 6] = [
    "RFC 9113 :: 8. expressing http semantics in http2 :: client sends push promise frame",
    "RFC 9113 :: 8. expressing http semantics in http2 :: sends connect without authority",
    "RFC 9113 :: 8. expressing http semantics in http2 :: sends headers frame with leading space in field value",
    "RFC 9113 :: 8. expressing http semantics in http2 :: sends headers frame with mismatched host authority",
    "RFC 9113 :: 8. expressing http semantics in http2 :: sends headers frame with pseudo header in trailer",
    "RFC 9113 :: 8. expressing http semantics in http2 :: sends headers frame with trailing tab in field value",
];
/// How many it has in all.
const CASES: usize = 105;

#[test]
fn http2_is_spoken_as_its_standard_has_it() -> Result<()> {
    let binary = ensure_httpwg(&root())?;
    let behind = Behind::start(&[])?;
    // Where nobody has said that a port speaks HTTP, what does not begin like it is carried as it is.
    let run = |filter: &[&str]| -> Result<Verdicts> {
        let job = behind.scene.client.job(&binary).args(["--address", &behind.at(HTTP).to_string()]);
        let job = job.args(["--frame-timeout", "2000", "--connect-timeout", "5000"]).args(filter);
        let said = job.env("SEQUENTIAL", "1").limit(Duration::from_secs(300)).run()?;
        Ok(Verdicts::read(&format!("{}\n{}", said.stdout, said.stderr)))
    };
    let verdicts = run(&[])?;
    ensure!(verdicts.passed + verdicts.failed.len() == CASES, "{verdicts:?}");
    for case in verdicts.failed.iter().filter(|case| !KNOWN.contains(&case.as_str())) {
        // The reset of a connection that is over may overtake the GOAWAY that says why, in the tunnel.
        let again = || Ok((run(&["--filter", case])?.passed > 0).then_some(()));
        eventually(PATIENCE, case, again)?;
    }
    Ok(())
}

/// Sends bytes, and reads until the other side ends or is silent.
fn say(from: &Pod, to: SocketAddr, bytes: &[u8]) -> Result<String> {
    let mut stream = from.netns().connect(to, PATIENCE)?;
    stream.set_read_timeout(Some(Duration::from_millis(700)))?;
    // It may be refused half way.
    let _ = stream.write_all(bytes);
    Ok(hear(&mut stream))
}

fn hear(stream: &mut TcpStream) -> String {
    let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        heard.extend_from_slice(&buffer[..read]);
    }
    String::from_utf8_lossy(&heard).into_owned()
}

fn status(answer: &str) -> Option<u16> {
    answer.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n";

/// What is said, how it is answered first, and how many whole requests the backend may see of it.
fn doubtful() -> Vec<(&'static str, String, Option<u16>, usize)> {
    let post =
        |headers: &str, body: &str| format!("POST /a HTTP/1.1\r\nHost: web\r\n{headers}\r\n\r\n{body}");
    let get = |headers: &str| format!("GET /a HTTP/1.1\r\nHost: web\r\n{headers}\r\n\r\n");
    let refused = |what, said| (what, said, Some(400), 0);
    let many: String = (0..300).map(|number| format!("x-{number}: 1\r\n")).collect();
    let long = "y".repeat(100 << 10);
    vec![
        ("a usual one", post("Content-Length: 3", "abc"), Some(200), 1),
        ("a chunked one", post("Transfer-Encoding: chunked", "3\r\nabc\r\n0\r\n\r\n"), Some(200), 1),
        // What is behind the last chunk is the next request, for us as for the backend: it asks for it in the open.
        (
            "a length beside chunks",
            post("Content-Length: 6\r\nTransfer-Encoding: chunked", &format!("0\r\n\r\n{SMUGGLED}")),
            None,
            2,
        ),
        refused("two lengths", post("Content-Length: 3\r\nContent-Length: 30", &format!("abc{SMUGGLED}"))),
        refused("two lengths in one", post("Content-Length: 3, 30", &format!("abc{SMUGGLED}"))),
        refused("a signed length", post("Content-Length: +3", "abc")),
        refused("a length in hex", post("Content-Length: 0x3", "abc")),
        refused("a length without end", post("Content-Length: 99999999999999999999999", "abc")),
        refused("another coding", post("Transfer-Encoding: xchunked", &format!("0\r\n\r\n{SMUGGLED}"))),
        refused(
            "a coding after chunks",
            post("Transfer-Encoding: chunked, identity", &format!("0\r\n\r\n{SMUGGLED}")),
        ),
        refused(
            "a coding with a tail",
            post("Transfer-Encoding: chunked\u{b}", &format!("0\r\n\r\n{SMUGGLED}")),
        ),
        refused(
            "two codings",
            post(
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
                &format!("0\r\n\r\n{SMUGGLED}"),
            ),
        ),
        refused("a space before the colon", get("Transfer-Encoding : chunked")),
        refused("a folded header", get("X-A: b\r\n c: d")),
        refused("a header without a name", get(": x")),
        refused("a header that is none", get("no header")),
        refused("a NUL in a header", get("X-A: b\0c")),
        refused("a bare CR in a header", get("X-A: b\rc: d")),
        refused("two hosts", get("Host: other")),
        refused("no host", "GET /a HTTP/1.1\r\n\r\n".to_owned()),
        refused("a host with a user", "GET /a HTTP/1.1\r\nHost: web@other\r\n\r\n".to_owned()),
        refused("a target that is no path", "GET a HTTP/1.1\r\nHost: web\r\n\r\n".to_owned()),
        refused("a method that is none", "GE(T /a HTTP/1.1\r\nHost: web\r\n\r\n".to_owned()),
        ("too many headers", get(&many), Some(431), 0),
        ("a long header", get(&format!("x: {long}")), Some(431), 0),
        ("a long target", format!("GET /{long} HTTP/1.1\r\nHost: web\r\n\r\n"), Some(431), 0),
        ("a tunnel", "CONNECT other:80 HTTP/1.1\r\nHost: other:80\r\n\r\n".to_owned(), Some(501), 0),
        ("a chunk without a size", post("Transfer-Encoding: chunked", "zz\r\nabc\r\n0\r\n\r\n"), None, 0),
        ("a chunk of a size in hex", post("Transfer-Encoding: chunked", "0x3\r\nabc\r\n0\r\n\r\n"), None, 0),
        (
            "a chunk that is too large",
            post("Transfer-Encoding: chunked", "ffffffffffffffffff\r\nabc"),
            None,
            0,
        ),
        (
            "a chunk with a longer end",
            post("Transfer-Encoding: chunked", "3\r\nabcdef\r\n0\r\n\r\n"),
            None,
            0,
        ),
        ("a body that ends too early", post("Content-Length: 30", "abc"), None, 0),
    ]
}

#[test]
fn what_can_be_read_in_two_ways_reaches_no_backend() -> Result<()> {
    let mut behind = Behind::start(&[])?;
    for port in [HTTP, UNKNOWN] {
        for (what, said, answer, most) in doubtful() {
            // Where nobody has said that a port speaks HTTP, what does not begin like it is carried as it is.
            if port == UNKNOWN && what == "a method that is none" {
                continue;
            }
            let answered = say(&behind.scene.client, behind.at(port), said.as_bytes())?;
            let heard = behind.recorder.take();
            let all =
                format!("{what}, port {port}: answered {answered:?}, and the backend has heard {heard:#?}");
            if let Some(expected) = answer {
                ensure!(status(&answered) == Some(expected), "not {expected}. {all}");
            }
            ensure!(heard.len() <= most, "{all}");
            ensure!(most != 1 || heard.len() == 1, "{all}");
            ensure!(heard.iter().all(|heard| heard.doubts.is_empty()), "{all}");
            let is_smuggled = |heard: &&Heard| heard.line.contains("/smuggled");
            ensure!(most == 2 || !heard.iter().any(|heard| is_smuggled(&heard)), "{all}");
        }
    }
    ensure!(behind.waypoint.is_running()?, "the waypoint has died: {}", behind.waypoint.log_tail(30));
    behind.scene.all_alive()
}

/// Whether the other side has ended it; what is written to it may be refused.
fn is_ended(stream: &mut TcpStream) -> bool {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
    let mut buffer = [0; 64 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => {
                return !matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                );
            }
        }
    }
}

#[test]
fn floods_of_http2_end_the_connection_that_brings_them() -> Result<()> {
    use interop::frames::{
        CONTINUATION, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, SETTINGS, frame, get, opening,
    };
    let mut behind = Behind::start(&["--access-log", "none"])?;
    let to = behind.at(HTTP);
    let usual = |behind: &Behind| -> Result<()> {
        let answer = say(&behind.scene.client, to, b"GET /usual HTTP/1.1\r\nHost: web\r\n\r\n")?;
        ensure!(status(&answer) == Some(200), "a usual request was answered {answer:?}");
        Ok(())
    };
    usual(&behind)?;
    behind.recorder.take();
    let literal = {
        // A header without indexing: a name of one byte and a value of 120.
        let one = [&[0, 1, b'x', 120][..], &[b'y'; 120]].concat();
        one.repeat(100)
    };
    type Flood = Box<dyn Fn(u32) -> Vec<u8>>;
    let floods: [(&str, u32, bool, Flood); 4] = [
        (
            "streams that are reset at once",
            100_000,
            true,
            Box::new(|number| {
                let stream = 2 * number + 1;
                [
                    frame(HEADERS, END_STREAM | END_HEADERS, stream, &get()),
                    frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]),
                ]
                .concat()
            }),
        ),
        (
            "headers without end",
            20_000,
            true,
            Box::new(move |number| match number {
                0 => frame(HEADERS, END_STREAM, 1, &get()),
                _ => frame(CONTINUATION, 0, 1, &literal),
            }),
        ),
        ("settings", 200_000, false, Box::new(|_| frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0x80, 0]))),
        ("pings", 200_000, false, Box::new(|_| frame(PING, 0, 0, &[1; 8]))),
    ];
    for (what, count, ends, flood) in floods {
        let before = behind.waypoint.resident()?;
        let mut stream = behind.scene.client.netns().connect(to, PATIENCE)?;
        stream.set_write_timeout(Some(Duration::from_secs(3)))?;
        stream.write_all(&opening())?;
        let mut sent = 0;
        let mut batch = Vec::new();
        for number in 0..count {
            batch.extend(flood(number));
            if batch.len() > 64 << 10 {
                // Nothing is read: answers pile up at whoever makes them.
                if stream.write_all(&batch).is_err() {
                    break;
                }
                batch.clear();
                sent = number;
            }
        }
        let after = behind.waypoint.resident()?;
        let cost = after.saturating_sub(before);
        ensure!(cost < MOST_MEMORY, "{what}: {sent} of them cost {} MB", cost >> 20);
        usual(&behind).with_context(|| format!("beside {what}"))?;
        ensure!(!ends || is_ended(&mut stream), "{what}: {sent} of them, and the connection goes on");
        drop(stream);
        let heard = behind.recorder.take().len();
        ensure!(heard < 3_000, "{what}: {heard} of them reached the backend");
        ensure!(
            behind.waypoint.is_running()?,
            "{what}: the waypoint has died: {}",
            behind.waypoint.log_tail(30)
        );
    }
    behind.scene.all_alive()
}

#[test]
fn slow_callers_and_endless_bodies_cost_little() -> Result<()> {
    let mut behind = Behind::start(&["--access-log", "none", "--head-timeout", "1s"])?;
    let (client, to) = (&behind.scene.client, behind.at(HTTP));
    let open = |said: &str| -> Result<TcpStream> {
        let mut stream = client.netns().connect(to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(said.as_bytes())?;
        Ok(stream)
    };
    // A head that does not end, and a kept connection that waits for its next request.
    let mut kept = open("GET /kept HTTP/1.1\r\nHost: web\r\n\r\n")?;
    kept.read_exact(&mut [0; 12])?;
    let mut slow = open("GET /slow HTTP/1.1\r\nHo")?;
    let start = Instant::now();
    ensure!(is_ended(&mut slow), "a head that does not end is waited for");
    ensure!(start.elapsed() < Duration::from_secs(5), "it was waited for {:?}", start.elapsed());
    kept.set_read_timeout(Some(Duration::from_millis(300)))?;
    hear(&mut kept);
    kept.write_all(b"GET /kept HTTP/1.1\r\nHost: web\r\n\r\n")?;
    kept.set_read_timeout(Some(PATIENCE))?;
    kept.read_exact(&mut [0; 12]).context("the kept connection was ended")?;

    let before = behind.waypoint.resident()?;
    // Answers without end, for callers that do not read.
    let deaf: Vec<TcpStream> = (0..8)
        .map(|_| open(&format!("GET {ENDLESS} HTTP/1.1\r\nHost: web\r\n\r\n")))
        .collect::<Result<_>>()?;
    // Requests without end, for a backend that does not read.
    let mut pushed = 0;
    let mut pushing =
        open(&format!("POST {DEAF} HTTP/1.1\r\nHost: web\r\nContent-Length: 9999999999\r\n\r\n"))?;
    pushing.set_write_timeout(Some(Duration::from_secs(1)))?;
    while pushing.write_all(&[b'x'; 64 << 10]).is_ok() {
        pushed += 64 << 10;
        ensure!(pushed < 256 << 20, "a backend that does not read was sent {} MB", pushed >> 20);
    }
    let said = eventually(PATIENCE, "endless answers to stop", || {
        let before = behind.recorder.said.load(Ordering::Relaxed);
        sleep(Duration::from_millis(500));
        let now = behind.recorder.said.load(Ordering::Relaxed);
        Ok((now == before && now > 0).then_some(now))
    })?;
    let cost = behind.waypoint.resident()?.saturating_sub(before);
    ensure!(cost < MOST_MEMORY, "{said:?} of answers and {pushed} of a request cost {} MB", cost >> 20);
    drop((deaf, pushing));

    // An answer that breaks off does not look whole.
    let answer = say(client, to, format!("GET {BROKEN} HTTP/1.1\r\nHost: web\r\n\r\n").as_bytes())?;
    ensure!(answer.contains("hello") && !answer.contains("\r\n0\r\n"), "it looks whole: {answer:?}");
    ensure!(behind.waypoint.is_running()?, "the waypoint has died: {}", behind.waypoint.log_tail(30));
    behind.scene.all_alive()
}

#[test]
fn one_caller_does_not_take_what_is_for_all() -> Result<()> {
    let behind = Behind::start(&["--max-connections-per-source", "20", "--max-connections", "30"])?;
    let to = behind.at(HTTP);
    let ask = |from: &Pod| -> Result<Option<TcpStream>> {
        // What is refused may be reset at once.
        let Ok(mut stream) = from.netns().connect(to, PATIENCE) else { return Ok(None) };
        stream.set_read_timeout(Some(PATIENCE))?;
        let asked = stream.write_all(b"GET /one HTTP/1.1\r\nHost: web\r\n\r\n");
        let mut start = [0; 12];
        let is_served = asked.and_then(|()| stream.read_exact(&mut start)).is_ok() && start.ends_with(b"200");
        Ok(is_served.then_some(stream))
    };
    let served = |from: &Pod, count: usize| -> Result<Vec<TcpStream>> {
        Ok((0..count).map(|_| ask(from)).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    };
    let ones = served(&behind.scene.client, 40)?;
    ensure!(ones.len() == 20, "one caller has {} connections", ones.len());
    let others = served(&behind.scene.other, 20)?;
    ensure!(others.len() == 10, "another has {} of the rest", others.len());
    ones.iter().try_for_each(|stream| stream.shutdown(Shutdown::Both))?;
    drop(ones);
    eventually(PATIENCE, "what was given back to be had again", || ask(&behind.scene.client))?;
    Ok(())
}
