//! DNS of pods when something is in the way: resolvers that refuse, are slow or are not alone, a ztunnel that is
//! replaced, an app that has port 53 itself; and the switches of a node and of a pod.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use bed::{Pod, eventually};
use nix::sys::signal::Signal;
use node::{
    PATIENCE, Scene,
    dns::{
        A, AAAA, Resolver, SRV, addresses, annotate, ask, ask_times, entry, is_servfail, odd_answer, query,
        read_framed, resolved, write_framed,
    },
    port, same,
};

const SHOP: &str = "shop.mesh.svc.cluster.local";
const ELSEWHERE: &str = "elsewhere.example.com";

/// A client on node `a` with a Service to ask for, one beside it that says that it wants answers, and a pod on node `b` where a resolver may be.
fn scene() -> Result<(Scene, Vec<IpAddr>)> {
    let mut service = Vec::new();
    let pods = [
        ("mesh", "client", "a"),
        ("mesh", "willing", "a"),
        ("mesh", "server", "b"),
        ("plain", "resolver", "b"),
    ];
    let scene = Scene::start_with(&pods, |world| {
        service = world.service(7, "mesh", "shop", &[("app", "server")], &[(80, 80)])?.to_vec();
        annotate(world, "willing", "true")
    })?;
    Ok((scene, service))
}

/// The mesh answers the client.
fn answered(client: &Pod, at: SocketAddr, service: &[IpAddr]) -> Result<()> {
    same(SHOP, resolved(client, at, SHOP, A)?, vec![service[0]])
}

fn framed(pod: &Pod, at: SocketAddr, query: &[u8]) -> Result<Vec<u8>> {
    let mut stream = pod.netns().connect(at, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write_framed(&mut stream, query)?;
    Ok(read_framed(&mut stream)?)
}

#[test]
fn a_resolver_that_refuses_or_dawdles_or_is_imitated_is_still_the_resolver() -> Result<()> {
    let (scene, service) = scene()?;
    let (client, resolver) = (scene.pod("client").clone(), scene.pod("resolver").clone());
    let [v4, v6] = [resolver.at(53), resolver.at6(53)];
    answered(&client, v4, &service)?;

    // Nobody listens: the app is told so, by one answer to its one query.
    let elsewhere = query(1, ELSEWHERE, A);
    for at in [v4, v6] {
        let answer = ask_times(&client, at, &elsewhere, 1)?;
        ensure!(is_servfail(&answer), "refused by {at}, and told {answer:x?}");
        let answer = framed(&client, at, &elsewhere)?;
        ensure!(is_servfail(&answer), "refused by {at} over TCP, and told {answer:x?}");
    }

    // Then somebody does, who takes his time: names of the mesh do not wait for it.
    let (slow, twin) = (resolver.netns().udp(v4)?, resolver.netns().udp(resolver.at(5353))?);
    slow.set_read_timeout(Some(PATIENCE))?;
    let (asking, (app, at)) = (elsewhere.clone(), (client.clone(), v4));
    let asked = thread::spawn(move || ask_times(&app, at, &asking, 1));
    let mut buffer = [0; 512];
    let (length, from) = slow.recv_from(&mut buffer).context("the query")?;
    same("passed on", &buffer[..length], &elsewhere[..])?;
    same("from the pod", from.ip(), client.v4())?;
    answered(&client, v4, &service)?;
    // What comes from elsewhere, or is of another query, is not the answer; and the first that is, is the last.
    let mut forged = odd_answer(&elsewhere);
    forged.push(0);
    twin.send_to(&forged, from)?;
    let mut other = odd_answer(&elsewhere);
    other[0] ^= 1;
    slow.send_to(&other, from)?;
    thread::sleep(Duration::from_millis(500));
    slow.send_to(&odd_answer(&elsewhere), from)?;
    let _ = slow.send_to(&forged, from);
    same("heard", asked.join().map_err(|_| anyhow!("the app"))??, odd_answer(&elsewhere))?;

    // A resolver that falls silent is given up, and what comes next is asked as ever.
    let silent = ask_until(&client, v4, &elsewhere, PATIENCE)?;
    ensure!(is_servfail(&silent), "{silent:x?}");
    drop((slow, twin));
    // A program that another test starts may hold our sockets for a moment, between fork and exec.
    let start = || Ok(Resolver::start(&resolver, None).ok());
    let (theirs, _) = eventually(PATIENCE, "port 53 to be free", start)?;
    for at in theirs.at {
        same("at last", ask(&client, at, &elsewhere)?, odd_answer(&elsewhere))?;
        same("at last over TCP", framed(&client, at, &elsewhere)?, odd_answer(&elsewhere))?;
    }
    let metrics = scene.world.node("a").metrics()?;
    for reason in ["unreachable", "timeout"] {
        ensure!(metrics.contains(&format!("\"{reason}\"")), "{reason} is not counted");
    }
    Ok(())
}

/// Asks once, and waits for the answer that long.
fn ask_until(pod: &Pod, at: SocketAddr, query: &[u8], limit: Duration) -> Result<Vec<u8>> {
    let socket = pod.netns().udp(SocketAddr::new(pod.v4(), 0))?;
    socket.connect(at)?;
    socket.set_read_timeout(Some(limit))?;
    socket.send(query)?;
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer)?;
    Ok(buffer[..length].to_vec())
}

#[test]
fn a_takeover_costs_no_query_more_than_a_second_try() -> Result<()> {
    let (mut scene, service) = scene()?;
    let client = scene.pod("client").clone();
    let resolver = Resolver::start(scene.pod("resolver"), None)?;
    let at = resolver.at;
    answered(&client, at[0], &service)?;
    let stop = Arc::new(AtomicBool::new(false));
    let apps: Vec<_> = (0..4_u16)
        .map(|n| {
            let (client, stop, at) = (client.clone(), stop.clone(), at[usize::from(n % 2)]);
            thread::spawn(move || -> Result<(u64, Duration)> {
                let (ours, theirs) = (query(n, SHOP, A), query(n, ELSEWHERE, A));
                let (mut count, mut worst) = (0, Duration::ZERO);
                while !stop.load(Ordering::Relaxed) {
                    // The mesh's answer or the resolver's, where there is no ztunnel for a moment; but an answer.
                    let begun = Instant::now();
                    ask_times(&client, at, &ours, 2).context("a name of the mesh")?;
                    worst = worst.max(begun.elapsed());
                    let heard = ask_times(&client, at, &theirs, 2).context("another name")?;
                    same("passed on", heard, odd_answer(&theirs))?;
                    count += 2;
                }
                Ok((count, worst))
            })
        })
        .collect();
    let ready = "[::]:16021";
    let ports = ["--admin-addr", "none", "--metrics-addr", "none", "--ready-addr", ready];
    thread::sleep(Duration::from_millis(500));
    let programs = scene.mesh.on("a");
    let mut next = programs.node.spawn_ztunnel("successor", &ports)?;
    bed::mesh::wait_ready(&mut next, programs.node.netns(), 16021)?;
    programs.ztunnel.signal(Signal::SIGTERM)?;
    programs.ztunnel.wait(PATIENCE).context("the predecessor ends")?;
    answered(&client, at[0], &service)?;
    // And one that dies without a word, of which the other is the successor again.
    let mut last = scene.mesh.on("a").node.spawn_ztunnel("last", &[])?;
    scene.mesh.on("a").node.wait_ztunnel(&mut last)?;
    next.kill();
    scene.mesh.on("a").ztunnel = last;
    thread::sleep(Duration::from_millis(500));
    stop.store(true, Ordering::Relaxed);
    let mut total = 0;
    for app in apps {
        let (count, worst) = app.join().map_err(|_| anyhow!("an app"))??;
        ensure!(count > 0, "an app asked nothing");
        println!("{count} queries, the slowest of the mesh's answered after {worst:?}");
        total += count;
    }
    println!("{total} queries in two takeovers");
    answered(&client, at[0], &service)
}

#[test]
fn a_ztunnel_that_only_finishes_what_it_carries_takes_no_query() -> Result<()> {
    let (mut scene, service) = scene()?;
    let (client, server) = (scene.pod("client").clone(), scene.pod("server").clone());
    let at = Resolver::start(scene.pod("resolver"), None)?.at;
    for at in at {
        answered(&client, at, &service)?;
    }
    // What keeps the predecessor, after a successor that leaves DNS alone has taken over.
    let mut held = client.netns().connect(server.at(port::ECHO), PATIENCE)?;
    held.set_read_timeout(Some(PATIENCE))?;
    let mut echo = |byte: u8| -> Result<()> {
        held.write_all(&[byte])?;
        let mut heard = [0];
        held.read_exact(&mut heard)?;
        same("the echo", heard, [byte])
    };
    echo(1)?;
    let ready = "[::]:16021";
    let options = ["--admin-addr", "none", "--metrics-addr", "none", "--ready-addr", ready, "--dns", "off"];
    let programs = scene.mesh.on("a");
    let mut next = programs.node.spawn_ztunnel("successor", &options)?;
    bed::mesh::wait_ready(&mut next, programs.node.netns(), 16021)?;
    programs.ztunnel.signal(Signal::SIGTERM)?;
    // Each query is asked once, and has an answer: of the predecessor's as long as it listens, then the resolver's.
    let (begun, mesh) = (Instant::now(), query(5, SHOP, A));
    let mut passed = 0;
    while passed < 20 {
        ensure!(begun.elapsed() < PATIENCE, "the predecessor still answers");
        for at in at {
            let asked = Instant::now();
            let answer = ask_times(&client, at, &mesh, 1).context("while the predecessor drains")?;
            ensure!(asked.elapsed() < Duration::from_secs(1), "answered after {:?}", asked.elapsed());
            passed += usize::from(answer == odd_answer(&mesh));
        }
        thread::sleep(Duration::from_millis(50));
    }
    echo(2).context("the predecessor carries on")?;
    drop(held);
    programs.ztunnel.wait(PATIENCE).context("the predecessor ends")?;
    programs.ztunnel = next;
    Ok(())
}

#[test]
fn a_name_of_the_mesh_is_not_denied_before_the_mesh_is_known() -> Result<()> {
    let (mut scene, service) = scene()?;
    let client = scene.pod("client").clone();
    let [v4, _] = Resolver::start(scene.pod("resolver"), None)?.at;
    answered(&client, v4, &service)?;
    scene.mesh.control.kill();
    let programs = scene.mesh.on("a");
    programs.ztunnel.kill();
    programs.ztunnel = programs.node.spawn_ztunnel("early", &[])?;
    let timed = |query: &[u8]| -> Result<Duration> {
        let begun = Instant::now();
        same("passed on", ask_until(&client, v4, query, PATIENCE)?, odd_answer(query))?;
        Ok(begun.elapsed())
    };
    // As soon as queries are led to ztunnel, which knows nothing, they wait; and not for long.
    let mesh = query(6, SHOP, A);
    let (took, _) = eventually(PATIENCE, "a query to wait for the mesh", || {
        Ok(Some(timed(&mesh)?).filter(|took| *took > Duration::from_millis(1900)))
    })?;
    ensure!(took < Duration::from_secs(4), "it waited for {took:?}");
    // What only the resolver can know does not.
    let took = timed(&query(7, SHOP, SRV))?;
    ensure!(took < Duration::from_secs(1), "a query for SRV waited for {took:?}");
    scene.mesh.control = scene.world.start_control()?;
    answered(&client, v4, &service)
}

#[test]
fn an_app_that_has_port_53_keeps_it() -> Result<()> {
    let (scene, service) = scene()?;
    let (client, server) = (scene.pod("client").clone(), scene.pod("server").clone());
    let resolver = Resolver::start(scene.pod("resolver"), None)?;
    let [v4, v6] = resolver.at;
    answered(&client, v4, &service)?;

    // What it sends from port 53 to port 53 is between resolvers: it leaves as it is.
    let strange = query(2, ELSEWHERE, A);
    for (from, to) in [(client.at(53), server.at(53)), (client.at6(53), server.at6(53))] {
        let (here, there) = (client.netns().udp(from)?, server.netns().udp(to)?);
        there.set_read_timeout(Some(PATIENCE))?;
        here.send_to(&strange, to)?;
        same("from port 53", there.recv_from(&mut [0; 512])?.1, from)?;
    }

    // A resolver of its own on the pod's address is in nobody's way: others ask it, and it answers from its port.
    let own = Resolver::start(&client, None)?;
    for at in own.at {
        same("a pod's own resolver", ask(scene.pod("resolver"), at, &strange)?, odd_answer(&strange))?;
        same("asked by a pod of the mesh", ask(&server, at, &strange)?, odd_answer(&strange))?;
    }
    answered(&client, v4, &service)?;
    // One on every address is: ztunnel stands aside, and the resolver answers.
    // An answer of ztunnel's may have just left from the port.
    let every_v4 = || Ok(server.netns().udp("0.0.0.0:53".parse()?).ok());
    let (everywhere, _) = eventually(PATIENCE, "port 53 to be free", every_v4)?;
    let mesh = query(3, SHOP, A);
    same("aside", ask(&server, v4, &mesh)?, odd_answer(&mesh))?;
    drop(everywhere);
    let again = || {
        eventually(PATIENCE, "the mesh to answer again", || {
            let answer = ask(&server, v4, &mesh)?;
            Ok(addresses(&answer).ok().filter(|found| *found == [service[0]]))
        })
    };
    again()?;
    // So is one on every address of IPv6 alone: aside for good, and not back and forth.
    let v6_only = |on: &str| -> Result<()> {
        Ok(server.netns().enter(|| std::fs::write("/proc/sys/net/ipv6/bindv6only", on))??)
    };
    let every_v6 = || {
        v6_only("1")?;
        let socket = server.netns().udp("[::]:53".parse()?);
        v6_only("0")?;
        Ok(socket.ok())
    };
    let (everywhere, _) = eventually(PATIENCE, "port 53 to be free", every_v6)?;
    // IPv4 is free.
    drop(eventually(PATIENCE, "port 53 to be free", every_v4)?);
    same("aside over IPv6", ask(&server, v6, &mesh)?, odd_answer(&mesh))?;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        same("still aside", ask_times(&server, v6, &mesh, 1)?, odd_answer(&mesh))?;
        thread::sleep(Duration::from_millis(20));
    }
    drop(everywhere);
    again()?;
    Ok(())
}

#[test]
fn a_node_where_it_is_off_answers_only_pods_that_ask_for_it() -> Result<()> {
    let (mut scene, service) = scene()?;
    let client = scene.pod("client").clone();
    let resolver = Resolver::start(scene.pod("resolver"), None)?;
    answered(&client, resolver.at[0], &service)?;
    scene.mesh.on("a").ztunnel.kill();
    let programs = scene.mesh.on("a");
    programs.ztunnel = programs.node.spawn_ztunnel("off", &["--dns", "off"])?;
    programs.node.wait_ztunnel(&mut programs.ztunnel)?;
    scene.wait_enrolled(true)?;
    let mesh = query(4, SHOP, A);
    for at in resolver.at {
        let before = resolver.asked();
        same("off", ask(&client, at, &mesh)?, odd_answer(&mesh))?;
        same("off over TCP", framed(&client, at, &mesh)?, odd_answer(&mesh))?;
        ensure!(resolver.asked() >= before + 2, "somebody else answered");
    }
    // A pod's own word is the more specific one.
    let willing = scene.pod("willing").clone();
    answered(&willing, resolver.at[0], &service)?;
    same("over TCP", addresses(&framed(&willing, resolver.at[0], &mesh)?)?, vec![service[0]])
}

#[test]
fn http_reaches_an_endpoint_that_is_known_by_its_host_name() -> Result<()> {
    let pods = [("mesh", "client", "a"), ("plain", "resolver", "b"), ("plain", "outside", "b")];
    let mut scene = Scene::start_with(&pods, |world| {
        let spec = "  hosts: [named.example.com]\n  ports: [{number: 80, name: http, targetPort: 8080}]\n  \
                    resolution: DNS\n  endpoints: [{address: backend.example.net}]\n";
        world.manifests().put("named", &entry("named", spec))
    })?;
    let (client, outside) = (scene.pod("client").clone(), scene.pod("outside").clone());
    let IpAddr::V4(there) = outside.v4() else { return Err(anyhow!("no IPv4")) };
    let resolver = Resolver::start(scene.pod("resolver"), Some(("backend", there.octets())))?;
    let server = outside.netns().listen(outside.at(8080))?;
    thread::spawn(move || {
        for stream in server.incoming() {
            let Ok(mut stream) = stream else { return };
            // To its end: what nobody has read would make a reset of the answer.
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if !stream.read(&mut byte).is_ok_and(|length| length == 1) {
                    break;
                }
                request.extend(byte);
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nby name");
        }
    });
    // A resolver that serves the pod stays the one to ask, whomever else it asks: one that refuses, and with what is no
    // query.
    let known = query(7, "backend.example.net", A);
    same("of the resolver", addresses(&ask(&client, resolver.at[0], &known)?)?, vec![outside.v4()])?;
    let refusing = Resolver::start(&outside, None)?;
    for (kind, at, prefix) in [(A, resolver.at[0], "240.240."), (AAAA, resolver.at[1], "2001:2::")] {
        let automatic = resolved(&client, at, "named.example.com", kind)?;
        ensure!(automatic.len() == 1 && automatic[0].to_string().starts_with(prefix), "{automatic:?}");
        for at in refusing.at {
            for query in [query(8, ELSEWHERE, A), vec![0x11; 40]] {
                same("refused", ask(&client, at, &query)?, odd_answer(&query))?;
            }
        }
        let before = refusing.asked();
        let since = scene.log_length("a");
        let response = bed::http::get(client.netns(), SocketAddr::new(automatic[0], 80), "/")?;
        same("the answer", (response.status, response.body.as_str()), (200, "by name"))?;
        let line = scene.wait_access("a", since, "the call", |line| line["dst.workload"] == "named-0")?;
        ensure!(line.to_string().contains(&outside.at(8080).to_string()), "it went elsewhere: {line}");
        same("asked of who refuses", refusing.asked(), before)?;
    }
    Ok(())
}
