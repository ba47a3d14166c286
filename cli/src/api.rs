//! Requests to the API server: raw JSON, each with an end, and errors in words. And to the programs' own admin
//! servers, which listen on loopback alone: through a port that the API server forwards.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::Value;
use tokio::time::timeout;

use crate::object;

/// What is asked once is answered in this time, or not at all.
const ANSWER: Duration = Duration::from_secs(30);
/// A node's admin server has less: one that hangs is a finding, and is not to keep the others' waiting.
const ADMIN_ANSWER: Duration = Duration::from_secs(10);
/// Objects per page of a list.
const PAGE: usize = 500;
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

/// The API server.
#[derive(Clone)]
pub(crate) struct Api {
    client: Client,
}

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("the API server refuses ({code}): {message}")]
    Refused { code: u16, message: String },
    #[error("the API server cannot be reached: {0}")]
    Unreachable(String),
    #[error("the API server does not answer within {ANSWER:?}")]
    Silent,
    #[error("the answer of the API server makes no sense: {0}")]
    Nonsense(String),
}

/// What a program's admin server said, and when, by its own clock.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    pub(crate) value: Value,
    pub(crate) date: Option<SystemTime>,
}

impl ApiError {
    fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Unreachable(_) | Self::Silent | Self::Nonsense(_) => None,
        }
    }

    /// There is no such thing (404).
    pub(crate) fn is_absent(&self) -> bool {
        self.code() == Some(404)
    }

    /// The caller may not (403).
    pub(crate) fn is_forbidden(&self) -> bool {
        self.code() == Some(403)
    }

    /// Somebody else owns what was to be written (409).
    pub(crate) fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => {
                let message = if status.message.is_empty() { &status.reason } else { &status.message };
                Self::Refused { code: status.code, message: message.clone() }
            }
            kube::Error::SerdeError(error) => Self::Nonsense(error.to_string()),
            other => Self::Unreachable(chain(&other)),
        }
    }
}

/// An error with all that caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

impl Api {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Finds the API server, without a word to it.
    ///
    /// # Errors
    /// If there is no configuration, or it is not usable.
    pub(crate) async fn connect(reach: &Reach) -> anyhow::Result<Self> {
        let options = KubeConfigOptions { context: reach.context.clone(), ..KubeConfigOptions::default() };
        let found = match &reach.kubeconfig {
            Some(file) => match Kubeconfig::read_from(file) {
                Ok(kubeconfig) => Config::from_custom_kubeconfig(kubeconfig, &options).await,
                Err(error) => Err(error),
            },
            None => Config::from_kubeconfig(&options).await,
        };
        let no_way = |error: String| {
            anyhow::anyhow!("no way to the API server: {error}; name its file with --kubeconfig")
        };
        let mut config = found.map_err(|error| no_way(chain(&error)))?;
        config.connect_timeout = Some(Duration::from_secs(10));
        let client = Client::try_from(config).map_err(|error| no_way(chain(&error)))?;
        Ok(Self::new(client))
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value, ApiError> {
        self.send(Method::GET, path, None).await
    }

    /// The same, with the API server's clock.
    pub(crate) async fn get_dated(&self, path: &str) -> Result<Said, ApiError> {
        let request = Request::get(path).body(Body::empty());
        let request = request.map_err(|error| ApiError::Nonsense(format!("{path} is no path: {error}")))?;
        let answer = timeout(ANSWER, self.client.send(request)).await.map_err(|_| ApiError::Silent)??;
        let (status, date) = (answer.status(), date(&answer));
        let body = timeout(ANSWER, answer.into_body().collect()).await.map_err(|_| ApiError::Silent)??;
        let body = body.to_bytes();
        if !status.is_success() {
            let message = String::from_utf8_lossy(&body).into_owned();
            return Err(ApiError::Refused { code: status.as_u16(), message });
        }
        let value = serde_json::from_slice(&body).map_err(|error| ApiError::Nonsense(error.to_string()))?;
        Ok(Said { value, date })
    }

    /// What there is at a path, if it is there.
    pub(crate) async fn find(&self, path: &str) -> Result<Option<Value>, ApiError> {
        match self.get(path).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All objects of a collection, page by page; none where the kind is not known there.
    pub(crate) async fn list(&self, path: &str, selector: &str) -> Result<Vec<Value>, ApiError> {
        let (mut all, mut next) = (Vec::new(), String::new());
        loop {
            let mut query = form_urlencoded::Serializer::new(String::new());
            query.append_pair("limit", &PAGE.to_string());
            for (name, value) in [("labelSelector", selector), ("continue", &next)] {
                if !value.is_empty() {
                    query.append_pair(name, value);
                }
            }
            let mut page = match self.get(&format!("{path}?{}", query.finish())).await {
                Err(error) if error.is_absent() => return Ok(all),
                page => page?,
            };
            if let Value::Array(items) = page["items"].take() {
                all.extend(items);
            }
            match page["metadata"]["continue"].as_str() {
                Some(more) if !more.is_empty() => next = more.to_owned(),
                _ => return Ok(all),
            }
        }
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        self.send(Method::POST, path, Some(("application/json", body))).await
    }

    /// A JSON merge patch (RFC 7386).
    pub(crate) async fn patch(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        self.send(Method::PATCH, path, Some(("application/merge-patch+json", body))).await
    }

    /// What [`Self::apply`] would come to, without doing it.
    pub(crate) async fn rehearse(&self, object: &Value, force: bool) -> Result<Value, ApiError> {
        self.applied(object, force, "&dryRun=All").await
    }

    /// Server-side apply: the fields that are named become so, and ours. `force`: also those of others.
    pub(crate) async fn apply(&self, object: &Value, force: bool) -> Result<Value, ApiError> {
        self.applied(object, force, "").await
    }

    async fn applied(&self, object: &Value, force: bool, more: &str) -> Result<Value, ApiError> {
        let path = object::path(object);
        let path = format!("{path}?fieldManager={MANAGER}&fieldValidation=Strict&force={force}{more}");
        self.send(Method::PATCH, &path, Some(("application/apply-patch+yaml", object))).await
    }

    /// Deletes; what depends on it goes afterwards. Whether it was there.
    pub(crate) async fn delete(&self, path: &str) -> Result<bool, ApiError> {
        let options = serde_json::json!({"propagationPolicy": "Background"});
        match self.send(Method::DELETE, path, Some(("application/json", &options))).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_absent() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Asks a program's admin server, on loopback in its pod's network namespace. Why not, in words.
    pub(crate) async fn admin(
        &self,
        namespace: &str,
        pod: &str,
        port: u16,
        path: &str,
    ) -> Result<Said, String> {
        // The API server of the tests forwards no ports: it has the answers.
        #[cfg(test)]
        if let Ok(Some(value)) = self.find(&format!("/admin/{pod}{path}.json")).await {
            return Ok(Said { value, date: None });
        }
        let asked = timeout(ADMIN_ANSWER, self.forwarded(namespace, pod, port, path)).await;
        asked.unwrap_or_else(|_| Err(format!("no answer within {ADMIN_ANSWER:?}")))
    }

    async fn forwarded(&self, namespace: &str, pod: &str, port: u16, path: &str) -> Result<Said, String> {
        let pods: kube::Api<Pod> = kube::Api::namespaced(self.client.clone(), namespace);
        let forwarded = pods.portforward(pod, &[port]).await;
        let mut forwarded =
            forwarded.map_err(|error| format!("its port is not forwarded: {}", chain(&error)))?;
        let stream = forwarded.take_stream(port).ok_or("its port is not forwarded")?;
        let spoken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = spoken.map_err(|error| error.to_string())?;
        let connection = tokio::spawn(connection);
        let request = Request::get(path).header(header::HOST, "localhost").body(Empty::<Bytes>::new());
        let answer = sender.send_request(request.map_err(|error| error.to_string())?).await;
        let answer = answer.map_err(|error| format!("its admin server does not answer: {error}"))?;
        let (status, date) = (answer.status(), date(&answer));
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

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Value, ApiError> {
        let mut request = Request::builder().method(method).uri(path);
        if let Some((kind, _)) = body {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let body = body.map_or_else(Vec::new, |(_, body)| body.to_string().into_bytes());
        let request = request.body(body);
        let request = request.map_err(|error| ApiError::Nonsense(format!("{path} is no path: {error}")))?;
        let answer = timeout(ANSWER, self.client.request(request)).await;
        Ok(answer.map_err(|_| ApiError::Silent)??)
    }
}

fn date<B>(answer: &Response<B>) -> Option<SystemTime> {
    let date = answer.headers().get(header::DATE)?.to_str().ok()?;
    httpdate::parse_http_date(date).ok()
}
