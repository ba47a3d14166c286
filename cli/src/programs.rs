//! What control, agents and ztunnels say of themselves, asked all at once, and how their clocks go against the API
//! server's.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use futures_util::{StreamExt as _, stream};
use serde_json::Value;

use crate::{
    api,
    object::{self, items, text},
    rollout::{self, Standing},
};
use apiserver::{Api, ApiError};

/// Asked at a time: each is a connection through the API server.
const AT_ONCE: usize = 16;

/// One pod of the mesh's own, and what it says.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) standing: Standing,
    /// The tag of its image.
    pub(crate) tag: String,
    /// By path of its admin server, or why there is no answer.
    pub(crate) said: BTreeMap<&'static str, Result<Value, String>>,
    /// Seconds by which its clock is ahead of the API server's.
    pub(crate) ahead: Option<i64>,
}

impl Program {
    /// An answer, if there is one.
    pub(crate) fn answer(&self, path: &str) -> Option<&Value> {
        self.said.get(path)?.as_ref().ok()
    }

    pub(crate) fn is(&self, program: &str) -> bool {
        self.standing.program == program
    }
}

/// Where a program's admin server is, and what it is asked.
fn questions(program: &str) -> (u16, &'static [&'static str]) {
    match program {
        "agent" => (15100, &["/checks", "/pods"]),
        "ztunnel" => (15000, &["/certificates"]),
        _ => (15000, &["/status"]),
    }
}

/// Seconds by which a clock is ahead of ours.
pub(crate) fn ahead_of_ours(date: Option<SystemTime>) -> Option<i64> {
    let seconds = |time: SystemTime| Some(time.duration_since(UNIX_EPOCH).ok()?.as_secs() as i64);
    Some(seconds(date?)? - seconds(SystemTime::now())?)
}

/// Asks every pod of the mesh's own. `server_ahead`: the API server's clock against ours.
pub(crate) async fn ask(
    api: &Api,
    namespace: &str,
    server_ahead: Option<i64>,
) -> Result<Vec<Program>, ApiError> {
    let pods = rollout::pods(api, namespace).await?;
    let living = pods.into_iter().filter(|pod| {
        pod["metadata"]["deletionTimestamp"].is_null()
            && !matches!(text(&pod["status"]["phase"]), "Succeeded" | "Failed")
    });
    let asked = stream::iter(living.map(|pod| one(api, namespace, pod, server_ahead)));
    let mut programs: Vec<Program> = asked.buffer_unordered(AT_ONCE).collect().await;
    programs.sort_by(|a, b| {
        let key = |one: &Program| {
            (one.standing.program.clone(), one.standing.node.clone(), one.standing.pod.clone())
        };
        key(a).cmp(&key(b))
    });
    Ok(programs)
}

async fn one(api: &Api, namespace: &str, pod: Value, server_ahead: Option<i64>) -> Program {
    let standing = rollout::standing(&pod);
    let image = items(&pod["spec"]["containers"]).first().map(|container| text(&container["image"]));
    let tag = image.and_then(|image| image.rsplit_once(':')).map_or("", |(_, tag)| tag).to_owned();
    let mut program = Program { standing, tag, said: BTreeMap::new(), ahead: None };
    let (port, paths) = questions(&program.standing.program);
    let running = text(&pod["status"]["phase"]) == "Running";
    for path in paths {
        let said = match running {
            true => api::admin(api, namespace, object::name(&pod), port, path).await,
            false => Err("it does not run".to_owned()),
        };
        if let Ok(said) = &said {
            let ahead = ahead_of_ours(said.date).zip(server_ahead);
            program.ahead = ahead.map(|(its, servers)| its - servers);
        }
        program.said.insert(path, said.map(|said| said.value));
    }
    program
}
