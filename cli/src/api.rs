//! The way to the API server, what is applied there, and the way to the programs' own admin servers, which listen on
//! loopback alone: through a port that the API server forwards.

use std::{path::PathBuf, time::Duration};

use apiserver::{Api, ApiError, Said, chain};
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use serde_json::Value;
use tokio::time::timeout;

use crate::object;

/// A node's admin server has less: one that hangs is a finding, and is not to keep the others' waiting.
const ADMIN_ANSWER: Duration = Duration::from_secs(10);
/// Certificates and pods of one node are far below.
const MAX_ADMIN: usize = 64 << 20;
/// Who owns the fields that an apply sets.
pub(crate) const MANAGER: &str = "culvert";

/// How the cluster is found.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Reach {
    /// File that says where the API server is; else what KUBECONFIG names, else ~/.kube/config
    #[arg(long, value_name = "FILE", global = true, help_heading = "Cluster")]
    kubeconfig: Option<PathBuf>,

    /// Context of that file
    #[arg(long, value_name = "NAME", global = true, help_heading = "Cluster")]
    context: Option<String>,
}

/// Finds the API server, without a word to it.
///
/// # Errors
/// If there is no configuration, or it is not usable.
pub(crate) async fn connect(reach: &Reach) -> anyhow::Result<Api> {
    let mut config =
        configuration(reach).await.map_err(|why| anyhow::anyhow!("no way to the API server: {why}"))?;
    config.connect_timeout = Some(Duration::from_secs(10));
    let client = Client::try_from(config)
        .map_err(|error| anyhow::anyhow!("no way to the API server: {}; see --kubeconfig", chain(&error)))?;
    Ok(Api::new(client))
}

/// What the file says of the context that is meant. Why it says nothing, and what to do, in a line.
async fn configuration(reach: &Reach) -> Result<Config, String> {
    let (named, read) = match &reach.kubeconfig {
        Some(file) => (file.display().to_string(), Kubeconfig::read_from(file)),
        None => ("the kubeconfig".to_owned(), Kubeconfig::read()),
    };
    let kubeconfig = read.map_err(|error| format!("{}; name its file with --kubeconfig", chain(&error)))?;
    let known: Vec<&str> = kubeconfig.contexts.iter().map(|one| one.name.as_str()).collect();
    let known = match known.is_empty() {
        true => "it has none; name another file with --kubeconfig".to_owned(),
        false => format!("name one with --context: {}", known.join(", ")),
    };
    let options = KubeConfigOptions { context: reach.context.clone(), ..KubeConfigOptions::default() };
    Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| match error {
        KubeconfigError::LoadContext(context) => format!("{named} has no context {context:?}; {known}"),
        KubeconfigError::CurrentContextNotSet => {
            format!("{named} says no context is the current one; {known}")
        }
        error => format!(
            "{}: {named}; name another file with --kubeconfig, or another context with --context",
            chain(&error)
        ),
    })
}

/// What [`apply`] would come to, without doing it.
pub(crate) async fn rehearse(api: &Api, object: &Value, force: bool) -> Result<Value, ApiError> {
    applied(api, object, force, "&dryRun=All").await
}

/// Server-side apply: the fields that are named become so, and ours. `force`: also those of others.
pub(crate) async fn apply(api: &Api, object: &Value, force: bool) -> Result<Value, ApiError> {
    applied(api, object, force, "").await
}

async fn applied(api: &Api, object: &Value, force: bool, more: &str) -> Result<Value, ApiError> {
    let path = object::path(object);
    let path = format!("{path}?fieldManager={MANAGER}&fieldValidation=Strict&force={force}{more}");
    api.apply(&path, object).await
}

/// Asks a program's admin server, on loopback in its pod's network namespace. Why not, in words.
pub(crate) async fn admin(
    api: &Api,
    namespace: &str,
    pod: &str,
    port: u16,
    path: &str,
) -> Result<Said, String> {
    // The API server of the tests forwards no ports: it has the answers.
    #[cfg(test)]
    if let Ok(Some(value)) = api.find(&format!("/admin/{pod}{path}.json")).await {
        return Ok(Said { value, date: None });
    }
    let asked = timeout(ADMIN_ANSWER, forwarded(api, namespace, pod, port, path)).await;
    asked.unwrap_or_else(|_| Err(format!("no answer within {ADMIN_ANSWER:?}")))
}

async fn forwarded(api: &Api, namespace: &str, pod: &str, port: u16, path: &str) -> Result<Said, String> {
    let pods: kube::Api<Pod> = kube::Api::namespaced(api.client().clone(), namespace);
    let forwarded = pods.portforward(pod, &[port]).await;
    let mut forwarded = forwarded.map_err(|error| format!("its port is not forwarded: {}", chain(&error)))?;
    let stream = forwarded.take_stream(port).ok_or("its port is not forwarded")?;
    let spoken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = spoken.map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path).header(header::HOST, "localhost").body(Empty::<Bytes>::new());
    let answer = sender.send_request(request.map_err(|error| error.to_string())?).await;
    let answer = answer.map_err(|error| format!("its admin server does not answer: {error}"))?;
    let (status, date) = (answer.status(), apiserver::date(answer.headers()));
    let body = Limited::new(answer.into_body(), MAX_ADMIN).collect().await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    connection.abort();
    forwarded.abort();
    if !status.is_success() {
        return Err(format!("{path}: {status}: {}", String::from_utf8_lossy(&body).trim()));
    }
    let value = serde_json::from_slice(&body).map_err(|error| format!("{path} is no JSON: {error}"))?;
    Ok(Said { value, date })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "{apiVersion: v1, kind: Config, current-context: '', \
        clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}], users: [{name: u, user: {}}], \
        contexts: [{name: here, context: {cluster: c, user: u}}, {name: odd, context: {cluster: gone, user: u}}]}";

    #[tokio::test]
    async fn what_is_wrong_with_the_way_is_named_the_file_or_the_context() {
        let file = std::env::temp_dir().join(format!("culvert-kubeconfig-{}", std::process::id()));
        std::fs::write(&file, FILE).unwrap();
        let reach = |file: &std::path::Path, context: Option<&str>| Reach {
            kubeconfig: Some(file.to_owned()),
            context: context.map(str::to_owned),
        };
        assert!(configuration(&reach(&file, Some("here"))).await.is_ok());
        let absent = file.with_extension("absent");
        for (reach, says, not) in [
            (
                reach(&file, Some("nope")),
                "no context \"nope\"; name one with --context: here, odd",
                "--kubeconfig",
            ),
            (reach(&file, None), "name one with --context: here", "--kubeconfig"),
            (reach(&file, Some("odd")), "--context", "no context"),
            (reach(&absent, Some("here")), "name its file with --kubeconfig", "--context"),
        ] {
            let why = configuration(&reach).await.unwrap_err();
            assert!(why.contains(says) && !why.contains(not), "{why}");
        }
        std::fs::remove_file(&file).unwrap();
    }
}
