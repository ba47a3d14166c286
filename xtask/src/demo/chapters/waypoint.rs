//! Requests routed by their content, in the caller's own name; and no way round.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use bed::{Pod, PodSpec, Process, mesh::program, report, waypoint::ServiceManifest};
use serde_json::Value;

use super::{requests, tokens, trace};
use crate::demo::{
    cast::{self, Cast, HTTP, PATIENCE},
    stage::{Stage, span},
    traffic,
};

pub(super) const URL: &str = "http://10.96.0.2";
/// Where collectors take spans.
const SPANS: u16 = 4317;
/// Requests of the canary's check, and how far its share may be from a tenth.
const REQUESTS: usize = 1000;
const OFF_BY: usize = 48;

pub(super) const CANARY: &str =
    "- backendRefs: [{name: offers, port: 80, weight: 90}, {name: offers-v2, port: 80, weight: 10}]\n";
const BETA: &str =
    "- matches: [{headers: [{name: x-beta, value: \"1\"}]}]\n  backendRefs: [{name: offers-v2, port: 80}]\n";

/// The waypoint of the catalogue's new service, and who it tells of requests.
pub(super) struct Behind {
    pub(super) waypoint: Process,
    pod: Pod,
    pub(super) collector: Process,
    /// The second version's.
    _server: Process,
}

/// Chapters: a waypoint, from its first request to its end.
pub(crate) fn play(stage: &mut Stage, cast: &mut Cast) -> Result<()> {
    let mut behind = routed(stage, cast)?;
    stage.chapter(
        "Who may ask for what",
        "A waypoint has read what is asked for: policies name methods and paths, and ask for a customer's token.",
    );
    requests::judged(stage, cast, &mut behind.waypoint)?;
    tokens::believed(stage, cast)?;
    trace::told(stage, cast, &mut behind)?;
    closed(stage, cast, behind)?;
    // As the next chapter expects it.
    let manifests = cast.world.manifests();
    for name in ["service-shop-offers", "service-shop-offers-v2", "route-shop-offers", "gateway-shop-wp"] {
        manifests.remove(name)?;
    }
    for pod in ["shop-wp", "shop-catalog-v2", "outside-collector"] {
        manifests.remove(&format!("pod-{pod}"))?;
    }
    Ok(())
}

/// Chapter: routes.
fn routed(stage: &mut Stage, cast: &mut Cast) -> Result<Behind> {
    stage.chapter(
        "Routed by content",
        "The catalogue has a second version, and a service of its own behind a waypoint: a label on the Service, a \
         Gateway and an HTTPRoute in the folder. The waypoint reads HTTP; callers and servers know nothing of it.",
    );
    let newcomer = cast.world.pod(PodSpec::new("shop", "catalog-v2", "b").service_account("catalog"))?;
    let server = cast::nginx(&cast.world, &newcomer)?;
    let behind = open(stage, cast, &newcomer, server)?;
    canary(stage, cast)?;
    requests::refined(stage, cast)?;
    in_the_callers_name(stage, cast)?;
    Ok(behind)
}

fn open(stage: &mut Stage, cast: &Cast, newcomer: &Pod, server: Process) -> Result<Behind> {
    stage.show(&format!("kind: HTTPRoute        # shop/offers, of the Service offers\nrules:\n{CANARY}"));
    stage.check("the waypoint is there, on node b", || {
        let manifests = cast.world.manifests();
        let service = |name, number, app, labels| ServiceManifest {
            namespace: "shop",
            name,
            number,
            labels,
            selector: app,
            ports: &[("http", 80, HTTP)],
        };
        let pod = cast.world.waypoint_pod("shop", "wp", "b")?;
        manifests.waypoint("shop", "wp", "service")?;
        manifests.service(&service(
            "offers",
            2,
            &[("app", "catalog")],
            &[("istio.io/use-waypoint", "wp")],
        ))?;
        manifests.service(&service("offers-v2", 3, &[("app", "catalog-v2")], &[]))?;
        manifests.http_route("shop", "offers", "offers", CANARY)?;
        let (collector, endpoint) = collector(cast)?;
        let flags = ["--otlp-endpoint", &endpoint, "--trace-sampling", "0"];
        let waypoint = cast.world.start_waypoint_with(&pod, "waypoint", &flags)?;
        let took = report::wait_enrolled(&cast.mesh.nodes, &[newcomer], true, PATIENCE)?;
        let behind = Behind { waypoint, pod, collector, _server: server };
        Ok((behind, format!("ready; the newcomer was enrolled after {}", span(took))))
    })
}

/// A collector of spans, outside the mesh, and its address.
fn collector(cast: &Cast) -> Result<(Process, String)> {
    let pod = cast.world.pod(PodSpec::new("outside", "collector", "b"))?;
    let mut collector = pod.job(program("app")?).arg("collect").spawn("collector")?;
    collector.wait_for_line(PATIENCE, "its port to listen", |line| line == "ready")?;
    Ok((collector, format!("http://{}", pod.at(SPANS))))
}

/// Pages by the server that gave them.
fn pages(pod: &Pod, arguments: &[&str]) -> Result<[usize; 2]> {
    let said = pod.job("curl").args(["--silent", "--noproxy", "*", "--max-time", "20"]).args(arguments);
    let said = said.limit(Duration::from_secs(120)).check()?.stdout;
    let of = |server: &str| said.lines().filter(|line| line.contains(&format!("at shop/{server}:"))).count();
    Ok([of("catalog"), of("catalog-v2")])
}

fn canary(stage: &mut Stage, cast: &Cast) -> Result<()> {
    stage.check(&format!("{REQUESTS} requests: a tenth goes to the canary, and none fails"), || {
        let [old, new] = pages(&cast.storefront, &[&format!("{URL}/[1-{REQUESTS}]")])?;
        Stage::demand(old + new == REQUESTS, || format!("{old} and {new} of {REQUESTS} were answered"))?;
        let share = new * 1000 / REQUESTS;
        Stage::demand(new.abs_diff(REQUESTS / 10) <= OFF_BY, || format!("{new} went to the canary"))?;
        Ok(((), format!("{old} and {new}: {}.{} %", share / 10, share % 10)))
    })?;
    stage.show(BETA);
    stage.check("one edit later, a header decides", || {
        cast.world.manifests().http_route("shop", "offers", "offers", &format!("{BETA}{CANARY}"))?;
        let all = || {
            let [old, new] = pages(&cast.storefront, &["--header", "x-beta: 1", &format!("{URL}/[1-50]")])?;
            Stage::demand(old + new == 50, || format!("only {old} and {new} of 50 were answered"))?;
            Ok((new == 50).then_some(()))
        };
        let (_, took) = bed::eventually(PATIENCE, "all requests with the header at the new version", all)?;
        Ok(((), format!("50 of 50, {} after the edit", span(took))))
    })
}

fn in_the_callers_name(stage: &mut Stage, cast: &mut Cast) -> Result<()> {
    let log = cast.world.folder().join("nginx-catalog-v2/access.log");
    let own = cast.storefront.v4().to_string();
    stage.check("the server saw the storefront's own address, not the waypoint's", || {
        let seen = fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
        let last = seen.lines().last().context("nginx logged nothing")?;
        Stage::demand(last.starts_with(&own), || format!("nginx saw {last}"))?;
        Ok(((), last.to_owned()))
    })?;
    let ztunnel = &mut cast.mesh.on("b").ztunnel;
    let since = ztunnel.log_length();
    stage.check(
        "the policy of before lets the storefront in, and refuses the intern, through the waypoint too",
        || {
            let to = "10.96.0.2:80".parse()?;
            // Nine of ten go to the version that the policy guards.
            let refused = (0..20).find_map(|_| {
                let call = traffic::curl(&cast.intern, to, 5).ok()?;
                (call.status == 403).then_some(call.status)
            });
            Stage::demand(refused.is_some(), || "the intern was never refused".to_owned())?;
            Ok(((), "the intern: 403".to_owned()))
        },
    )?;
    stage.check("and the log knows who called, and who brought the call", || {
        let named = |line: &Value| line["src.workload"] == "intern" && !line["src.waypoint"].is_null();
        let line = report::wait_access(ztunnel, since, PATIENCE, "the refusal in the access log", named)?;
        let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
        Ok(((), format!("{}\nby {}\n{}", text("src.identity"), text("src.waypoint"), text("error"))))
    })
}

/// Chapter: without the waypoint.
fn closed(stage: &mut Stage, cast: &mut Cast, mut behind: Behind) -> Result<()> {
    stage.chapter(
        "No way round",
        "What a waypoint judges must not be reached without it, not even when it is gone.",
    );
    let to = "10.96.0.2:80".parse()?;
    let ztunnel = &mut cast.mesh.on("a").ztunnel;
    let since = ztunnel.log_length();
    let name = behind.pod.full_name();
    stage.check(&format!("the waypoint is killed ({name}): nothing goes round it"), || {
        behind.waypoint.kill();
        Ok(((), traffic::curl(&cast.storefront, to, 5)?.expect_refused()?))
    })?;
    stage.check("with the reason in the log", || {
        let named =
            |line: &Value| line["error"].as_str().is_some_and(|error| error.contains("the waypoint shop/wp"));
        let line = report::wait_access(ztunnel, since, PATIENCE, "the reason in the access log", named)?;
        Ok(((), line["error"].as_str().unwrap_or_default().to_owned()))
    })?;
    stage.check("what needs no waypoint is served as before", || {
        Ok(((), traffic::curl(&cast.storefront, cast.catalog.at(HTTP), 5)?.expect_served()?))
    })
}
