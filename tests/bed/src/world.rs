//! A world: the wire, its nodes, their pods, and the place of the control plane.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    ops::Deref,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, Ordering},
    },
};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};

use crate::{
    Job, Manifests, Netns, Sniffer, address,
    manifest::{self, PodManifest},
    plumbing,
    process::{Place, tail},
    teardown,
};

/// Tells apart the worlds of one process.
static WORLDS: AtomicU32 = AtomicU32::new(0);

/// A small cluster of network namespaces. Dropping it removes everything it made.
#[derive(Debug)]
pub struct World {
    id: String,
    folder: PathBuf,
    kept: bool,
    manifests: Manifests,
    wire: Arc<Netns>,
    control: Place,
    nodes: Vec<Node>,
}

/// One node: a namespace on the wire, with a bpffs and a cgroup of its own.
#[derive(Debug, Clone)]
pub struct Node {
    inner: Arc<NodeInner>,
}

#[derive(Debug)]
struct NodeInner {
    name: String,
    index: u8,
    place: Place,
    folder: PathBuf,
    pods: AtomicU8,
}

/// One pod: a namespace plugged into its node.
#[derive(Debug, Clone)]
pub struct Pod {
    inner: Arc<PodInner>,
}

#[derive(Debug)]
struct PodInner {
    spec: PodSpec,
    place: Place,
    addresses: [IpAddr; 2],
    host_device: String,
}

/// What a pod is to be.
#[derive(Debug, Clone)]
pub struct PodSpec {
    pub namespace: String,
    pub name: String,
    pub node: String,
    pub service_account: String,
    pub labels: Vec<(String, String)>,
    pub mtu: u16,
}

impl PodSpec {
    /// A pod with the service account `default`, the label `app: <name>` and an MTU of 1500.
    pub fn new(namespace: &str, name: &str, node: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node: node.to_owned(),
            service_account: "default".to_owned(),
            labels: vec![("app".to_owned(), name.to_owned())],
            mtu: 1500,
        }
    }

    /// Sets the service account.
    #[must_use]
    pub fn service_account(mut self, name: &str) -> Self {
        self.service_account = name.to_owned();
        self
    }

    /// Adds a label, or replaces the one of that key.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.retain(|(known, _)| known != key);
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Sets the MTU of the pod's device.
    #[must_use]
    pub fn mtu(mut self, mtu: u16) -> Self {
        self.mtu = mtu;
        self
    }
}

impl World {
    /// Makes the wire, the control plane's place and nodes of these names (at most 200).
    ///
    /// # Errors
    /// Without root, iproute2 or cgroup v2; what was made up to then is removed again.
    pub fn new(nodes: &[&str]) -> Result<Self> {
        let (id, folder) = new_folder()?;
        // From here on the guard cleans up, also when a later step fails.
        let guard = Unfinished { id: id.clone() };
        teardown::claim(&folder)?;
        let name = format!("{}{id}", teardown::PREFIX);
        let cgroup = teardown::cgroup2()?.join(&name);
        fs::create_dir(&cgroup).with_context(|| format!("make cgroup {}", cgroup.display()))?;
        let logs = folder.join("logs");
        fs::create_dir(&logs)?;
        let manifests = Manifests::create(folder.join("manifests"))?;

        let wire_name = format!("{name}-wire");
        let control_name = format!("{name}-control");
        let node_names: Vec<String> = nodes.iter().map(|node| format!("{name}-{node}")).collect();
        plumbing::add_namespaces(
            [wire_name.as_str(), &control_name].into_iter().chain(node_names.iter().map(Deref::deref)),
        )?;
        let open = |name: &str| -> Result<Arc<Netns>> {
            let ns = Netns::open(name)?;
            plumbing::prepare(&ns)?;
            Ok(Arc::new(ns))
        };
        let place = |netns: Arc<Netns>, group: &str| -> Result<Place> {
            let cgroup = cgroup.join(group);
            fs::create_dir(&cgroup).with_context(|| format!("make cgroup {}", cgroup.display()))?;
            Ok(Place { netns, cgroup, logs: logs.clone() })
        };
        let wire = open(&wire_name)?;
        plumbing::make_wire(&wire)?;
        let control = place(open(&control_name)?, "control")?;
        plumbing::plug(&wire, &control.netns, CONTROL_PORT, address::control())?;

        let indexes: Vec<u8> = (1..).take(nodes.len()).collect();
        let mut made = Vec::new();
        for ((node, ns_name), &index) in nodes.iter().zip(&node_names).zip(&indexes) {
            let place = place(open(ns_name)?, node)?;
            plumbing::plug(&wire, &place.netns, &port_of(node), address::node(index))?;
            let others: Vec<u8> = indexes.iter().copied().filter(|&other| other != index).collect();
            plumbing::make_router(&place.netns, &others)?;
            let folder = folder.join(node);
            mount_bpffs(&folder.join("bpf"))?;
            manifests.put(&format!("node-{node}"), &manifest::node(node, address::node(index)))?;
            let name = (*node).to_owned();
            made.push(Node {
                inner: Arc::new(NodeInner { name, index, place, folder, pods: AtomicU8::new(0) }),
            });
        }
        std::mem::forget(guard);
        Ok(Self { id, folder, kept: false, manifests, wire, control, nodes: made })
    }

    /// The id: part of every name that the world gives.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The folder with logs, manifests and the programs' state.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder that `control` watches.
    pub fn manifests(&self) -> &Manifests {
        &self.manifests
    }

    /// The wire's namespace, where the bridge is.
    pub fn wire(&self) -> &Netns {
        &self.wire
    }

    /// The control plane's place on the wire.
    pub fn control_place(&self) -> &Netns {
        &self.control.netns
    }

    /// A command that runs in the control plane's place.
    pub fn control_job(&self, program: impl Into<PathBuf>) -> Job {
        Job::new(self.control.clone(), program)
    }

    /// The nodes, in the order they were named.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node by its name.
    ///
    /// # Panics
    /// When there is none: the test itself is wrong then.
    pub fn node(&self, name: &str) -> &Node {
        self.nodes
            .iter()
            .find(|node| node.name() == name)
            .unwrap_or_else(|| panic!("no node {name} in this world"))
    }

    /// Makes a pod and writes its manifest.
    pub fn pod(&self, spec: PodSpec) -> Result<Pod> {
        let pod = self.pod_without_manifest(spec)?;
        self.list(&pod)?;
        Ok(pod)
    }

    /// Makes a pod that nobody has told the control plane of.
    pub fn pod_without_manifest(&self, spec: PodSpec) -> Result<Pod> {
        let node = &self.node(&spec.node).inner;
        let number = node.pods.fetch_add(1, Ordering::Relaxed) + 1;
        if number > 250 {
            bail!("node {} has no address left for pod {}", node.name, spec.name);
        }
        let name = format!("{}{}-{}-{}", teardown::PREFIX, self.id, spec.namespace, spec.name);
        plumbing::add_namespaces([name.as_str()])?;
        let netns = Arc::new(Netns::open(&name)?);
        plumbing::prepare(&netns)?;
        let addresses = address::pod(node.index, number);
        let host_device = format!("veth{number}");
        plumbing::plug_pod(&node.place.netns, &netns, &host_device, addresses, spec.mtu)?;
        let place = Place { netns, ..node.place.clone() };
        Ok(Pod { inner: Arc::new(PodInner { spec, place, addresses, host_device }) })
    }

    /// Writes the pod's manifest.
    pub fn list(&self, pod: &Pod) -> Result<()> {
        let PodInner { spec, place, addresses, .. } = &*pod.inner;
        let yaml = manifest::pod(&PodManifest {
            namespace: &spec.namespace,
            name: &spec.name,
            node: &spec.node,
            service_account: &spec.service_account,
            labels: &spec.labels,
            addresses,
            netns: &place.netns.path(),
        });
        self.manifests.put(&pod_file(spec), &yaml)
    }

    /// Removes the pod's manifest; the pod itself lives on.
    pub fn unlist(&self, pod: &Pod) -> Result<()> {
        self.manifests.remove(&pod_file(&pod.inner.spec))
    }

    /// Deletes a pod as a kubelet does: its manifest, its device, its namespace's name. The namespace
    /// itself ends when the last socket in it is closed.
    pub fn delete_pod(&self, pod: &Pod) -> Result<()> {
        self.unlist(pod)?;
        self.node(&pod.inner.spec.node).netns().ip(&format!("link del {}\n", pod.inner.host_device))?;
        teardown::remove_namespace(pod.netns().name())
    }

    /// Writes a Service with the `number`-th service addresses, which are returned.
    /// `ports` are (port, target port).
    pub fn service(
        &self,
        number: u8,
        namespace: &str,
        name: &str,
        selector: &[(&str, &str)],
        ports: &[(u16, u16)],
    ) -> Result<[IpAddr; 2]> {
        let addresses = address::service(number);
        let yaml = manifest::service(namespace, name, addresses, selector, ports);
        self.manifests.put(&format!("service-{namespace}-{name}"), &yaml)?;
        Ok(addresses)
    }

    /// Starts reading everything that nodes and control put on the wire; each frame is seen once.
    pub fn sniff(&self, secrets: &[(&str, &[u8])]) -> Result<Sniffer> {
        let ports = self.nodes.iter().map(|node| port_of(node.name())).chain([CONTROL_PORT.to_owned()]);
        Sniffer::arrivals(&self.wire, &ports.collect::<Vec<_>>(), secrets)
    }

    /// Leaves everything as it is when the world is dropped, until [`crate::remove_world`] is called.
    pub fn keep(&mut self) -> Result<()> {
        self.kept = true;
        teardown::keep(&self.folder)
    }

    /// The end of every log, for a failed test's output.
    pub fn log_tails(&self, lines: usize) -> String {
        let Ok(entries) = fs::read_dir(self.folder.join("logs")) else { return String::new() };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        let mut text = String::new();
        for path in paths {
            let bytes = fs::read(&path).unwrap_or_default();
            let log = String::from_utf8_lossy(&bytes);
            if !log.trim().is_empty() {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                text.push_str(&format!("--- end of {name}\n{}\n", tail(&log, lines).trim_end()));
            }
        }
        text
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tails(30));
        }
        if !self.kept {
            take_down(&self.id);
        }
    }
}

/// Cleans up after a world that could not be made.
struct Unfinished {
    id: String,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        take_down(&self.id);
    }
}

fn take_down(id: &str) {
    if let Err(error) = teardown::remove_world(id) {
        eprintln!("{error:#}");
    }
}

const CONTROL_PORT: &str = "p-control";

/// The bridge's port of a node; 15 bytes at most, as the kernel demands of a device's name.
fn port_of(node: &str) -> String {
    format!("p-{node}").chars().take(15).collect()
}

fn pod_file(spec: &PodSpec) -> String {
    format!("pod-{}-{}", spec.namespace, spec.name)
}

/// A fresh id and its folder: this process's id and a number, in base 36.
fn new_folder() -> Result<(String, PathBuf)> {
    let worlds = teardown::worlds();
    fs::create_dir_all(&worlds).with_context(|| format!("make {}", worlds.display()))?;
    for _ in 0..1000 {
        let number = WORLDS.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}x{}", base36(std::process::id()), base36(number));
        let folder = worlds.join(&id);
        match fs::create_dir(&folder) {
            Ok(()) => return Ok((id, folder)),
            // A kept world of an earlier process with this id.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("make {}", folder.display())),
        }
    }
    bail!("no free world id under {}; try: cargo xtask sweep", worlds.display())
}

fn base36(mut number: u32) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(char::from_digit(number % 36, 36).unwrap_or('0'));
        number /= 36;
        if number == 0 {
            return digits.iter().rev().collect();
        }
    }
}

fn mount_bpffs(at: &Path) -> Result<()> {
    fs::create_dir_all(at)?;
    mount(Some("bpf"), at, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mount bpffs at {}", at.display()))
}

impl Node {
    /// The node's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.inner.place.netns
    }

    /// Its addresses on the wire, IPv4 and IPv6.
    pub fn addresses(&self) -> [IpAddr; 2] {
        address::node(self.inner.index)
    }

    /// Its cgroup (v2); everything on the node runs in it.
    pub fn cgroup(&self) -> &Path {
        &self.inner.place.cgroup
    }

    /// The folder for the state of the node's programs.
    pub fn folder(&self) -> &Path {
        &self.inner.folder
    }

    /// The node's own bpffs.
    pub fn bpffs(&self) -> PathBuf {
        self.inner.folder.join("bpf")
    }

    /// A command that runs in the node's namespace and cgroup.
    pub fn job(&self, program: impl Into<PathBuf>) -> Job {
        Job::new(self.inner.place.clone(), program)
    }
}

impl Pod {
    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.inner.spec.namespace, self.inner.spec.name)
    }

    /// What it was made from.
    pub fn spec(&self) -> &PodSpec {
        &self.inner.spec
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.inner.place.netns
    }

    /// Its IPv4 address.
    pub fn v4(&self) -> IpAddr {
        self.inner.addresses[0]
    }

    /// Its IPv6 address.
    pub fn v6(&self) -> IpAddr {
        self.inner.addresses[1]
    }

    /// Its IPv4 address with a port.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.v4(), port)
    }

    /// Its IPv6 address with a port.
    pub fn at6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.v6(), port)
    }

    /// The node's end of its veth pair.
    pub fn host_device(&self) -> &str {
        &self.inner.host_device
    }

    /// A command that runs in the pod's namespace and its node's cgroup.
    pub fn job(&self, program: impl Into<PathBuf>) -> Job {
        Job::new(self.inner.place.clone(), program)
    }
}
