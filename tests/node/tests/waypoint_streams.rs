//! Connections that are no HTTP, led on by TCPRoutes and, by the server they ask for in TLS, by TLSRoutes; and backends that
//! are no plain Services of the mesh: with TLS of their own, and of ServiceEntries.

use anyhow::{Result, ensure};
use bed::{Pod, Process};
use node::{PATIENCE, Scene, app, fails, port, same, web, well};
use serde_json::Value;

/// Where [`MAIL`] serves.
const MAIL_PORT: u16 = 8600;

/// A server that speaks first, within TLS, and then ends.
const MAIL: &str = r#"
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
server = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
while True:
    try:
        connection = context.wrap_socket(server.accept()[0], server_side=True)
        connection.sendall(b"220 mail\r\n")
        connection.unwrap()
    except OSError: pass
"#;

/// A caller that asks in a method that is none, and prints what is answered; itself in TLS, once it has been silent for a
/// while, or not.
const ASK: &str = r#"
import socket, ssl, sys, time
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)
if sys.argv[3] == "tls":
    time.sleep(0.3)
    connection = context.wrap_socket(connection)
connection.sendall(b"x / HTTP/1.1\r\n\r\n")
print(connection.recv(100).decode())
"#;

/// A caller on node a; two servers of TLS and of something else on node b, behind services with a waypoint, of which
/// the first is at 10.96.0.1; and one that is of no mesh.
struct Stage {
    waypoint: Process,
    pod: Pod,
    /// What the servers show.
    certificate: web::Certificate,
    _servers: Vec<Process>,
    scene: Scene,
}

impl Stage {
    fn new() -> Result<Self> {
        let pods = [
            ("mesh", "client", "a"),
            ("mesh", "web-v1", "b"),
            ("mesh", "web-v2", "b"),
            // Of no mesh.
            ("plain", "bank", "b"),
        ];
        let ports = [
            ("tcp", 80, web::PORT),
            ("tls", 443, web::TLS_PORT),
            ("unknown", 81, web::PORT),
            ("echo", 82, port::ECHO),
            // Servers of TLS, of which that is not said.
            ("tcp-orders", 83, web::TLS_PORT),
            ("orders", 84, web::TLS_PORT),
            ("tcp-mail", 85, MAIL_PORT),
        ];
        let services = [("web", "web-v1", true), ("web-v2", "web-v2", true)];
        let (scene, pod) = Scene::behind_waypoint(&pods, &ports, &services, |_| Ok(()))?;
        let certificate = web::Certificate::new(scene.world.folder(), "tls", "*.shop.test")?;
        let mut servers = Vec::new();
        for name in ["web-v1", "web-v2", "bank"] {
            servers.push(web::serve(scene.pod(name))?);
            servers.push(web::serve_tls(scene.pod(name), &certificate)?);
        }
        let waypoint = scene.world.start_waypoint(&pod, "waypoint")?;
        Ok(Self { waypoint, pod, certificate, _servers: servers, scene })
    }

    /// Who answers each of so many connections; `None`: it was refused.
    fn ask(&self, port: u16, times: usize) -> Result<Vec<Option<String>>> {
        let job =
            self.scene.pod("client").job("curl").args(["-s", "-H", "connection: close", "-w", "\nend\n"]);
        let url = format!("http://10.96.0.1:{port}/[1-{times}]");
        let said = job.arg(&url).run()?.stdout;
        let answers = said.split("\nend\n").map(|said| {
            let seen: Option<Value> = said.lines().find_map(|line| serde_json::from_str(line).ok());
            seen.and_then(|seen| seen["name"].as_str().map(str::to_owned))
        });
        Ok(answers.take(times).collect())
    }

    /// Who answers a request by TLS for this server.
    fn ask_tls(&self, server: &str) -> Result<Option<String>> {
        let to = format!("{server}:443:10.96.0.1");
        let url = format!("https://{server}/");
        let answers = web::curl(self.scene.pod("client"), &["-k", "--resolve", &to, &url])?;
        if let Some(seen) = answers.seen.last() {
            same("the name that the server was asked for", seen["sni"].as_str(), Some(server))?;
        }
        Ok(answers.server().map(str::to_owned))
    }

    /// Writes a route of a kind for a port of the service; `rest` is YAML of its spec.
    fn route(&self, kind: &str, port: u16, rest: &str) -> Result<()> {
        let yaml = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: mesh}}\n\
             spec:\n  parentRefs: [{{group: '', kind: Service, name: web, port: {port}}}]\n  {rest}\n",
            name = kind.to_ascii_lowercase()
        );
        self.scene.world.manifests().put(&format!("route-{kind}"), &yaml)
    }

    /// How many connections the waypoint has not taken for a reason.
    fn refused(&self, reason: &str) -> Result<u64> {
        let page = self.pod.job("curl").args(["-s", "http://127.0.0.1:15020/metrics"]).check()?.stdout;
        let line = format!("culvert_waypoint_refused_total{{reason=\"{reason}\"}} ");
        let count = page.lines().find_map(|found| found.strip_prefix(&line));
        Ok(count.map(str::parse).transpose()?.unwrap_or(0))
    }
}

#[test]
fn connections_are_led_on_by_weight_and_what_leads_nowhere_refuses_its_share() -> Result<()> {
    let mut stage = Stage::new()?;
    same("before", stage.ask(80, 5)?, vec![Some("web-v1".to_owned()); 5])?;
    let backends = |refs: &str| format!("rules: [{{backendRefs: [{refs}]}}]");
    let (v1, v2, nobody) = ("{name: web, port: 80", "{name: web-v2, port: 80", "{name: nobody, port: 80");
    stage.route("TCPRoute", 80, &backends(&format!("{v1}, weight: 0}}, {v2}}}")))?;
    let moved = || Ok(Some(stage.ask(80, 1)?).filter(|names| *names == [Some("web-v2".to_owned())]));
    bed::eventually(PATIENCE, "the route", moved)?;
    same("all of them", stage.ask(80, 50)?, vec![Some("web-v2".to_owned()); 50])?;
    same("another port", stage.ask(81, 5)?, vec![Some("web-v1".to_owned()); 5])?;

    stage.route(
        "TCPRoute",
        80,
        &backends(&format!("{v1}, weight: 2}}, {v2}, weight: 1}}, {nobody}, weight: 1}}")),
    )?;
    let mixed = || Ok(Some(stage.ask(80, 20)?).filter(|names| names.contains(&Some("web-v1".to_owned()))));
    bed::eventually(PATIENCE, "the other weights", mixed)?;
    let before = stage.refused("no-backend")?;
    let names = stage.ask(80, 400)?;
    let count = |wanted: Option<&str>| names.iter().filter(|name| name.as_deref() == wanted).count();
    let (first, second, none) = (count(Some("web-v1")), count(Some("web-v2")), count(None));
    same("connections", first + second + none, 400)?;
    // Five standard deviations of a half and of a quarter of 400.
    ensure!((150..=250).contains(&first), "{first} of 400 went to the half");
    ensure!((57..=143).contains(&second) && (57..=143).contains(&none), "{second} and {none} of 400");
    same("refusals that are counted", stage.refused("no-backend")? - before, none as u64)?;
    let led = |line: &Value| line["route"] == "mesh/tcproute" && line["dst.workload"] == "web-v2";
    bed::report::wait_access(&mut stage.waypoint, 0, PATIENCE, "a connection that was led on", led)?;
    let failed = |line: &Value| {
        line["error"].as_str().is_some_and(|error| {
            error == "the route mesh/tcproute leads nowhere: there is no service mesh/nobody"
        })
    };
    bed::report::wait_access(&mut stage.waypoint, 0, PATIENCE, "one that leads nowhere", failed)?;
    // A policy of whom it is led on to is judged there.
    let policy = "targetRefs: [{kind: Service, name: web-v2}]\naction: DENY\nrules:\n- from: [{source: {principals: ['*']}}]\n";
    stage.scene.world.manifests().authorization_policy("mesh", "nobody", policy)?;
    let denied = || Ok(Some(stage.ask(80, 40)?).filter(|names| !names.contains(&Some("web-v2".to_owned()))));
    bed::eventually(PATIENCE, "the second to be closed", denied).map(drop)
}

#[test]
fn tls_is_led_on_by_the_server_that_it_asks_for_and_is_not_opened() -> Result<()> {
    let mut stage = Stage::new()?;
    let name = |name: &str| Some(name.to_owned());
    same("before", stage.ask_tls("a.shop.test")?, name("web-v1"))?;
    stage.route(
        "TLSRoute",
        443,
        "hostnames: ['*.shop.test']\n  rules: [{backendRefs: [{name: web-v2, port: 443}]}]\n---\n\
         apiVersion: gateway.networking.k8s.io/v1alpha2\nkind: TLSRoute\nmetadata: {name: exact, namespace: mesh}\n\
         spec:\n  parentRefs: [{group: '', kind: Service, name: web, port: 443}]\n  \
         hostnames: [a.shop.test]\n  rules: [{backendRefs: [{name: web, port: 443}]}]",
    )?;
    let moved = || Ok(Some(stage.ask_tls("b.shop.test")?).filter(|found| *found == name("web-v2")));
    bed::eventually(PATIENCE, "the routes", moved)?;
    for (server, found) in [
        ("a.shop.test", name("web-v1")),
        ("b.shop.test", name("web-v2")),
        ("c.b.shop.test", name("web-v2")),
        ("shop.test", None),
        ("other.test", None),
    ] {
        same(server, stage.ask_tls(server)?, found)?;
    }
    same("what no route is for", stage.refused("no-route")?, 2)?;
    // What is no TLS does not pass, and nobody waits for it.
    let plain = web::curl(stage.scene.pod("client"), &["http://10.96.0.1:443/"])?;
    same("plain", (plain.status, stage.refused("no-tls")?), (0, 1))?;
    let led = |line: &Value| line["route"] == "mesh/exact" && line["server"] == "a.shop.test";
    bed::report::wait_access(&mut stage.waypoint, 0, PATIENCE, "a connection by its server", led)?;
    // Other ports are as they were.
    well(app(stage.scene.pod("client"), "echo", "10.96.0.1:82".parse()?)?)?;
    stage.route(
        "TLSRoute",
        82,
        "hostnames: [a.shop.test]\n  rules: [{backendRefs: [{name: web, port: 82}]}]",
    )?;
    let closed = || {
        let answer = app(stage.scene.pod("client"), "echo", "10.96.0.1:82".parse()?)?.run()?;
        Ok((!answer.success()).then_some(()))
    };
    bed::eventually(PATIENCE, "the port to be for TLS", closed)?;
    fails(app(stage.scene.pod("client"), "echo", "10.96.0.1:82".parse()?)?, &["reset", "eof", "broken_pipe"])
        .map(drop)
}

/// What the waypoint is to believe of `web-v2`, and a ConfigMap with a certificate.
fn believed(stage: &Stage, service: &str, certificate: &web::Certificate) -> Result<()> {
    let pem = std::fs::read_to_string(&certificate.certificate)?;
    let lines: String = pem.lines().map(|line| format!("    {line}\n")).collect();
    let yaml = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: roots, namespace: mesh}}\ndata:\n  ca.crt: |\n{lines}---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: tls, namespace: mesh}}\nspec:\n  \
         targetRefs: [{{{service}, sectionName: tls}}]\n  validation:\n    hostname: b.shop.test\n    \
         caCertificateRefs: [{{group: '', kind: ConfigMap, name: roots}}]\n"
    );
    stage.scene.world.manifests().put("tls", &yaml)
}

#[test]
fn tls_is_begun_with_a_backend_that_proves_itself_and_with_no_other() -> Result<()> {
    let mut stage = Stage::new()?;
    let ask = |stage: &Stage| web::curl(stage.scene.pod("client"), &["http://10.96.0.1:81/"]);
    let answered = |stage: &Stage, status: u16| {
        let answers = ask(stage)?;
        Ok(Some(answers).filter(|answers| answers.status == status))
    };
    stage.route("HTTPRoute", 81, "rules: [{backendRefs: [{name: web-v2, port: 443}]}]")?;
    // Without a policy it is said to speak no HTTP.
    bed::eventually(PATIENCE, "the route", || answered(&stage, 500))?;
    let service = "group: '', kind: Service, name: web-v2";
    believed(&stage, service, &stage.certificate)?;
    let (answers, _) = bed::eventually(PATIENCE, "TLS with the backend", || answered(&stage, 200))?;
    let seen = &answers.seen[0];
    same("who answers", (answers.server(), seen["sni"].as_str()), (Some("web-v2"), Some("b.shop.test")))?;
    same("the caller", seen["peer"].as_str(), Some(stage.scene.pod("client").v4().to_string().as_str()))?;

    let other = web::Certificate::new(stage.scene.world.folder(), "other", "*.shop.test")?;
    believed(&stage, service, &other)?;
    bed::eventually(PATIENCE, "the certificate to be refused", || answered(&stage, 503))?;
    let told = |line: &Value| {
        line["error"].as_str().is_some_and(|error| {
            error.contains("as b.shop.test (BackendTLSPolicy mesh/tls) failed: invalid peer certificate")
        })
    };
    bed::report::wait_access(&mut stage.waypoint, 0, PATIENCE, "why", told)?;
    believed(&stage, service, &stage.certificate)?;
    bed::eventually(PATIENCE, "the right one again", || answered(&stage, 200)).map(drop)
}

#[test]
fn connections_without_a_route_are_in_tls_too_and_what_a_caller_has_begun_is_passed_through() -> Result<()> {
    let mut stage = Stage::new()?;
    let mail = stage.scene.pod("web-v1").job("python3").args(["-u", "-c", MAIL, &MAIL_PORT.to_string()]);
    let mail = mail.args([&stage.certificate.certificate, &stage.certificate.key]);
    let mut mail = mail.spawn("mail")?;
    mail.wait_for_line(PATIENCE, "its port to listen", |line| line == "ready")?;
    let client = |stage: &Stage| stage.scene.pod("client").clone();
    // Whether a server of HTTP answers what begins like none; asked in the caller's own TLS or not.
    let answers = |stage: &Stage, port: u16, how: &str| -> Result<bool> {
        let said =
            client(stage).job("python3").args(["-c", ASK, "10.96.0.1", &port.to_string(), how]).run()?;
        Ok(said.success() && said.stdout.contains(" 501 "))
    };
    let own = |stage: &Stage, port: u16| -> Result<Option<String>> {
        let to = format!("own.shop.test:{port}:10.96.0.1");
        let url = format!("https://own.shop.test:{port}/");
        let answers = web::curl(&client(stage), &["-k", "--resolve", &to, &url])?;
        Ok(answers.seen.last().and_then(|seen| seen["sni"].as_str().map(str::to_owned)))
    };
    let own_tls = |stage: &Stage| -> Result<()> {
        for port in [83, 84] {
            same("a caller's own TLS", own(stage, port)?.as_deref(), Some("own.shop.test"))?;
        }
        same("TLS that a caller begins late", answers(stage, 83, "tls")?, true)
    };
    own_tls(&stage)?;
    let policy = |rest: &str| {
        let pem = std::fs::read_to_string(&stage.certificate.certificate)?;
        let lines: String = pem.lines().map(|line| format!("    {line}\n")).collect();
        let target = |port: &str| format!("{{group: '', kind: Service, name: web, sectionName: {port}}}");
        let targets = ["tcp-orders", "orders", "tcp-mail"].map(target).join(", ");
        let yaml = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: roots, namespace: mesh}}\ndata:\n  ca.crt: |\n{lines}---\n\
             apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: tls, namespace: mesh}}\n\
             spec:\n  targetRefs: [{targets}]\n  validation: {{hostname: b.shop.test, {rest}}}\n"
        );
        stage.scene.world.manifests().put("tls", &yaml)
    };
    // Refused, and never good: nothing goes in plaintext.
    policy("roots: [roots]")?;
    let closed = || Ok((!answers(&stage, 83, "plain")? && stage.refused("backend-tls")? > 0).then_some(()));
    bed::eventually(PATIENCE, "the way to be closed", closed)?;
    same("a port of which nothing is said", answers(&stage, 84, "plain")?, false)?;
    ensure!(web::say(&client(&stage), "10.96.0.1", 85, "").is_err(), "a server that speaks first is heard");
    own_tls(&stage)?;
    policy("caCertificateRefs: [{group: '', kind: ConfigMap, name: roots}]")?;
    let in_tls = || Ok(answers(&stage, 83, "plain")?.then_some(()));
    bed::eventually(PATIENCE, "TLS with the backend", in_tls)?;
    let in_tls = || Ok(answers(&stage, 84, "plain")?.then_some(()));
    bed::eventually(PATIENCE, "TLS where nobody has said what is spoken", in_tls)?;
    same(
        "a server that speaks first",
        web::say(&client(&stage), "10.96.0.1", 85, "")?.as_str(),
        "220 mail\r\n",
    )?;
    own_tls(&stage)?;
    let told = |line: &Value| {
        line["error"].as_str().is_some_and(|error| error.contains("(BackendTLSPolicy mesh/tls) failed"))
    };
    bed::report::wait_access(&mut stage.waypoint, 0, PATIENCE, "why the way was closed", told).map(drop)
}

#[test]
fn what_is_of_no_mesh_is_a_backend_by_its_service_entry() -> Result<()> {
    let stage = Stage::new()?;
    let entry = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: bank, namespace: mesh}}\nspec:\n  \
         hosts: [bank.example]\n  addresses: [240.1.2.3]\n  resolution: STATIC\n  endpoints: [{{address: {}}}]\n  ports:\n  \
         - {{number: 80, name: http, protocol: HTTP, targetPort: {}}}\n  \
         - {{number: 443, name: tls, protocol: HTTPS, targetPort: {}}}\n",
        stage.scene.pod("bank").v4(),
        web::PORT,
        web::TLS_PORT
    );
    stage.scene.world.manifests().put("entry", &entry)?;
    let ask = || web::curl(stage.scene.pod("client"), &["http://10.96.0.1:81/"]);
    let by_bank = || Ok(Some(ask()?).filter(|answers| answers.server() == Some("bank")));
    let backend = |of: &str, port: u16| {
        let group = "group: networking.istio.io";
        stage.route("HTTPRoute", 81, &format!("rules: [{{backendRefs: [{{{group}, {of}, port: {port}}}]}}]"))
    };
    backend("kind: ServiceEntry, name: bank", 80)?;
    let (answers, _) = bed::eventually(PATIENCE, "the entry", by_bank)?;
    same("plainly", answers.seen[0]["sni"].as_str(), None)?;
    // In TLS, by the name of its host.
    believed(&stage, "group: networking.istio.io, kind: ServiceEntry, name: bank", &stage.certificate)?;
    backend("kind: Hostname, name: bank.example", 443)?;
    let in_tls = || Ok(by_bank()?.filter(|answers| answers.seen[0]["sni"] == "b.shop.test"));
    bed::eventually(PATIENCE, "the entry in TLS", in_tls)?;
    // Connections, too.
    stage.route(
        "TCPRoute",
        80,
        "rules: [{backendRefs: [{group: networking.istio.io, kind: Hostname, name: bank.example, port: 80}]}]",
    )?;
    let led = || Ok(Some(stage.ask(80, 1)?).filter(|names| *names == [Some("bank".to_owned())]));
    bed::eventually(PATIENCE, "a connection to it", led).map(drop)
}
