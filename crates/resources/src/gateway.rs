//! Gateway API: GatewayClass, Gateway, HTTPRoute, GRPCRoute, TLSRoute, BackendTLSPolicy and ReferenceGrant; and
//! Ingress, which came before it.
//!
//! What the published schemas refuse is refused here with its position. What they allow and Weft does
//! not do (a filter, a regular expression that is none) makes the object one that is not accepted, as
//! the Gateway API asks: it is listed in `unsupported` and told by the object's conditions.

mod backend_tls;
mod class;
mod filters;
mod grant;
mod grpc;
mod http;
mod ingress;
mod listeners;
mod refs;
mod route;
mod text;
mod tls;

pub use backend_tls::{BackendTls, BackendTlsTarget};
pub use class::GatewayClass;
pub use grant::{Grant, GrantFrom, GrantTo};
pub use ingress::{Ingress, IngressBackend, IngressPath, IngressPort, IngressRule};
pub use listeners::{AllowedNamespaces, Gateway, GatewayAddress, Listener, RouteKind};
pub use refs::{BackendTarget, ParentRef};
pub use route::{
    BackendRef, HeaderEdit, Mirror, PathChange, PathMatch, Redirect, Retry, Rewrite, Route, RouteFilters,
    RouteMatch, RouteRule, ValueMatch,
};

pub(crate) use {
    backend_tls::read as read_backend_tls, class::read as read_class, grant::read as read_grant,
    grpc::read as read_grpc, http::read as read_http, ingress::read as read_ingress,
    listeners::read as read_gateway, tls::read as read_tls,
};

/// The group of these objects.
pub const GROUP: &str = "gateway.networking.k8s.io";
