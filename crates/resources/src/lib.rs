//! Manifests with positions.
