//! What a waypoint tells of requests: their names, where they stand in a trace, and the spans that a collector gets.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use bed::{Pod, Process, mesh::program};
use node::{PATIENCE, Scene, same, web};
use serde_json::Value;

const WEB: &str = "http://10.96.0.1";
/// Where calls of gRPC are served.
const CALLS: u16 = 8081;
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

const RULES: &str = "
- name: flaky
  matches: [{path: {value: /flaky}}]
  retry: {codes: [503], attempts: 3, backoff: 10ms}
  backendRefs: [{name: web, port: 80}]
- name: mirrored
  matches: [{path: {value: /mirrored}}]
  filters: [{type: RequestMirror, requestMirror: {backendRef: {name: web-v2, port: 80}}}]
  backendRefs: [{name: web, port: 80}]
- name: calls
  matches: [{headers: [{name: content-type, value: application/grpc}]}]
  backendRefs: [{name: web, port: 81}]
- name: nowhere
  matches: [{path: {value: /nowhere}}]
  backendRefs: [{name: web, port: 80, weight: 0}]
- name: rest
  backendRefs: [{name: web, port: 80}]
";

/// A caller on node a, a collector there that is not in the mesh, and a service behind a waypoint on node b.
struct Stage {
    waypoint: Process,
    collector: Process,
    waypoint_pod: Pod,
    _servers: Vec<Process>,
    scene: Scene,
}

impl Stage {
    /// `sampling` in percent; without one there is no collector for the waypoint.
    fn new(sampling: Option<&str>) -> Result<Self> {
        let pods = [
            ("mesh", "client", "a"),
            ("plain", "collector", "a"),
            ("mesh", "web-v1", "b"),
            ("mesh", "web-v2", "b"),
        ];
        let ports = [("http", 80, web::PORT), ("grpc", 81, CALLS)];
        let services = [("web", "web-v1", true), ("web-v2", "web-v2", false)];
        let (scene, waypoint_pod) = Scene::behind_waypoint(&pods, &ports, &services, |manifests| {
            manifests.http_route("mesh", "web", "web", RULES)
        })?;
        let servers = web::serve_all(&scene, &["web-v1", "web-v2"])?;
        let at = scene.pod("collector").at(4317);
        let mut collector = scene.pod("collector").job(program("app")?).arg("collect").spawn("collector")?;
        collector.wait_for_line(PATIENCE, "its port to listen", |line| line == "ready")?;
        let uri = format!("http://{at}");
        let flags = sampling.map(|sampling| ["--otlp-endpoint", &uri, "--trace-sampling", sampling]);
        let flags: Vec<&str> = flags.into_iter().flatten().collect();
        let waypoint = scene.world.start_waypoint_with(&waypoint_pod, "waypoint", &flags)?;
        Ok(Self { waypoint, collector, waypoint_pod, _servers: servers, scene })
    }

    fn curl(&self, arguments: &[&str]) -> Result<web::Answers> {
        web::curl(self.scene.pod("client"), arguments)
    }

    /// The spans that the collector has.
    fn spans(&self) -> Vec<Value> {
        let log = self.collector.log_since(0);
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for the whole of a trace: its server span, and so many of clients.
    fn trace(&self, id: &str, clients: usize) -> Result<(Value, Vec<Value>)> {
        let whole = || {
            let all: Vec<Value> = self.spans().into_iter().filter(|span| span["trace"] == id).collect();
            let (servers, mut of_clients): (Vec<Value>, Vec<Value>) =
                all.into_iter().partition(|span| span["kind"] == "server");
            of_clients.sort_by_key(|span| span["start"].as_u64());
            let server = servers.into_iter().next().filter(|_| of_clients.len() >= clients);
            Ok(server.map(|server| (server, of_clients)))
        };
        let ((server, of_clients), _) =
            bed::eventually(PATIENCE, "the spans", whole).with_context(|| format!("{:#?}", self.spans()))?;
        same("tries", of_clients.len(), clients)?;
        Ok((server, of_clients))
    }

    fn metrics(&self) -> Result<String> {
        Ok(self.waypoint_pod.job("curl").args(["-s", "http://127.0.0.1:15020/metrics"]).check()?.stdout)
    }
}

/// A header, as curl is told it.
fn header(name: &str, value: &str) -> [String; 2] {
    ["-H".to_owned(), format!("{name}: {value}")]
}

/// Trace, span and flags of a `traceparent`.
fn parts(traceparent: &str) -> Result<[String; 3]> {
    let parts: Vec<&str> = traceparent.split('-').collect();
    let ["00", trace, span, flags] = parts[..] else { anyhow::bail!("no traceparent: {traceparent:?}") };
    Ok([trace, span, flags].map(str::to_owned))
}

#[test]
fn a_callers_trace_goes_on_and_its_spans_reach_the_collector() -> Result<()> {
    let mut stage = Stage::new(Some("0"))?;
    let sampled = header("traceparent", &format!("00-{TRACE}-{SPAN}-01"));
    let state = header("tracestate", "vendor=1");
    let id = header("x-request-id", "mine-1");
    let target = format!("{WEB}/a?secret=1");
    let line: Vec<&str> = [&sampled, &state, &id].into_iter().flatten().map(String::as_str).collect();
    let answers = stage.curl(&[&line[..], &["-A", "tester", target.as_str()]].concat())?;
    same("the answer", answers.status, 200)?;
    let seen = &answers.seen[0]["headers"];
    let [trace, parent, flags] = parts(seen["traceparent"].as_str().unwrap_or_default())?;
    same("the trace", (trace.as_str(), flags.as_str()), (TRACE, "01"))?;
    same("the state", seen["tracestate"].as_str(), Some("vendor=1"))?;
    same("the name", seen["x-request-id"].as_str(), Some("mine-1"))?;

    let (server, clients) = stage.trace(TRACE, 1)?;
    let client = &clients[0];
    same("the caller's span is above", server["parent"].as_str(), Some(SPAN))?;
    same("the request is above its try", &client["parent"], &server["span"])?;
    same("the backend is below the try", client["span"].as_str(), Some(parent.as_str()))?;
    ensure!(client["start"].as_u64() >= server["start"].as_u64(), "{client} {server}");
    same("the state", server["state"].as_str(), Some("vendor=1"))?;
    same("no error", (&server["error"], &client["error"]), (&Value::Null, &Value::Null))?;
    same("a name", server["name"].as_str(), Some("web.mesh.svc.cluster.local:80/*"))?;
    same("who reports", server["resource"]["service.name"].as_str(), Some("wp.mesh"))?;
    let caller = stage.scene.pod("client").v4().to_string();
    for (key, expected) in [
        ("http.request.method", "GET"),
        ("url.path", "/a"),
        ("url.scheme", "http"),
        ("server.address", "10.96.0.1"),
        ("client.address", caller.as_str()),
        ("network.protocol.version", "1.1"),
        ("user_agent.original", "tester"),
        ("guid:x-request-id", "mine-1"),
        ("response_flags", "-"),
        ("istio.source_namespace", "mesh"),
        ("istio.source_principal", "spiffe://cluster.local/ns/mesh/sa/client"),
        ("istio.destination_service", "web.mesh.svc.cluster.local"),
        ("istio.destination_instance_name", "web-v1"),
        ("culvert.route", "mesh/web"),
        ("culvert.rule_name", "rest"),
    ] {
        same(key, server["attributes"][key].as_str(), Some(expected))?;
    }
    same("the status", server["attributes"]["http.response.status_code"].as_u64(), Some(200))?;
    let backend = stage.scene.pod("web-v1").v4().to_string();
    same("the backend", client["attributes"]["network.peer.address"].as_str(), Some(backend.as_str()))?;
    same("its service", client["attributes"]["server.address"].as_str(), Some("web.mesh.svc.cluster.local"))?;
    let of_it = |line: &Value| line["request_id"] == "mine-1";
    let line = bed::report::wait_access(&mut stage.waypoint, 0, PATIENCE, "the request", of_it)?;
    same("the log", line["trace_id"].as_str(), Some(TRACE))?;
    same("the backend", line["backend"].as_str(), Some("web.mesh.svc.cluster.local:80"))?;
    ensure!(line["upstream_duration"].is_string(), "{line}");
    let metrics = stage.metrics()?;
    let counted = |line: &&str| {
        line.starts_with("istio_requests_total{")
            && line.contains("source_principal=\"spiffe://cluster.local/ns/mesh/sa/client\"")
            && line.contains("response_code=\"200\"")
            && line.ends_with(" 1")
    };
    ensure!(metrics.lines().any(|line| counted(&line)), "{metrics}");
    // Counted once the collector has answered.
    let exported = "culvert_waypoint_spans_total{outcome=\"exported\"} 2";
    let counted = || Ok(stage.metrics()?.contains(exported).then_some(()));
    bed::eventually(PATIENCE, "the spans to be counted", counted).map(drop)
}

#[test]
fn every_try_has_a_span_and_all_of_them_one_name() -> Result<()> {
    let stage = Stage::new(Some("100"))?;
    let [client, one, two] = ["client", "web-v1", "web-v2"].map(|name| stage.scene.pod(name));
    let answers = stage.curl(&["-d", "hello", &format!("{WEB}/flaky/2/x")])?;
    same("after two failures", answers.status, 200)?;
    let seen = web::names(client, one, "/flaky/2/x")?;
    same("tries", seen.len(), 3)?;
    let name = seen[0].0.clone();
    ensure!(name.len() == 36 && seen.iter().all(|(of, _)| *of == name), "{seen:?}");
    let places = seen.iter().map(|(_, parent)| parts(parent)).collect::<Result<Vec<_>>>()?;
    let traces: BTreeSet<&str> = places.iter().map(|[trace, ..]| trace.as_str()).collect();
    same("one trace", traces.len(), 1)?;
    let (server, clients) = stage.trace(&places[0][0], 3)?;
    same("nobody is above", server["parent"].as_str(), Some(""))?;
    same("tries", server["attributes"]["culvert.tries"].as_u64(), Some(3))?;
    same("its name", server["attributes"]["guid:x-request-id"].as_str(), Some(name.as_str()))?;
    same("no error", &server["error"], &Value::Null)?;
    for (at, (client, [_, span, _])) in clients.iter().zip(&places).enumerate() {
        same("below the request", &client["parent"], &server["span"])?;
        same("above the backend's", client["span"].as_str(), Some(span.as_str()))?;
        let status = if at < 2 { 503 } else { 200 };
        let attributes = &client["attributes"];
        same("its status", attributes["http.response.status_code"].as_u64(), Some(status))?;
        same("an error", client["error"].is_null(), at == 2)?;
        same(
            "sent again",
            attributes["http.request.resend_count"].as_u64(),
            Some(at as u64).filter(|at| *at > 0),
        )?;
    }

    // A copy has the name and the trace of what it is of.
    stage.curl(&[&format!("{WEB}/mirrored/x")])?;
    let copied = || Ok(Some(web::names(client, two, "/mirrored/x")?).filter(|seen| !seen.is_empty()));
    let (copy, _) = bed::eventually(PATIENCE, "the copy", copied)?;
    let original = web::names(client, one, "/mirrored/x")?;
    same("its name", &copy[0].0, &original[0].0)?;
    let [of_copy, of_original] = [parts(&copy[0].1)?, parts(&original[0].1)?];
    same("its trace", &of_copy[0], &of_original[0])?;
    let (_, clients) = stage.trace(&of_copy[0], 2)?;
    let mirrors = clients.iter().filter(|span| span["attributes"]["culvert.mirror"] == true);
    same("the copy's span", mirrors.map(|span| span["span"].as_str()).collect(), vec![Some(&*of_copy[1])])?;

    // What leads nowhere has no try, and is the waypoint's own failure.
    let own = "11111111111111111111111111111111";
    let sampled = header("traceparent", &format!("00-{own}-{SPAN}-01"));
    let answers = stage.curl(&[&sampled[0], &sampled[1], &format!("{WEB}/nowhere")])?;
    same("nowhere", answers.status, 500)?;
    let (server, _) = stage.trace(own, 0)?;
    same("an error", server["error"].as_str(), Some("no backend of the rule has a share"))?;
    same("of what kind", server["attributes"]["error.type"].as_str(), Some("500"))
}

#[test]
fn calls_of_grpc_say_their_method_and_count_their_messages() -> Result<()> {
    let stage = Stage::new(Some("100"))?;
    let port = CALLS.to_string();
    let server = stage.scene.pod("web-v1").job(program("app")?).args(["http", "--port", &port]);
    let mut server = server.spawn("calls")?;
    server.wait_for_line(PATIENCE, "its port to listen", |line| line == "ready")?;
    let load = ["load", "--to", "10.96.0.1:81", "--protocol", "grpc", "--clients", "1", "--seconds", "2"];
    let told = stage.scene.pod("client").job(program("app")?).args(load).check()?.stdout;
    let total: Value = serde_json::from_str(told.lines().last().unwrap_or_default())?;
    let served = total["served"].as_u64().unwrap_or_default();
    ensure!(served > 5 && total["failed"] == 0, "{told}");
    let sum = |metrics: &str, name: &str| -> u64 {
        let of = |line: &&str| line.starts_with(name) && line.contains("request_protocol=\"grpc\"");
        let value = |line: &str| line.rsplit(' ').next()?.parse::<u64>().ok();
        metrics.lines().filter(of).filter_map(value).sum()
    };
    let counted = || {
        let metrics = stage.metrics()?;
        let sums = ["requests", "request_messages", "response_messages"]
            .map(|name| sum(&metrics, &format!("istio_{name}_total{{")));
        Ok(Some(sums).filter(|sums| sums[0] >= served))
    };
    let (sums, _) = bed::eventually(PATIENCE, "the counts", counted)?;
    same("each has one message forth and one back", sums, [sums[0]; 3])?;
    let calls = || {
        let spans = stage.spans();
        Ok(Some(spans).filter(|spans| spans.len() as u64 >= 2 * served))
    };
    let (spans, _) = bed::eventually(PATIENCE, "the spans", calls)?;
    for span in &spans {
        let attributes = &span["attributes"];
        same("the system", attributes["rpc.system"].as_str(), Some("grpc"))?;
        same("the service", attributes["rpc.service"].as_str(), Some("app.Pages"))?;
        same("the method", attributes["rpc.method"].as_str(), Some("Get"))?;
        same("the status", attributes["rpc.grpc.status_code"].as_u64(), Some(0))?;
        same("the version", attributes["network.protocol.version"].as_str(), Some("2"))?;
    }
    Ok(())
}

#[test]
fn who_is_not_sampled_is_passed_on_and_not_told_of() -> Result<()> {
    let stage = Stage::new(Some("0"))?;
    // A trace of the waypoint's own, which the rate leaves out; its caller's name is none.
    let answers = stage.curl(&["-H", "x-request-id: a,b", &format!("{WEB}/a")])?;
    let seen = &answers.seen[0]["headers"];
    let [new, _, flags] = parts(seen["traceparent"].as_str().unwrap_or_default())?;
    same("not sampled", flags.as_str(), "00")?;
    ensure!(seen["x-request-id"].as_str().is_some_and(|id| id.len() == 36), "{seen}");
    // A caller's that is not to be recorded; B3 is answered in B3, besides.
    let b3 = header("b3", &format!("22222222222222222222222222222222-{SPAN}-0"));
    let answers = stage.curl(&[&b3[0], &b3[1], &format!("{WEB}/b")])?;
    let seen = &answers.seen[0]["headers"];
    let [trace, parent, flags] = parts(seen["traceparent"].as_str().unwrap_or_default())?;
    same("of B3", (trace.as_str(), flags.as_str()), ("22222222222222222222222222222222", "00"))?;
    let said = seen["b3"].as_str().unwrap_or_default();
    ensure!(said.starts_with(&format!("{trace}-{parent}-0-")), "{said}");
    // One that is, by several headers.
    let several: Vec<String> = [("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "1")]
        .iter()
        .flat_map(|(name, value)| header(name, value))
        .collect();
    let line: Vec<&str> = several.iter().map(String::as_str).collect();
    let target = format!("{WEB}/c");
    let answers = stage.curl(&[&line[..], &[target.as_str()]].concat())?;
    let seen = &answers.seen[0]["headers"];
    same("of B3", (seen["x-b3-traceid"].as_str(), seen["x-b3-sampled"].as_str()), (Some(TRACE), Some("1")))?;
    let (_, clients) = stage.trace(TRACE, 1)?;
    same("the backend is below the try", seen["x-b3-spanid"].as_str(), clients[0]["span"].as_str())?;
    // A later one has come: so would have these.
    let told: BTreeSet<String> =
        stage.spans().iter().filter_map(|span| span["trace"].as_str().map(str::to_owned)).collect();
    ensure!(!told.contains(&new) && !told.contains(&trace), "{told:?}");
    same("traces", told.len(), 1)
}

#[test]
fn without_a_collector_the_headers_of_traces_pass_as_they_came() -> Result<()> {
    let stage = Stage::new(None)?;
    let strange = header("traceparent", "anything");
    let b3 = header("b3", "0");
    let target = format!("{WEB}/a");
    let answers = stage.curl(&[&strange[0], &strange[1], &b3[0], &b3[1], &target])?;
    let seen = &answers.seen[0]["headers"];
    same("as it came", (seen["traceparent"].as_str(), seen["b3"].as_str()), (Some("anything"), Some("0")))?;
    ensure!(seen["x-request-id"].as_str().is_some_and(|id| id.len() == 36), "{seen}");
    let answers = stage.curl(&[&target])?;
    ensure!(answers.seen[0]["headers"]["traceparent"].is_null(), "{answers:?}");
    same("spans", stage.spans().len(), 0)
}

#[test]
fn spans_go_over_tls_to_a_collector_that_proves_itself_and_to_no_other() -> Result<()> {
    let mut stage = Stage::new(None)?;
    let pod = stage.scene.pod("collector");
    let address = pod.v4().to_string();
    let folder = stage.scene.world.folder();
    let own = web::Certificate::new(folder, "collector", &address)?;
    let other = web::Certificate::new(folder, "other", &address)?;
    let named = web::Certificate::new(folder, "named", "collector.example")?;
    let collect = |port: u16, with: &web::Certificate, log: &str| -> Result<Process> {
        let job = pod.job(program("app")?).args(["collect", "--port", &port.to_string(), "--certificate"]);
        let mut collector = job.arg(&with.certificate).arg("--key").arg(&with.key).spawn(log)?;
        collector.wait_for_line(PATIENCE, "its port to listen", |line| line == "ready")?;
        Ok(collector)
    };
    let (right, of_another) =
        (collect(4318, &own, "collector-tls")?, collect(4319, &named, "collector-named")?);
    stage.collector = of_another;
    let ends = [(4318, &other, "certificate"), (4319, &named, "certificate"), (4318, &own, "")];
    for (number, (port, roots, reason)) in ends.into_iter().enumerate() {
        stage.waypoint.kill();
        let (uri, roots) = (format!("https://{address}:{port}"), roots.certificate.display().to_string());
        let flags = ["--otlp-endpoint", &uri, "--otlp-ca", &roots, "--trace-sampling", "100"];
        let log = format!("waypoint-{number}");
        stage.waypoint = stage.scene.world.start_waypoint_with(&stage.waypoint_pod, &log, &flags)?;
        let served = || Ok((stage.curl(&[&format!("{WEB}/a")])?.status == 200).then_some(()));
        bed::eventually(PATIENCE, "a request to be served", served)?;
        if reason.is_empty() {
            break;
        }
        let told = |line: &str| line.contains("the collector does not take spans") && line.contains(reason);
        stage.waypoint.wait_for_line(PATIENCE, "why no span is sent", told)?;
        same("spans", stage.spans().len() + right.log().lines().filter(|line| *line != "ready").count(), 0)?;
    }
    stage.collector = right;
    let whole = || Ok((stage.spans().len() >= 2).then_some(()));
    bed::eventually(PATIENCE, "the spans at the collector", whole).map(drop)
}
