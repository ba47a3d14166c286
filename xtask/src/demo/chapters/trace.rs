//! What became of one request: its spans, as a collector has them, and its line in the access log.

use anyhow::Result;
use bed::{Process, report};
use serde_json::Value;

use super::waypoint::{Behind, URL};
use crate::demo::{
    cast::{Cast, PATIENCE},
    stage::{Stage, span},
};

/// The caller's own span, and how its traces begin.
const CALLER: &str = "00f067aa0ba902b7";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e";
/// Every second answer of the flaky page is a failure: one of so many requests meets one.
const REQUESTS: u16 = 4;
/// The longest name of a span that is shown as a whole.
const NAME: usize = 52;

/// One request that was tried twice.
struct Traced {
    id: String,
    whole: Value,
    tries: Vec<Value>,
}

/// Chapter: a trace.
pub(super) fn told(stage: &mut Stage, cast: &Cast, behind: &mut Behind) -> Result<()> {
    stage.chapter(
        "What became of a request",
        "A caller who is in a trace says so by a header (traceparent). The waypoint goes on with it, sends spans to a \
         collector (OTLP), and gives every request a name, which the server gets, too.",
    );
    let since = behind.waypoint.log_length();
    let traced = stage.check("a request that its server failed once: the collector has every try", || {
        for number in 0..REQUESTS {
            let parent = format!("traceparent: 00-{}-{CALLER}-01", trace(number));
            let curl = cast.storefront.job("curl").args(["--silent", "--fail", "--noproxy", "*"]);
            curl.args(["--max-time", "20", "--header", &parent, &format!("{URL}/flaky")]).check()?;
        }
        let found = || Ok((0..REQUESTS).find_map(|number| tried_twice(&behind.collector, trace(number))));
        let (traced, took) = bed::eventually(PATIENCE, "the spans of a request that was tried twice", found)?;
        let statuses = traced.tries.iter().map(status).collect::<Vec<_>>();
        Stage::demand(statuses == [503, 200], || format!("its tries were answered {statuses:?}"))?;
        let parents = traced.tries.iter().all(|one| one["parent"] == traced.whole["span"]);
        let is_below = traced.whole["parent"] == CALLER;
        Stage::demand(parents && is_below, || "the spans do not lie one below the other".to_owned())?;
        let evidence = format!(
            "trace {}, below the caller's span {CALLER}, {} after the request",
            traced.id,
            span(took)
        );
        Ok((traced, evidence))
    })?;
    stage.show(&tree(&traced));
    stage.check("and the access log has it by the same x-request-id", || {
        let id = traced.whole["attributes"]["guid:x-request-id"].as_str().unwrap_or_default();
        let same = |line: &Value| line["request_id"] == id;
        let line = report::wait_access(&mut behind.waypoint, since, PATIENCE, "the request", same)?;
        let is_same = line["trace_id"] == traced.id && line["tries"] == 2 && line["status"] == 200;
        Stage::demand(is_same, || format!("the log tells of another request: {line}"))?;
        let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
        let words = ["method", "path", "src.workload", "duration"].map(text);
        let [method, path, workload, duration] = words;
        Ok(((), format!("{id}\n{method} {path} by {workload}: 200 after 2 tries, {duration}")))
    })
}

fn trace(number: u16) -> String {
    format!("{TRACE}{number:04x}")
}

fn status(span: &Value) -> u64 {
    span["attributes"]["http.response.status_code"].as_u64().unwrap_or_default()
}

/// The spans of a trace, if the collector has all of them, and they tell of two tries.
fn tried_twice(collector: &Process, id: String) -> Option<Traced> {
    let log = collector.log();
    let spans = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let (whole, mut tries): (Vec<Value>, Vec<Value>) =
        spans.filter(|span| span["trace"] == id).partition(|span| span["kind"] == "server");
    tries.sort_by_key(|span| span["start"].as_u64());
    let whole = whole.into_iter().next()?;
    (tries.len() == 2).then_some(Traced { id, whole, tries })
}

/// Name, status and times of each span, the tries below the whole.
fn tree(traced: &Traced) -> String {
    let begin = traced.whole["start"].as_u64().unwrap_or_default();
    let line = |branch: &str, span: &Value| {
        let millis =
            |key: &str, since: u64| span[key].as_u64().unwrap_or_default().saturating_sub(since) as f64 / 1e6;
        let name = format!("{branch}{}", span["name"].as_str().unwrap_or_default());
        let at = millis("start", begin);
        let took = millis("end", begin) - at;
        format!("{name:<NAME$} {:>6} {at:>7.1} {took:>7.1}", status(span))
    };
    let last = traced.tries.len().saturating_sub(1);
    let tries = traced.tries.iter().enumerate().map(|(at, one)| {
        let branch = if at == last { "└─ " } else { "├─ " };
        line(branch, one)
    });
    let head = format!("{:<NAME$} {:>6} {:>7} {:>7}", "span", "status", "at ms", "took ms");
    [head, line("", &traced.whole)].into_iter().chain(tries).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tries_lie_below_the_whole_and_times_count_from_its_beginning() {
        let span = |name: &str, start: u64, end: u64, status: u16| {
            json!({"name": name, "start": start * 1_000_000, "end": end * 1_000_000,
                "attributes": {"http.response.status_code": status}})
        };
        let traced = Traced {
            id: String::new(),
            whole: span("web:80/*", 1000, 1013, 200),
            tries: vec![span("router one", 1001, 1002, 503), span("router two", 1012, 1013, 200)],
        };
        let tree = tree(&traced);
        let words: Vec<Vec<&str>> = tree.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[1], ["web:80/*", "200", "0.0", "13.0"]);
        assert_eq!(words[2], ["├─", "router", "one", "503", "1.0", "1.0"]);
        assert_eq!(words[3], ["└─", "router", "two", "200", "12.0", "1.0"]);
        assert!(tree.lines().all(|line| line.chars().count() == 75), "{tree}");
    }
}
