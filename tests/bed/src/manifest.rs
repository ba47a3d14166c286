//! The folder of Kubernetes YAML that `control` watches, and templates for what the bed puts there.

use std::{
    fmt::Write as _,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// A folder of manifests; every write is an atomic rename, as an editor or a config mount does it.
#[derive(Debug, Clone)]
pub struct Manifests {
    folder: PathBuf,
}

impl Manifests {
    pub(crate) fn create(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        Ok(Self { folder })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes `<name>.yaml`, whole or not at all.
    pub fn put(&self, name: &str, yaml: &str) -> Result<()> {
        let unfinished = self.folder.join(format!(".{name}.yaml.new"));
        let path = self.path(name);
        fs::write(&unfinished, yaml).with_context(|| format!("write {}", unfinished.display()))?;
        fs::rename(&unfinished, &path).with_context(|| format!("rename to {}", path.display()))
    }

    /// Removes `<name>.yaml`.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }

    /// Where `<name>.yaml` is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.yaml"))
    }

    /// Writes (or rewrites) a Namespace with or without the label that enrolls its pods.
    pub fn namespace(&self, name: &str, enrolled: bool) -> Result<()> {
        self.put(&format!("namespace-{name}"), &namespace(name, enrolled))
    }

    /// Writes an AuthorizationPolicy; `spec` is YAML, indented as in a file of its own.
    pub fn authorization_policy(&self, namespace: &str, name: &str, spec: &str) -> Result<()> {
        self.put(&policy_file(namespace, name), &authorization_policy(namespace, name, spec))
    }

    /// Removes an AuthorizationPolicy.
    pub fn remove_authorization_policy(&self, namespace: &str, name: &str) -> Result<()> {
        self.remove(&policy_file(namespace, name))
    }
}

fn policy_file(namespace: &str, name: &str) -> String {
    format!("policy-{namespace}-{name}")
}

/// A Namespace.
pub fn namespace(name: &str, enrolled: bool) -> String {
    let mut yaml = format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n");
    if enrolled {
        yaml.push_str("  labels:\n    istio.io/dataplane-mode: ambient\n");
    }
    yaml
}

/// A Node with its addresses on the wire.
pub fn node(name: &str, addresses: [IpAddr; 2]) -> String {
    let mut yaml =
        format!("apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\nspec: {{}}\nstatus:\n  addresses:\n");
    for address in addresses {
        let _ = writeln!(yaml, "  - {{type: InternalIP, address: \"{address}\"}}");
    }
    yaml
}

/// What a Pod manifest says.
#[derive(Debug, Clone)]
pub struct PodManifest<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub node: &'a str,
    pub service_account: &'a str,
    pub labels: &'a [(String, String)],
    pub addresses: &'a [IpAddr],
    /// The file that names the pod's network namespace.
    pub netns: &'a Path,
}

/// A running Pod.
pub fn pod(pod: &PodManifest<'_>) -> String {
    let mut yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {}\n  namespace: {}\n",
        pod.name, pod.namespace
    );
    if !pod.labels.is_empty() {
        yaml.push_str("  labels:\n");
        for (key, value) in pod.labels {
            let _ = writeln!(yaml, "    {key}: \"{value}\"");
        }
    }
    let _ = write!(
        yaml,
        "  annotations:\n    culvert.dev/netns: {}\n\
         spec:\n  nodeName: {}\n  serviceAccountName: {}\n  containers:\n  - name: app\n    image: app\n\
         status:\n  phase: Running\n  conditions:\n  - {{type: Ready, status: \"True\"}}\n",
        pod.netns.display(),
        pod.node,
        pod.service_account
    );
    if let Some(first) = pod.addresses.first() {
        let _ = writeln!(yaml, "  podIP: \"{first}\"\n  podIPs:");
        for address in pod.addresses {
            let _ = writeln!(yaml, "  - ip: \"{address}\"");
        }
    }
    yaml
}

/// A Service that picks pods by label. `ports` are (port, target port).
pub fn service(
    namespace: &str,
    name: &str,
    addresses: [IpAddr; 2],
    selector: &[(&str, &str)],
    ports: &[(u16, u16)],
) -> String {
    let [v4, v6] = addresses;
    let mut yaml = format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\n\
         spec:\n  clusterIP: \"{v4}\"\n  clusterIPs: [\"{v4}\", \"{v6}\"]\n\
         \x20 ipFamilies: [IPv4, IPv6]\n  ipFamilyPolicy: PreferDualStack\n  selector:\n"
    );
    for (key, value) in selector {
        let _ = writeln!(yaml, "    {key}: \"{value}\"");
    }
    yaml.push_str("  ports:\n");
    for (port, target) in ports {
        let _ = writeln!(yaml, "  - {{name: tcp-{port}, port: {port}, targetPort: {target}, protocol: TCP}}");
    }
    yaml
}

/// An AuthorizationPolicy; `spec` is YAML, indented as in a file of its own.
pub fn authorization_policy(namespace: &str, name: &str, spec: &str) -> String {
    let mut yaml = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n"
    );
    for line in spec.trim_matches('\n').lines() {
        let _ = writeln!(yaml, "  {line}");
    }
    yaml
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_put_replaces_the_file_in_one_step_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let manifests = Manifests::create(folder.path().join("m")).unwrap();
        manifests.namespace("shop", false).unwrap();
        manifests.namespace("shop", true).unwrap();
        let files: Vec<_> =
            fs::read_dir(manifests.folder()).unwrap().map(|f| f.unwrap().file_name()).collect();
        assert_eq!(files, ["namespace-shop.yaml"]);
        assert!(fs::read_to_string(manifests.path("namespace-shop")).unwrap().contains("ambient"));
    }

    #[test]
    fn a_policy_spec_is_indented_under_its_key() {
        let yaml = authorization_policy("shop", "only-web", "action: ALLOW\nrules:\n- from: []\n");
        assert!(yaml.ends_with("spec:\n  action: ALLOW\n  rules:\n  - from: []\n"), "{yaml}");
    }
}
