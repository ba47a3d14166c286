//! What a mesh of many pods costs control and one client: `cargo run -p control --example scale -- 20000`.

use std::{
    fmt::Write,
    net::Ipv4Addr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use control::{
    compile::{Options, Word, compile},
    manifest::parse,
    metrics::Metrics,
    objects::Objects,
    program::{Control, Settings, Source},
    publish::Store,
};

fn manifests(pods: u32) -> String {
    let mut text = String::from("{apiVersion: v1, kind: Node, metadata: {name: node-a}}\n");
    for number in 0..pods {
        let address = Ipv4Addr::from(0x0a00_0001 + number);
        let (namespace, service) = (number / 1000, number / 10);
        let _ = writeln!(
            text,
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: p{number}, namespace: n{namespace}, labels: {{app: \
             s{service}}}}}, spec: {{nodeName: node-a}}, status: {{podIP: {address}}}}}"
        );
        if number % 10 == 0 {
            let virtual_address = Ipv4Addr::from(0x6400_0001 + service);
            let _ = writeln!(
                text,
                "---\n{{apiVersion: v1, kind: Service, metadata: {{name: s{service}, namespace: n{namespace}}}, spec: \
                 {{clusterIP: {virtual_address}, selector: {{app: s{service}}}, ports: [{{port: 80}}]}}}}"
            );
        }
    }
    text
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = work();
    println!("{what:<34} {:>8.1} ms", begun.elapsed().as_secs_f64() * 1000.0);
    result
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

fn main() -> anyhow::Result<()> {
    let pods: u32 = std::env::args().nth(1).map_or(Ok(10_000), |pods| pods.parse())?;
    println!("{pods} pods, {} services", pods / 10);
    let text = manifests(pods);
    let path = Path::new("all.yaml");
    let parsed = timed("parse", || parse(path, &text));
    let mut objects = Objects::default();
    objects.apply(path, parsed);
    let options = Options::default();
    let compiled =
        timed("compile", || compile(&objects.view(), &|_, _| Word::Fresh { measured: true }, &options));
    let store = Store::default();
    let publish = || {
        let (workloads, services) =
            (compiled.workloads.values().cloned(), compiled.services.values().cloned());
        store.publish(workloads, services, compiled.policies.values().cloned())
    };
    timed("publish, everything new", publish);
    timed("publish, nothing new", publish);
    drop((store, compiled, objects));

    let folder = std::env::temp_dir().join(format!("culvert-scale-{}", std::process::id()));
    let (manifests, state) = (folder.join("manifests"), folder.join("state"));
    std::fs::create_dir_all(&manifests)?;
    std::fs::write(manifests.join(path), &text)?;
    let settings = Settings {
        source: Source::Folder { manifests: manifests.clone(), state: state.clone() },
        listen: ([127, 0, 0, 1], 0).into(),
        names: Vec::new(),
        mesh: options,
        certificate_lifetime: Duration::from_secs(3600),
        authority: None,
        keys: control::keys::Settings::default(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(sync(settings, &manifests, &state));
    std::fs::remove_dir_all(folder)?;
    outcome
}

async fn sync(settings: Settings, manifests: &Path, state: &Path) -> anyhow::Result<()> {
    let begun = Instant::now();
    let control = Control::start(settings, Arc::new(Metrics::default()), |_| {}).await?;
    let address = control.address;
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    tokio::spawn(control.run(move || ready.send(()).unwrap_or_default(), std::future::pending()));
    is_ready.await?;
    println!("{:<34} {:>8.1} ms", "control's start", begun.elapsed().as_secs_f64() * 1000.0);
    println!("{:<34} {:>8} KiB", "resident", resident());
    let mesh = xds::Mesh::new();
    let options = xds::Options {
        control: xds::Control {
            uri: format!("https://{address}"),
            ca: state.join("ca/root.pem"),
            token: state.join("tokens/node-a"),
            server_name: None,
        },
        proxy: xds::Proxy {
            node: "node-a".into(),
            name: "scale".into(),
            namespace: "scale".into(),
            address: Ipv4Addr::LOCALHOST.into(),
        },
        cluster: "Kubernetes".into(),
        trust_domain: "cluster.local".into(),
        routes: false,
    };
    let begun = Instant::now();
    tokio::spawn(xds::run(options, mesh.clone()));
    mesh.complete().await;
    println!("{:<34} {:>8.1} ms", "a client's first sync", begun.elapsed().as_secs_f64() * 1000.0);
    println!("{:<34} {:>8} KiB", "resident, with the client", resident());
    let begun = Instant::now();
    std::fs::write(
        manifests.join("one.yaml"),
        "{apiVersion: v1, kind: Pod, metadata: {name: one}, status: {podIP: 192.0.2.1}}",
    )?;
    let mut changes = mesh.subscribe();
    changes.wait_for(|mesh| mesh.workload("Kubernetes//Pod/default/one").is_some()).await?;
    println!("{:<34} {:>8.1} ms", "one more file, to the client", begun.elapsed().as_secs_f64() * 1000.0);
    Ok(())
}
