//! Messages, clients and servers of Weft's gRPC packages, generated at build time.
//!
//! Owns the wire format and nothing else: no conversion, no validation. [`WEFT_DESCRIPTORS`] is
//! the encoded `FileDescriptorSet` that reflection serves and that `cargo xtask proto check`
//! compares with the published one in `proto/published/`.

#![allow(
    missing_docs,
    clippy::doc_markdown,
    clippy::large_enum_variant,
    rust_2018_idioms
)]

/// Encoded `google.protobuf.FileDescriptorSet` of all of Weft's own packages, with imports.
pub const WEFT_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/weft.bin"));

/// Encoded `FileDescriptorSet` of Dapr's packages that Weft answers, with imports.
#[cfg(feature = "dapr")]
pub const DAPR_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/dapr.bin"));

pub mod codec;
pub mod compat;

/// Weft's own packages.
#[cfg(feature = "weft")]
pub mod weft {
    pub mod identity {
        pub mod v1 {
            tonic::include_proto!("weft.identity.v1");
        }
    }
    pub mod policy {
        pub mod v1 {
            tonic::include_proto!("weft.policy.v1");
        }
    }
    pub mod placement {
        pub mod v1 {
            tonic::include_proto!("weft.placement.v1");
        }
    }
    pub mod dataplane {
        pub mod v1 {
            tonic::include_proto!("weft.dataplane.v1");
        }
    }
    pub mod node {
        pub mod v1 {
            tonic::include_proto!("weft.node.v1");
        }
    }
}

/// Dapr's packages.
#[cfg(feature = "dapr")]
pub mod dapr {
    pub mod sentry {
        pub mod v1 {
            tonic::include_proto!("dapr.proto.sentry.v1");
        }
    }
    pub mod common {
        pub mod v1 {
            tonic::include_proto!("dapr.proto.common.v1");
        }
    }
    pub mod runtime {
        pub mod v1 {
            tonic::include_proto!("dapr.proto.runtime.v1");
        }
    }
}

/// SPIFFE's Workload API; its package has no name.
#[cfg(feature = "weft")]
pub mod spiffe {
    tonic::include_proto!("_");
}

/// Encoded `google.protobuf.FileDescriptorSet` of Hubble's packages, with imports.
#[cfg(feature = "hubble")]
pub const HUBBLE_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hubble.bin"));

/// Hubble's API, as its clients speak it.
#[cfg(feature = "hubble")]
pub mod hubble {
    pub mod flow {
        tonic::include_proto!("flow");
    }
    pub mod relay {
        tonic::include_proto!("relay");
    }
    pub mod observer {
        tonic::include_proto!("observer");
    }
    pub mod peer {
        tonic::include_proto!("peer");
    }
}
