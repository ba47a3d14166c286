//! The control plane: manifests → objects → compiled state → discovery, certificates and the word of
//! each node.
//!
//! ```text
//! folder or kubernetes ─▶ manifest ─▶ objects ─▶ compile ─▶ publish ─▶ ztunnels (delta xDS)
//!                                                  ▲           │
//!                          agents ─▶ nodes ────────┘           └─▶ serve: certificates, directives
//! ```
//!
//! [`engine`] turns the wheel; `manifest`, `objects`, `compile` and `shards` are pure.
#![forbid(unsafe_code)]

pub mod auth;
pub mod compile;
pub mod engine;
pub mod folder;
pub mod keys;
pub mod kubernetes;
pub mod manifest;
pub mod metrics;
pub mod nodes;
pub mod objects;
pub mod program;
pub mod publish;
pub mod serve;
pub mod shards;
pub mod status;
pub mod tokens;
