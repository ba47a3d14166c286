//! Requests to the Kubernetes API server: raw JSON, each with an end, and errors in words.

#![forbid(unsafe_code)]

mod error;

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http::{HeaderMap, Method, Request, header};
use http_body_util::BodyExt as _;
use kube::{Client, client::Body, core::WatchEvent};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use tokio::time::timeout;

pub use error::{ApiError, chain};

/// What is asked once is answered in this time, or not at all.
const ANSWER: Duration = Duration::from_secs(30);
/// Objects per page of a list.
const PAGE: usize = 500;

/// The API server.
#[derive(Clone)]
pub struct Api {
    client: Client,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

/// What was said, and when, by the clock of who said it.
#[derive(Debug, Clone)]
pub struct Said {
    pub value: Value,
    pub date: Option<SystemTime>,
}

/// What a page of a list says of the list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PageEnd {
    /// Where the next page begins; empty: there is none.
    #[serde(rename = "continue")]
    pub next: String,
    /// From which to watch.
    pub resource_version: String,
}

/// A page, its objects as they were sent.
#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    items: Vec<&'a RawValue>,
    #[serde(default)]
    metadata: PageEnd,
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

    /// For what is no request: a port that the API server forwards.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What there is at a path.
    ///
    /// # Errors
    /// As of every request here: refused, unreachable, not answered within 30 s, or no JSON.
    pub async fn get(&self, path: &str) -> Result<Value, ApiError> {
        self.send(Method::GET, path, None).await
    }

    /// The same, with the API server's clock.
    ///
    /// # Errors
    /// As of [`Self::get`].
    pub async fn get_dated(&self, path: &str) -> Result<Said, ApiError> {
        let (head, body) = self.fetch(path).await?;
        let value = serde_json::from_slice(&body).map_err(nonsense)?;
        Ok(Said { value, date: date(&head) })
    }

    /// Reads a page of a list. `each` is given its objects one by one, and only the one that it has is taken apart:
    /// what it keeps of them lies side by side, and not between what is gone a moment later.
    ///
    /// # Errors
    /// As of [`Self::get`].
    pub async fn page(&self, path: &str, mut each: impl FnMut(Value)) -> Result<PageEnd, ApiError> {
        let (_, body) = self.fetch(path).await?;
        let page: Page<'_> = serde_json::from_slice(&body)
            .map_err(|error| ApiError::Nonsense(format!("{path} is no list: {error}")))?;
        for item in page.items {
            each(serde_json::from_str(item.get()).map_err(nonsense)?);
        }
        Ok(page.metadata)
    }

    async fn fetch(&self, path: &str) -> Result<(HeaderMap, Bytes), ApiError> {
        let request = Request::get(path).body(Body::empty());
        let request = request.map_err(|error| ApiError::Nonsense(format!("{path} is no path: {error}")))?;
        let answer = timeout(ANSWER, self.client.send(request)).await.map_err(|_| ApiError::Silent)??;
        let (head, body) = answer.into_parts();
        let body = timeout(ANSWER, body.collect()).await.map_err(|_| ApiError::Silent)??.to_bytes();
        if head.status.is_success() {
            return Ok((head.headers, body));
        }
        let status: Value = serde_json::from_slice(&body).unwrap_or_default();
        let message = match status["message"].as_str() {
            Some(message) => message.to_owned(),
            None => String::from_utf8_lossy(&body).into_owned(),
        };
        Err(ApiError::Refused { code: head.status.as_u16(), message })
    }

    /// What there is at a path, if it is there.
    ///
    /// # Errors
    /// As of [`Self::get`].
    pub async fn find(&self, path: &str) -> Result<Option<Value>, ApiError> {
        match self.get(path).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All objects of a collection, page by page; none where the kind is not known there.
    ///
    /// # Errors
    /// As of [`Self::get`].
    pub async fn list(&self, path: &str, selector: &str) -> Result<Vec<Value>, ApiError> {
        let (mut all, mut next) = (Vec::new(), String::new());
        let limit = PAGE.to_string();
        loop {
            let query = [("limit", limit.as_str()), ("labelSelector", selector), ("continue", &next)];
            let page = self.page(&with_query(path, &query), |object| all.push(object)).await;
            let page = match page {
                Err(error) if error.is_absent() && all.is_empty() => return Ok(all),
                // It took too long, and the rest of that list is forgotten.
                Err(error) if error.is_gone() && !next.is_empty() => {
                    all.clear();
                    next.clear();
                    continue;
                }
                page => page?,
            };
            if page.next.is_empty() {
                return Ok(all);
            }
            next = page.next;
        }
    }

    /// Creates.
    ///
    /// # Errors
    /// As of [`Self::get`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        self.send(Method::POST, path, Some(("application/json", body))).await
    }

    /// Replaces.
    ///
    /// # Errors
    /// As of [`Self::get`].
    pub async fn put(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        self.send(Method::PUT, path, Some(("application/json", body))).await
    }

    /// A JSON merge patch (RFC 7386).
    ///
    /// # Errors
    /// As of [`Self::get`].
    pub async fn patch(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        self.send(Method::PATCH, path, Some(("application/merge-patch+json", body))).await
    }

    /// Server-side apply at a path with its query: `fieldManager` at least.
    ///
    /// # Errors
    /// As of [`Self::get`].
    pub async fn apply(&self, path: &str, object: &Value) -> Result<Value, ApiError> {
        self.send(Method::PATCH, path, Some(("application/apply-patch+yaml", object))).await
    }

    /// Deletes; what depends on it goes afterwards. Whether it was there.
    ///
    /// # Errors
    /// As of [`Self::get`].
    pub async fn delete(&self, path: &str) -> Result<bool, ApiError> {
        let options = json!({"propagationPolicy": "Background"});
        match self.send(Method::DELETE, path, Some(("application/json", &options))).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_absent() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Follows what happens to a collection. It ends when the server, or the connection, does.
    ///
    /// # Errors
    /// As of [`Self::get`].
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

/// A path with its query; pairs without a value are left out.
pub fn with_query(path: &str, pairs: &[(&str, &str)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(pairs.iter().filter(|(_, value)| !value.is_empty()));
    format!("{path}?{}", query.finish())
}

fn nonsense(error: serde_json::Error) -> ApiError {
    ApiError::Nonsense(error.to_string())
}

/// When an answer was made, by its header `date`.
pub fn date(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(header::DATE)?.to_str().ok()?).ok()
}

fn request(method: Method, path: &str, body: Option<(&str, &Value)>) -> Result<Request<Vec<u8>>, ApiError> {
    let mut request = Request::builder().method(method).uri(path);
    if let Some((kind, _)) = body {
        request = request.header(header::CONTENT_TYPE, kind);
    }
    let body = body.map_or_else(Vec::new, |(_, body)| body.to_string().into_bytes());
    request.body(body).map_err(|error| ApiError::Nonsense(format!("{path} is no path: {error}")))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::Response;
    use kube::client::Body;
    use tower::service_fn;

    use super::*;

    /// An API server that answers by the path and query.
    fn server(answer: fn(&str) -> (u16, Value)) -> Api {
        let service = service_fn(move |request: Request<Body>| async move {
            let asked = request.uri().path_and_query().map_or("", |asked| asked.as_str());
            let (code, body) = answer(asked);
            Response::builder().status(code).body(Body::from(body.to_string().into_bytes()))
        });
        Api::new(Client::new(service, "default"))
    }

    fn refusal(code: u16, message: &str) -> (u16, Value) {
        (
            code,
            json!({"kind": "Status", "status": "Failure", "reason": "r", "message": message, "code": code}),
        )
    }

    #[tokio::test]
    async fn a_list_is_read_to_its_last_page() {
        let api = server(|asked| match asked {
            "/pods?limit=500&labelSelector=a%3Db" => {
                (200, json!({"items": [1, 2], "metadata": {"continue": "t/2"}}))
            }
            "/pods?limit=500&labelSelector=a%3Db&continue=t%2F2" => {
                (200, json!({"items": [3], "metadata": {}}))
            }
            other => panic!("{other}"),
        });
        assert_eq!(api.list("/pods", "a=b").await.unwrap(), [1, 2, 3]);
    }

    #[tokio::test]
    async fn a_list_that_is_forgotten_half_way_is_read_anew() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        let api = server(|asked| match (ASKED.fetch_add(1, Ordering::Relaxed), asked.contains("continue")) {
            (0 | 2, false) => (200, json!({"items": [1], "metadata": {"continue": "t"}})),
            (1, true) => refusal(410, "too old"),
            (3, true) => (200, json!({"items": [2], "metadata": {}})),
            other => panic!("{other:?}"),
        });
        assert_eq!(api.list("/pods", "").await.unwrap(), [1, 2]);
    }

    #[tokio::test]
    async fn half_of_a_list_is_not_the_list() {
        let api = server(|asked| match asked.contains("continue") {
            false => (200, json!({"items": [1], "metadata": {"continue": "t"}})),
            true => refusal(404, "gone meanwhile"),
        });
        assert!(api.list("/pods", "").await.unwrap_err().is_absent());
        let odd = server(|_| (200, json!([1])));
        assert!(matches!(odd.list("/pods", "").await, Err(ApiError::Nonsense(_))));
    }

    #[tokio::test]
    async fn what_is_not_there_is_no_error_where_it_was_sought() {
        let api = server(|_| refusal(404, "no such thing"));
        assert_eq!(api.list("/pods", "").await.unwrap(), Vec::<Value>::new());
        assert_eq!(api.find("/pods/a").await.unwrap(), None);
        assert!(!api.delete("/pods/a").await.unwrap());
        assert!(api.get("/pods/a").await.unwrap_err().is_absent());
    }

    #[tokio::test]
    async fn a_refusal_says_what_to_do() {
        let api = server(|_| refusal(403, "pods is forbidden"));
        let refused = api.patch("/pods/a", &json!({})).await.unwrap_err();
        assert!(refused.is_forbidden());
        let text = refused.to_string();
        assert!(
            text.starts_with("the API server refuses (403): pods is forbidden; give the caller"),
            "{text}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn silence_has_an_end() {
        let silent =
            service_fn(|_: Request<Body>| std::future::pending::<Result<Response<Body>, kube::Error>>());
        let api = Api::new(Client::new(silent, "default"));
        assert!(matches!(api.get("/pods").await, Err(ApiError::Silent)));
    }
}
