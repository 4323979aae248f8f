//! The kinds that are read, and all their names.

use std::fmt;

/// The kinds that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `dapr.io/v1alpha1` Component.
    Component,
    /// `dapr.io/v1alpha1` Configuration.
    Configuration,
    /// `dapr.io/v2alpha1` and `v1alpha1` Subscription.
    Subscription,
    /// `cilium.io/v2` CiliumNetworkPolicy.
    CiliumNetworkPolicy,
    /// `cilium.io/v2` CiliumClusterwideNetworkPolicy.
    CiliumClusterwideNetworkPolicy,
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy,
    /// `v1` Namespace: for its labels.
    Namespace,
    /// `gateway.networking.k8s.io/v1` GatewayClass.
    GatewayClass,
    /// `gateway.networking.k8s.io/v1` Gateway.
    Gateway,
    /// `gateway.networking.k8s.io/v1` HTTPRoute.
    HttpRoute,
    /// `gateway.networking.k8s.io/v1` GRPCRoute.
    GrpcRoute,
    /// `gateway.networking.k8s.io/v1` ReferenceGrant.
    ReferenceGrant,
    /// `cilium.io/v2` CiliumCIDRGroup.
    CiliumCidrGroup,
    /// `cilium.io/v2` CiliumLocalRedirectPolicy.
    CiliumLocalRedirectPolicy,
    /// `networking.k8s.io/v1` Ingress.
    Ingress,
    /// `gateway.networking.k8s.io/v1` TLSRoute.
    TlsRoute,
    /// `gateway.networking.k8s.io/v1` BackendTLSPolicy.
    BackendTlsPolicy,
    /// `cilium.io/v2` CiliumEnvoyConfig.
    CiliumEnvoyConfig,
    /// `cilium.io/v2` CiliumClusterwideEnvoyConfig.
    CiliumClusterwideEnvoyConfig,
    /// `dapr.io/v1alpha1` Resiliency.
    Resiliency,
    /// `dapr.io/v1alpha1` HTTPEndpoint.
    HttpEndpoint,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 22] = [
        Self::Service,
        Self::Component,
        Self::Configuration,
        Self::Subscription,
        Self::CiliumNetworkPolicy,
        Self::CiliumClusterwideNetworkPolicy,
        Self::NetworkPolicy,
        Self::Namespace,
        Self::GatewayClass,
        Self::Gateway,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::ReferenceGrant,
        Self::CiliumCidrGroup,
        Self::CiliumLocalRedirectPolicy,
        Self::Ingress,
        Self::TlsRoute,
        Self::BackendTlsPolicy,
        Self::CiliumEnvoyConfig,
        Self::CiliumClusterwideEnvoyConfig,
        Self::Resiliency,
        Self::HttpEndpoint,
    ];

    /// The values of `apiVersion` under which it is read; the first is today's.
    pub fn api_versions(self) -> &'static [&'static str] {
        match self {
            Self::Service | Self::Namespace => &["v1"],
            Self::Component | Self::Configuration | Self::Resiliency | Self::HttpEndpoint => {
                &["dapr.io/v1alpha1"]
            }
            Self::Subscription => &["dapr.io/v2alpha1", "dapr.io/v1alpha1"],
            Self::CiliumNetworkPolicy
            | Self::CiliumClusterwideNetworkPolicy
            | Self::CiliumLocalRedirectPolicy
            | Self::CiliumEnvoyConfig
            | Self::CiliumClusterwideEnvoyConfig => &["cilium.io/v2"],
            Self::CiliumCidrGroup => &["cilium.io/v2", "cilium.io/v2alpha1"],
            Self::NetworkPolicy | Self::Ingress => &["networking.k8s.io/v1"],
            Self::TlsRoute => &[
                "gateway.networking.k8s.io/v1",
                "gateway.networking.k8s.io/v1alpha3",
                "gateway.networking.k8s.io/v1alpha2",
            ],
            Self::BackendTlsPolicy => &[
                "gateway.networking.k8s.io/v1",
                "gateway.networking.k8s.io/v1alpha3",
            ],
            Self::GatewayClass | Self::Gateway | Self::ReferenceGrant => &[
                "gateway.networking.k8s.io/v1",
                "gateway.networking.k8s.io/v1beta1",
            ],
            Self::HttpRoute => &[
                "gateway.networking.k8s.io/v1",
                "gateway.networking.k8s.io/v1beta1",
                "gateway.networking.k8s.io/v1alpha2",
            ],
            // There never was a v1beta1 of it.
            Self::GrpcRoute => &[
                "gateway.networking.k8s.io/v1",
                "gateway.networking.k8s.io/v1alpha2",
            ],
        }
    }

    /// As in `apiVersion` today.
    pub fn api_version(self) -> &'static str {
        self.api_versions()[0]
    }

    /// As in `kind`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::Component => "Component",
            Self::Configuration => "Configuration",
            Self::Subscription => "Subscription",
            Self::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Self::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Namespace => "Namespace",
            Self::GatewayClass => "GatewayClass",
            Self::Gateway => "Gateway",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::CiliumCidrGroup => "CiliumCIDRGroup",
            Self::CiliumLocalRedirectPolicy => "CiliumLocalRedirectPolicy",
            Self::Ingress => "Ingress",
            Self::TlsRoute => "TLSRoute",
            Self::BackendTlsPolicy => "BackendTLSPolicy",
            Self::CiliumEnvoyConfig => "CiliumEnvoyConfig",
            Self::CiliumClusterwideEnvoyConfig => "CiliumClusterwideEnvoyConfig",
            Self::Resiliency => "Resiliency",
            Self::HttpEndpoint => "HTTPEndpoint",
        }
    }

    /// As `kubectl get` names it: plural, then short names.
    pub fn plural_and_short(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Service => ("services", &["svc"]),
            Self::Component => ("components", &[]),
            Self::Configuration => ("configurations", &[]),
            Self::Subscription => ("subscriptions", &[]),
            Self::CiliumNetworkPolicy => ("ciliumnetworkpolicies", &["cnp", "ciliumnp"]),
            Self::CiliumClusterwideNetworkPolicy => ("ciliumclusterwidenetworkpolicies", &["ccnp"]),
            Self::NetworkPolicy => ("networkpolicies", &["netpol"]),
            Self::Namespace => ("namespaces", &["ns"]),
            Self::GatewayClass => ("gatewayclasses", &["gc"]),
            Self::Gateway => ("gateways", &["gtw"]),
            Self::HttpRoute => ("httproutes", &[]),
            Self::GrpcRoute => ("grpcroutes", &[]),
            Self::ReferenceGrant => ("referencegrants", &["refgrant"]),
            Self::CiliumCidrGroup => ("ciliumcidrgroups", &["ccg"]),
            Self::CiliumLocalRedirectPolicy => ("ciliumlocalredirectpolicies", &["clrp"]),
            Self::Ingress => ("ingresses", &["ing"]),
            Self::TlsRoute => ("tlsroutes", &[]),
            Self::BackendTlsPolicy => ("backendtlspolicies", &["btlspolicy"]),
            Self::CiliumEnvoyConfig => ("ciliumenvoyconfigs", &["cec"]),
            Self::CiliumClusterwideEnvoyConfig => ("ciliumclusterwideenvoyconfigs", &["ccec"]),
            Self::Resiliency => ("resiliencies", &[]),
            Self::HttpEndpoint => ("httpendpoints", &[]),
        }
    }

    /// The group of `apiVersion`; empty for the core.
    pub fn group(self) -> &'static str {
        self.api_version().split_once('/').map_or("", |(group, _)| group)
    }

    /// Whether its objects belong to the cluster and have no namespace.
    pub fn is_of_cluster(self) -> bool {
        matches!(
            self,
            Self::CiliumClusterwideNetworkPolicy
                | Self::GatewayClass
                | Self::Namespace
                | Self::CiliumCidrGroup
                | Self::CiliumClusterwideEnvoyConfig
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
