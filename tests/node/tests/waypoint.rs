//! The waypoint: requests routed by their content, in the caller's own name; and no way round it.

use anyhow::{Result, ensure};
use bed::{Process, waypoint::ServiceManifest};
use node::{PATIENCE, Scene, app, behind::Named, fails, port, same, web, well};
use serde_json::Value;

const WEB: &str = "http://10.96.0.1";
const BETA_AND_CANARY: &str = "
- name: beta
  matches: [{headers: [{name: x-beta, value: \"1\"}]}]
  backendRefs: [{name: web-v2, port: 80}]
- name: canary
  backendRefs: [{name: web, port: 80, weight: 90}, {name: web-v2, port: 80, weight: 10}]
";

const EXTENDED: &str = "
- name: mirrored
  matches: [{path: {value: /mirrored}}]
  filters: [{type: RequestMirror, requestMirror: {backendRef: {name: web-v2, port: 80}}}]
  backendRefs: [{name: web, port: 80}]
- name: foreign
  matches: [{path: {value: /foreign}}]
  filters: [{type: CORS, cors: {allowOrigins: ['https://*.shop.example'], allowMethods: [PUT], allowCredentials: true}}]
  backendRefs: [{name: web, port: 80}]
- name: flaky
  matches: [{path: {value: /flaky}}]
  retry: {codes: [503], attempts: 3, backoff: 10ms}
  backendRefs: [{name: web, port: 80}]
- name: moved
  matches: [{path: {value: /moved}}]
  filters: [{type: RequestRedirect, requestRedirect: {scheme: https, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
- name: half
  matches: [{path: {value: /half}}]
  backendRefs: [{name: web, port: 80}, {name: nobody, port: 80}]
- name: none
  matches: [{path: {value: /none}}]
  backendRefs: [{name: web, port: 80, weight: 0}]
- name: rest
  backendRefs: [{name: web, port: 80}]
";

/// Two versions of a service, of which the first is behind the waypoint.
const VERSIONS: [Named<'_>; 2] = [("web", "web-v1", true), ("web-v2", "web-v2", false)];

/// Callers on node a; two versions of a service, of which the first is behind the waypoint, on node b.
struct Stage {
    waypoint: Process,
    _servers: Vec<Process>,
    scene: Scene,
}

impl Stage {
    fn new() -> Result<Self> {
        let pods = [
            ("mesh", "client", "a"),
            ("mesh", "intern", "a"),
            ("mesh", "web-v1", "b"),
            ("mesh", "web-v2", "b"),
        ];
        let ports = [
            ("http", 80, web::PORT),
            ("echo", 81, port::ECHO),
            ("banner", 82, port::BANNER),
            ("tcp-peer", 83, port::PEER),
            ("tcp-count", 84, port::COUNT),
            ("unknown", 85, web::PORT),
        ];
        let (scene, pod) = Scene::behind_waypoint(&pods, &ports, &VERSIONS, |manifests| {
            manifests.http_route("mesh", "web", "web", BETA_AND_CANARY)
        })?;
        let servers = web::serve_all(&scene, &["web-v1", "web-v2"])?;
        let waypoint = scene.world.start_waypoint(&pod, "waypoint")?;
        Ok(Self { waypoint, _servers: servers, scene })
    }

    fn curl(&self, pod: &str, arguments: &[&str]) -> Result<web::Answers> {
        web::curl(self.scene.pod(pod), arguments)
    }
}

#[test]
fn a_request_is_routed_by_its_header_and_by_weight_and_the_app_sees_the_caller() -> Result<()> {
    let mut stage = Stage::new()?;
    let caller = stage.scene.pod("client").v4().to_string();
    let since = stage.scene.log_length("b");

    let answers = stage.curl("client", &["-H", "x-beta: 1", &format!("{WEB}/a?b=c")])?;
    same("the answer", (answers.status, answers.server()), (200, Some("web-v2")))?;
    let seen = &answers.seen[0];
    same("the path", seen["path"].as_str(), Some("/a?b=c"))?;
    same("the host", seen["host"].as_str(), Some("10.96.0.1"))?;
    same("the caller's address", seen["peer"].as_str(), Some(caller.as_str()))?;

    let answers = stage.curl("client", &[&format!("{WEB}/[1-1000]")])?;
    same("answers", answers.seen.len(), 1000)?;
    let canaries = answers.seen.iter().filter(|seen| seen["name"] == "web-v2").count();
    // Five standard deviations of a share of a tenth.
    ensure!((52..=148).contains(&canaries), "{canaries} of 1000 went to the tenth");
    ensure!(answers.seen.iter().all(|seen| seen["peer"] == *caller), "another caller was seen");

    let posted =
        stage.curl("client", &["-H", "x-beta: 1", "-H", "transfer-encoding: chunked", "-d", "hello", WEB])?;
    same("a chunked body", (posted.status, posted.seen[0]["body"].as_u64()), (200, Some(5)))?;

    let through = |line: &Value| line["direction"] == "inbound" && !line["src.waypoint"].is_null();
    let line = stage.scene.wait_access("b", since, "the call in the access log", through)?;
    same("the caller", line["src.identity"].as_str(), Some("spiffe://cluster.local/ns/mesh/sa/client"))?;
    same("the waypoint", line["src.waypoint"].as_str(), Some("spiffe://cluster.local/ns/mesh/sa/wp"))?;
    let routed = |line: &Value| line["rule_name"] == "beta";
    let line = bed::report::wait_access(&mut stage.waypoint, 0, PATIENCE, "the request", routed)?;
    same("the route", (line["route"].as_str(), line["status"].as_u64()), (Some("mesh/web"), Some(200)))
}

#[test]
fn a_policy_at_the_destination_judges_the_caller_and_not_the_waypoint() -> Result<()> {
    let stage = Stage::new()?;
    let ask = |pod: &str| stage.curl(pod, &["-H", "x-beta: 1", WEB]);
    same("before", (ask("client")?.status, ask("intern")?.status), (200, 200))?;
    stage.scene.world.manifests().authorization_policy(
        "mesh",
        "only-client",
        "selector:\n  matchLabels: {app: web-v2}\naction: ALLOW\nrules:\n- from:\n  - source:\n      \
         principals: [cluster.local/ns/mesh/sa/client]\n",
    )?;
    let refused = || Ok(Some(ask("intern")?).filter(|answers| answers.status == 403));
    bed::eventually(PATIENCE, "the intern to be refused", refused)?;
    same("the client", ask("client")?.status, 200)?;
    // Nobody is let in because the waypoint would be.
    stage.scene.world.manifests().authorization_policy(
        "mesh",
        "only-client",
        "selector:\n  matchLabels: {app: web-v2}\naction: ALLOW\nrules:\n- from:\n  - source:\n      \
         principals: [cluster.local/ns/mesh/sa/wp]\n",
    )?;
    let refused = || Ok(Some(ask("client")?).filter(|answers| answers.status == 403));
    bed::eventually(PATIENCE, "the client to be refused", refused)?;
    Ok(())
}

/// Whoever may read, may not post nor come near what is under `/admin`, however he spells it.
const READERS: &str = "
targetRefs: [{kind: Service, name: web}]
action: ALLOW
rules:
- from: [{source: {principals: [cluster.local/ns/mesh/sa/client]}}]
  to: [{operation: {methods: [GET], paths: [/, '/items/{*}'], ports: ['80']}}]
- from: [{source: {principals: [cluster.local/ns/mesh/sa/intern]}}]
  to: [{operation: {methods: [GET]}}]
  when: [{key: 'request.headers[x-beta]', values: ['1']}]
- to: [{operation: {ports: ['83']}}]
";
const NO_ADMIN: &str = "
targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: wp}]
action: DENY
rules:
- to: [{operation: {paths: [/admin, '/admin/{**}'], ports: ['80', '82']}}]
";

#[test]
fn requests_are_judged_by_what_they_say_and_by_who_calls() -> Result<()> {
    let mut stage = Stage::new()?;
    let manifests = stage.scene.world.manifests();
    manifests.authorization_policy("mesh", "readers", READERS)?;
    manifests.authorization_policy("mesh", "no-admin", NO_ADMIN)?;
    let ask = |pod: &str, more: &[&str], path: &str| -> Result<u16> {
        let target = format!("{WEB}{path}");
        let line = [&["--path-as-is", target.as_str()], more].concat();
        Ok(stage.curl(pod, &line)?.status)
    };
    let refused = || Ok(Some(ask("client", &[], "/other")?).filter(|status| *status == 403));
    bed::eventually(PATIENCE, "what is not allowed to be refused", refused)?;
    for (path, status) in [
        ("/", 200),
        ("/items/7?x=/admin", 200),
        ("/items/%37", 200),
        ("/x/../items/7", 200),
        ("/items/7/parts", 403),
        ("/admin", 403),
        ("/%61dmin/users", 403),
        ("/items/../admin/", 403),
        ("//admin", 400),
        ("/items/a%2fb", 400),
        ("/x/..;/admin", 400),
    ] {
        same(path, ask("client", &[], path)?, status)?;
    }
    same(
        "what was judged was sent",
        stage.curl("client", &["--path-as-is", &format!("{WEB}/x/../%69tems/7")])?.seen[0]["path"].as_str(),
        Some("/items/7"),
    )?;
    same("another method", ask("client", &["-X", "POST"], "/")?, 403)?;
    same("another caller", ask("intern", &[], "/")?, 403)?;
    same("with a header", ask("intern", &["-H", "x-beta: 1"], "/anything")?, 200)?;
    // What is no HTTP: an ALLOW that asks for more than the caller does not help, and a DENY asks for less.
    let client = stage.scene.pod("client");
    let to = |port: u16| format!("10.96.0.1:{port}").parse();
    well(app(client, "peer", to(83)?)?)?;
    for port in [81, 82] {
        let kind = if port == 81 { "echo" } else { "banner" };
        fails(app(client, kind, to(port)?)?, &["reset", "eof", "broken_pipe", "refused"])?;
    }
    let denied = |line: &Value| line["policy"] == "mesh/no-admin" && line["status"] == 403;
    let line = bed::report::wait_access(&mut stage.waypoint, 0, PATIENCE, "the denial", denied)?;
    same("its reason", line["error"].as_str(), Some("denied by policy mesh/no-admin"))?;
    same("its flag", line["flags"].as_str(), Some("UAEX"))
}

#[test]
fn without_its_waypoint_a_service_is_not_reached() -> Result<()> {
    let mut stage = Stage::new()?;
    same("before", stage.curl("client", &[WEB])?.status, 200)?;
    let since = stage.scene.log_length("a");
    stage.waypoint.kill();
    let answers = stage.curl("client", &[WEB])?;
    same("the answer", (answers.status, answers.seen.len()), (0, 0))?;
    // The connection from before may be told of, too, as broken.
    let refused = |line: &Value| {
        line["direction"] == "outbound"
            && line["dst.service"] == "web.mesh.svc.cluster.local"
            && line["error"]
                .as_str()
                .is_some_and(|error| error.contains("the waypoint mesh/wp did not take it"))
    };
    stage.scene.wait_access("a", since, "the refusal", refused)?;
    let metrics = stage.scene.world.node("a").metrics()?;
    ensure!(metrics.contains("reason=\"waypoint-unreachable\""), "the reason is not counted");

    // Gone from the manifests as well: another reason, and still no way round.
    stage.scene.world.manifests().remove("pod-mesh-wp")?;
    let gone = |line: &Value| line["error"].as_str().is_some_and(|error| error.contains("none is ready"));
    let told = || -> Result<Option<()>> {
        let answers = stage.curl("client", &[WEB])?;
        ensure!(answers.status == 0, "a way round: {answers:?}");
        let lines = bed::report::accesses(&stage.scene.mesh.nodes[0].ztunnel, since);
        Ok(lines.iter().any(gone).then_some(()))
    };
    bed::eventually(PATIENCE, "the other reason", told).map(drop)
}

#[test]
fn where_a_waypoint_is_required_nobody_calls_directly() -> Result<()> {
    let stage = Stage::new()?;
    let (client, server) = (stage.scene.pod("client"), stage.scene.pod("web-v1"));
    let direct = format!("http://{}", server.at(web::PORT));
    same("before", stage.curl("client", &[&direct])?.status, 200)?;
    well(app(client, "echo", server.at(port::ECHO))?)?;
    let manifests = stage.scene.world.manifests();
    let labelled = std::fs::read_to_string(manifests.path("namespace-mesh"))?
        + "    culvert.dev/waypoint: required\n  annotations:\n    culvert.dev/waypoint-except-ports: \"9000\"\n";
    manifests.put("namespace-mesh", &labelled)?;
    let refused = || Ok(Some(stage.curl("client", &[&direct])?).filter(|answers| answers.status == 0));
    bed::eventually(PATIENCE, "the direct call to be refused", refused)?;
    fails(app(client, "peer", server.at(port::PEER))?, &["reset", "eof", "broken_pipe", "refused"])?;
    well(app(client, "echo", server.at(port::ECHO))?)?;
    same("through the waypoint", stage.curl("client", &[WEB])?.status, 200)?;
    same(
        "through the waypoint, routed on",
        stage.curl("client", &["-H", "x-beta: 1", WEB])?.server(),
        Some("web-v2"),
    )
}

#[test]
fn what_is_no_http_passes_too_whoever_speaks_first() -> Result<()> {
    let stage = Stage::new()?;
    let client = stage.scene.pod("client");
    let to = |port: u16| format!("10.96.0.1:{port}").parse();
    well(app(client, "echo", to(81)?)?.args(["--count", "50", "--size", "1000"]))?;
    well(app(client, "banner", to(82)?)?)?;
    let seen = well(app(client, "peer", to(83)?)?)?;
    let by_server: std::net::SocketAddr = seen["seen_by_server"].as_str().unwrap_or_default().parse()?;
    same("the caller's address", by_server.ip(), client.v4())?;
    well(app(client, "half-close", to(84)?)?.args(["--bytes", "1000000"]))?;
    // HTTP on a port of which nobody has said so.
    let answers = stage.curl("client", &["-H", "x-beta: 1", &format!("{WEB}:85/")])?;
    same("found out", (answers.status, answers.server()), (200, Some("web-v2")))
}

#[test]
fn a_request_says_one_thing_and_stays_within_what_the_waypoint_reads() -> Result<()> {
    let stage = Stage::new()?;
    let client = stage.scene.pod("client");
    let say = |head: &str, body: &str| {
        web::say(client, "10.96.0.1", 80, &format!("{head}\r\nconnection: close\r\n\r\n{body}"))
    };
    for head in [
        "GET / HTTP/1.1",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: b",
        "GET / HTTP/1.1\r\nhost: me@web",
        "GET / HTTP/1.1\r\nhost: web\r\ncontent-length: 1\r\ncontent-length: 2",
        "GET / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked, gzip",
    ] {
        let answer = say(head, "")?;
        ensure!(answer.starts_with("HTTP/1.1 400 "), "{head:?}: {answer}");
    }
    let seen = |head: &str, body: &str| -> Result<Value> {
        let answer = say(&format!("{head}\r\nx-beta: 1"), body)?;
        let said = answer.rsplit("\r\n\r\n").next().unwrap_or_default();
        serde_json::from_str(said).map_err(|error| anyhow::anyhow!("{error}: {answer}"))
    };
    let absolute = seen("GET http://web/a HTTP/1.1\r\nhost: other", "")?;
    same("the host", (absolute["host"].as_str(), absolute["path"].as_str()), (Some("web"), Some("/a")))?;
    // HTTP/2 within HTTP/1 would be read by nobody here.
    let upgrade = "GET / HTTP/1.1\r\nhost: web\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAM";
    let smuggled = seen(upgrade, "")?;
    same("the upgrade", smuggled["headers"].get("upgrade"), None)?;
    same("its settings", smuggled["headers"].get("http2-settings"), None)?;
    // Of two lengths one holds, and it is the same one at both ends.
    let chunked = "3\r\nabc\r\n0\r\n\r\n";
    for head in [
        "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 13\r\ntransfer-encoding: chunked",
        "POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\ncontent-length: 13",
        "GET / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked",
    ] {
        let seen = seen(head, chunked)?;
        same("the body", seen["body"].as_u64(), Some(3))?;
    }
    Ok(())
}

#[test]
fn every_version_of_http_is_carried_and_none_of_its_requests_fails() -> Result<()> {
    let stage = Stage::new()?;
    let (client, server) = (stage.scene.pod("client"), stage.scene.pod("web-v1"));
    let mut pages = server.job(bed::mesh::program("app")?).args(["http", "--port", "8090"]).spawn("pages")?;
    pages.wait_for_line(PATIENCE, "its port to listen", |line| line == "ready")?;
    stage.scene.world.manifests().service(&ServiceManifest {
        namespace: "mesh",
        name: "pages",
        number: 3,
        labels: &[("istio.io/use-waypoint", "wp")],
        selector: &[("app", "web-v1")],
        ports: &[("http", 80, 8090), ("http2", 81, 8090), ("grpc", 82, 8090), ("unknown", 83, 8090)],
    })?;
    let known =
        || Ok(web::curl(client, &["http://10.96.0.3/0"]).ok().filter(|answers| answers.status == 200));
    bed::eventually(PATIENCE, "the new service to be known", known)?;
    for (protocol, port) in
        [("http1", 80), ("h2c", 81), ("grpc", 82), ("http1", 83), ("h2c", 83), ("grpc", 83)]
    {
        let load =
            client.job(bed::mesh::program("app")?).args(["load", "--to", &format!("10.96.0.3:{port}")]);
        let load =
            load.args(["--protocol", protocol, "--rate", "30", "--seconds", "2", "--size", "20000"]).run()?;
        let total: Value = serde_json::from_str(load.stdout.lines().last().unwrap_or_default())?;
        ensure!(total["ok"] == true && total["failed"] == 0, "{protocol} at port {port}: {total}");
        ensure!(total["served"].as_u64() > Some(50), "{protocol} at port {port}: {total}");
    }
    web::upgrade(client, "10.96.0.1", 80)
}

#[test]
fn what_a_route_asks_for_is_done_to_its_requests() -> Result<()> {
    let stage = Stage::new()?;
    let manifests = stage.scene.world.manifests();
    manifests.http_route("mesh", "web", "web", EXTENDED)?;
    let redirected = || {
        let answers = stage.curl("client", &[&format!("{WEB}/moved/a?b=c"), "-D", "-"])?;
        Ok(Some(answers.status).filter(|status| *status == 302))
    };
    bed::eventually(PATIENCE, "the new route", redirected)?;
    let text = |arguments: &[&str]| -> Result<String> {
        let job = stage.scene.pod("client").job("curl").args(["-s", "-i", "--max-time", "20"]);
        Ok(job.args(arguments).check()?.stdout.to_ascii_lowercase())
    };
    let moved = text(&[&format!("{WEB}/moved/a?b=c")])?;
    ensure!(moved.contains("\r\nlocation: https://10.96.0.1/a?b=c\r\n"), "{moved}");

    // A copy with its body reaches the mirror, and what outgrows the bound goes to the backend alone.
    let [client, one, two] = ["client", "web-v1", "web-v2"].map(|name| stage.scene.pod(name));
    let small = "x".repeat(20_000);
    let answers = stage.curl("client", &["-d", &small, &format!("{WEB}/mirrored/small")])?;
    same("who answers", (answers.status, answers.server()), (200, Some("web-v1")))?;
    let copied = || Ok(Some(web::history(client, two, "/mirrored/small")?).filter(|seen| !seen.is_empty()));
    same("the copy", bed::eventually(PATIENCE, "the copy", copied)?.0, vec![20_000])?;
    let posts =
        "head -c 1000000 /dev/zero | curl -s -o /dev/null -w '%{http_code}' -H expect: --data-binary @- $0";
    let large = client.job("sh").args(["-c", posts, &format!("{WEB}/mirrored/large")]).check()?.stdout;
    same("a large body", large.trim(), "200")?;
    same("it came", web::history(client, one, "/mirrored/large")?, vec![1_000_000])?;
    // A later copy has come: so would have this one.
    stage.curl("client", &[&format!("{WEB}/mirrored/last")])?;
    let copied = || Ok(Some(web::history(client, two, "/mirrored/last")?).filter(|seen| !seen.is_empty()));
    bed::eventually(PATIENCE, "a later copy", copied)?;
    same("no copy", web::history(client, two, "/mirrored/large")?, vec![])?;

    // A preflight is answered by the waypoint; the server knows no OPTIONS.
    let origin = "origin: https://www.shop.example";
    let asked = ["-X", "OPTIONS", "-H", origin, "-H", "access-control-request-method: PUT"];
    let preflight = text(&[&asked[..], &[&format!("{WEB}/foreign")]].concat())?;
    ensure!(preflight.starts_with("http/1.1 204 "), "{preflight}");
    for line in [
        "access-control-allow-origin: https://www.shop.example",
        "access-control-allow-methods: put",
        "access-control-allow-credentials: true",
        "access-control-max-age: 5",
    ] {
        ensure!(preflight.contains(line), "{line}: {preflight}");
    }
    let actual = text(&["-H", origin, &format!("{WEB}/foreign")])?;
    ensure!(
        actual.starts_with("http/1.1 200 ") && actual.contains("allow-origin: https://www.shop"),
        "{actual}"
    );
    let other = text(&["-H", "origin: https://shop.example", &format!("{WEB}/foreign")])?;
    ensure!(other.starts_with("http/1.1 200 ") && !other.contains("allow-origin"), "{other}");

    // What a flaky backend has seen is sent again with its body, unless that was too large to be kept.
    let answers = stage.curl("client", &["-d", &small, &format!("{WEB}/flaky/2/small")])?;
    same("after two failures", answers.status, 200)?;
    same("its bodies", web::history(client, one, "/flaky/2/small")?, vec![20_000; 3])?;
    let large = client.job("sh").args(["-c", posts, &format!("{WEB}/flaky/1/large")]).check()?.stdout;
    same("a large body is sent once", large.trim(), "503")?;
    same("and no more", web::history(client, one, "/flaky/1/large")?, vec![1_000_000])?;
    same("attempts end", stage.curl("client", &[&format!("{WEB}/flaky/9")])?.status, 503)?;
    same("tries", web::history(client, one, "/flaky/9")?.len(), 4)?;

    // A backend that is none has its share of failures, and what has no share gets nothing.
    let job = client.job("curl").args([
        "-s",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}\\n",
        &format!("{WEB}/half/[1-200]"),
    ]);
    let codes = job.check()?.stdout;
    let failed = codes.lines().filter(|code| *code == "500").count();
    // Five standard deviations of a half.
    ensure!((65..=135).contains(&failed), "{failed} of 200 failed");
    same("the others", codes.lines().filter(|code| *code == "200").count(), 200 - failed)?;
    same("no share", stage.curl("client", &[&format!("{WEB}/none")])?.status, 500)
}

#[test]
fn a_consumers_route_is_for_the_callers_of_its_namespace_alone() -> Result<()> {
    let pods =
        [("mesh", "client", "a"), ("till", "till", "a"), ("mesh", "web-v1", "b"), ("mesh", "web-v2", "b")];
    let (scene, pod) = Scene::behind_waypoint(&pods, &[("http", 80, web::PORT)], &VERSIONS, |manifests| {
        manifests.namespace("till", true)?;
        manifests.http_route("mesh", "web", "web", "- backendRefs: [{name: web, port: 80}]")?;
        let rules = "- backendRefs: [{name: web-v2, namespace: mesh, port: 80}]";
        manifests.route("HTTPRoute", ["till", "own"], ["mesh", "web"], rules)
    })?;
    let _servers = web::serve_all(&scene, &["web-v1", "web-v2"])?;
    let _waypoint = scene.world.start_waypoint(&pod, "waypoint")?;
    let ask = |caller: &str| -> Result<(u16, Option<String>)> {
        let answers = web::curl(scene.pod(caller), &[WEB])?;
        Ok((answers.status, answers.server().map(str::to_owned)))
    };
    let answer = |status, server: Option<&str>| (status, server.map(str::to_owned));
    // Nobody has permitted it yet: his requests fail, and nobody else's.
    let refused = || Ok(Some(ask("till")?).filter(|answers| answers.0 == 500));
    bed::eventually(PATIENCE, "the consumer's route", refused)?;
    same("another caller", ask("client")?, answer(200, Some("web-v1")))?;
    let grant = |to: &str| {
        let yaml = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{name: till, namespace: mesh}}\n\
             spec:\n  from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: till}}]\n  \
             to: [{{group: '', kind: Service, name: {to}}}]\n"
        );
        scene.world.manifests().put("grant", &yaml)
    };
    grant("web-v2")?;
    let led = || Ok(Some(ask("till")?).filter(|answers| *answers == answer(200, Some("web-v2"))));
    bed::eventually(PATIENCE, "the consumer's own backend", led)?;
    same("another caller", ask("client")?, answer(200, Some("web-v1")))?;
    // What was permitted is taken back.
    grant("another")?;
    bed::eventually(PATIENCE, "the grant to be gone", refused)?;
    same("another caller", ask("client")?, answer(200, Some("web-v1")))?;
    // By his own route a consumer does not get round the policies of whom he calls.
    let manifests = scene.world.manifests();
    manifests.authorization_policy(
        "mesh",
        "public",
        "targetRefs: [{kind: Service, name: web}]\naction: ALLOW\nrules:\n- to: [{operation: {paths: ['/public*']}}]\n",
    )?;
    let routed = |filters: &str| {
        let rule =
            format!("- filters: [{filters}]\n  backendRefs: [{{name: web, namespace: mesh, port: 80}}]");
        manifests.route("HTTPRoute", ["till", "own"], ["mesh", "web"], &rule)
    };
    let public = |caller: &str| -> Result<u16> {
        Ok(web::curl(scene.pod(caller), &[&format!("{WEB}/public")])?.status)
    };
    let becomes = |status: u16| move |found: u16| (found == status).then_some(found);
    routed("")?;
    bed::eventually(PATIENCE, "his route to lead there", || Ok(becomes(200)(public("till")?)))?;
    routed("{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /admin}}}")?;
    bed::eventually(PATIENCE, "what he rewrites to be refused", || Ok(becomes(403)(public("till")?)))?;
    same("another caller", public("client")?, 200)?;
    same("what is not allowed", ask("client")?.0, 403)
}
