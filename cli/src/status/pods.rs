//! How one pod stands with the mesh: from its labels, and from what its node's agent says. Pure.

use serde_json::{Value, json};

use crate::{
    check::{self, AMBIENT},
    enrolled::{MARK, REDIRECTION},
    object::{self, items, text},
    programs::Program,
    table::{self, Paint},
};

/// Istio's injector says so of its sidecar.
const SIDECAR: &str = "sidecar.istio.io/status";

/// In a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Its node has measured its capture.
    Captured,
    Enrolling,
    /// Captured, and no ztunnel serves it: nothing leaks, and nothing gets through.
    CutOff,
    /// Captured, and on its way out.
    Leaving,
    /// It is to be in, and is not.
    Failed,
    /// A word of its own, or its nature, keeps it out.
    Out,
    /// Nobody has asked for it.
    Plain,
}

impl State {
    const ALL: [Self; 7] =
        [Self::Captured, Self::Enrolling, Self::CutOff, Self::Leaving, Self::Failed, Self::Out, Self::Plain];

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Captured => "captured",
            Self::Enrolling => "enrolling",
            Self::CutOff => "CUT OFF",
            Self::Leaving => "leaving",
            Self::Failed => "NOT CAPTURED",
            Self::Out => "kept out",
            Self::Plain => "not in",
        }
    }

    pub(super) fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.word() == word)
    }

    pub(super) fn painted(self, paint: &Paint) -> String {
        match self {
            Self::Captured => paint.good(self.word()),
            Self::Enrolling | Self::Leaving => paint.doubtful(self.word()),
            Self::CutOff | Self::Failed => paint.bad(self.word()),
            Self::Out | Self::Plain => paint.quiet(self.word()),
        }
    }
}

/// One pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) node: String,
    pub(super) state: State,
    /// By what it is known to be captured.
    pub(super) proof: String,
    pub(super) identity: String,
    pub(super) tls: &'static str,
    /// Why it is not as it is to be.
    pub(super) why: String,
    /// Whether the mesh has to do with it.
    pub(super) concerns: bool,
}

impl Row {
    pub(super) const HEAD: [&'static str; 6] = ["POD", "NODE", "STATE", "PROOF", "mTLS", "IDENTITY"];

    pub(super) fn cells(&self) -> Vec<String> {
        let or_none = |text: &str| if text.is_empty() { "–".to_owned() } else { text.to_owned() };
        let tls = if matches!(self.state, State::Out | State::Plain) { "" } else { self.tls };
        vec![
            format!("{}/{}", self.namespace, self.pod),
            or_none(&self.node),
            self.state.word().to_owned(),
            or_none(&self.proof),
            or_none(tls),
            or_none(&self.identity),
        ]
    }

    pub(super) fn json(&self) -> Value {
        json!({"namespace": self.namespace, "pod": self.pod, "node": self.node, "state": self.state.word(),
               "proof": self.proof, "identity": self.identity, "mtls": self.tls, "why": self.why})
    }
}

/// What an agent says of a pod.
pub(super) fn word_of<'p>(agent: Option<&'p Program>, uid: &str) -> Option<&'p Value> {
    let pods = agent?.answer("/pods")?;
    items(&pods["pods"]).iter().find(|pod| pod["uid"] == uid)
}

/// How a pod stands. `word`: what the agent of its node says of it.
pub(super) fn row(
    pod: &Value,
    namespace: Option<&Value>,
    agent: Option<&Program>,
    word: Option<&Value>,
    domain: &str,
) -> Row {
    let spec = &pod["spec"];
    let mode = check::mode(Some(pod), namespace);
    let wanted = mode == Some(AMBIENT);
    let marked = object::annotation(pod, MARK).is_some() || object::annotation(pod, REDIRECTION).is_some();
    let (state, proof, why) = stands(pod, namespace, agent, word);
    let account = match text(&spec["serviceAccountName"]) {
        "" => "default",
        account => account,
    };
    let in_it = !matches!(state, State::Out | State::Plain);
    let identity = format!("spiffe://{domain}/ns/{}/sa/{account}", object::namespace(pod));
    Row {
        namespace: object::namespace(pod).to_owned(),
        pod: object::name(pod).to_owned(),
        node: text(&spec["nodeName"]).to_owned(),
        state,
        proof,
        identity: if in_it { identity } else { String::new() },
        tls: "",
        why,
        concerns: in_it
            || wanted
            || (marked && state != State::Plain)
            || (state == State::Out && check::mode(None, namespace) == Some(AMBIENT)),
    }
}

/// The state, its proof, and why it is not another.
fn stands(
    pod: &Value,
    namespace: Option<&Value>,
    agent: Option<&Program>,
    word: Option<&Value>,
) -> (State, String, String) {
    let out = |why: &str| (State::Out, String::new(), why.to_owned());
    let wanted = check::mode(Some(pod), namespace) == Some(AMBIENT);
    if matches!(text(&pod["status"]["phase"]), "Succeeded" | "Failed") {
        return (State::Plain, String::new(), String::new());
    }
    let said = word.map_or("", |word| text(&word["state"]));
    match said {
        "CAPTURE_MEASURED" if word.is_some_and(|word| word["held_by_ztunnel"] == false) => {
            let why = "it is captured, and no ztunnel on its node serves it: culvert check says why";
            return (State::CutOff, probe(word), why.to_owned());
        }
        "CAPTURE_MEASURED" => return (State::Captured, probe(word), String::new()),
        "CAPTURE_WITHDRAWING" => {
            let open = word.and_then(|word| word["captured_connections"].as_u64()).unwrap_or(0);
            let why =
                format!("it leaves as soon as its {open} captured connections have ended and its peers know");
            return (State::Leaving, String::new(), why);
        }
        _ => {}
    }
    if !wanted {
        let own = check::mode(Some(pod), None);
        return match (own, check::mode(None, namespace)) {
            (Some("none"), Some(AMBIENT)) => out("its own label keeps it out (istio.io/dataplane-mode=none)"),
            (Some(other), Some(AMBIENT)) => {
                out(&format!("its own label {other:?} means nothing, and outweighs its namespace's"))
            }
            _ => (State::Plain, String::new(), String::new()),
        };
    }
    if pod["spec"]["hostNetwork"] == true {
        return out("it is in its node's own network, which is never captured");
    }
    if object::annotation(pod, SIDECAR).is_some() {
        return out("it has a sidecar of Istio's: restart it without");
    }
    let class = text(&pod["spec"]["runtimeClassName"]);
    if mesh::is_sandbox(class) {
        return out(&format!(
            "pods of RuntimeClass {class} have a kernel of their own, and cannot be captured"
        ));
    }
    if text(&pod["spec"]["nodeName"]).is_empty() {
        return (State::Enrolling, String::new(), "no node has taken it yet".to_owned());
    }
    let reason = word.map_or("", |word| {
        [text(&word["failure"]), text(&word["reason"])]
            .into_iter()
            .find(|said| !said.is_empty())
            .unwrap_or("")
    });
    if said == "CAPTURE_FAILED" {
        return (State::Failed, String::new(), reason.to_owned());
    }
    if word.is_some() {
        return (
            State::Enrolling,
            String::new(),
            if reason.is_empty() { "its capture is being set up".to_owned() } else { reason.to_owned() },
        );
    }
    let annotated = object::annotation(pod, MARK) == Some("measured")
        || object::annotation(pod, REDIRECTION) == Some("enabled");
    match agent {
        None => {
            (State::Failed, String::new(), "no agent runs on its node: culvert check says why".to_owned())
        }
        Some(agent) => match agent.said.get("/pods") {
            Some(Err(error)) if annotated => {
                (State::Captured, "annotation only".to_owned(), format!("its agent cannot be asked: {error}"))
            }
            Some(Err(error)) => {
                (State::Enrolling, String::new(), format!("its agent cannot be asked: {error}"))
            }
            _ => (
                State::Enrolling,
                String::new(),
                "its node has not been told of it by control yet".to_owned(),
            ),
        },
    }
}

/// The connection of the pod's own stack by which its capture was measured, and when.
fn probe(word: Option<&Value>) -> String {
    match word.and_then(|word| word["measured_seconds_ago"].as_i64()) {
        Some(ago) => format!("probed {} ago", table::seconds(ago)),
        None => "probed".to_owned(),
    }
}
