//! What ends with time: clocks that disagree, the mesh's root, and the certificates of ztunnels.

use serde_json::Value;
use x509_parser::pem::Pem;

use super::{Finding, Level, facts::Facts};
use crate::{
    object::{items, text},
    table,
};

/// Seconds. HTTP's dates are whole ones, and an answer takes a moment.
const NOTICED: i64 = 5;
/// Certificates begin a minute and more before they are made; who is further behind refuses new ones.
const TOO_FAR: i64 = 60;
const DAY: i64 = 86_400;

pub(super) fn clocks(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut compared = 0;
    for program in &facts.programs {
        let Some(ahead) = program.ahead else { continue };
        compared += 1;
        if ahead.abs() <= NOTICED {
            continue;
        }
        let direction = if ahead > 0 { "ahead of" } else { "behind" };
        let about = format!("{} on {}", program.standing.program, program.standing.node);
        let seen = format!("its clock is {} {direction} the API server's", table::seconds(ahead.abs()));
        let mend =
            "run an NTP client on that node, and see that it is synchronised: timedatectl, chronyc tracking";
        findings.push(match ahead.abs() > TOO_FAR {
            true => Finding::problem("clock", about, format!("{seen}: certificates are refused"), mend),
            false => Finding::warning("clock", about, seen, mend),
        });
    }
    if findings.is_empty() && compared > 0 {
        findings.push(Finding::ok(
            "clock",
            format!("{compared} programs agree with the API server within {NOTICED} s"),
        ));
    }
    findings
}

/// The published certificates of the root.
pub(super) fn root(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "root";
    let about = format!("ConfigMap {}/culvert-ca-root-cert", facts.namespace);
    let Some(roots) = &facts.roots else {
        let mend = format!(
            "control writes it when it starts: kubectl --namespace {} logs deployment/control",
            facts.namespace
        );
        return vec![Finding::problem(
            CHECK,
            about,
            "it is not there: agents and ztunnels wait for it",
            mend,
        )];
    };
    let pem = text(&roots["data"]["root-cert.pem"]);
    let mut ends = Vec::new();
    for block in Pem::iter_from_buffer(pem.as_bytes()) {
        let end =
            block.ok().and_then(|block| Some(block.parse_x509().ok()?.validity().not_after.timestamp()));
        let Some(end) = end else {
            return vec![Finding::problem(
                CHECK,
                about,
                "root-cert.pem holds something that is no certificate",
                "delete the ConfigMap: control writes it anew",
            )];
        };
        ends.push(end);
    }
    let Some(first) = ends.iter().min() else {
        return vec![Finding::problem(
            CHECK,
            about,
            "root-cert.pem holds no certificate",
            "delete the ConfigMap: control writes it anew",
        )];
    };
    let mend = another_root(facts);
    let left = first - facts.now;
    vec![match left {
        left if left <= 0 => {
            Finding::problem(CHECK, about, format!("a root expired {} ago", table::seconds(-left)), mend)
        }
        left if left < 30 * DAY => {
            Finding::warning(CHECK, about, format!("a root expires in {}", table::seconds(left)), mend)
        }
        left => Finding::ok(CHECK, format!("{} published, good for {}", ends.len(), table::seconds(left))),
    }]
}

/// How the root is exchanged, by where it is from.
pub(super) fn another_root(facts: &Facts) -> String {
    let own = format!(
        "kubectl --namespace {} annotate secret culvert-ca culvert.dev/rotate=now: control exchanges the root in steps, \
         and both are trusted meanwhile",
        facts.namespace
    );
    let given = "in the Secret cacerts add the new root to root-cert.pem; after the life of a certificate exchange \
                 ca-cert.pem, ca-key.pem and cert-chain.pem; after the same time take the old root out: \
                 docs/kubernetes-control.md, Another root";
    match facts.cacerts {
        Some(false) => own,
        Some(true) => given.to_owned(),
        None => format!("{own}. If there is a Secret cacerts: {given}"),
    }
}

/// The certificates that ztunnels hold for their pods.
pub(super) fn certificates(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "certificates";
    let mut findings = Vec::new();
    let mut soonest: Option<i64> = None;
    let mut count = 0;
    for program in facts.programs.iter().filter(|program| program.is("ztunnel")) {
        for one in program.answer("/certificates").map_or(&[][..], |said| items(&said["certificates"])) {
            count += 1;
            soonest = soonest.into_iter().chain(one["not_after"].as_i64()).min();
            if let Some((level, seen)) = certificate(one, facts.now) {
                let about = format!("{} on {}", text(&one["identity"]), program.standing.node);
                let mend = "see control's log for why it signs none, and the clocks above";
                findings.push(Finding { check: CHECK, level, about, seen, mend: mend.to_owned() });
            }
        }
    }
    if findings.is_empty() {
        let seen = match soonest {
            None => "none yet: no pod is captured".to_owned(),
            Some(end) => {
                format!("{count}, renewed in time; the first ends in {}", table::seconds(end - facts.now))
            }
        };
        findings.push(Finding::ok(CHECK, seen));
    }
    findings
}

/// What is wrong with one, if anything.
fn certificate(one: &Value, now: i64) -> Option<(Level, String)> {
    let error = match text(&one["last_error"]) {
        "" => String::new(),
        error => format!(": {error}"),
    };
    let Some(end) = one["not_after"].as_i64() else {
        return Some((Level::Problem, format!("there is none yet{error}")));
    };
    if end <= now {
        return Some((Level::Problem, format!("it expired {} ago{error}", table::seconds(now - end))));
    }
    let begin = one["not_before"].as_i64().unwrap_or(now);
    // It is renewed about the middle of its life.
    let overdue = (end - now) * 4 < end - begin;
    if overdue || !error.is_empty() {
        return Some((
            Level::Warning,
            format!("it ends in {} and was not renewed{error}", table::seconds(end - now)),
        ));
    }
    None
}
