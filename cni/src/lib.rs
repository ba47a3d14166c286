//! The chained CNI plugin: what the container runtime calls when a pod's network has been made, before any
//! process of the pod runs. It asks the node's agent to capture the pod, and only then lets the pod start.
//!
//! It owns what plugin and agent must agree on: their conversation ([`ask`]), who may start while nobody answers
//! ([`known`]), and the plugin's entry in the node's configuration ([`conflist`]). It makes no device, no address and no rule, and it never speaks to Kubernetes.
#![forbid(unsafe_code)]

pub mod ask;
pub mod config;
pub mod conflist;
pub mod known;
pub mod plugin;

/// Name of the program, and the `type` of its entry in a CNI configuration.
pub const PLUGIN: &str = "culvert-cni";
