//! Finds the kernel programs' object, for `src/object.rs` to embed.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=CULVERT_BPF_OBJECT");
    let object = match env::var_os("CULVERT_BPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"))
            .join("../../target/bpf/culvert.o"),
    };
    println!("cargo::rerun-if-changed={}", object.display());
    match object.canonicalize() {
        Ok(object) => println!("cargo::rustc-env=CULVERT_BPF_OBJECT_PATH={}", object.display()),
        Err(error) => println!(
            "cargo::error=the kernel programs are not built ({}: {error}); run `cargo xtask ebpf`, or name \
             their object in CULVERT_BPF_OBJECT",
            object.display()
        ),
    }
}
