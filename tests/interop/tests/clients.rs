//! Real clients and servers of others through a waypoint: curl and h2load with nginx, gRPC's own core, WebSockets; and
//! what they notice of a waypoint that leaves.

use std::{
    io::{Read, Write},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bed::{Process, World};
use interop::{
    behind::{Behind, HTTP},
    broken,
    frames::{self, GOAWAY, frame},
    nginx::{self, LARGE, NARROW, Nginx, UPLOAD},
    python::{self, GRPC, WEBSOCKETS},
    scene::root,
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);
/// Ports of the service: of nginx, of gRPC, of WebSockets; the second of each is one of which nothing is said.
const PAGES: u16 = 82;
const CALLS: [u16; 2] = [83, 84];
const SOCKETS: [u16; 2] = [85, 86];
/// Where the servers in Python serve.
const GRPC_PORT: u16 = 7030;
const WEBSOCKET_PORT: u16 = 7031;

const GRPC_SERVER: &str = include_str!("../src/clients/grpc_server.py");
const GRPC_CLIENT: &str = include_str!("../src/clients/grpc_client.py");
const GRPC_LOAD: &str = include_str!("../src/clients/grpc_load.py");
const WEBSOCKET_SERVER: &str = include_str!("../src/clients/websocket_server.py");
const WEBSOCKET_CLIENT: &str = include_str!("../src/clients/websocket_client.py");

const NOT_EVERYTHING: &str = "
targetRefs: [{kind: Service, name: web}]
action: DENY
rules:
- to: [{operation: {paths: [/refused, /shop.Orders/Delete]}}]
";

fn behind(options: &[&str]) -> Result<Behind> {
    let ports = [
        ("http-pages", PAGES, nginx::PORT),
        ("grpc", CALLS[0], GRPC_PORT),
        ("calls", CALLS[1], GRPC_PORT),
        ("http-sockets", SOCKETS[0], WEBSOCKET_PORT),
        ("sockets", SOCKETS[1], WEBSOCKET_PORT),
    ];
    let forbidden =
        |world: &World| world.manifests().authorization_policy("shop", "not-everything", NOT_EVERYTHING);
    Behind::start_with(options, &ports, forbidden)
}

/// A server in Python in the service's pod.
fn serve(behind: &Behind, package: python::Package, program: &str, name: &str, port: u16) -> Result<Process> {
    let packages = package.ensure(&root())?;
    let server = python::program(&behind.scene.server, &packages, program).arg(port.to_string());
    let mut server = server.spawn(name)?;
    server.wait_for_line(PATIENCE, "its port to listen", |line| line == "ready")?;
    Ok(server)
}

/// What curl has of one request.
struct Curled {
    status: u16,
    uploaded: u64,
    connects: u32,
    body: Vec<u8>,
    /// What went to and fro.
    talk: String,
    /// What curl itself thinks of it.
    code: Option<i32>,
}

fn curl(behind: &Behind, arguments: &[&str]) -> Result<Curled> {
    let file = behind.scene.world.folder().join("curled");
    // Without a body nothing is written, and what the last one wrote stays.
    let _ = std::fs::remove_file(&file);
    let job = behind.scene.client.job("curl").args(["-s", "-v", "--max-time", "30", "-o"]).arg(&file);
    let job = job.args(["-w", "%{http_code} %{size_upload} %{num_connects}\n"]).args(arguments);
    let finished = job.limit(Duration::from_secs(60)).run()?;
    let said = finished.stdout.lines().last().context("curl said nothing")?;
    let [status, uploaded, connects] = said.split(' ').collect::<Vec<_>>()[..] else {
        anyhow::bail!("curl said {said:?}")
    };
    Ok(Curled {
        status: status.parse()?,
        uploaded: uploaded.parse()?,
        connects: connects.parse()?,
        body: std::fs::read(&file).unwrap_or_default(),
        talk: finished.stderr,
        code: finished.status.code(),
    })
}

#[test]
fn curl_and_h2load_get_what_nginx_has_and_send_what_it_takes() -> Result<()> {
    let behind = behind(&[])?;
    let nginx = Nginx::start(&behind.scene.world, &behind.scene.server)?;
    let url = |path: &str| format!("http://{}{path}", behind.at(PAGES));
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let large = curl(&behind, &[version, &url(LARGE)])?;
        ensure!(large.status == 200 && large.body == nginx.large, "{version}: {} bytes", large.body.len());
        let part = curl(&behind, &[version, "-r", "1000-1999", &url(LARGE)])?;
        ensure!(part.status == 206 && part.body == nginx.large[1000..2000], "{version}: {}", part.talk);
        let head = curl(&behind, &[version, "-I", &url(LARGE)])?;
        let length = format!("content-length: {}", nginx.large.len());
        ensure!(head.status == 200 && head.talk.to_lowercase().contains(&length), "{version}: {}", head.talk);
        let tag = head.talk.lines().find_map(|line| line.split_once("ag: ")).context("no ETag")?.1.trim();
        let same = curl(&behind, &[version, "-H", &format!("if-none-match: {tag}"), &url(LARGE)])?;
        ensure!(same.status == 304, "{version}: {}", same.talk);
    }
    // Debian's curl cannot do that over HTTP/2 without TLS; h2load does.
    let several = curl(&behind, &["--http1.1", &url("/?[1-20]")])?;
    ensure!(several.status == 200 && several.connects == 0, "{} {}", several.status, several.talk);
    hundred_continue(&behind, &nginx)?;
    h2load(&behind)
}

/// A body that is announced is sent once it is wanted, and not at all where it is not.
fn hundred_continue(behind: &Behind, nginx: &Nginx) -> Result<()> {
    let file = behind.scene.world.folder().join("body");
    std::fs::write(&file, vec![b'b'; 2 << 20])?;
    let file = file.to_str().context("a path that is no text")?;
    let url = |path: &str| format!("http://{}{path}", behind.at(PAGES));
    let put = |path: &str| {
        curl(behind, &["-H", "Expect: 100-continue", "--expect100-timeout", "20", "-T", file, &url(path)])
    };
    let asked = "< HTTP/1.1 100 Continue";
    let taken = put(UPLOAD)?;
    ensure!(taken.status == 200 && taken.uploaded == 2 << 20, "{} {}", taken.status, taken.talk);
    ensure!(taken.talk.contains(asked), "the body was not asked for: {}", taken.talk);
    let is_whole =
        |(request, length): &(String, u64)| *request == format!("PUT {UPLOAD} 200") && *length > 2 << 20;
    ensure!(nginx.requests()?.iter().any(is_whole), "{:?}", nginx.requests()?);
    // Who may not is told so before he has sent anything.
    let refused = put("/refused")?;
    ensure!(refused.status == 403 && refused.uploaded == 0, "{} {}", refused.status, refused.talk);
    ensure!(!refused.talk.contains(asked), "the body was asked for: {}", refused.talk);
    // A backend that says no in the middle of a body is heard.
    let narrow = put(NARROW)?;
    ensure!(narrow.status == 413, "{} {}", narrow.status, narrow.talk);
    let unannounced = curl(behind, &["-H", "Expect:", "-T", file, &url(NARROW)])?;
    ensure!(unannounced.status == 413, "{} {}", unannounced.status, unannounced.talk);
    let over_two = curl(behind, &["--http2-prior-knowledge", "-T", file, &url(NARROW)])?;
    ensure!(over_two.status == 413, "{} {}", over_two.status, over_two.talk);
    let again = curl(behind, &[&url("/")])?;
    ensure!(again.status == 200, "after a refusal: {} {}", again.status, again.talk);
    Ok(())
}

fn h2load(behind: &Behind) -> Result<()> {
    for more in [&["--h1"][..], &["-m", "32"]] {
        let job = behind.scene.client.job("h2load").args(["-n", "3000", "-c", "8"]).args(more);
        let job = job.arg(format!("http://{}/", behind.at(PAGES))).limit(Duration::from_secs(60));
        let said = job.check()?.stdout;
        let all = "3000 done, 3000 succeeded, 0 failed, 0 errored, 0 timeout";
        ensure!(said.contains(all) && said.contains("status codes: 3000 2xx"), "{more:?}: {said}");
    }
    Ok(())
}

/// What comes by HTTP/2 of an answer that breaks off, frame by frame: a head of status 200, a body, and a reset.
fn broken_answer(behind: &Behind, port: u16, path: &str) -> Result<()> {
    let mut stream = behind.scene.client.netns().connect(behind.at(port), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&frames::opening())?;
    let request = frame(frames::HEADERS, frames::END_STREAM | frames::END_HEADERS, 1, &frames::get_of(path));
    stream.write_all(&request)?;
    let head = read_until(&mut stream, frames::HEADERS)?;
    ensure!(head.first() == Some(&frames::OK), "{path}: {head:?}");
    let body = read_until(&mut stream, frames::DATA)?;
    ensure!(body == broken::SAID.as_bytes(), "{path}: {body:?}");
    read_until(&mut stream, frames::RST_STREAM).context("a reset").map(drop)
}

#[test]
fn an_answer_that_breaks_off_is_no_whole_one_to_whoever_asks_and_the_log_says_so() -> Result<()> {
    let ports = [
        ("http-broken", 82, broken::PORT),
        ("http2-ended", 83, broken::ENDED_PORT),
        ("http2-reset", 84, broken::RESET_PORT),
    ];
    let mut behind = Behind::start_with(&[], &ports, |_| Ok(()))?;
    broken::start(&behind.scene.server)?;
    // What curl calls a part of a file, a connection that was reset, and a stream that was.
    const PARTIAL: i32 = 18;
    const RECEIVING: i32 = 56;
    const STREAM: i32 = 92;
    fn logged(behind: &mut Behind, path: &str) -> Result<()> {
        let line = format!("path={path} ");
        let told = behind.waypoint.wait_for_line(PATIENCE, path, |told| told.contains(&line))?;
        ensure!(told.contains(" flags=UC "), "{path}: {told}");
        Ok(())
    }
    for (port, how) in [(82, broken::CHUNKED), (82, broken::LENGTH), (83, "/ended"), (84, "/reset")] {
        for (version, codes) in
            [("--http1.1", &[PARTIAL, RECEIVING][..]), ("--http2-prior-knowledge", &[STREAM][..])]
        {
            let path = format!("{how}{version}");
            let answer = curl(&behind, &[version, &format!("http://{}{path}", behind.at(port))])?;
            let is_told = answer.code.is_some_and(|code| codes.contains(&code));
            ensure!(is_told, "{path}: {:?}\n{}", answer.code, answer.talk);
            // Of HTTP/2 Debian's curl forgets what came before a reset that it reads at the same time.
            if version == "--http1.1" {
                let body = String::from_utf8_lossy(&answer.body);
                let is_there = answer.status == 200 && body == broken::SAID;
                ensure!(is_there, "{path}: {} {body:?}\n{}", answer.status, answer.talk);
            }
            logged(&mut behind, &path)?;
        }
        broken_answer(&behind, port, how)?;
        logged(&mut behind, how)?;
    }
    behind.scene.all_alive()
}

#[test]
fn a_connection_that_a_backend_ends_with_its_answer_ends_in_order_on_both_sides() -> Result<()> {
    const CALLS: usize = 50;
    let ports = [("http-whole", 82, broken::PORT)];
    let mut behind = Behind::start_with(&[], &ports, |_| Ok(()))?;
    broken::start(&behind.scene.server)?;
    let url = format!("http://{}{}?[1-{CALLS}]", behind.at(82), broken::WHOLE);
    let answers = curl(&behind, &["--http1.1", &url])?;
    ensure!(answers.code == Some(0) && answers.status == 200, "{:?} {}", answers.code, answers.talk);
    let place = behind.scene.server.at(broken::PORT).to_string();
    let node = behind.scene.mesh.iter_mut().find(|programs| programs.node.name() == "b").context("node b")?;
    let ended = || {
        let all = bed::report::accesses(&node.ztunnel, 0);
        let ended: Vec<Value> = all.into_iter().filter(|line| line["dst.addr"] == *place).collect();
        Ok((ended.len() == CALLS).then_some(ended))
    };
    let (ended, _) = bed::eventually(PATIENCE, "the ends of all connections", ended)?;
    let reset: Vec<&Value> = ended.iter().filter(|line| !line["reason"].is_null()).collect();
    ensure!(reset.is_empty(), "{} of {CALLS} did not end in order, as {}", reset.len(), reset[0]);
    behind.scene.all_alive()
}

#[test]
fn calls_of_grpc_go_through_as_its_own_core_makes_them() -> Result<()> {
    let mut behind = behind(&["--access-log", "json"])?;
    let mut server = serve(&behind, GRPC, GRPC_SERVER, "grpc", GRPC_PORT)?;
    let packages = GRPC.ensure(&root())?;
    let client = |port: u16| {
        let client = python::program(&behind.scene.client, &packages, GRPC_CLIENT);
        client.arg(behind.at(port).to_string()).limit(Duration::from_secs(60)).check()
    };
    client(CALLS[0])?;
    // Each of them begins anew what the server remembers.
    server.kill();
    let _server = serve(&behind, GRPC, GRPC_SERVER, "grpc-2", GRPC_PORT)?;
    client(CALLS[1]).context("where nothing is said of the port")?;
    let refused = |line: &Value| line["path"] == "/shop.Orders/Delete" && line["grpc_status"] == 7;
    bed::report::wait_access(&mut behind.waypoint, 0, PATIENCE, "the call that was refused", refused)
        .map(drop)
}

#[test]
fn websockets_are_spoken_until_either_end_has_enough() -> Result<()> {
    let behind = behind(&[])?;
    let mut server = serve(&behind, WEBSOCKETS, WEBSOCKET_SERVER, "websockets", WEBSOCKET_PORT)?;
    let packages = WEBSOCKETS.ensure(&root())?;
    for port in SOCKETS {
        let client = python::program(&behind.scene.client, &packages, WEBSOCKET_CLIENT);
        let client = client.arg(format!("ws://{}", behind.at(port))).limit(Duration::from_secs(60));
        client.check().with_context(|| format!("port {port}"))?;
    }
    for end in ["closed 3001 enough", "closed 4002 as you wish"] {
        server.wait_for_line(PATIENCE, end, |line| line == end)?;
    }
    Ok(())
}

/// Reads frames of HTTP/2 until one is of a kind; its payload.
fn read_until(stream: &mut impl Read, wanted: u8) -> Result<Vec<u8>> {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).context("the head of a frame")?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).context("a frame")?;
        if head[3] == wanted {
            return Ok(payload);
        }
    }
}

#[test]
fn a_waypoint_that_leaves_says_so_and_nothing_is_lost() -> Result<()> {
    let mut behind = behind(&["--access-log", "json", "--linger", "1s", "--drain-deadline", "20s"])?;
    let _server = serve(&behind, GRPC, GRPC_SERVER, "grpc", GRPC_PORT)?;
    let packages = GRPC.ensure(&root())?;
    let load = python::program(&behind.scene.client, &packages, GRPC_LOAD);
    let mut load = load.arg(behind.at(CALLS[0]).to_string()).arg("7").spawn("grpc-load")?;
    load.wait_for_line(PATIENCE, "its first calls", |line| line == "begun")?;
    // A client that asks for nothing hears of it, too.
    let mut idle = behind.scene.client.netns().connect(behind.at(HTTP), PATIENCE)?;
    idle.set_read_timeout(Some(PATIENCE))?;
    idle.write_all(&frames::opening())?;
    read_until(&mut idle, frames::SETTINGS)?;

    let world = &behind.scene.world;
    let next = world.waypoint_replica(["shop", "wp"], "wp-2", "b")?;
    let mut next = world.start_waypoint(&next, "waypoint-2")?;
    let since = next.log_length();
    world.manifests().remove("pod-shop-wp")?;
    let begun = std::time::Instant::now();
    behind.waypoint.signal(nix::sys::signal::Signal::SIGTERM)?;
    let goaway = read_until(&mut idle, GOAWAY)?;
    ensure!(goaway[4..8] == [0; 4], "GOAWAY with an error: {goaway:?}");
    ensure!(begun.elapsed() >= Duration::from_secs(1), "it was told before the others could know");
    // What was asked before it had read that is answered: the end comes with a second one.
    idle.write_all(&frame(frames::HEADERS, frames::END_STREAM | frames::END_HEADERS, 1, &frames::get()))?;
    read_until(&mut idle, frames::HEADERS).context("an answer after GOAWAY")?;
    drop(idle);

    load.wait(PATIENCE)?;
    let told: Value =
        load.log().lines().filter_map(|line| serde_json::from_str(line).ok()).next_back().unwrap_or_default();
    ensure!(told["failures"] == Value::Array(Vec::new()), "{told}");
    ensure!(told["calls"].as_u64() > Some(100) && told["words"].as_u64() > Some(50), "{told}");
    let states: Vec<&str> =
        told["states"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let is_told = states.iter().filter(|state| **state == "READY").count() > 1;
    ensure!(is_told, "the client was never told to go elsewhere: {states:?}");
    let elsewhere = |line: &Value| line["path"] == "/shop.Orders/Get" && line["grpc_status"] == 0;
    bed::report::wait_access(&mut next, since, PATIENCE, "calls at the other waypoint", elsewhere)?;
    let ended = behind.waypoint.wait(PATIENCE)?;
    ensure!(ended.success(), "it ended with {ended}: {}", behind.waypoint.log_tail(10));
    ensure!(!behind.waypoint.log().contains("what is left is cut"), "{}", behind.waypoint.log_tail(10));
    behind.scene.all_alive()
}
