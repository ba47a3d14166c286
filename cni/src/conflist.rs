//! Our entry in the node's CNI configuration: pure functions from the text of a file to another. Whatever else is
//! in it stays; what is not understood is left alone.

use serde_json::{Map, Value};

/// Why a configuration is left alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("it is no JSON: {0}")]
    Json(String),
    #[error("{0}")]
    Shape(&'static str),
    #[error("its cniVersion is {0:?}, and plugins are chained from 0.3.0 on (up to 1.1.0)")]
    Version(String),
}

/// The text of a list of plugins with `entry` behind the others; `None` where it is there already. An entry that
/// says something else is replaced.
///
/// # Errors
/// If the text is no list of plugins as the CNI specification (1.1.0, section 1) has it.
pub fn insert(list: &str, entry: &Value) -> Result<Option<String>, Malformed> {
    let mut list = parse(list)?;
    let plugins = plugins(&mut list)?;
    let first_is_ours = plugins.first().is_some_and(is_ours);
    if !first_is_ours && plugins.iter().filter(|plugin| is_ours(plugin)).eq([entry]) {
        return Ok(None);
    }
    plugins.retain(|plugin| !is_ours(plugin));
    if plugins.is_empty() {
        return Err(Malformed::Shape("it has no plugin that makes a network"));
    }
    plugins.push(entry.clone());
    Ok(Some(text(list)))
}

/// The text of a list of plugins without our entry; `None` where there is none.
///
/// # Errors
/// As [`insert`].
pub fn remove(list: &str) -> Result<Option<String>, Malformed> {
    let mut list = parse(list)?;
    let plugins = plugins(&mut list)?;
    let before = plugins.len();
    plugins.retain(|plugin| !is_ours(plugin));
    Ok((plugins.len() != before).then(|| text(list)))
}

/// What the plugins of a list are, in their order.
pub fn types(list: &str) -> Result<Vec<String>, Malformed> {
    let mut list = parse(list)?;
    let types = plugins(&mut list)?.iter().filter_map(|plugin| plugin["type"].as_str());
    Ok(types.map(str::to_owned).collect())
}

/// The text of a list with the one plugin of a configuration that is none.
///
/// # Errors
/// If the text is no configuration of a plugin.
pub fn convert(single: &str) -> Result<String, Malformed> {
    let mut single = parse(single)?;
    if !single.get("type").is_some_and(Value::is_string) {
        return Err(Malformed::Shape("it has neither plugins nor a type"));
    }
    let mut list = Map::new();
    for key in ["cniVersion", "name"] {
        list.extend(single.remove(key).map(|value| (key.to_owned(), value)));
    }
    list.insert("plugins".to_owned(), Value::Array(vec![Value::Object(single)]));
    plugins(&mut list)?;
    Ok(text(list))
}

fn parse(text: &str) -> Result<Map<String, Value>, Malformed> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Malformed::Shape("it is no object")),
        Err(error) => Err(Malformed::Json(error.to_string())),
    }
}

fn plugins(list: &mut Map<String, Value>) -> Result<&mut Vec<Value>, Malformed> {
    if !list.get("name").is_some_and(Value::is_string) {
        return Err(Malformed::Shape("it has no name"));
    }
    let version = list.get("cniVersion").and_then(Value::as_str).unwrap_or_default();
    if !crate::config::VERSIONS.contains(&version) {
        return Err(Malformed::Version(version.to_owned()));
    }
    let plugins = list.get_mut("plugins").and_then(Value::as_array_mut);
    let plugins = plugins.ok_or(Malformed::Shape("its plugins are no list"))?;
    if plugins.is_empty() || !plugins.iter().all(|plugin| plugin["type"].is_string()) {
        return Err(Malformed::Shape("a plugin of its list has no type, or there is none"));
    }
    Ok(plugins)
}

fn is_ours(plugin: &Value) -> bool {
    plugin["type"] == crate::PLUGIN
}

fn text(list: Map<String, Value>) -> String {
    format!("{:#}\n", Value::Object(list))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const KINDNET: &str = r#"{"cniVersion":"0.3.1","name":"kindnet","plugins":[
        {"type":"ptp","ipMasq":false,"ipam":{"type":"host-local","dataDir":"/run/cni-ipam-state",
         "routes":[{"dst":"0.0.0.0/0"}],"ranges":[[{"subnet":"10.244.1.0/24"}]]},"mtu":1500},
        {"type":"portmap","capabilities":{"portMappings":true}}]}"#;
    const CALICO: &str = r#"{"name":"k8s-pod-network","cniVersion":"0.3.1","x-foreign":{"kept":[1,null]},"plugins":[
        {"type":"calico","log_level":"info","datastore_type":"kubernetes","nodename":"n","mtu":0,
         "ipam":{"type":"calico-ipam"},"policy":{"type":"k8s"},"kubernetes":{"kubeconfig":"/etc/cni/net.d/calico-kubeconfig"}},
        {"type":"portmap","snat":true,"capabilities":{"portMappings":true}},
        {"type":"bandwidth","capabilities":{"bandwidth":true}}]}"#;
    const CILIUM: &str = r#"{"cniVersion":"1.0.0","name":"cilium","plugins":[
        {"type":"cilium-cni","enable-debug":false,"log-file":"/var/run/cilium/cilium-cni.log"}]}"#;

    fn entry() -> Value {
        json!({"type": crate::PLUGIN, "socket": "/run/culvert/cni.sock"})
    }

    fn value(text: &str) -> Value {
        serde_json::from_str(text).expect("JSON")
    }

    #[test]
    fn the_entry_comes_last_once_and_goes_without_a_trace() {
        for list in [KINDNET, CALICO, CILIUM] {
            let with = insert(list, &entry()).expect("understood").expect("changed");
            let mut expected = value(list);
            expected["plugins"].as_array_mut().expect("a list").push(entry());
            assert_eq!(value(&with), expected, "all else is kept");
            assert_eq!(insert(&with, &entry()), Ok(None), "it is there");
            let without = remove(&with).expect("understood").expect("changed");
            assert_eq!(value(&without), value(list));
            assert_eq!(remove(&without), Ok(None));
        }
    }

    #[test]
    fn an_entry_that_says_something_else_is_replaced_and_two_become_one() {
        let old = json!({"type": crate::PLUGIN, "socket": "/old"});
        let stale = insert(CILIUM, &old).expect("understood").expect("changed");
        let fresh = insert(&stale, &entry()).expect("understood").expect("changed");
        assert_eq!(value(&fresh)["plugins"][1], entry());
        let mut twice = value(&fresh);
        twice["plugins"].as_array_mut().expect("a list").insert(0, entry());
        let once = insert(&twice.to_string(), &entry()).expect("understood").expect("changed");
        assert_eq!(value(&once), value(&fresh));
        // Whoever chained itself behind us is not fought.
        let mut behind = value(&fresh);
        behind["plugins"].as_array_mut().expect("a list").push(json!({"type": "other"}));
        assert_eq!(insert(&behind.to_string(), &entry()), Ok(None));
    }

    #[test]
    fn a_single_plugin_becomes_a_list_of_one() {
        let single = r#"{"cniVersion":"0.4.0","name":"bridge","type":"bridge","bridge":"cni0","ipam":{"type":"host-local"}}"#;
        let list = convert(single).expect("understood");
        let expected = json!({"cniVersion": "0.4.0", "name": "bridge",
            "plugins": [{"type": "bridge", "bridge": "cni0", "ipam": {"type": "host-local"}}]});
        assert_eq!(value(&list), expected);
        assert!(insert(&list, &entry()).expect("understood").is_some());
    }

    #[test]
    fn what_is_not_understood_is_left_alone() {
        let ours = json!({"cniVersion": "1.0.0", "name": "x", "plugins": [entry()]}).to_string();
        for (text, expected) in [
            ("{\"cniVersion\":", "no JSON"),
            ("[]", "no object"),
            ("{}", "no name"),
            (r#"{"name":"x","plugins":[{"type":"p"}]}"#, "cniVersion"),
            (r#"{"name":"x","cniVersion":"0.2.0","plugins":[{"type":"p"}]}"#, "\"0.2.0\""),
            (r#"{"name":"x","cniVersion":"1.0.0","plugins":{}}"#, "no list"),
            (r#"{"name":"x","cniVersion":"1.0.0","plugins":[]}"#, "no type"),
            (r#"{"name":"x","cniVersion":"1.0.0","plugins":[{"type":"p"},7]}"#, "no type"),
            (&ours, "no plugin that makes"),
        ] {
            let problem = insert(text, &entry()).expect_err(text).to_string();
            assert!(problem.contains(expected), "{text}: {problem}");
        }
        assert!(convert(r#"{"cniVersion":"1.0.0","name":"x"}"#).is_err());
        assert!(convert(r#"{"name":"x","type":"p"}"#).is_err(), "it names no version");
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_fall(text: String) {
            let _ = (insert(&text, &entry()), remove(&text), convert(&text));
        }
    }
}
