//! Gateway API: GatewayClass, Gateway, HTTPRoute, GRPCRoute and ReferenceGrant.
//!
//! What the published schemas refuse is refused here with its position. What they allow and Weft does
//! not do (a filter, a regular expression that is none) makes the object one that is not accepted, as
//! the Gateway API asks: it is listed in `unsupported` and told by the object's conditions.

mod class;
mod filters;
mod grant;
mod grpc;
mod http;
mod listeners;
mod refs;
mod route;
mod text;

pub use class::GatewayClass;
pub use grant::{Grant, GrantFrom, GrantTo};
pub use listeners::{AllowedNamespaces, Gateway, GatewayAddress, Listener, RouteKind};
pub use refs::{BackendTarget, ParentRef};
pub use route::{
    BackendRef, HeaderEdit, Mirror, PathChange, PathMatch, Redirect, Retry, Rewrite, Route, RouteFilters,
    RouteMatch, RouteRule, ValueMatch,
};

pub(crate) use {
    class::read as read_class, grant::read as read_grant, grpc::read as read_grpc, http::read as read_http,
    listeners::read as read_gateway,
};

/// The group of these objects.
pub const GROUP: &str = "gateway.networking.k8s.io";
