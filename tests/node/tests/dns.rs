//! DNS of pods: what ztunnel answers, and what it passes on without changing a byte.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use bed::{Pod, eventually};
use node::{PATIENCE, Scene, app, port, same, well};

const A: u16 = 1;
const AAAA: u16 = 28;
const SRV: u16 = 33;
/// How long an app waits before it asks again.
const TRY: Duration = Duration::from_secs(2);

/// A query of the plainest kind (RFC 1035 §4.1).
fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = [id.to_be_bytes(), [1, 0], [0, 1], [0, 0], [0, 0], [0, 0]].concat();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a short label"));
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    bytes
}

/// What the fake resolver answers: the query with QR and TC, an unassigned flag, and bytes that no message has.
fn odd_answer(query: &[u8]) -> Vec<u8> {
    let mut bytes = query.to_vec();
    bytes[2] |= 0x82;
    bytes[3] = 0xc5;
    bytes[11] = 3;
    bytes.extend(b"\xc0\x0c additional records that nobody reads \xff\x00\x01");
    bytes
}

/// A true answer with one address.
fn true_answer(query: &[u8], address: [u8; 4]) -> Vec<u8> {
    let mut bytes = query[..query.len().min(512)].to_vec();
    // Without the client's EDNS.
    let end = 12 + bytes[12..].iter().position(|byte| *byte == 0).unwrap_or(0) + 5;
    bytes.truncate(end);
    bytes[2] |= 0x80;
    bytes[3] = 0x80;
    let wants_v4 = bytes[end - 4..end - 2] == [0, 1];
    bytes[7] = u8::from(wants_v4);
    bytes[11] = 0;
    if wants_v4 {
        bytes.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        bytes.extend(address);
    }
    bytes
}

/// A resolver in a pod of its own, for as long as the test runs.
struct Resolver {
    at: [SocketAddr; 2],
    asked: Arc<AtomicUsize>,
}

/// What the resolver knows itself.
type Host = (&'static str, [u8; 4]);

impl Resolver {
    fn start(pod: &Pod, known: Option<Host>) -> Result<Self> {
        let at = [pod.at(53), pod.at6(53)];
        let asked = Arc::new(AtomicUsize::new(0));
        let answer = move |query: &[u8]| match known {
            Some((name, address)) if query.windows(name.len()).any(|part| part == name.as_bytes()) => {
                true_answer(query, address)
            }
            _ => odd_answer(query),
        };
        for at in at {
            let (udp, count) = (pod.netns().udp(at)?, asked.clone());
            thread::spawn(move || {
                let mut buffer = [0; 65_535];
                while let Ok((length, client)) = udp.recv_from(&mut buffer) {
                    count.fetch_add(1, Ordering::Relaxed);
                    let _ = udp.send_to(&answer(&buffer[..length]), client);
                }
            });
            let (tcp, count) = (pod.netns().listen(at)?, asked.clone());
            thread::spawn(move || {
                for stream in tcp.incoming().flatten() {
                    let count = count.clone();
                    thread::spawn(move || {
                        let mut stream = stream;
                        while let Ok(query) = read_framed(&mut stream) {
                            count.fetch_add(1, Ordering::Relaxed);
                            if write_framed(&mut stream, &answer(&query)).is_err() {
                                break;
                            }
                        }
                    });
                }
            });
        }
        Ok(Self { at, asked })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn read_framed(stream: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn write_framed(stream: &mut impl Write, bytes: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(bytes.len()).expect("a short message");
    stream.write_all(&[&length.to_be_bytes()[..], bytes].concat())
}

/// Asks as an app does: from a connected socket, which hears nobody but the resolver.
fn ask(pod: &Pod, at: SocketAddr, query: &[u8]) -> Result<Vec<u8>> {
    let any = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = pod.netns().enter(|| -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind(any)?;
        socket.connect(at)?;
        Ok(socket)
    })??;
    socket.set_read_timeout(Some(TRY))?;
    let mut buffer = vec![0; 65_535];
    for _ in 0..3 {
        socket.send(query)?;
        if let Ok(length) = socket.recv(&mut buffer) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
    bail!("{at} did not answer")
}

/// The addresses in an answer of ours, in order; an error where it is another answer.
fn addresses(answer: &[u8]) -> Result<Vec<IpAddr>> {
    ensure!(answer.len() > 12 && answer[3] & 0x0f == 0, "no answer: {answer:x?}");
    let skip_name = |mut at: usize| -> Result<usize> {
        loop {
            match *answer.get(at).context("an answer cut short")? {
                0 => return Ok(at + 1),
                length if length >= 0xc0 => return Ok(at + 2),
                length => at += usize::from(length) + 1,
            }
        }
    };
    let mut at = skip_name(12)? + 4;
    let mut found = Vec::new();
    for _ in 0..u16::from_be_bytes([answer[6], answer[7]]) {
        at = skip_name(at)?;
        let length = usize::from(u16::from_be_bytes([answer[at + 8], answer[at + 9]]));
        let data = answer.get(at + 10..at + 10 + length).context("a record cut short")?;
        match (answer[at + 1], length) {
            (1, 4) => found.push(IpAddr::from(<[u8; 4]>::try_from(data)?)),
            (28, 16) => found.push(IpAddr::from(<[u8; 16]>::try_from(data)?)),
            _ => {}
        }
        at += 10 + length;
    }
    found.sort_unstable();
    Ok(found)
}

fn entry(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: mesh}}\nspec:\n{spec}"
    )
}

/// Asks until the mesh's answer has addresses; the folder of manifests is read in its own time.
fn resolved(pod: &Pod, at: SocketAddr, name: &str, kind: u16) -> Result<Vec<IpAddr>> {
    eventually(PATIENCE, name, || {
        let answer = ask(pod, at, &query(9, name, kind))?;
        Ok(addresses(&answer).ok().filter(|found| !found.is_empty()))
    })
    .map(|(found, _)| found)
}

#[test]
fn names_of_the_mesh_are_answered_and_all_else_is_passed_on_as_it_is() -> Result<()> {
    let pods = [
        ("mesh", "client", "a"),
        ("mesh", "quiet", "a"),
        ("mesh", "server", "b"),
        ("plain", "resolver", "b"),
        ("plain", "outside", "b"),
    ];
    let mut service = Vec::new();
    let mut scene = Scene::start_with(&pods, |world| {
        service = world.service(7, "mesh", "shop", &[("app", "server")], &[(80, port::ECHO)])?.to_vec();
        world.manifests().put(
            "headless",
            "apiVersion: v1\nkind: Service\nmetadata: {name: crew, namespace: mesh}\n\
             spec:\n  clusterIP: None\n  selector: {app: server}\n  ports: [{port: 80}]\n",
        )?;
        world.manifests().put(
            "addressed",
            &entry("addressed", "  hosts: [api.example.com, \"*.wild.example\"]\n  addresses: [240.0.0.9]\n  ports: [{number: 80, name: http}]\n  resolution: STATIC\n"),
        )?;
        world.manifests().put(
            "automatic",
            &entry(
                "automatic",
                &format!(
                    "  hosts: [auto.example.com]\n  ports: [{{number: {}, name: tcp}}]\n  resolution: DNS\n",
                    port::ECHO
                ),
            ),
        )?;
        let quiet = std::fs::read_dir(world.manifests().folder())?
            .filter_map(Result::ok)
            .map(|file| file.path())
            .find(|path| std::fs::read_to_string(path).is_ok_and(|yaml| yaml.contains("  name: quiet\n")))
            .context("no manifest of the pod quiet")?;
        let yaml = std::fs::read_to_string(&quiet)?;
        let off = "  annotations:\n    ambient.istio.io/dns-capture: \"false\"\n";
        let stem = quiet.file_stem().and_then(|stem| stem.to_str()).context("a name")?.to_owned();
        world.manifests().put(&stem, &yaml.replace("  annotations:\n", off))
    })?;
    let (client, quiet) = (scene.pod("client").clone(), scene.pod("quiet").clone());
    let server = scene.pod("server").clone();
    let IpAddr::V4(outside) = scene.pod("outside").v4() else { bail!("no IPv4") };
    let resolver = Resolver::start(scene.pod("resolver"), Some(("auto", outside.octets())))?;
    let [v4, v6] = resolver.at;

    // Answered, whomever the app asks, over both families.
    for at in [v4, v6] {
        for name in
            ["shop.mesh.svc.cluster.local", "Shop.MESH.svc.cluster.local", "shop.mesh.mesh.svc.cluster.local"]
        {
            same(name, resolved(&client, at, name, A)?, vec![service[0]])?;
            same(name, resolved(&client, at, name, AAAA)?, vec![service[1]])?;
        }
    }
    same("headless", resolved(&client, v4, "crew.mesh.svc.cluster.local", A)?, vec![server.v4()])?;
    same("headless", resolved(&client, v4, "crew.mesh.svc.cluster.local", AAAA)?, vec![server.v6()])?;
    let given: IpAddr = "240.0.0.9".parse()?;
    for name in ["api.example.com", "api.example.com.mesh.svc.cluster.local", "any.wild.example"] {
        same(name, resolved(&client, v4, name, A)?, vec![given])?;
    }
    // A name of ours, and a family that it has not: no error, no address, and nobody else is asked.
    let before = resolver.asked();
    let none = ask(&client, v4, &query(3, "api.example.com", AAAA))?;
    same("no address of the family", addresses(&none)?, vec![])?;
    same("asked of the resolver", resolver.asked(), before)?;

    // Passed on, byte for byte: another name, another type, another opcode, and no message at all.
    let update = [&[0xab, 0xcd, 0x28, 0, 0, 1, 0, 0, 0, 1, 0, 0][..], &[7; 40]].concat();
    let strange = [&query(5, "elsewhere.example.com", 65_399)[..], b"and more"].concat();
    for at in [v4, v6] {
        for query in [
            query(1, "elsewhere.example.com", A),
            query(2, "_http._tcp.shop.mesh.svc.cluster.local", SRV),
            query(3, "shop.mesh.svc.cluster.local", 16),
            update.clone(),
            strange.clone(),
            vec![0x11; 4_000],
        ] {
            if query[2] & 0x80 == 0 {
                same("what the resolver said", ask(&client, at, &query)?, odd_answer(&query))?;
            }
        }
    }

    // Over TCP: several queries on one connection, some of them ours.
    let mut stream = client.netns().connect(v4, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let other = query(21, "elsewhere.example.com", A);
    write_framed(&mut stream, &query(20, "shop.mesh.svc.cluster.local", A))?;
    same("ours over TCP", addresses(&read_framed(&mut stream)?)?, vec![service[0]])?;
    for _ in 0..2 {
        write_framed(&mut stream, &other)?;
        same("the resolver's over TCP", read_framed(&mut stream)?, odd_answer(&other))?;
    }
    write_framed(&mut stream, &query(22, "crew.mesh.svc.cluster.local", A))?;
    same("ours after it", addresses(&read_framed(&mut stream)?)?, vec![server.v4()])?;
    drop(stream);

    // A host without addresses has automatic ones, and a connection to them finds the host.
    let automatic = resolved(&client, v4, "auto.example.com", A)?;
    ensure!(automatic.len() == 1 && automatic[0].to_string().starts_with("240.240."), "{automatic:?}");
    let since = scene.log_length("a");
    well(app(&client, "echo", SocketAddr::new(automatic[0], port::ECHO))?)?;
    let line = scene.wait_access("a", since, "the call", |line| line["dst.workload"] == "automatic")?;
    ensure!(line.to_string().contains(&outside.to_string()), "it went elsewhere: {line}");

    // A pod that has its DNS left alone.
    let own = query(30, "shop.mesh.svc.cluster.local", A);
    same("a pod left alone", ask(&quiet, v4, &own)?, odd_answer(&own))?;

    // Without ztunnel the resolver answers.
    scene.mesh.on("a").ztunnel.kill();
    let mesh = query(31, "shop.mesh.svc.cluster.local", A);
    for at in [v4, v6] {
        same("without ztunnel", ask(&client, at, &mesh)?, odd_answer(&mesh))?;
    }
    let programs = scene.mesh.on("a");
    programs.ztunnel = programs.node.spawn_ztunnel("ztunnel-2", &[])?;
    programs.node.wait_ztunnel(&mut programs.ztunnel)?;
    same("with the next one", resolved(&client, v4, "shop.mesh.svc.cluster.local", A)?, vec![service[0]])?;
    let metrics = scene.world.node("a").metrics()?;
    ensure!(metrics.contains("istio_dns_requests_total{"), "no count of queries");
    Ok(())
}
