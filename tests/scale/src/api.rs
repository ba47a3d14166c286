//! Many requests to an API server at once, in raw JSON.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::{Method, Request, header::CONTENT_TYPE};
use kube::{Client, Config, config::Kubeconfig};
use serde_json::Value;
use tokio::{runtime::Runtime, time::sleep};

/// Requests on their way at a time.
const AT_ONCE: usize = 64;
/// A request that the server is too busy for is tried so often.
const TRIES: u32 = 8;

/// What is asked.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) body: Option<Value>,
}

impl Ask {
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), body: None }
    }

    pub(crate) fn post(path: impl Into<String>, body: Value) -> Self {
        Self { method: Method::POST, path: path.into(), body: Some(body) }
    }

    /// A JSON merge patch (RFC 7386).
    pub(crate) fn patch(path: impl Into<String>, body: Value) -> Self {
        Self { method: Method::PATCH, path: path.into(), body: Some(body) }
    }

    /// At once: nobody is there who would end a pod.
    pub(crate) fn delete(path: impl Into<String>) -> Self {
        let body = serde_json::json!({"gracePeriodSeconds": 0});
        Self { method: Method::DELETE, path: path.into(), body: Some(body) }
    }

    fn request(&self) -> Result<Request<Vec<u8>>> {
        let kind =
            if self.method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let body = self.body.as_ref().map_or_else(Vec::new, |body| body.to_string().into_bytes());
        let request = Request::builder().method(&self.method).uri(&self.path).header(CONTENT_TYPE, kind);
        Ok(request.body(body)?)
    }
}

/// An API server, and threads to ask it with.
pub(crate) struct Api {
    client: Client,
    runtime: Runtime,
}

impl Api {
    pub(crate) fn new(kubeconfig: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("writers")
            .enable_all()
            .build()
            .context("start the writers' threads")?;
        let client = runtime.block_on(async {
            let config = Kubeconfig::read_from(kubeconfig)?;
            let config = Config::from_custom_kubeconfig(config, &Default::default()).await?;
            anyhow::Ok(Client::try_from(config)?)
        });
        Ok(Self { client: client.with_context(|| format!("use {}", kubeconfig.display()))?, runtime })
    }

    pub(crate) fn ask(&self, ask: &Ask) -> Result<Value> {
        self.runtime.block_on(one(&self.client, ask))
    }

    /// Asks all, many at a time; the answers, in any order.
    pub(crate) fn ask_all(&self, asks: impl Iterator<Item = Ask>) -> Result<Vec<Value>> {
        let client = &self.client;
        let answers = stream::iter(asks).map(|ask| async move { one(client, &ask).await });
        self.runtime.block_on(answers.buffer_unordered(AT_ONCE).try_collect())
    }

    /// As [`Self::ask_all`], for who wants no answers. How long it took.
    pub(crate) fn tell_all(&self, asks: impl Iterator<Item = Ask>) -> Result<Duration> {
        let (client, start) = (&self.client, Instant::now());
        let answers = stream::iter(asks).map(|ask| async move { one(client, &ask).await.map(drop) });
        let all = answers.buffer_unordered(AT_ONCE).try_for_each(|()| std::future::ready(Ok(())));
        self.runtime.block_on(all)?;
        Ok(start.elapsed())
    }
}

async fn one(client: &Client, ask: &Ask) -> Result<Value> {
    let mut pause = Duration::from_millis(100);
    for _ in 1..TRIES {
        match client.request(ask.request()?).await {
            Err(kube::Error::Api(status)) if [429, 500, 503, 504].contains(&status.code) => {}
            answer => return answer.with_context(|| format!("{} {}", ask.method, ask.path)),
        }
        sleep(pause).await;
        pause *= 2;
    }
    client.request(ask.request()?).await.with_context(|| format!("{} {}", ask.method, ask.path))
}
