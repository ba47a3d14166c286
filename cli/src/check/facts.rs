//! What is seen of a cluster, once. The checks look at nothing else.

use futures_util::future::{join_all, try_join_all};
use serde_json::{Value, json};

use crate::{
    object, policies,
    programs::{self, Program},
    rollout, waypoint,
};
use apiserver::{Api, ApiError};

/// Everything that the checks look at.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// Where the mesh is, or is to be.
    pub(crate) namespace: String,
    pub(crate) version: Value,
    /// What the caller may not do, of that which an install takes.
    pub(crate) refused: Vec<String>,
    /// What the caller may not list: what is judged by it was not judged.
    pub(crate) unseen: Vec<String>,
    /// Policies that are defined, in no version that is known.
    pub(crate) unserved: Vec<String>,
    pub(crate) nodes: Vec<Value>,
    pub(crate) namespaces: Vec<Value>,
    pub(crate) pods: Vec<Value>,
    pub(crate) daemonsets: Vec<Value>,
    pub(crate) deployments: Vec<Value>,
    pub(crate) network_policies: Vec<Value>,
    /// Cilium's own settings, where it is there.
    pub(crate) cilium: Option<Value>,
    /// Calico's.
    pub(crate) felix: Vec<Value>,
    pub(crate) authorization: Vec<Value>,
    pub(crate) peer_authentication: Vec<Value>,
    /// Gateways of all classes; `None` where the cluster does not have the Gateway API.
    pub(crate) gateways: Option<Vec<Value>>,
    /// The published certificates of the mesh's root.
    pub(crate) roots: Option<Value>,
    /// Whether a Secret `cacerts` signs instead of `culvert-ca`; `None` where the caller may not see it.
    pub(crate) cacerts: Option<bool>,
    /// Control's Deployment, the DaemonSets of agent and ztunnel.
    pub(crate) workloads: Vec<Value>,
    pub(crate) programs: Vec<Program>,
    /// Whether the programs were asked.
    pub(crate) asked: bool,
    /// Seconds since 1970, by the API server's clock.
    pub(crate) now: i64,
}

impl Facts {
    /// Whether anything of the mesh is there.
    pub(crate) fn installed(&self) -> bool {
        self.workloads.iter().any(|workload| !workload["status"].is_null())
    }

    /// Asks the API server, and the programs where `ask`.
    pub(crate) async fn gather(api: &Api, namespace: &str, ask: bool) -> Result<Self, ApiError> {
        let said = api.get_dated("/version").await?;
        let ahead = programs::ahead_of_ours(said.date);
        let paths = [
            "/api/v1/nodes",
            "/api/v1/namespaces",
            "/api/v1/pods",
            "/apis/apps/v1/daemonsets",
            "/apis/apps/v1/deployments",
            "/apis/networking.k8s.io/v1/networkpolicies",
            "/apis/crd.projectcalico.org/v1/felixconfigurations",
        ];
        let lists = try_join_all(paths.map(|path| async move {
            match api.list(path, "").await {
                Err(error) if error.is_forbidden() => Ok(None),
                listed => listed.map(Some),
            }
        }));
        let lists = lists.await?;
        let unseen = paths.iter().zip(&lists).filter(|(_, list)| list.is_none());
        let mut unseen: Vec<String> =
            unseen.filter_map(|(path, _)| path.rsplit('/').next()).map(str::to_owned).collect();
        let mut lists = lists.into_iter().map(Option::unwrap_or_default);
        let mut next = || lists.next().unwrap_or_default();
        let (nodes, namespaces, pods, daemonsets, deployments) = (next(), next(), next(), next(), next());
        let (network_policies, felix) = (next(), next());
        let (mut written, mut unserved) = (Vec::new(), Vec::new());
        for plural in ["authorizationpolicies", "peerauthentications"] {
            let listed = match policies::list(api, plural).await {
                Err(error) if error.is_forbidden() => {
                    unseen.push(plural.to_owned());
                    None
                }
                Ok(None) => {
                    unserved.push(plural.to_owned());
                    None
                }
                listed => listed?,
            };
            written.push(listed.unwrap_or_default());
        }
        let peer_authentication = written.pop().unwrap_or_default();
        let authorization = written.pop().unwrap_or_default();
        let cilium = match api.find("/api/v1/namespaces/kube-system/configmaps/cilium-config").await {
            Err(error) if error.is_forbidden() => None,
            found => found?,
        };
        let gateways = match waypoint::gateways(api).await {
            Err(error) if error.is_forbidden() => {
                unseen.push("gateways".to_owned());
                Some(Vec::new())
            }
            found => found?,
        };
        let roots = format!("/api/v1/namespaces/{namespace}/configmaps/culvert-ca-root-cert");
        let cacerts = match api.find(&format!("/api/v1/namespaces/{namespace}/secrets/cacerts")).await {
            Err(error) if error.is_forbidden() => None,
            found => Some(found?.is_some()),
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs() as i64) + ahead.unwrap_or(0);
        Ok(Self {
            namespace: namespace.to_owned(),
            version: said.value,
            refused: refused(api, namespace).await,
            unseen,
            unserved,
            nodes,
            namespaces,
            pods,
            daemonsets,
            deployments,
            network_policies,
            cilium,
            felix,
            authorization,
            peer_authentication,
            gateways,
            roots: api.find(&roots).await?,
            cacerts,
            workloads: rollout::workloads(api, namespace).await?,
            programs: if ask { programs::ask(api, namespace, ahead).await? } else { Vec::new() },
            asked: ask,
            now,
        })
    }
}

/// What the caller may not do. An API server that does not say is taken to allow: the deed itself will tell.
async fn refused(api: &Api, namespace: &str) -> Vec<String> {
    let mut wanted: Vec<(String, String, &str)> = Vec::new();
    for kind in object::kinds() {
        let collection = object::collection(kind, "");
        // `/apis/GROUP/VERSION/PLURAL`, or `/api/v1/PLURAL`.
        let parts: Vec<&str> = collection.split('/').filter(|part| !part.is_empty()).collect();
        let group = if parts[0] == "api" { "" } else { parts[1] };
        let plural = parts.last().copied().unwrap_or_default();
        for verb in ["create", "patch"] {
            wanted.push((group.to_owned(), plural.to_owned(), verb));
        }
    }
    wanted.push((String::new(), "pods/portforward".to_owned(), "create"));
    let asked = join_all(wanted.into_iter().map(|(group, plural, verb)| async move {
        let (resource, subresource) = plural.split_once('/').unwrap_or((&plural, ""));
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {"namespace": namespace, "verb": verb, "group": group,
                                            "resource": resource, "subresource": subresource}},
        });
        let said = api.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &review).await.ok()?;
        (said["status"]["allowed"] == false).then(|| format!("{verb} {plural}"))
    }));
    asked.await.into_iter().flatten().collect()
}
