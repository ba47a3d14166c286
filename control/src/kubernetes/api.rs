//! Requests to the API server: raw JSON, each with an end, and errors in words.

use std::time::Duration;

use futures_util::{Stream, StreamExt};
use http::{Method, Request};
use kube::{Client, core::WatchEvent};
use serde_json::Value;
use tokio::time::timeout;

/// What is asked once is answered in this time, or not at all.
const ANSWER: Duration = Duration::from_secs(30);

/// The API server.
#[derive(Clone)]
pub struct Api {
    client: Client,
}

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("the API server refuses ({code}): {message}{}", advice(*code))]
    Refused { code: u16, message: String },
    #[error("the API server cannot be reached: {0}")]
    Unreachable(String),
    #[error("the API server does not answer within {ANSWER:?}")]
    Silent,
    #[error("the answer of the API server makes no sense: {0}")]
    Nonsense(String),
}

fn advice(code: u16) -> &'static str {
    match code {
        401 => "; is the service account's token mounted?",
        403 => "; give control the rights of docs/kubernetes-control.md",
        _ => "",
    }
}

impl ApiError {
    fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Unreachable(_) | Self::Silent | Self::Nonsense(_) => None,
        }
    }

    /// There is no such thing (404).
    pub fn is_absent(&self) -> bool {
        self.code() == Some(404)
    }

    /// Somebody else was first (409).
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// What was asked from is too long ago (410).
    pub fn is_gone(&self) -> bool {
        self.code() == Some(410)
    }
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused {
                code: status.code,
                message: if status.message.is_empty() {
                    status.reason.clone()
                } else {
                    status.message.clone()
                },
            },
            kube::Error::SerdeError(error) => Self::Nonsense(error.to_string()),
            other => Self::Unreachable(chain(&other)),
        }
    }
}

/// An error with all that caused it: kube's own text ends where it gets interesting.
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

/// Something that a watch tells.
#[derive(Debug)]
pub enum Told {
    /// It is there, in this version.
    Is(Value),
    IsGone(Value),
    /// Nothing happened up to this version.
    Version(String),
}

impl Api {
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    pub async fn get(&self, path: &str) -> Result<Value, ApiError> {
        self.send(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        self.send(Method::POST, path, Some(("application/json", body))).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        self.send(Method::PUT, path, Some(("application/json", body))).await
    }

    /// A JSON merge patch (RFC 7386).
    pub async fn patch(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        self.send(Method::PATCH, path, Some(("application/merge-patch+json", body))).await
    }

    /// Follows what happens to a collection. It ends when the server, or the connection, does.
    pub async fn watch(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = Result<Told, ApiError>> + use<>, ApiError> {
        let request = request(Method::GET, path, None)?;
        let events = timeout(ANSWER, self.client.request_events::<Value>(request)).await;
        let events = events.map_err(|_| ApiError::Silent)??;
        Ok(events.map(|event| match event? {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => Ok(Told::Is(object)),
            WatchEvent::Deleted(object) => Ok(Told::IsGone(object)),
            WatchEvent::Bookmark(bookmark) => Ok(Told::Version(bookmark.metadata.resource_version)),
            WatchEvent::Error(status) => Err(kube::Error::Api(status).into()),
        }))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Value, ApiError> {
        let request = request(method, path, body)?;
        let answer = timeout(ANSWER, self.client.request(request)).await;
        Ok(answer.map_err(|_| ApiError::Silent)??)
    }
}

/// A path with its query.
pub fn with_query(path: &str, pairs: &[(&str, &str)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(pairs.iter().filter(|(_, value)| !value.is_empty()));
    format!("{path}?{}", query.finish())
}

fn request(method: Method, path: &str, body: Option<(&str, &Value)>) -> Result<Request<Vec<u8>>, ApiError> {
    let mut request = Request::builder().method(method).uri(path);
    if let Some((kind, _)) = body {
        request = request.header(http::header::CONTENT_TYPE, kind);
    }
    let body = body.map_or_else(Vec::new, |(_, body)| body.to_string().into_bytes());
    request.body(body).map_err(|error| ApiError::Nonsense(format!("{path} is not a path: {error}")))
}
