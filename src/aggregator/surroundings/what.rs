//! What is looked at around the nodes, and how it is asked for.

use crate::aggregator::watch::Kind;

/// `labelSelector=k8s-app in (...)`, escaped.
const APPS: &str =
    "labelSelector=k8s-app%20in%20%28calico-node%2Ccalico-kube-controllers%2Ccalico-typha%2Ckonnectivity-agent%29";
/// The same for `app`: as the providers name it that have one.
const VPN: &str = "labelSelector=app%20in%20%28vpn%2Copenvpn-client%2Cvpn-shoot%29";

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    /// Which node has which block of Pod addresses.
    Affinities,
    /// Calico's pools of Pod addresses.
    Pools,
    /// How the nodes peer.
    Bgp,
    /// The Service `default/kubernetes`.
    ApiService,
    /// And where it leads.
    ApiSlices,
    /// The Services of the cluster's DNS.
    DnsServices,
    /// And where they lead.
    DnsSlices,
    /// The Pods of Calico, and of the tunnel from the control plane.
    CalicoPods,
    /// The Pods of an older tunnel from the control plane: a VPN.
    VpnPods,
    /// The DaemonSets of the system.
    DaemonSets,
    /// Calico's Deployments in kube-system.
    SystemDeployments,
    /// And in calico-system.
    CalicoDeployments,
    /// Pods of the system that could not be made.
    FailedCreates,
    /// Calico's host endpoints.
    HostEndpoints,
    /// Whether Calico's datastore is locked.
    ClusterInformation,
    /// Webhooks that refuse.
    Validating,
    /// Webhooks that change.
    Mutating,
    /// Felix's configuration. Of this and what follows only when it changed, and who did it.
    Felix,
    /// Peers of BGP.
    Peers,
    /// How Calico gives out addresses.
    IpamConfigs,
    /// Calico's policies.
    GlobalPolicies,
    /// And those of namespaces.
    CalicoPolicies,
    /// Kubernetes' own.
    Policies,
    /// What the Tigera operator is told.
    Installations,
    /// Namespaces of the system, with their labels, by which webhooks choose.
    Namespaces,
}

impl What {
    /// All of it.
    pub(crate) const ALL: [What; 25] = [
        What::Affinities,
        What::Pools,
        What::Bgp,
        What::ApiService,
        What::ApiSlices,
        What::DnsServices,
        What::DnsSlices,
        What::CalicoPods,
        What::VpnPods,
        What::DaemonSets,
        What::SystemDeployments,
        What::CalicoDeployments,
        What::FailedCreates,
        What::HostEndpoints,
        What::ClusterInformation,
        What::Validating,
        What::Mutating,
        What::Felix,
        What::Peers,
        What::IpamConfigs,
        What::GlobalPolicies,
        What::CalicoPolicies,
        What::Policies,
        What::Installations,
        What::Namespaces,
    ];

    /// Whether the map of the cluster says something of it.
    pub(super) fn is_on_the_map(self) -> bool {
        self < What::CalicoPods
    }

    /// What its changes are written down as, if they are.
    pub(super) fn journaled(self) -> Option<&'static str> {
        Some(match self {
            What::Pools => "IPPool",
            What::Bgp => "BGPConfiguration",
            What::DaemonSets => "DaemonSet",
            What::Felix => "FelixConfiguration",
            What::Peers => "BGPPeer",
            What::IpamConfigs => "IPAMConfig",
            // Its generation grows with its spec only: the datastore's readiness, Calico's version and the kind of cluster.
            What::ClusterInformation => "ClusterInformation",
            What::GlobalPolicies => "GlobalNetworkPolicy",
            What::CalicoPolicies => "NetworkPolicy (Calico)",
            What::Policies => "NetworkPolicy",
            What::Installations => "Installation",
            What::Validating => "ValidatingWebhookConfiguration",
            What::Mutating => "MutatingWebhookConfiguration",
            _ => return None,
        })
    }

    /// The same, of those of which there may be one for each worker.
    pub(super) fn journaled_together(self) -> Option<&'static str> {
        (self == What::HostEndpoints).then_some("HostEndpoint")
    }

    /// How it is asked for.
    pub(in crate::aggregator) fn kind(self) -> Kind {
        let (name, path, selector) = match self {
            // Calico keeps its objects in the first group, or since 3.32 in the second where it was installed so.
            What::Affinities => ("blockaffinities", "", ""),
            What::Pools => ("ippools", "", ""),
            What::Bgp => ("bgpconfigurations", "", "fieldSelector=metadata.name%3Ddefault"),
            What::ApiService => {
                ("services", "/api/v1/namespaces/default/services", "fieldSelector=metadata.name%3Dkubernetes")
            }
            What::ApiSlices => (
                "endpointslices",
                "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
                "fieldSelector=metadata.name%3Dkubernetes",
            ),
            What::DnsServices => {
                ("services", "/api/v1/namespaces/kube-system/services", "labelSelector=k8s-app%3Dkube-dns")
            }
            // An EndpointSlice carries its Service's labels.
            What::DnsSlices => (
                "endpointslices",
                "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices",
                "labelSelector=k8s-app%3Dkube-dns",
            ),
            What::CalicoPods => ("pods", "/api/v1/pods", APPS),
            What::VpnPods => ("pods", "/api/v1/namespaces/kube-system/pods", VPN),
            What::DaemonSets => ("daemonsets", "/apis/apps/v1/daemonsets", ""),
            What::SystemDeployments => ("deployments", "/apis/apps/v1/namespaces/kube-system/deployments", ""),
            What::CalicoDeployments => ("deployments", "/apis/apps/v1/namespaces/calico-system/deployments", ""),
            What::HostEndpoints => ("hostendpoints", "", ""),
            What::ClusterInformation => ("clusterinformations", "", "fieldSelector=metadata.name%3Ddefault"),
            What::Felix => ("felixconfigurations", "", ""),
            What::Peers => ("bgppeers", "", ""),
            What::IpamConfigs => ("ipamconfigs", "", ""),
            What::GlobalPolicies => ("globalnetworkpolicies", "", ""),
            What::CalicoPolicies => ("networkpolicies", "", ""),
            What::Policies => ("networkpolicies", "/apis/networking.k8s.io/v1/networkpolicies", ""),
            What::Namespaces => ("namespaces", "/api/v1/namespaces", ""),
            What::Installations => ("installations", "/apis/operator.tigera.io/v1/installations", ""),
            What::Validating => (
                "validatingwebhookconfigurations",
                "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
                "",
            ),
            What::Mutating => (
                "mutatingwebhookconfigurations",
                "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
                "",
            ),
            What::FailedCreates => ("events", "/api/v1/events", "fieldSelector=reason%3DFailedCreate"),
        };
        let kind = Kind { selector, metadata_only: self >= What::Felix, ..Kind::of_calico(name) };
        if path.is_empty() { kind } else { Kind { paths: vec![path.to_owned()], ..kind } }
    }
}

impl Kind {
    /// One of Calico's kinds, all of it, in either group.
    pub(in crate::aggregator) fn of_calico(name: &'static str) -> Kind {
        let groups = ["crd.projectcalico.org/v1", "projectcalico.org/v3"];
        let paths = groups.map(|group| format!("/apis/{group}/{name}")).into();
        Kind { name, paths, selector: "", optional: true, metadata_only: false }
    }
}
