//! Which node a service account's token proves. Pure: what the API server said of the token, and the pod that
//! it is bound to, in; a node, or why not, out.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde_json::Value;

use crate::{manifest::Pod, tokens::waypoint};

/// A service account, as `NAMESPACE/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Account {
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for Account {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("{text:?} is not NAMESPACE/NAME of a service account")),
        }
    }
}

/// What a token proves by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proved {
    pub account: Account,
    /// The pod that the token is bound to.
    pub pod: String,
    pub pod_uid: String,
    /// The node that the API server wrote into the token; older ones write none.
    pub node: Option<String>,
}

/// Reads the status of a TokenReview. `audiences` are those that were asked for.
///
/// # Errors
/// With the reason why the token proves nothing here.
pub fn proved(status: &Value, audiences: &[String]) -> Result<Proved, String> {
    if status["authenticated"] != true {
        let reason = status["error"].as_str().filter(|reason| !reason.is_empty());
        return Err(format!(
            "the API server does not accept the token: {}",
            reason.unwrap_or("no reason given")
        ));
    }
    // An API server that knows no audiences says none, and the token may be for anybody.
    let mut named = status["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str);
    if !named.any(|named| audiences.iter().any(|audience| audience == named)) {
        return Err(format!(
            "the token is not for {}: project one with this audience",
            audiences.join(" or ")
        ));
    }
    let user = &status["user"];
    let username = user["username"].as_str().unwrap_or_default();
    let account = username
        .strip_prefix("system:serviceaccount:")
        .and_then(|account| account.split_once(':'))
        .ok_or_else(|| format!("{username:?} is not a service account"))?;
    let account = Account { namespace: account.0.to_owned(), name: account.1.to_owned() };
    let extra = |name: &str| {
        let values = user["extra"][format!("authentication.kubernetes.io/{name}")].as_array();
        values.and_then(|values| values.first()).and_then(Value::as_str).map(str::to_owned)
    };
    let (Some(pod), Some(pod_uid)) = (extra("pod-name"), extra("pod-uid")) else {
        let reason = "the token is not bound to a pod: mount it from a projected volume (or use kubectl create token \
                      --bound-object-kind Pod)";
        return Err(reason.to_owned());
    };
    Ok(Proved { account, pod, pod_uid, node: extra("node-name") })
}

/// Who calls: a node, where its account is one of `accounts`, which speak for the nodes of their pods; else the pod
/// alone, by the name that a waypoint's has. Whether it is a waypoint's is not judged here. `pod` is the pod of that
/// name as it is now.
///
/// # Errors
/// With the reason why it is nobody.
pub fn caller(proved: &Proved, pod: Option<&Pod>, accounts: &BTreeSet<Account>) -> Result<String, String> {
    let node = node_of(proved, pod)?;
    let Proved { account, pod: name, .. } = proved;
    Ok(if accounts.contains(account) { node.to_owned() } else { waypoint(&account.namespace, name) })
}

/// The node of the very pod that the token is bound to.
fn node_of<'p>(proved: &Proved, pod: Option<&'p Pod>) -> Result<&'p str, String> {
    let Proved { account, pod: name, pod_uid, node: written } = proved;
    let namespace = &account.namespace;
    let Some(pod) = pod else {
        return Err(format!("pod {namespace}/{name} that the token is bound to is not known (yet)"));
    };
    if pod.uid.as_ref().is_none_or(|uid| *uid != **pod_uid) {
        return Err(format!(
            "the token is bound to a pod {namespace}/{name} that is gone; another has its name"
        ));
    }
    if pod.template.service_account.as_deref() != Some(account.name.as_str()) {
        return Err(format!("pod {namespace}/{name} does not run as {account}"));
    }
    let Some(node) = pod.node.as_deref().filter(|node| !node.is_empty()) else {
        return Err(format!("pod {namespace}/{name} is not bound to a node"));
    };
    match written {
        Some(written) if written != node => {
            Err(format!("the token was made on node {written}, its pod {namespace}/{name} runs on {node}"))
        }
        _ => Ok(node),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::manifest::{Object, parse_json};

    fn audiences() -> Vec<String> {
        vec!["istio-ca".to_owned()]
    }

    fn status() -> Value {
        json!({
            "authenticated": true,
            "audiences": ["istio-ca"],
            "user": {
                "username": "system:serviceaccount:culvert-system:agent",
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["agent-x"],
                    "authentication.kubernetes.io/pod-uid": ["u-1"],
                    "authentication.kubernetes.io/node-name": ["a"],
                },
            },
        })
    }

    fn pod(change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "agent-x", "namespace": "culvert-system", "uid": "u-1"},
            "spec": {"nodeName": "a", "serviceAccountName": "agent"},
        });
        change(&mut pod);
        match parse_json(&pod).objects.pop() {
            Some((_, Object::Pod(pod))) => *pod,
            other => panic!("{other:?}"),
        }
    }

    fn accounts() -> BTreeSet<Account> {
        BTreeSet::from(["culvert-system/agent".parse().unwrap()])
    }

    #[test]
    fn a_token_of_the_agents_pod_proves_its_node() {
        let proved = proved(&status(), &audiences()).unwrap();
        assert_eq!(caller(&proved, Some(&pod(|_| {})), &accounts()), Ok("a".to_owned()));
        // An API server before 1.30 writes no node.
        let without = Proved { node: None, ..proved };
        assert_eq!(caller(&without, Some(&pod(|_| {})), &accounts()), Ok("a".to_owned()));
    }

    #[test]
    fn whoever_is_no_nodes_program_is_a_pod_and_never_a_node() {
        let proved = proved(&status(), &audiences()).unwrap();
        let other = Proved { account: "culvert-system/wp".parse().unwrap(), ..proved };
        let runs_as = pod(|pod| pod["spec"]["serviceAccountName"] = "wp".into());
        let caller = caller(&other, Some(&runs_as), &accounts());
        assert_eq!(caller, Ok("culvert-system@agent-x".to_owned()));
        assert!(crate::tokens::check_node(&caller.unwrap()).is_err(), "no node has such a name");
    }

    #[test]
    fn what_the_review_does_not_say_is_not_assumed() {
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 7] = [
            (|status| status["authenticated"] = false.into(), "no reason given"),
            (
                |status| {
                    status["authenticated"] = false.into();
                    status["error"] = "expired".into();
                },
                "expired",
            ),
            (|status| status["audiences"] = json!(["https://kubernetes.default"]), "not for istio-ca"),
            (|status| status["audiences"] = Value::Null, "not for istio-ca"),
            (|status| status["user"]["username"] = "alice".into(), "\"alice\" is not a service account"),
            (|status| status["user"]["extra"] = Value::Null, "not bound to a pod"),
            (
                |status| status["user"]["extra"]["authentication.kubernetes.io/pod-uid"] = json!([]),
                "not bound",
            ),
        ];
        for (change, reason) in cases {
            let mut status = status();
            change(&mut status);
            let refused = proved(&status, &audiences()).unwrap_err();
            assert!(refused.contains(reason), "{refused}");
        }
    }

    #[test]
    fn a_token_proves_nothing_without_its_pod() {
        let proved = proved(&status(), &audiences()).unwrap();
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 4] = [
            (|pod| pod["metadata"]["uid"] = "u-2".into(), "another has its name"),
            (|pod| pod["spec"]["nodeName"] = Value::Null, "not bound to a node"),
            (|pod| pod["spec"]["nodeName"] = "b".into(), "made on node a"),
            (|pod| pod["spec"]["serviceAccountName"] = "web".into(), "does not run as"),
        ];
        for (change, reason) in cases {
            let refused = caller(&proved, Some(&pod(change)), &accounts()).unwrap_err();
            assert!(refused.contains(reason), "{refused}");
        }
        assert!(caller(&proved, None, &accounts()).unwrap_err().contains("not known"));
        let other = Proved { account: "shop/web".parse().unwrap(), ..proved };
        assert!(caller(&other, Some(&pod(|_| {})), &accounts()).unwrap_err().contains("does not run as"));
    }

    #[test]
    fn an_account_is_namespace_and_name() {
        for wrong in ["", "agent", "/agent", "a/", "a/b/c"] {
            assert!(wrong.parse::<Account>().is_err(), "{wrong}");
        }
    }
}
