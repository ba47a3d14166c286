//! Compiles `protos/` into OUT_DIR. The compiler is a library: no `protoc` is needed.

use std::{env, path::PathBuf};

const FILES: [&str; 13] = [
    "authorization.proto",
    "ca.proto",
    "core.proto",
    "discovery.proto",
    "node.proto",
    "otlp_collector.proto",
    "otlp_common.proto",
    "otlp_resource.proto",
    "otlp_trace.proto",
    "status.proto",
    "waypoint.proto",
    "workload.proto",
    "zds.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("protos");
    println!("cargo::rerun-if-changed={}", protos.display());
    let descriptors = protox::compile(FILES, [&protos])?;
    tonic_prost_build::configure()
        // An encoded resource is shared by every client it is sent to (see `crate::Any`).
        .extern_path(".google.protobuf.Any", "crate::Any")
        // Maps in order: the same message always encodes to the same bytes.
        .btree_map(".")
        .compile_fds(descriptors)?;
    Ok(())
}
