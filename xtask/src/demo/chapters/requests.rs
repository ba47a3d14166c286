//! What a waypoint does for single requests: tried again, copied, refused by what they ask for.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use bed::{Pod, Process, report};
use serde_json::Value;

use super::waypoint::{CANARY, URL};
use crate::demo::{
    cast::{Cast, PATIENCE},
    stage::{Stage, span},
};

pub(super) const FLAKY: &str =
    "- matches: [{path: {value: /flaky}}]        # every second answer of this page is a 503
  retry: {codes: [503], attempts: 3, backoff: 10ms}
  backendRefs: [{name: offers-v2, port: 80}]
";
const COPIED: &str = "- matches: [{path: {value: /copied}}]
  filters: [{type: RequestMirror, requestMirror: {backendRef: {name: offers-v2, port: 80}}}]
  backendRefs: [{name: offers, port: 80}]
";
const NO_DELETES: &str = "targetRefs: [{kind: Service, name: offers}]
action: DENY
rules:
- to: [{operation: {methods: [DELETE]}}]
- to: [{operation: {paths: [/internal, '/internal/{**}']}}]
";
/// Requests of each check.
const REQUESTS: usize = 40;

/// Part of a chapter: retries, a mirror.
pub(super) fn refined(stage: &mut Stage, cast: &Cast) -> Result<()> {
    stage.show(&format!("{FLAKY}{COPIED}"));
    flaky(stage, cast)?;
    copied(stage, cast)
}

/// The statuses of requests, as curl has them.
fn statuses(pod: &Pod, arguments: &[&str]) -> Result<Vec<u16>> {
    let curl = pod.job("curl").args(["--silent", "--noproxy", "*", "--max-time", "20", "--path-as-is"]);
    let curl = curl.args(["--output", "/dev/null", "--write-out", "%{http_code}\\n"]).args(arguments);
    let said = curl.limit(Duration::from_secs(60)).check()?.stdout;
    said.lines().map(|line| line.parse().with_context(|| format!("curl said {line:?}"))).collect()
}

/// What the second version's own log has.
fn logged(cast: &Cast, what: impl Fn(&str) -> bool) -> Result<usize> {
    let log = cast.world.folder().join("nginx-catalog-v2/access.log");
    let lines = fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
    Ok(lines.lines().filter(|line| what(line)).count())
}

fn flaky(stage: &mut Stage, cast: &Cast) -> Result<()> {
    stage.check("a flaky server, and nobody notices", || {
        cast.world.manifests().http_route("shop", "offers", "offers", &format!("{FLAKY}{COPIED}{CANARY}"))?;
        let target = format!("{URL}/flaky?[1-{REQUESTS}]");
        let failed = || logged(cast, |line| line.contains("/flaky?") && line.contains("\" 503 "));
        let all = || {
            let before = failed()?;
            let served =
                statuses(&cast.storefront, &[&target])?.iter().filter(|status| **status == 200).count();
            let failures = failed()? - before;
            // Before the edit counts the page is the first version's, whose log is another one.
            Ok((served == REQUESTS && failures > 0).then_some(failures))
        };
        let (failures, _) = bed::eventually(PATIENCE, "every request served by the flaky server", all)?;
        Ok((
            (),
            format!("{REQUESTS} of {REQUESTS} were 200; the server itself had said {failures} times 503"),
        ))
    })
}

fn copied(stage: &mut Stage, cast: &Cast) -> Result<()> {
    stage.check("requests are copied to the new version, whose answers nobody gets", || {
        let target = format!("{URL}/copied?[1-{REQUESTS}]");
        let served = statuses(&cast.storefront, &[&target])?.iter().filter(|status| **status == 200).count();
        Stage::demand(served == REQUESTS, || format!("only {served} of {REQUESTS} were answered"))?;
        let copies = || {
            let copies = logged(cast, |line| line.contains("/copied?"))?;
            Ok((copies >= REQUESTS).then_some(copies))
        };
        let (copies, _) = bed::eventually(PATIENCE, "the copies in the new version's log", copies)?;
        Ok(((), format!("{served} answers, {copies} copies")))
    })
}

/// Part of a chapter: a policy of layer 7.
pub(super) fn judged(stage: &mut Stage, cast: &Cast, waypoint: &mut Process) -> Result<()> {
    stage.show(&format!("kind: AuthorizationPolicy   # shop/no-deletes\n{NO_DELETES}"));
    let since = waypoint.log_length();
    stage.check("a policy reads what is asked for: DELETE is refused, GET is not", || {
        cast.world.manifests().authorization_policy("shop", "no-deletes", NO_DELETES)?;
        let page = format!("{URL}/offers/7");
        let delete = || {
            let said = statuses(&cast.storefront, &["--request", "DELETE", &page])?;
            Ok((said == [403]).then_some(()))
        };
        let (_, took) = bed::eventually(PATIENCE, "DELETE to be refused", delete)?;
        let get = statuses(&cast.storefront, &[&page])?;
        Stage::demand(get == [200], || format!("GET was answered {get:?}"))?;
        Ok(((), format!("403 and 200, {} after the edit", span(took))))
    })?;
    stage.check("however the path is spelled", || {
        let spelled = ["/internal/keys", "/%69nternal/keys", "/offers/../internal/keys", "//internal/keys"];
        let said = spelled.map(|path| statuses(&cast.storefront, &[&format!("{URL}{path}")]));
        let said: Vec<u16> = said.into_iter().collect::<Result<Vec<_>>>()?.concat();
        // What might mean several things is refused as that.
        Stage::demand(said == [403, 403, 403, 400], || format!("{spelled:?} were answered {said:?}"))?;
        let told: Vec<String> =
            spelled.iter().zip(&said).map(|(path, status)| format!("{status}  {path}")).collect();
        Ok(((), told.join("\n")))
    })?;
    stage.check("and the waypoint's log has who, what, and by which policy", || {
        let refused = |line: &Value| line["status"] == 403 && line["method"] == "DELETE";
        let line = report::wait_access(waypoint, since, PATIENCE, "the refusal", refused)?;
        let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
        let told =
            format!("{}\n{} {} by {}", text("src.identity"), text("method"), text("path"), text("policy"));
        cast.world.manifests().remove_authorization_policy("shop", "no-deletes")?;
        Ok(((), told))
    })
}
