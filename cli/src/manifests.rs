//! What is installed: the chart as `cargo xtask manifests` has filled it in, and the few changes that flags ask for,
//! each made where it belongs in the objects. Tests prove that each makes what helm makes of the value.

use serde_json::{Value, json};

use crate::object::{self, items, text};

const FILLED_IN: &str = include_str!("../../deploy/manifests/culvert.yaml");

/// Where it is installed unless another place is named.
pub(crate) const NAMESPACE: &str = "culvert-system";
pub(crate) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
pub(crate) const PART_OF: &str = "app.kubernetes.io/part-of";
pub(crate) const NAME: &str = "app.kubernetes.io/name";
/// The chart's, and control's own.
pub(crate) const TRUST_DOMAIN: &str = "cluster.local";
/// The domain of the cluster's names where nobody names another: the chart's `mesh.clusterDomain`.
const CLUSTER_DOMAIN: &str = "cluster.local";
/// What an older Kubernetes does not know is taken out below this version.
const APP_ARMOR_FIELD: (u32, u32) = (1, 30);

/// What can be chosen on the command line. What is not keeps what is installed, else is the chart's.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Flags {
    /// Where the images are [default: what is installed, else culvert]
    #[arg(long, value_name = "REGISTRY")]
    pub(crate) registry: Option<String>,

    /// Tag of the images
    #[arg(long, value_name = "TAG", default_value = env!("CARGO_PKG_VERSION"))]
    pub(crate) tag: String,

    /// When nodes pull images [default: what is installed, else IfNotPresent]
    #[arg(long, value_name = "POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub(crate) pull_policy: Option<String>,

    /// Trust domain of every identity [default: what is installed, else cluster.local]
    #[arg(long, value_name = "NAME", value_parser = mesh::identity::trust_domain)]
    pub(crate) trust_domain: Option<String>,

    /// Domain of the cluster's names, under which ztunnel answers DNS [default: what is installed, else cluster.local]
    #[arg(long, value_name = "NAME", value_parser = mesh::identity::cluster_domain)]
    pub(crate) cluster_domain: Option<String>,

    /// Leave the nodes' CNI configuration alone: a new pod's first connections may leave in plaintext [default: as it
    /// is installed, else false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) no_cni: Option<bool>,

    /// Replicas of control [default: what is installed, else 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) replicas: Option<u32>,
}

/// What was chosen for the mesh that is installed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Installed {
    pub(crate) registry: Option<String>,
    pub(crate) pull_policy: Option<String>,
    pub(crate) trust_domain: Option<String>,
    pub(crate) cluster_domain: Option<String>,
    pub(crate) no_cni: Option<bool>,
    pub(crate) replicas: Option<u32>,
}

/// What is to be installed.
#[derive(Debug, Clone)]
pub(crate) struct Choices {
    pub(crate) registry: String,
    pub(crate) tag: String,
    pub(crate) pull_policy: String,
    pub(crate) trust_domain: String,
    pub(crate) cluster_domain: String,
    pub(crate) no_cni: bool,
    pub(crate) replicas: u32,
}

impl Flags {
    /// The choices, and what of them is kept from what is installed although the chart says otherwise.
    pub(crate) fn over(&self, installed: &Installed) -> (Choices, Vec<String>) {
        let mut kept = Vec::new();
        let mut pick =
            |flag: &str, given: Option<String>, there: Option<String>, chart: &str| match (given, there) {
                (Some(given), _) => given,
                (None, Some(there)) => {
                    if there != chart {
                        kept.push(format!("--{flag}={there}"));
                    }
                    there
                }
                (None, None) => chart.to_owned(),
            };
        let word = |one: bool| one.to_string();
        let registry = pick("registry", self.registry.clone(), installed.registry.clone(), "culvert");
        let pull_policy =
            pick("pull-policy", self.pull_policy.clone(), installed.pull_policy.clone(), "IfNotPresent");
        let cluster_domain = pick(
            "cluster-domain",
            self.cluster_domain.clone(),
            installed.cluster_domain.clone(),
            CLUSTER_DOMAIN,
        );
        let trust_domain =
            pick("trust-domain", self.trust_domain.clone(), installed.trust_domain.clone(), TRUST_DOMAIN);
        let no_cni = pick("no-cni", self.no_cni.map(word), installed.no_cni.map(word), "false");
        let number = |one: u32| one.to_string();
        let replicas = pick("replicas", self.replicas.map(number), installed.replicas.map(number), "1");
        let choices = Choices {
            registry,
            tag: self.tag.clone(),
            pull_policy,
            trust_domain,
            cluster_domain,
            no_cni: no_cni == "true",
            replicas: replicas.parse().unwrap_or(1),
        };
        (choices, kept)
    }
}

impl Installed {
    /// What control's Deployment and the agent's DaemonSet were made with.
    pub(crate) fn of(control: &Value, agent: Option<&Value>) -> Self {
        let container = |object: &Value| object["spec"]["template"]["spec"]["containers"][0].clone();
        let (of_control, of_agent) = (container(control), agent.map(container));
        let said = |flag: &str| {
            items(&of_control["args"])
                .iter()
                .find_map(|arg| arg.as_str()?.strip_prefix(flag))
                .map(str::to_owned)
        };
        Self {
            registry: text(&of_control["image"]).rsplit_once('/').map(|(registry, _)| registry.to_owned()),
            pull_policy: of_control["imagePullPolicy"].as_str().map(str::to_owned),
            trust_domain: Some(said("--trust-domain=").unwrap_or_else(|| TRUST_DOMAIN.to_owned())),
            cluster_domain: said("--cluster-domain="),
            no_cni: of_agent.map(|agent| !items(&agent["args"]).iter().any(|arg| arg == "--cni")),
            // One that was put to rest is not to stay so: nobody would take pods in.
            replicas: control["spec"]["replicas"]
                .as_u64()
                .and_then(|count| u32::try_from(count).ok())
                .filter(|count| *count > 0),
        }
    }
}

/// A command line of choices alone.
#[derive(Debug, clap::Parser)]
pub(crate) struct Line {
    #[command(flatten)]
    pub(crate) flags: Flags,
}

/// The choices where nobody chooses.
pub(crate) fn unchosen() -> Choices {
    <Line as clap::Parser>::parse_from(["culvert"]).flags.over(&Installed::default()).0
}

/// The objects as the chart says, unchanged.
pub(crate) fn parse(yaml: &str) -> anyhow::Result<Vec<Value>> {
    let documents = serde_yaml_ng::Deserializer::from_str(yaml);
    let mut objects = Vec::new();
    for document in documents {
        let object: Value = serde::Deserialize::deserialize(document)?;
        if !object.is_null() {
            objects.push(object);
        }
    }
    Ok(objects)
}

/// The objects to install, in the order in which they are made. `kubernetes`: what they are for.
///
/// # Errors
/// If the file that was built in is no YAML.
pub(crate) fn objects(
    namespace: &str,
    choices: &Choices,
    kubernetes: (u32, u32),
) -> anyhow::Result<Vec<Value>> {
    let mut objects = parse(FILLED_IN)?;
    for object in &mut objects {
        edit(object, namespace, choices, kubernetes);
    }
    if choices.replicas > 1 {
        let budget = budget(&objects);
        objects.extend(budget);
    }
    objects.iter_mut().for_each(ours);
    let order = |object: &Value| object::kinds().position(|kind| kind == object["kind"]);
    objects.sort_by_key(order);
    Ok(objects)
}

/// A namespace in which the agent may run.
pub(crate) fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {
            "pod-security.kubernetes.io/enforce": "privileged",
            PART_OF: "culvert",
            MANAGED_BY: object::MANAGER_LABEL,
        }},
    })
}

/// The labels by which we know what is ours, in the place of helm's.
pub(crate) fn ours(object: &mut Value) {
    for pointer in ["/metadata/labels", "/spec/template/metadata/labels"] {
        let Some(labels) = object.pointer_mut(pointer).and_then(Value::as_object_mut) else { continue };
        labels.remove("helm.sh/chart");
        if let Some(manager) = labels.get_mut(MANAGED_BY) {
            *manager = object::MANAGER_LABEL.into();
        }
    }
}

fn edit(object: &mut Value, namespace: &str, choices: &Choices, kubernetes: (u32, u32)) {
    let kind = text(&object["kind"]).to_owned();
    let was = |name: &str| name.strip_prefix(NAMESPACE).map(|rest| format!("{namespace}{rest}"));
    if object["metadata"].get("namespace").is_some() {
        object["metadata"]["namespace"] = namespace.into();
    }
    match kind.as_str() {
        "ClusterRole" | "ClusterRoleBinding" => rename(&mut object["metadata"]["name"], was),
        _ => {}
    }
    if matches!(kind.as_str(), "ClusterRoleBinding" | "RoleBinding") {
        if object["roleRef"]["kind"] == "ClusterRole" {
            rename(&mut object["roleRef"]["name"], was);
        }
        for subject in elements(&mut object["subjects"]) {
            rename(&mut subject["namespace"], was);
        }
    }
    if matches!(kind.as_str(), "Deployment" | "DaemonSet") {
        if kind == "Deployment" {
            object["spec"]["replicas"] = choices.replicas.into();
        }
        pod(&mut object["spec"]["template"]["spec"], namespace, choices, kubernetes);
    }
}

fn rename(name: &mut Value, was: impl Fn(&str) -> Option<String>) {
    if let Some(new) = name.as_str().and_then(was) {
        *name = new.into();
    }
}

fn elements(value: &mut Value) -> impl Iterator<Item = &mut Value> {
    value.as_array_mut().into_iter().flatten()
}

fn pod(spec: &mut Value, namespace: &str, choices: &Choices, kubernetes: (u32, u32)) {
    for list in ["initContainers", "containers"] {
        if spec.get(list).is_none() {
            continue;
        }
        for container in elements(&mut spec[list]) {
            let image = text(&container["image"]);
            let program =
                image.rsplit('/').next().and_then(|name| name.split(':').next()).unwrap_or_default();
            container["image"] = format!("{}/{program}:{}", choices.registry, choices.tag).into();
            container["imagePullPolicy"] = choices.pull_policy.as_str().into();
            if let Some(security) = container.get_mut("securityContext").and_then(Value::as_object_mut)
                && kubernetes < APP_ARMOR_FIELD
            {
                security.remove("appArmorProfile");
            }
            if container.get("args").is_some() {
                let args = items(&container["args"]).iter().filter_map(Value::as_str);
                let args: Vec<Value> = args.filter_map(|arg| argument(arg, namespace, choices)).collect();
                container["args"] = args.into();
            }
            if choices.no_cni && container.get("volumeMounts").is_some() {
                without_cni(&mut container["volumeMounts"]);
            }
        }
    }
    if choices.no_cni && spec.get("volumes").is_some() {
        without_cni(&mut spec["volumes"]);
    }
}

/// A flag as it is to be; `None` where it goes.
fn argument(arg: &str, namespace: &str, choices: &Choices) -> Option<Value> {
    let (flag, value) = arg.split_once('=').unwrap_or((arg, ""));
    let changed = match flag {
        "--cni" => return (!choices.no_cni).then(|| arg.into()),
        flag if flag.starts_with("--cni-") && choices.no_cni => return None,
        "--control" => value.replacen(&format!(".{NAMESPACE}.svc"), &format!(".{namespace}.svc"), 1),
        "--cni-exempt" => {
            let mut exempt: Vec<&str> = Vec::new();
            for one in value.split(',').map(|one| if one == NAMESPACE { namespace } else { one }) {
                if !exempt.contains(&one) {
                    exempt.push(one);
                }
            }
            exempt.join(",")
        }
        // Control's own images are of the same place and version.
        "--waypoint-image" => format!("{}/waypoint:{}", choices.registry, choices.tag),
        "--waypoint-pull-policy" => choices.pull_policy.clone(),
        "--trust-domain" => choices.trust_domain.clone(),
        "--cluster-domain" => choices.cluster_domain.clone(),
        _ => return Some(arg.into()),
    };
    Some(format!("{flag}={changed}").into())
}

fn without_cni(named: &mut Value) {
    if let Some(named) = named.as_array_mut() {
        named.retain(|one| !matches!(text(&one["name"]), "cni-bin" | "cni-conf"));
    }
}

/// Keeps one control through a drain of nodes; labels and selector are the deployment's.
fn budget(objects: &[Value]) -> Option<Value> {
    let control = objects.iter().find(|object| object["kind"] == "Deployment")?;
    Some(json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": control["metadata"],
        "spec": {"minAvailable": 1, "selector": control["spec"]["selector"]},
    }))
}

#[cfg(test)]
mod tests;
