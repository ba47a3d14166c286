//! Many ztunnels' discovery streams, as lean as they can be: TLS, HTTP/2 and an acknowledgement, on one thread.
//! What arrives is counted and its time noted; nothing is kept.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use h2::SendStream;
use prost::Message;
use proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    discovery::{DeltaDiscoveryRequest, Node},
};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{net::TcpStream, sync::Semaphore, task::JoinSet};
use tokio_rustls::TlsConnector;

use crate::wire::Scanner;

const PATH: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// HTTP/2 windows, those of our own ztunnel.
const WINDOW: u32 = 8 * 1024 * 1024;
/// What is silent for this long has no more to say.
const QUIET: Duration = Duration::from_millis(400);

/// Where control is.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    pub(crate) port: u16,
    pub(crate) root: PathBuf,
}

/// What one subscriber has received.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Received {
    /// Of HTTP/2 data: inside TLS, before it.
    pub(crate) bytes: u64,
    pub(crate) answers: u64,
    pub(crate) resources: u64,
    pub(crate) removed: u64,
    /// When it had asked, when the first byte came, and when it had everything for the first time.
    pub(crate) asked: Option<Instant>,
    pub(crate) first_byte: Option<Instant>,
    pub(crate) complete: Option<Instant>,
    /// Types of which a first answer came.
    seen: [bool; 2],
    /// Resources and removals that are waited for.
    target: (u64, u64),
    /// When the last answer came.
    latest: Option<Instant>,
}

/// All subscribers.
pub(crate) struct Fleet {
    received: Arc<Mutex<Vec<Received>>>,
    /// Why a stream has ended, if one has.
    broken: Arc<Mutex<Option<String>>>,
    runtime: Option<tokio::runtime::Runtime>,
    stop: tokio::sync::watch::Sender<bool>,
}

impl Fleet {
    /// Connects with these token files; at most `at_once` are without their first state at a time. Waits until
    /// all have it.
    pub(crate) fn connect(
        door: &Door,
        tokens: &[PathBuf],
        at_once: usize,
        patience: Duration,
    ) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("subscribers")
            .enable_all()
            .build()
            .context("start the subscribers' thread")?;
        let received = Arc::new(Mutex::new(vec![Received::default(); tokens.len()]));
        let broken = Arc::new(Mutex::new(None));
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let tls = TlsConnector::from(Arc::new(tls(&door.root)?));
        let turns = Arc::new(Semaphore::new(at_once.max(1)));
        let mut tasks = JoinSet::new();
        for (number, token) in tokens.iter().enumerate() {
            let token = std::fs::read_to_string(token)
                .with_context(|| format!("read the token {}", token.display()))?;
            let subscriber = Subscriber {
                number,
                token: token.trim().to_owned(),
                port: door.port,
                tls: tls.clone(),
                received: received.clone(),
            };
            let (turns, broken, mut stopped) = (turns.clone(), broken.clone(), stopped.clone());
            let task = async move {
                let ended = tokio::select! {
                    ended = subscriber.run(turns) => ended,
                    _ = stopped.changed() => return,
                };
                let reason = ended.err().map_or_else(|| "control closed it".to_owned(), |e| format!("{e:#}"));
                lock(&broken).get_or_insert(format!("subscriber {number}: {reason}"));
            };
            tasks.spawn_on(task, runtime.handle());
        }
        // They go on by themselves.
        tasks.detach_all();
        let fleet = Self { received, broken, runtime: Some(runtime), stop };
        fleet.wait("the first state", patience, |one| one.complete.is_some())?;
        Ok(fleet)
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        lock(&self.received).clone()
    }

    /// From now on, so many resources and removals are waited for at each subscriber.
    pub(crate) fn expect(&self, resources: u64, removed: u64) {
        for one in lock(&self.received).iter_mut() {
            one.target = (one.resources + resources, one.removed + removed);
        }
    }

    /// Waits until all have what was expected, and nobody was told anything more for a while; the times at which
    /// each was told the last of it, in order.
    pub(crate) fn settled(&self, what: &str, patience: Duration) -> Result<Vec<Instant>> {
        let quiet =
            |one: &Received| one.has_target() && one.latest.is_some_and(|latest| latest.elapsed() > QUIET);
        self.wait(what, patience, quiet)?;
        let mut times: Vec<Instant> = self.received().iter().filter_map(|one| one.latest).collect();
        times.sort_unstable();
        Ok(times)
    }

    fn wait(&self, what: &str, patience: Duration, done: impl Fn(&Received) -> bool) -> Result<()> {
        let start = Instant::now();
        loop {
            if let Some(broken) = lock(&self.broken).take() {
                bail!("a discovery stream has ended: {broken}");
            }
            let received = self.received();
            let missing = received.iter().filter(|one| !done(one)).count();
            if missing == 0 {
                return Ok(());
            }
            if start.elapsed() > patience {
                let one = received.iter().find(|one| !done(one));
                bail!(
                    "{missing} of {} subscribers do not have {what} after {patience:?}; one of them: {one:?}",
                    received.len()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

struct Subscriber {
    number: usize,
    token: String,
    port: u16,
    tls: TlsConnector,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Subscriber {
    async fn run(self, turns: Arc<Semaphore>) -> Result<()> {
        let mut turn = Some(turns.acquire_owned().await?);
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.context("connect")?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("localhost")?;
        let stream = self.tls.connect(name, stream).await.context("TLS")?;
        let (client, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake::<_, Bytes>(stream)
            .await
            .context("HTTP/2")?;
        let connection = tokio::spawn(connection);
        let mut client = client.ready().await.context("HTTP/2")?;
        let request = http::Request::post(format!("https://localhost{PATH}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("authorization", format!("Bearer {}", self.token))
            .body(())?;
        let (answer, mut requests) = client.send_request(request, false)?;
        self.update(|one| one.asked = Some(Instant::now()));
        let node = Node { id: format!("ztunnel~scale-{}", self.number), ..Default::default() };
        for (type_url, node) in [(AUTHORIZATION_TYPE, Some(node)), (ADDRESS_TYPE, None)] {
            let names = vec!["*".to_owned()];
            let type_url = type_url.to_owned();
            let request = DeltaDiscoveryRequest {
                node,
                type_url,
                resource_names_subscribe: names,
                ..Default::default()
            };
            send(&mut requests, &request)?;
        }
        let answer = answer.await.context("the answer's head")?;
        let mut body = answer.into_body();
        let mut scanner = Scanner::default();
        while let Some(data) = body.data().await {
            let data = data.context("the answer")?;
            body.flow_control().release_capacity(data.len())?;
            let answers = scanner.feed(&data);
            let now = Instant::now();
            let complete = self.update(|one| {
                one.bytes += data.len() as u64;
                one.first_byte.get_or_insert(now);
                for answer in &answers {
                    one.take(&answer.type_url, answer.resources, answer.removed, now);
                }
                one.complete.is_some()
            });
            for answer in answers {
                let type_url = answer.type_url;
                send(
                    &mut requests,
                    &DeltaDiscoveryRequest { type_url, response_nonce: answer.nonce, ..Default::default() },
                )?;
            }
            if complete {
                drop(turn.take());
            }
        }
        let trailers = body.trailers().await.ok().flatten().unwrap_or_default();
        connection.abort();
        bail!("grpc-status {:?}, {:?}", trailers.get("grpc-status"), trailers.get("grpc-message"))
    }

    fn update<T>(&self, change: impl FnOnce(&mut Received) -> T) -> T {
        change(&mut lock(&self.received)[self.number])
    }
}

impl Received {
    fn take(&mut self, type_url: &str, resources: u64, removed: u64, now: Instant) {
        self.answers += 1;
        self.resources += resources;
        self.removed += removed;
        self.seen[usize::from(type_url == ADDRESS_TYPE)] = true;
        if self.complete.is_none() && self.seen == [true, true] {
            self.complete = Some(now);
        }
        self.latest = Some(now);
    }

    fn has_target(&self) -> bool {
        self.resources >= self.target.0 && self.removed >= self.target.1
    }
}

fn send(requests: &mut SendStream<Bytes>, request: &DeltaDiscoveryRequest) -> Result<()> {
    let length = request.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.extend_from_slice(&[0]);
    frame.extend_from_slice(&u32::try_from(length)?.to_be_bytes());
    request.encode(&mut frame)?;
    requests.send_data(frame.freeze(), false).context("send a request")
}

fn tls(root: &Path) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in
        CertificateDer::pem_file_iter(root).with_context(|| format!("read {}", root.display()))?
    {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
