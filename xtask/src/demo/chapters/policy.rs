//! Who is calling, who may, and what happens to those who may no longer.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bed::{World, report};
use serde_json::Value;

use super::wire;
use crate::demo::{
    cast::{Cast, HTTP, PATIENCE},
    stage::{Stage, span},
    traffic::{self, Publisher, Subscriber},
};

/// How soon an edited policy must be in effect.
const SOON: Duration = Duration::from_secs(1);

const STOREFRONT: &str = "spiffe://cluster.local/ns/shop/sa/storefront";

fn text<'a>(line: &'a Value, field: &str) -> &'a str {
    line[field].as_str().unwrap_or_default()
}

/// The fields of an access log's line that matter here.
fn excerpt(line: &Value, fields: &[&str]) -> String {
    let shown = fields.iter().filter(|field| !line[**field].is_null()).map(|field| match &line[*field] {
        Value::String(text) => format!("{field}={text}"),
        other => format!("{field}={other}"),
    });
    shown.collect::<Vec<_>>().join("  ")
}

/// Chapter: the identity of a caller.
pub(crate) fn who_is_calling(stage: &mut Stage, cast: &mut Cast) -> Result<()> {
    stage.chapter(
        "Who is calling",
        "Each pod's service account has a certificate, kept in memory by its node's ztunnel. The callee's \
         ztunnel knows the caller by TLS, never by address; and the server still sees the caller's own address.",
    );
    let ztunnel = &mut cast.mesh.on("b").ztunnel;
    let since = ztunnel.log_length();
    traffic::curl(&cast.storefront, cast.catalog.at(HTTP), 5)?.expect_served()?;
    let line = stage.check("node b's ztunnel proved who called", || {
        let inbound =
            |line: &Value| text(line, "direction") == "inbound" && text(line, "dst.workload") == "catalog";
        let line = report::wait_access(ztunnel, since, PATIENCE, "the call in the access log", inbound)?;
        let identity = text(&line, "src.identity").to_owned();
        Stage::demand(identity == STOREFRONT, || format!("the caller is {identity:?}: {line}"))?;
        Stage::demand(text(&line, "security") == "mutual_tls", || format!("not by mutual TLS: {line}"))?;
        Ok((line, identity))
    })?;
    stage.show(&excerpt(&line, &["src.workload", "dst.workload", "security", "bytes_sent", "bytes_recv"]));
    stage.show(&excerpt(&line, &["duration", "rtt", "retransmits", "delivery_rate"]));
    let log = cast.world.folder().join("nginx-catalog/access.log");
    let own = cast.storefront.v4().to_string();
    stage.check("nginx saw the storefront's own address", || {
        let seen = fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
        let last = seen.lines().last().context("nginx logged nothing")?;
        Stage::demand(last.starts_with(&own), || format!("nginx saw {last}"))?;
        Ok(((), last.to_owned()))
    })
}

const READERS: &str = "selector:\n  matchLabels: {app: catalog}\naction: ALLOW\nrules:\n- from:\n  \
                       - source:\n      principals: [cluster.local/ns/shop/sa/storefront]\n  to:\n  \
                       - operation:\n      ports: [\"80\"]\n";

/// Chapter: an AuthorizationPolicy refuses.
pub(crate) fn refused(stage: &mut Stage, cast: &mut Cast) -> Result<()> {
    stage.chapter(
        "Refused, by name",
        "An ordinary AuthorizationPolicy is put into the folder: only the storefront may call the catalogue. \
         The intern is in the mesh and has an identity, but not the right one; the visitor has none.",
    );
    stage.show(&format!(
        "kind: AuthorizationPolicy        # shop/catalog-readers\nspec:\n{}",
        indent(READERS)
    ));
    let to = cast.catalog.at(HTTP);
    stage.check("before, the intern may call", || {
        Ok(((), traffic::curl(&cast.intern, to, 5)?.expect_served()?))
    })?;
    let ztunnel = &mut cast.mesh.on("b").ztunnel;
    let since = ztunnel.log_length();
    let took = stage.check("with the policy, the intern is refused", || {
        let start = Instant::now();
        restore_readers(&cast.world)?;
        let refused = || Ok(Some(traffic::curl(&cast.intern, to, 5)?).filter(|call| !call.served()));
        let (call, _) = bed::eventually(PATIENCE, "the intern to be refused", refused)?;
        let took = start.elapsed();
        Ok((took, format!("{}; in effect {} after the file was there", call.expect_refused()?, span(took))))
    })?;
    Stage::demand(took < SOON, || format!("the policy took {}", span(took)))?;
    stage.fact("a new policy in effect", span(took));
    stage.check("and the log names the policy", || {
        let named = |line: &Value| text(line, "src.workload") == "intern" && !line["policy"].is_null();
        let line = report::wait_access(ztunnel, since, PATIENCE, "the refusal in the access log", named)?;
        let policy = text(&line, "policy");
        Stage::demand(policy.contains("catalog-readers"), || format!("another policy: {line}"))?;
        Ok(((), excerpt(&line, &["src.workload", "dst.workload", "policy", "reason", "error"])))
    })?;
    stage.check("the visitor, who is not in the mesh, is refused too", || {
        Ok(((), traffic::curl(&cast.visitor, to, 5)?.expect_refused()?))
    })?;
    stage.check("the storefront is served as before", || {
        Ok(((), traffic::curl(&cast.storefront, to, 5)?.expect_served()?))
    })
}

/// Puts the policy into the folder.
pub(crate) fn restore_readers(world: &World) -> Result<()> {
    world.manifests().authorization_policy("shop", "catalog-readers", READERS)
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

fn cache_clients(who: &str) -> String {
    format!(
        "selector:\n  matchLabels: {{app: cache}}\naction: ALLOW\nrules:\n- from:\n  - source:\n      \
         principals: [cluster.local/ns/shop/sa/{who}]\n"
    )
}

/// Chapter: an edit of a policy ends a connection that it no longer allows.
pub(crate) fn edited_live(stage: &mut Stage, cast: &mut Cast) -> Result<()> {
    stage.chapter(
        "Edited under a live connection",
        "A policy lets the storefront use Redis, and it holds a subscription open. Then someone edits the \
         file. Connections that are still allowed go on; one that is not is ended at once.",
    );
    let manifests = cast.world.manifests().clone();
    manifests.authorization_policy("shop", "cache-clients", &cache_clients("storefront"))?;
    let mut publisher = Publisher::open(&cast.cache, "offers")?;
    let mut subscriber = stage.check("the storefront subscribes and hears Redis", || {
        let mut subscriber = Subscriber::open(&cast.storefront, &cast.cache, "offers")?;
        let number = publisher.publish()?;
        let took = subscriber.wait_number(number)?;
        Ok((subscriber, format!("message {number} arrived in {}", span(took))))
    })?;
    stage.show(
        "    principals: [cluster.local/ns/shop/sa/storefront]    →    [cluster.local/ns/shop/sa/billing]",
    );
    let ztunnel = &mut cast.mesh.on("b").ztunnel;
    let since = ztunnel.log_length();
    let took = stage.check("the edit ends the live connection", || {
        let start = Instant::now();
        manifests.authorization_policy("shop", "cache-clients", &cache_clients("billing"))?;
        let words = subscriber.wait_cut(PATIENCE)?;
        let took = start.elapsed();
        Stage::demand(took < SOON, || format!("it took {}", span(took)))?;
        Ok((took, format!("redis-cli: {words}; {} after the edit", span(took))))
    })?;
    stage.fact("a policy's edit ends a live connection", span(took));
    stage.check("with the reason in the log", || {
        let named = |line: &Value| text(line, "dst.workload") == "cache" && !line["policy"].is_null();
        let line = report::wait_access(ztunnel, since, PATIENCE, "the end in the access log", named)?;
        Ok(((), excerpt(&line, &["src.workload", "dst.workload", "policy", "reason", "error"])))
    })?;
    stage.check("edited back, the storefront is let in again", || {
        manifests.authorization_policy("shop", "cache-clients", &cache_clients("storefront"))?;
        let again = || Ok(Subscriber::open(&cast.storefront, &cast.cache, "back").ok());
        let (_, took) = bed::eventually(PATIENCE, "Redis to be reachable again", again)?;
        Ok(((), format!("after {}", span(took))))
    })
}

/// Chapter: caller and server on one node.
pub(crate) fn same_node(stage: &mut Stage, cast: &mut Cast) -> Result<()> {
    stage.chapter(
        "Neighbours on one node",
        "The reviews run on the storefront's own node. Nothing needs to be encrypted for a wire that is \
         never used, but the same identity is known and the same policies are asked.",
    );
    let to = cast.reviews.at(HTTP);
    let sniffer = wire::sniff(cast)?;
    let ztunnel = &mut cast.mesh.on("a").ztunnel;
    let since = ztunnel.log_length();
    stage.check("nginx next door serves the page", || {
        Ok(((), traffic::curl(&cast.storefront, to, 5)?.expect_served()?))
    })?;
    stage.check("the caller is known all the same", || {
        let pick = |line: &Value| text(line, "dst.workload") == "reviews";
        let line = report::wait_access(ztunnel, since, PATIENCE, "the call in the access log", pick)?;
        let identity = text(&line, "src.identity");
        Stage::demand(identity == STOREFRONT, || format!("the caller is {identity:?}: {line}"))?;
        Ok(((), excerpt(&line, &["src.identity", "security", "duration"])))
    })?;
    stage.check("a policy refuses the intern here too", || {
        let deny = "selector:\n  matchLabels: {app: reviews}\naction: DENY\nrules:\n- from:\n  - source:\n      \
                    principals: [cluster.local/ns/shop/sa/intern]\n";
        cast.world.manifests().authorization_policy("shop", "no-interns", deny)?;
        let refused = || Ok(Some(traffic::curl(&cast.intern, to, 5)?).filter(|call| !call.served()));
        let (call, _) = bed::eventually(PATIENCE, "the intern to be refused", refused)?;
        Ok(((), call.expect_refused()?))
    })?;
    stage.check("and the wire carried none of it", || {
        let seen = sniffer.stop()?;
        seen.only_tunnels()?;
        Ok(((), format!("{} frames in all, none of it the neighbours'", seen.frames)))
    })
}
