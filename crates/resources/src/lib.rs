//! Manifests as people write them: YAML or JSON files to typed resources, with positions.
//!
//! Owns: what a legal object of each known kind is, and how its mistakes are told. What crosses the
//! border are [`Resource`]s and [`Problem`]s. A file is read whole or not at all: [`parse`] returns
//! either every object of it, or every problem that could be found at once.
//!
//! Fields that the standard has and this version does not do are refused by name, as unknown fields are:
//! an object never means less than its author wrote.

mod dapr;
mod fields;
#[cfg(test)]
mod fuzz;
pub mod gateway;
mod kind;
mod meta;
mod policy;
mod redirect;
mod selector;
mod service;
mod shared;
mod tree;

pub use dapr::DaprObject;
pub use gateway::{BackendTls, Gateway, GatewayClass, Grant, Ingress, Route};
pub use kind::Kind;
pub use meta::{Home, Meta};
pub use policy::{
    Authentication, CidrGroup, CidrRange, CidrRule, Entity, ExpressionSet, HttpRule, IcmpRule, MAX_HEADERS,
    MAX_HTTP_RULES, MAX_NAME_RULES, NameRule, NetworkPolicy, PeerRule, PolicyRule, Port, PortRule,
    ServiceRule, Services, expression, expressions,
};
pub use redirect::{LocalRedirect, RedirectFrontend, RedirectPort};
pub use selector::{LabelKey, LabelSelector, Operator, Requirement};
pub use service::{Service, ServicePort, TargetPort};
pub use shared::{Remote, SharedApp, Strategy};

use fields::{Field, Object, Problems};
use std::{fmt, sync::Arc};

/// A larger file is refused unread.
pub const MAX_FILE_BYTES: usize = 1024 * 1024;
/// A file with more documents is refused.
pub const MAX_DOCUMENTS: usize = 1000;

/// Something wrong in a file, said in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problem {
    /// The file, as it was named to [`parse`].
    pub file: String,
    /// Line, from 1; 0 for an object that came without lines.
    pub line: u32,
    /// The field, as `spec.ingress[0].toPorts`; empty when the file itself is meant.
    pub path: String,
    /// What is wrong and, where it helps, what to do.
    pub text: String,
}

impl Problem {
    pub(crate) fn new(file: &str, line: u32, path: &str, text: impl Into<String>) -> Self {
        // One line for the log, whatever stood in the file.
        let text: String = text
            .into()
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(500)
            .collect();
        let path = path
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(500)
            .collect();
        Self {
            file: file.to_owned(),
            line,
            path,
            text,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: ", self.file)?,
            line => write!(f, "{}:{line}: ", self.file)?,
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.text)
    }
}

/// Where an object stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The file, as it was named to [`parse`].
    pub file: Arc<str>,
    /// The line on which the object begins; 0 for one that came without lines.
    pub line: u32,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}", self.file),
        }
    }
}

/// An object's content.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// `v1` Service.
    Service(Service),
    /// `dapr.io/v1alpha1` Component.
    Component(DaprObject),
    /// `dapr.io/v1alpha1` Configuration.
    Configuration(DaprObject),
    /// `dapr.io` Subscription.
    Subscription(DaprObject),
    /// `cilium.io/v2` CiliumNetworkPolicy.
    CiliumNetworkPolicy(NetworkPolicy),
    /// `cilium.io/v2` CiliumClusterwideNetworkPolicy.
    CiliumClusterwideNetworkPolicy(NetworkPolicy),
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy(NetworkPolicy),
    /// `v1` Namespace; all that matters of it are its labels.
    Namespace,
    /// `gateway.networking.k8s.io/v1` GatewayClass.
    GatewayClass(GatewayClass),
    /// `gateway.networking.k8s.io/v1` Gateway.
    Gateway(Gateway),
    /// `gateway.networking.k8s.io/v1` HTTPRoute.
    HttpRoute(Route),
    /// `gateway.networking.k8s.io/v1` GRPCRoute.
    GrpcRoute(Route),
    /// `gateway.networking.k8s.io/v1` ReferenceGrant.
    ReferenceGrant(Grant),
    /// `cilium.io/v2` CiliumCIDRGroup.
    CiliumCidrGroup(CidrGroup),
    /// `cilium.io/v2` CiliumLocalRedirectPolicy.
    CiliumLocalRedirectPolicy(LocalRedirect),
    /// `networking.k8s.io/v1` Ingress.
    Ingress(Ingress),
    /// `gateway.networking.k8s.io/v1` TLSRoute.
    TlsRoute(Route),
    /// `gateway.networking.k8s.io/v1` BackendTLSPolicy.
    BackendTlsPolicy(BackendTls),
    /// `cilium.io/v2` CiliumEnvoyConfig: that it is there is all that is read of it.
    CiliumEnvoyConfig,
    /// `cilium.io/v2` CiliumClusterwideEnvoyConfig, likewise.
    CiliumClusterwideEnvoyConfig,
    /// `dapr.io/v1alpha1` Resiliency.
    Resiliency(DaprObject),
    /// `dapr.io/v1alpha1` HTTPEndpoint.
    HttpEndpoint(DaprObject),
}

/// An object of a known kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// Name, namespace, labels and annotations.
    pub meta: Meta,
    /// Where it stands.
    pub origin: Origin,
    /// The rest.
    pub body: Body,
    /// The object as written, without `status`, as JSON: to show it.
    pub json: Arc<str>,
}

impl Resource {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self.body {
            Body::Service(_) => Kind::Service,
            Body::Component(_) => Kind::Component,
            Body::Configuration(_) => Kind::Configuration,
            Body::Subscription(_) => Kind::Subscription,
            Body::CiliumNetworkPolicy(_) => Kind::CiliumNetworkPolicy,
            Body::CiliumClusterwideNetworkPolicy(_) => Kind::CiliumClusterwideNetworkPolicy,
            Body::NetworkPolicy(_) => Kind::NetworkPolicy,
            Body::Namespace => Kind::Namespace,
            Body::GatewayClass(_) => Kind::GatewayClass,
            Body::Gateway(_) => Kind::Gateway,
            Body::HttpRoute(_) => Kind::HttpRoute,
            Body::GrpcRoute(_) => Kind::GrpcRoute,
            Body::ReferenceGrant(_) => Kind::ReferenceGrant,
            Body::CiliumCidrGroup(_) => Kind::CiliumCidrGroup,
            Body::CiliumLocalRedirectPolicy(_) => Kind::CiliumLocalRedirectPolicy,
            Body::Ingress(_) => Kind::Ingress,
            Body::TlsRoute(_) => Kind::TlsRoute,
            Body::BackendTlsPolicy(_) => Kind::BackendTlsPolicy,
            Body::CiliumEnvoyConfig => Kind::CiliumEnvoyConfig,
            Body::CiliumClusterwideEnvoyConfig => Kind::CiliumClusterwideEnvoyConfig,
            Body::Resiliency(_) => Kind::Resiliency,
            Body::HttpEndpoint(_) => Kind::HttpEndpoint,
        }
    }
}

/// Reads all objects of a file, or says everything that is wrong with it. `file` is what positions
/// name; nothing is opened.
pub fn parse(file: &str, bytes: &[u8]) -> Result<Vec<Resource>, Vec<Problem>> {
    parse_at(file, bytes, Home::default())
}

/// [`parse`] for a file whose objects have another home than the namespace `default`.
pub fn parse_at(file: &str, bytes: &[u8], home: Home<'_>) -> Result<Vec<Resource>, Vec<Problem>> {
    let documents = tree::read(file, bytes).map_err(|p| vec![p])?;
    let mut problems = Problems::new(file);
    let shared: Arc<str> = file.into();
    let mut resources: Vec<Resource> = Vec::with_capacity(documents.len());
    for document in &documents {
        let Some(resource) = object(&shared, document, home, &mut problems) else {
            continue;
        };
        let same = |r: &&Resource| {
            r.kind() == resource.kind()
                && r.meta.namespace == resource.meta.namespace
                && r.meta.name == resource.meta.name
        };
        if let Some(first) = resources.iter().find(same) {
            let text = format!(
                "{} {} is in this file twice; first on line {}",
                resource.kind(),
                resource.meta,
                { first.origin.line }
            );
            problems.add(resource.origin.line, "metadata.name", text);
        }
        resources.push(resource);
    }
    let problems = problems.into_inner();
    if problems.is_empty() {
        Ok(resources)
    } else {
        Err(problems)
    }
}

/// Reads one object that came as JSON, or says everything that is wrong with it. `place` is what
/// positions name; they have no lines.
pub fn parse_object(place: &str, json: &serde_json::Value) -> Result<Resource, Vec<Problem>> {
    let document = tree::from_json(place, json).map_err(|p| vec![p])?;
    let mut problems = Problems::new(place);
    match object(&place.into(), &document, Home::default(), &mut problems) {
        Some(resource) => Ok(resource),
        None => Err(problems.into_inner()),
    }
}

/// What names the objects of a file, whatever else is right or wrong with them.
pub fn names(file: &str, bytes: &[u8], home: Home<'_>) -> Result<Vec<(Kind, String, String)>, Vec<Problem>> {
    let documents = tree::read(file, bytes).map_err(|p| vec![p])?;
    let mut problems = Problems::new(file);
    let mut names = Vec::with_capacity(documents.len());
    for document in &documents {
        let read = Field::root(document)
            .object(&mut problems)
            .and_then(|mut object| {
                let (known, _, metadata) = head(&mut object, &mut problems)?;
                meta::read(&metadata?, known.is_of_cluster(), home, &mut problems).map(|meta| (known, meta))
            });
        names.extend(read.map(|(kind, meta)| (kind, meta.namespace, meta.name)));
    }
    match problems.into_inner() {
        problems if problems.is_empty() => Ok(names),
        problems => Err(problems),
    }
}

/// The kind that an object says it is of, under which version, and its metadata.
fn head<'n>(object: &mut Object<'n>, problems: &mut Problems) -> Option<(Kind, String, Option<Field<'n>>)> {
    let api_version = object.need("apiVersion", problems);
    let kind = object.need("kind", problems);
    let (api_version, kind_field) = (api_version?, kind?);
    let (api_version, kind) = (api_version.text(problems)?, kind_field.text(problems)?);
    let known = Kind::ALL
        .into_iter()
        .find(|k| k.api_versions().contains(&api_version.as_str()) && k.name() == kind);
    let Some(known) = known else {
        let near = Kind::ALL.into_iter().find(|k| k.name() == kind);
        let hint = near.map_or(String::new(), |k| {
            format!("; {kind} is read as {}", k.api_version())
        });
        kind_field.fail(
            problems,
            format_args!("{kind} of {api_version} is not supported yet{hint}"),
        );
        return None;
    };
    Some((known, api_version, object.need("metadata", problems)))
}

fn object(
    file: &Arc<str>,
    document: &tree::Node,
    home: Home<'_>,
    problems: &mut Problems,
) -> Option<Resource> {
    let before = problems.count();
    let mut object = Field::root(document).object(problems)?;
    let (known, api_version, metadata) = head(&mut object, problems)?;
    let meta = metadata
        .as_ref()
        .and_then(|f| meta::read(f, known.is_of_cluster(), home, problems));
    // What a cluster reports about an object is no wish of its author.
    object.ignore(&["status"]);
    let body = match known {
        Kind::Service => {
            let shared = metadata.as_ref().and_then(|f| shared::read(f, problems));
            service::read(&mut object, shared, problems).map(Body::Service)
        }
        Kind::Component => dapr::component(&mut object, document, problems).map(Body::Component),
        Kind::Configuration => dapr::configuration(&mut object, document, problems).map(Body::Configuration),
        Kind::Subscription => {
            dapr::subscription(&mut object, &api_version, document, problems).map(Body::Subscription)
        }
        Kind::CiliumNetworkPolicy => {
            policy::read_cilium(&mut object, problems).map(Body::CiliumNetworkPolicy)
        }
        Kind::CiliumClusterwideNetworkPolicy => {
            policy::read_cilium(&mut object, problems).map(Body::CiliumClusterwideNetworkPolicy)
        }
        Kind::NetworkPolicy => policy::read_kubernetes(&mut object, problems).map(Body::NetworkPolicy),
        Kind::Namespace => {
            object.ignore(&["spec"]);
            Some(Body::Namespace)
        }
        Kind::GatewayClass => gateway::read_class(&mut object, problems).map(Body::GatewayClass),
        Kind::Gateway => gateway::read_gateway(&mut object, problems).map(Body::Gateway),
        Kind::HttpRoute => gateway::read_http(&mut object, problems).map(Body::HttpRoute),
        Kind::GrpcRoute => gateway::read_grpc(&mut object, problems).map(Body::GrpcRoute),
        Kind::ReferenceGrant => gateway::read_grant(&mut object, problems).map(Body::ReferenceGrant),
        Kind::CiliumCidrGroup => policy::read_cidr_group(&mut object, problems).map(Body::CiliumCidrGroup),
        Kind::CiliumLocalRedirectPolicy => {
            redirect::read(&mut object, problems).map(Body::CiliumLocalRedirectPolicy)
        }
        Kind::Ingress => gateway::read_ingress(&mut object, metadata.as_ref(), problems).map(Body::Ingress),
        Kind::TlsRoute => gateway::read_tls(&mut object, problems).map(Body::TlsRoute),
        Kind::BackendTlsPolicy => {
            gateway::read_backend_tls(&mut object, problems).map(Body::BackendTlsPolicy)
        }
        // Its status says that nothing is done with it, whatever Envoy would make of it.
        Kind::CiliumEnvoyConfig => object.need("spec", problems).map(|_| Body::CiliumEnvoyConfig),
        Kind::CiliumClusterwideEnvoyConfig => object
            .need("spec", problems)
            .map(|_| Body::CiliumClusterwideEnvoyConfig),
        Kind::Resiliency => dapr::resiliency(&mut object, document, problems).map(Body::Resiliency),
        Kind::HttpEndpoint => dapr::http_endpoint(&mut object, document, problems).map(Body::HttpEndpoint),
    };
    object.finish(problems);
    let (meta, body) = (meta?, body?);
    (problems.count() == before).then(|| Resource {
        meta,
        origin: Origin {
            file: file.clone(),
            line: document.line,
        },
        body,
        json: as_written(document),
    })
}

fn as_written(document: &tree::Node) -> Arc<str> {
    let mut json = document.to_json();
    if let Some(object) = json.as_object_mut() {
        object.remove("status");
    }
    json.to_string().into()
}
