//! Control in this process on loopback, with a folder of manifests and clients of all three services.
#![expect(unreachable_pub, reason = "a module of one test: what it offers is public within it")]

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use control::{
    compile::Options,
    metrics::Metrics,
    program::{Control, Settings, Source},
    publish::Clients,
};
use proto::{
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, Status as Detail,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    node::{
        CaptureState, NodeDirective, NodePod, NodeReport, PodReport, node_service_client::NodeServiceClient,
    },
};
use tempfile::TempDir;
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Streaming};

/// Nothing here takes long; a wait of this length is a failure.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Two nodes, an enrolled pod on each, and a service of the second.
pub const SHOP: &str = "
{apiVersion: v1, kind: Node, metadata: {name: node-a}}
---
{apiVersion: v1, kind: Node, metadata: {name: node-b}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, uid: u-client}
spec: {nodeName: node-a, serviceAccountName: client}
status: {podIP: 10.0.1.1}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, uid: u-web, labels: {app: web}}
spec: {nodeName: node-b, serviceAccountName: web}
status: {podIP: 10.0.2.1}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
";

pub const CLIENT: &str = "Kubernetes//Pod/shop/client";
pub const WEB: &str = "Kubernetes//Pod/shop/web";

/// A policy that denies a port of the web pod.
pub fn deny(port: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\n\
         spec: {{action: DENY, selector: {{matchLabels: {{app: web}}}}, rules: [{{to: [{{operation: {{ports: [\"{port}\"]}}}}]}}]}}\n"
    )
}

pub struct Bed {
    pub manifests: TempDir,
    pub state: TempDir,
    pub address: SocketAddr,
    pub clients: Arc<Clients>,
    /// Control's own runtime: with it ends everything that control has begun, as with a process.
    runtime: Option<Runtime>,
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Bed {
    pub async fn start(manifests: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("shop.yaml"), manifests).unwrap();
        Self::on(folder, tempfile::tempdir().unwrap(), "127.0.0.1:0".parse().unwrap()).await
    }

    async fn on(manifests: TempDir, state: TempDir, listen: SocketAddr) -> Self {
        let settings = Settings {
            source: Source::Folder { manifests: manifests.path().to_owned(), state: state.path().to_owned() },
            listen,
            names: Vec::new(),
            mesh: Options::default(),
            certificate_lifetime: Duration::from_secs(3600),
            authority: None,
            keys: control::keys::Settings::default(),
        };
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (ready, is_ready) = oneshot::channel();
        runtime.spawn(async move {
            let control = Control::start(settings, Arc::new(Metrics::default()), |_| {}).await.unwrap();
            let (address, clients) = (control.address, control.clients.clone());
            control.run(|| drop(ready.send((address, clients))), std::future::pending()).await.unwrap();
        });
        let (address, clients) = is_ready.await.expect("control starts");
        Self { manifests, state, address, clients, runtime: Some(runtime) }
    }

    /// Ends control and starts it anew, on the same folders and address.
    pub async fn restart(mut self) -> Self {
        let runtime = self.runtime.take().unwrap();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE)).await.unwrap();
        let manifests = std::mem::replace(&mut self.manifests, tempfile::tempdir().unwrap());
        let state = std::mem::replace(&mut self.state, tempfile::tempdir().unwrap());
        Self::on(manifests, state, self.address).await
    }

    pub fn write(&self, file: &str, text: &str) {
        // As careful editors do.
        let temporary = self.manifests.path().join(".new");
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.manifests.path().join(file)).unwrap();
    }

    /// How `node` reaches control.
    pub fn access(&self, node: &str) -> xds::Control {
        self.access_with(self.state.path().join("tokens").join(node))
    }

    pub fn access_with(&self, token: PathBuf) -> xds::Control {
        xds::Control {
            uri: format!("https://{}", self.address),
            ca: self.state.path().join("ca/root.pem"),
            token,
            server_name: None,
        }
    }

    /// A node's own mesh, followed as ztunnel does.
    pub fn follow(&self, node: &str) -> Follower {
        let mesh = xds::Mesh::new();
        let options = xds::Options {
            control: self.access(node),
            proxy: xds::Proxy {
                node: node.into(),
                name: "ztunnel".into(),
                namespace: "culvert-system".into(),
                address: [127, 0, 0, 1].into(),
            },
            cluster: "Kubernetes".into(),
            trust_domain: "cluster.local".into(),
            routes: false,
        };
        let task = tokio::spawn({
            let mesh = mesh.clone();
            async move { match xds::run(options, mesh).await {} }
        });
        Follower { mesh, task }
    }

    /// A discovery stream that does only what it is told to.
    pub async fn stream(&self, node: &str) -> Result<RawStream, tonic::Status> {
        RawStream::open(self.access(node)).await
    }

    pub async fn agent(&self, node: &str) -> Result<RawAgent, tonic::Status> {
        let access = self.access(node);
        let mut client = NodeServiceClient::new(access.connect().await.unwrap());
        let (reports, outgoing) = mpsc::unbounded_channel();
        let mut request = Request::new(UnboundedReceiverStream::new(outgoing));
        request.metadata_mut().insert("authorization", access.bearer().await.unwrap());
        let directives = client.sync(request).await?.into_inner();
        Ok(RawAgent { node: node.into(), reports, directives })
    }
}

pub struct Follower {
    pub mesh: Arc<xds::Mesh>,
    task: JoinHandle<()>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Follower {
    /// Waits until the mesh is as told; how long it took.
    pub async fn until(&self, what: &str, is: impl Fn(&mesh::Snapshot) -> bool) -> Duration {
        let begun = Instant::now();
        let mut changes = self.mesh.subscribe();
        let waited = timeout(PATIENCE, changes.wait_for(|snapshot| is(snapshot))).await;
        assert!(waited.is_ok(), "the mesh never became: {what}");
        begun.elapsed()
    }

    pub async fn complete(&self) {
        self.until("complete", mesh::Snapshot::is_complete).await;
    }
}

pub struct RawStream {
    pub requests: mpsc::UnboundedSender<DeltaDiscoveryRequest>,
    pub answers: Streaming<DeltaDiscoveryResponse>,
}

impl RawStream {
    pub async fn open(access: xds::Control) -> Result<Self, tonic::Status> {
        let channel = access.connect().await.unwrap();
        let (requests, outgoing) = mpsc::unbounded_channel();
        let mut request = Request::new(UnboundedReceiverStream::new(outgoing));
        request.metadata_mut().insert("authorization", access.bearer().await.unwrap());
        let answers = AggregatedDiscoveryServiceClient::new(channel)
            .delta_aggregated_resources(request)
            .await?
            .into_inner();
        Ok(Self { requests, answers })
    }

    pub fn subscribe(&self, type_url: &str, names: &[&str], held: &[(String, String)]) {
        self.send(DeltaDiscoveryRequest {
            type_url: type_url.into(),
            resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
            initial_resource_versions: held.iter().cloned().collect(),
            ..Default::default()
        });
    }

    pub fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).unwrap();
    }

    pub async fn next(&mut self) -> DeltaDiscoveryResponse {
        timeout(PATIENCE, self.answers.message())
            .await
            .expect("an answer in time")
            .unwrap()
            .expect("an answer")
    }

    pub fn acknowledge(&self, answer: &DeltaDiscoveryResponse, refusal: Option<&str>) {
        self.send(DeltaDiscoveryRequest {
            type_url: answer.type_url.clone(),
            response_nonce: answer.nonce.clone(),
            error_detail: refusal.map(|text| Detail { code: 3, message: text.into(), details: Vec::new() }),
            ..Default::default()
        });
    }
}

pub struct RawAgent {
    node: String,
    pub reports: mpsc::UnboundedSender<NodeReport>,
    pub directives: Streaming<NodeDirective>,
}

impl RawAgent {
    pub fn report(&self, uid: &str, state: CaptureState) {
        let pod = PodReport { uid: uid.into(), state: state.into(), ..Default::default() };
        let report = NodeReport { node: self.node.clone(), version: "test".into(), pods: vec![pod] };
        self.reports.send(report).unwrap();
    }

    /// Waits for a directive in which the pod is as told.
    pub async fn until(&mut self, uid: &str, is: impl Fn(&NodePod) -> bool) -> NodePod {
        let found = async {
            loop {
                let directive = self.directives.message().await.unwrap().expect("a directive");
                if let Some(pod) = directive.pods.into_iter().find(|pod| pod.uid == uid && is(pod)) {
                    return pod;
                }
            }
        };
        timeout(PATIENCE, found).await.expect("the directive in time")
    }
}

/// Waits until a condition holds that nobody announces.
pub async fn until(what: &str, is: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
