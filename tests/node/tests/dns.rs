//! DNS of pods: what ztunnel answers, and what it passes on without changing a byte.

use std::{
    io::Read,
    net::{IpAddr, Shutdown, SocketAddr},
};

use anyhow::{Context as _, Result, bail, ensure};
use node::{
    PATIENCE, Scene, app,
    dns::{
        A, AAAA, Resolver, SRV, addresses, annotate, ask, entry, odd_answer, query, read_framed, resolved,
        write_framed,
    },
    port, same, well,
};

/// How many queries ztunnel has passed on, on the client's node.
fn passed_on(scene: &Scene) -> Result<u64> {
    let metrics = scene.world.node("a").metrics()?;
    let count = metrics.lines().find_map(|line| line.strip_prefix("istio_dns_upstream_requests_total "));
    Ok(count.context("no count of queries passed on")?.trim().parse()?)
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
        annotate(world, "quiet", "false")
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
            // Below any link's MTU: fragments pass, whoever is there.
            vec![0x11; 1_200],
        ] {
            // By ztunnel: a query that the kernel lets pass by has the same answer.
            let before = passed_on(&scene)?;
            same("what the resolver said", ask(&client, at, &query)?, odd_answer(&query))?;
            ensure!(passed_on(&scene)? > before, "a query has passed ztunnel by: {query:x?}");
        }
    }

    // Over TCP: several queries on one connection, some of them ours.
    let other = query(21, "elsewhere.example.com", A);
    for at in [v4, v6] {
        let mut stream = client.netns().connect(at, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write_framed(&mut stream, &query(20, "shop.mesh.svc.cluster.local", A))?;
        same("ours over TCP", addresses(&read_framed(&mut stream)?)?, vec![service[0]])?;
        let before = passed_on(&scene)?;
        for _ in 0..2 {
            write_framed(&mut stream, &other)?;
            same("the resolver's over TCP", read_framed(&mut stream)?, odd_answer(&other))?;
        }
        ensure!(passed_on(&scene)? >= before + 2, "queries over TCP have passed ztunnel by");
        write_framed(&mut stream, &query(22, "crew.mesh.svc.cluster.local", A))?;
        same("ours after it", addresses(&read_framed(&mut stream)?)?, vec![server.v4()])?;
        // Whoever asks nothing more still waits for the answer.
        write_framed(&mut stream, &other)?;
        stream.shutdown(Shutdown::Write)?;
        same("after the last query", read_framed(&mut stream)?, odd_answer(&other))?;
        same("the end", stream.read(&mut [0])?, 0)?;
    }

    // A host without addresses has automatic ones, and a connection to them finds the host.
    let automatic = resolved(&client, v4, "auto.example.com", A)?;
    ensure!(automatic.len() == 1 && automatic[0].to_string().starts_with("240.240."), "{automatic:?}");
    let since = scene.log_length("a");
    well(app(&client, "echo", SocketAddr::new(automatic[0], port::ECHO))?)?;
    let line = scene.wait_access("a", since, "the call", |line| line["dst.workload"] == "automatic")?;
    ensure!(line.to_string().contains(&outside.to_string()), "it went elsewhere: {line}");

    // A pod that has its DNS left alone.
    let own = query(30, "shop.mesh.svc.cluster.local", A);
    let before = passed_on(&scene)?;
    same("a pod left alone", ask(&quiet, v4, &own)?, odd_answer(&own))?;
    same("passed on of it", passed_on(&scene)?, before)?;

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
