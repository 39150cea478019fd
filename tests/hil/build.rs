//! Hands the link script to the linker when, and only when, the image is really being linked.
//!
//! The image builder selects the linker through the encoded flags; a plain `cargo check` or `cargo clippy` does not, and
//! must not meet a script that the host's C compiler driver cannot use.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=link.ld");
    println!("cargo::rerun-if-env-changed=CARGO_ENCODED_RUSTFLAGS");
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let folder = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    if flags.contains("linker-flavor=ld.lld") {
        println!("cargo::rustc-link-arg-bins=-T{folder}/link.ld");
    }
}
