//! Compiles the `.proto` files with protox, so no `protoc` needs to be installed. The same
//! descriptor bytes feed the generated code, gRPC reflection and the compatibility test.

use prost::Message as _;
use std::{env, error::Error, fs, path::PathBuf};

const WEFT: &[&str] = &[
    "weft/identity/v1/identity.proto",
    "weft/policy/v1/policy.proto",
    "weft/policy/v1/route.proto",
    "weft/policy/v1/explain.proto",
    "weft/policy/v1/orders.proto",
    "weft/placement/v1/placement.proto",
    "weft/dataplane/v1/dataplane.proto",
    "weft/node/v1/handoff.proto",
];

/// What apps ask of their runtime: served by the dataplane, so apart from what the identity service says
/// of itself.
const DAPR_RUNTIME: &[&str] = &[
    "dapr/proto/common/v1/common.proto",
    "dapr/proto/runtime/v1/dapr.proto",
];

const HUBBLE: &[&str] = &[
    "hubble/flow/flow.proto",
    "hubble/relay/relay.proto",
    "hubble/observer/observer.proto",
    "hubble/peer/peer.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    println!("cargo:rerun-if-changed=weft");
    println!("cargo:rerun-if-changed=spiffe");
    println!("cargo:rerun-if-changed=hubble");
    let descriptors = protox::compile(WEFT, [&root])?;
    fs::write(out.join("weft.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_transport(false)
        .codec_path("crate::codec::Compact")
        .compile_fds(descriptors)?;
    if env::var_os("CARGO_FEATURE_DAPR").is_some() {
        println!("cargo:rerun-if-changed=dapr");
        let descriptors = protox::compile(["dapr/proto/sentry/v1/sentry.proto"], [&root])?;
        fs::write(out.join("dapr.bin"), descriptors.encode_to_vec())?;
        tonic_prost_build::configure()
            .build_transport(false)
            .compile_fds(descriptors)?;
    }
    if env::var_os("CARGO_FEATURE_DAPR").is_some() {
        tonic_prost_build::configure()
            .build_transport(false)
            .compile_fds(protox::compile(DAPR_RUNTIME, [&root])?)?;
    }
    // Not ours to change, so not among what is published and compared.
    tonic_prost_build::configure()
        .build_transport(false)
        .compile_fds(protox::compile(["spiffe/workload.proto"], [&root])?)?;
    let descriptors = protox::compile(HUBBLE, [&root])?;
    fs::write(out.join("hubble.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
