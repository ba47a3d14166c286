//! Databases and other servers with handshakes of their own, server-first ones among them, between two nodes.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bed::{Finished, Job, Pod, Process, World};
use node::{PATIENCE, Scene};

const SLOW: Duration = Duration::from_secs(60);

fn scene() -> Result<Scene> {
    Scene::start(&[("mesh", "client", "a"), ("mesh", "server", "b")])
}

/// A folder that belongs to the database's own user, whom its package made.
fn folder_of(world: &World, user: &str) -> Result<PathBuf> {
    let folder = world.folder().join(user);
    fs::create_dir(&folder)?;
    let user = nix::unistd::User::from_name(user)?
        .with_context(|| format!("no user {user}; try: cargo xtask setup"))?;
    chown(&folder, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    Ok(folder)
}

/// Runs a query until the server answers it.
fn query(job: impl Fn() -> Job) -> Result<Finished> {
    let answer = || Ok(job().run()?.ok().ok());
    Ok(bed::eventually(SLOW, "the database to answer", answer)?.0)
}

#[test]
fn mariadb_which_speaks_first() -> Result<()> {
    let scene = scene()?;
    let (client, server) = (scene.pod("client"), scene.pod("server"));
    let data = folder_of(&scene.world, "mysql")?;
    let data_arg = format!("--datadir={}", data.display());
    let install =
        server.job("mariadb-install-db").args(["--no-defaults", "--user=mysql", "--skip-test-db", &data_arg]);
    install.limit(SLOW).check()?;
    let socket = format!("--socket={}", data.join("socket").display());
    let _server: Process = server
        .job("mariadbd")
        .args([
            "--no-defaults",
            "--user=mysql",
            "--skip-grant-tables",
            "--skip-networking=0",
            "--bind-address=*",
        ])
        .args([data_arg.as_str(), &socket, "--port=3306"])
        .spawn("mariadb")?;
    let ask = |sql: &str| {
        let host = server.v4().to_string();
        client.job("mariadb").args(["--no-defaults", "-h", &host, "-P", "3306", "--batch", "-e", sql])
    };
    let answer = query(|| ask("SELECT 40 + 2 AS answer"))?;
    ensure!(answer.stdout.contains("42"), "{answer:?}");
    // A result of some megabytes, sent by the server alone.
    let large = ask("SELECT REPEAT('x', 1000000) FROM mysql.seq_1_to_8").check()?;
    ensure!(large.stdout.matches('x').count() >= 8_000_000, "{} bytes came", large.stdout.len());
    by_hbone(&scene)
}

#[test]
fn postgresql() -> Result<()> {
    let scene = scene()?;
    let (client, server) = (scene.pod("client"), scene.pod("server"));
    let data = folder_of(&scene.world, "postgres")?;
    let program = |name: &str| -> Result<PathBuf> {
        let versions = fs::read_dir("/usr/lib/postgresql").context("PostgreSQL; try: cargo xtask setup")?;
        let found = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin").join(name)));
        found.filter(|path| path.is_file()).max().with_context(|| format!("no {name} of PostgreSQL"))
    };
    let as_postgres = |pod: &Pod, name: &str| -> Result<Job> {
        Ok(pod
            .job("runuser")
            .args(["-u", "postgres", "--"])
            .arg(program(name)?)
            .arg("-D")
            .arg(&data)
            .folder(&data))
    };
    as_postgres(server, "initdb")?.args(["--auth=trust", "--no-sync"]).limit(SLOW).check()?;
    fs::write(
        data.join("pg_hba.conf"),
        "local all all trust\nhost all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n",
    )?;
    let socket = format!("unix_socket_directories={}", data.display());
    let _server = as_postgres(server, "postgres")?
        .args(["-c", "listen_addresses=*", "-c", &socket, "-c", "fsync=off"])
        .spawn("postgres")?;
    let ask = |host: String, sql: &str| {
        client
            .job("psql")
            .args(["-h", &host, "-U", "postgres", "-At", "-c", sql])
            .env("PGCONNECT_TIMEOUT", "5")
    };
    for host in [server.v4().to_string(), server.v6().to_string()] {
        let answer = query(|| ask(host.clone(), "SELECT 40 + 2"))?;
        ensure!(answer.stdout.trim() == "42", "{answer:?}");
        let large = ask(host, "SELECT repeat('x', 8000000)").check()?;
        ensure!(large.stdout.trim().len() == 8_000_000, "{} bytes came", large.stdout.len());
    }
    by_hbone(&scene)
}

const SSH: u16 = 2222;

#[test]
fn sshd_which_speaks_first() -> Result<()> {
    let scene = scene()?;
    let (client, server) = (scene.pod("client"), scene.pod("server"));
    let folder = scene.world.folder().join("sshd");
    fs::create_dir(&folder)?;
    let (key, config) = (folder.join("key"), folder.join("config"));
    let keygen = server.job("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key);
    keygen.check()?;
    let text = format!("Port {SSH}\nHostKey {}\nPidFile none\nUsePAM no\nStrictModes no\n", key.display());
    fs::write(&config, text)?;
    // Where sshd locks its children in; made at boot by whoever starts services.
    fs::create_dir_all(Path::new("/run/sshd"))?;
    let mut sshd = server.job("/usr/sbin/sshd").args(["-D", "-e", "-f"]).arg(&config).spawn("sshd")?;
    sshd.wait_for_line(SLOW, "sshd to listen", |line| line.contains("Server listening on ::"))?;
    let wire = scene.world.sniff(&[])?;
    for to in [server.at(SSH), server.at6(SSH)] {
        let banner = banner(client, to)?;
        ensure!(banner.starts_with("SSH-2.0-OpenSSH"), "{banner:?}");
        // The same host key at the other end: the key exchange went through, too.
        let host = to.ip().to_string();
        let scan =
            client.job("ssh-keyscan").args(["-t", "ed25519", "-p", &SSH.to_string(), &host]).check()?;
        let public = fs::read_to_string(key.with_extension("pub"))?;
        let public = public.split(' ').nth(1).context("the host's public key")?;
        ensure!(scan.stdout.contains(public), "{scan:?}");
    }
    wire.stop()?.only_tunnels()?;
    by_hbone(&scene)
}

/// The first line of a server to which nothing was said.
fn banner(client: &Pod, to: SocketAddr) -> Result<String> {
    let stream = client.netns().connect(to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).with_context(|| format!("the banner of {to}"))?;
    Ok(line)
}

/// Demands that the mesh carried it.
fn by_hbone(scene: &Scene) -> Result<()> {
    let dump = || -> Result<Option<()>> {
        let metrics = scene.world.node("b").metrics()?;
        let counted = |line: &&str| line.contains("reporter=\"destination\"") && line.contains("mutual_tls");
        let mut opened =
            metrics.lines().filter(|line| line.starts_with("istio_tcp_connections_opened_total"));
        Ok(opened.find(counted).map(drop))
    };
    bed::eventually(PATIENCE, "a connection counted as carried by mutual TLS", dump)?;
    Ok(())
}
