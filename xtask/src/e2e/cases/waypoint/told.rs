//! What a waypoint reads of a request besides its content: whose token it bears, and where it stands in a trace.

use std::time::Duration;

use anyhow::{Context, Result};
use bed::token::{SigningKey, set};
use serde_json::{Value, json};

use super::{SPACE, flawless};
use crate::{
    demo::stage::span,
    e2e::{demand, world::World},
    kind::cluster::eventually,
};

const ISSUER: &str = "https://accounts.e2e.example";
/// In the year 2100.
const FAR: u64 = 4_102_444_800;
/// The page that asks for a token; the customers ask for another one.
const GUARDED: &str = "http://web.e2e-waypoint/7";
const OPEN: &str = "http://web.e2e-waypoint/8";
/// Where the collector is, which is no part of the mesh.
pub(super) const COLLECTOR: &str = "e2e-collector";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
/// Until what was applied is what the waypoint goes by, and until a span has come.
const SOON: Duration = Duration::from_secs(20);

/// One request in the customers' pod, and the status of its answer.
fn ask(world: &World<'_>, url: &str, header: Option<&str>) -> Result<String> {
    let line = ["exec", "customers", "--container=http1", "--", "/app", "client", url];
    let header = header.map(|header| ["--header", header]);
    let told = world.ask(SPACE, &[&line[..], header.as_ref().map_or(&[], |header| &header[..])].concat())?;
    let status = told.split_once("StatusCode=").with_context(|| format!("no status in {told:?}"))?.1;
    Ok(status.lines().next().unwrap_or_default().to_owned())
}

/// Waits until a request is answered so.
fn answered(world: &World<'_>, what: &str, header: Option<&str>, wanted: &str) -> Result<()> {
    let as_wanted = || {
        let status = ask(world, GUARDED, header)?;
        Ok(if status == wanted { Ok(()) } else { Err(format!("{status}, and not {wanted}")) })
    };
    eventually(SOON, what, as_wanted).map(drop)
}

/// Tokens of an issuer whose keys are written down open a page, and no others do; what asks for none is as before.
pub(super) fn tokens(world: &World<'_>) -> Result<String> {
    let (key, another) = (SigningKey::p256("one"), SigningKey::p256("one"));
    let claims = json!({"iss": ISSUER, "sub": "ann", "exp": FAR});
    let of = |kind: &str, name: &str, spec: Value| {
        let mut object = json!({
            "apiVersion": "security.istio.io/v1", "kind": kind, "metadata": {"name": name, "namespace": SPACE},
            "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "web"}]},
        });
        if let (Some(into), Value::Object(spec)) = (object["spec"].as_object_mut(), spec) {
            into.extend(spec);
        }
        object.to_string()
    };
    let rules = json!([
        {"from": [{"source": {"requestPrincipals": [format!("{ISSUER}/*")]}}]},
        {"to": [{"operation": {"notPaths": ["/7"]}}]},
    ]);
    let bearer = |key: &SigningKey| format!("authorization: Bearer {}", key.token(&claims));
    let counted = flawless(world, "a page asks for a token", || {
        let believed = json!({"jwtRules": [{"issuer": ISSUER, "jwks": set(&[&key])}]});
        world.cluster.apply(&of("RequestAuthentication", "accounts", believed))?;
        let members = json!({"action": "ALLOW", "rules": rules});
        world.cluster.apply(&of("AuthorizationPolicy", "members", members))?;
        answered(world, "who has no token is refused", None, "403")?;
        answered(world, "what another key has signed is no token", Some(&bearer(&another)), "401")?;
        answered(world, "a good token opens the page", Some(&bearer(&key)), "200")
    })?;
    Ok(format!(
        "a page for tokens: 403 without, 401 by another key, 200 with a good one; {} requests of others, 0 failed",
        counted.requests
    ))
}

/// A request that stands in a trace is told of to the collector, and no other is.
pub(super) fn trace(world: &World<'_>) -> Result<String> {
    let status = ask(world, OPEN, Some(&format!("traceparent: 00-{TRACE}-{CALLER}-01")))?;
    demand(status == "200", || format!("a request in a trace was answered {status}"))?;
    let spans = || {
        let log = world.ask(COLLECTOR, &["logs", "collector"])?;
        let spans: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        Ok(if spans.len() >= 2 { Ok(spans) } else { Err(format!("the collector has {log:?}")) })
    };
    let (spans, took) = eventually(SOON, "two spans at the collector", spans)?;
    let of =
        |kind: &str| spans.iter().find(|span| span["kind"] == kind).context("one of its spans is missing");
    let (whole, one) = (of("server")?, of("client")?);
    let is_one = spans.len() == 2 && spans.iter().all(|span| span["trace"] == TRACE);
    demand(is_one, || format!("others than those of the one trace: {spans:#?}"))?;
    let is_below = whole["parent"] == CALLER && one["parent"] == whole["span"];
    demand(is_below, || format!("they do not lie one below the other: {spans:#?}"))?;
    let name = |span: &Value| span["name"].as_str().unwrap_or_default().to_owned();
    Ok(format!("a trace after {}: `{}`, below it `{}`", span(took), name(whole), name(one)))
}
