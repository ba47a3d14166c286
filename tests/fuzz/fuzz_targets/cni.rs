//! What the CNI plugin and the agent read of each other, of the runtime, and of the node's own files.
#![no_main]

use cni::{ask, config, conflist, known};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fuzz_target!(|text: &str| {
    if let Ok(config) = serde_json::from_str::<config::Config>(text)
        && let Some(result) = &config.prev_result
    {
        let _ = config::addresses(result);
    }
    for (name, _) in config::arguments(text) {
        assert!(!name.contains([';', '=']));
    }
    if let Ok(request) = serde_json::from_str::<ask::Request>(text) {
        let again = serde_json::to_string(&request).expect("it is written");
        assert_eq!(serde_json::from_str::<ask::Request>(&again).expect("it is read back"), request);
    }
    let _ = serde_json::from_str::<ask::Answer>(text);
    let _ = serde_json::from_str::<known::Known>(text);
    configuration(text);
});

/// Whatever we put into a configuration comes out again, and the rest is as it was.
fn configuration(text: &str) {
    let entry = json!({"type": cni::PLUGIN, "socket": "/run/culvert/cni.sock"});
    let list = conflist::convert(text).unwrap_or_else(|_| text.to_owned());
    let Ok(bare) = conflist::remove(&list) else { return };
    let bare = bare.unwrap_or(list);
    let Ok(with) = conflist::insert(&bare, &entry) else { return };
    let with = with.expect("it was not in it");
    assert_eq!(conflist::insert(&with, &entry), Ok(None), "it is there");
    let without = conflist::remove(&with).expect("our own text").expect("it is there");
    let value = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    assert_eq!(value(&without), value(&bare));
}
