//! Nodes and pods as namespaces.
