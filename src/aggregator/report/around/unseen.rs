//! What could not be looked at, why and since when, and of which findings nothing is known for that. Pure.
//!
//! What was seen before a watch was lost may have changed since: it is neither told as if it were there, nor is its silence an
//! all-clear. A kind that does not exist in the cluster is no kind that could not be looked at.

use jiff::Timestamp;

use super::super::CannotLook;
use crate::aggregator::cluster::Cluster;
use crate::aggregator::looked::Look;
use crate::aggregator::surroundings::What;

/// Findings that need the same kind.
pub(super) type Codes = &'static [&'static str];

const CALICO_NODES: Codes = &[
    "CalicoInitFailed",
    "CalicoNodeAbsent",
    "CalicoRollingUpdate",
    "CalicoNodeFailingOnNode",
    "CalicoNodeFailingSubset",
    "CalicoNodeFailingWidespread",
    "CalicoFailureRecurring",
    "NetworkUnavailableBrief",
    "NetworkUnavailableProlonged",
    "NetworkConditionStale",
    "NetworkTaintStuck",
    "BgpPasswordSecretMissing",
    "CalicoDataForDeletedNodes",
];
const CONTROLLERS: Codes = &[
    "CalicoKubeControllersMissing",
    "CalicoKubeControllersDown",
    "CalicoKubeControllersCount",
    "CalicoKubeControllersOnBadNode",
    "CalicoKubeControllersOomKilled",
    "CalicoKubeControllersCrashLooping",
];
const OTHER_PODS: Codes = &[
    "TyphaUnhealthy",
    "ControlTunnelDown",
    "CalicoMigrationInProgress",
    "CalicoMigrationStalled",
    "CalicoVersionMixed",
    "WebhookDeadlock",
];
const ADDRESSES: Codes =
    &["ClusterIpPoolExhausted", "NodeIpBlocksExhausted", "IpLeakSuspected", "CalicoDataForDeletedNodes"];
/// Which workers came after Calico is known by when its DaemonSet and its Deployment were made.
const SINCE_CALICO: Codes = &["CalicoDataForDeletedNodes"];
const WEBHOOKS: Codes = &["WebhookRisk", "WebhookDeadlock"];

/// The findings that a kind is needed for.
pub(super) fn codes(what: What) -> &'static [Codes] {
    match what {
        What::Affinities => &[&["IpBlockConflict"]],
        What::Pools => &[ADDRESSES, &["CalicoConfigDrift"]],
        What::Bgp => &[&["BgpPasswordSecretMissing", "CalicoConfigDrift"]],
        What::CalicoPods => &[CALICO_NODES, CONTROLLERS, OTHER_PODS],
        What::VpnPods => &[&["ControlTunnelDown", "WebhookDeadlock"]],
        What::DaemonSets => &[
            &["CalicoNodeAbsent", "CalicoRollingUpdate", "CalicoVersionMixed"],
            &["CalicoMigrationInProgress", "CalicoMigrationStalled"],
            SINCE_CALICO,
        ],
        What::SystemDeployments | What::CalicoDeployments => &[CONTROLLERS, SINCE_CALICO],
        What::FailedCreates => &[&["WebhookBlocksSystemPods"]],
        What::HostEndpoints => &[&["HostEndpointMissing", "HostEndpointStale"]],
        What::ClusterInformation | What::Felix | What::Peers | What::Installations => &[&["CalicoConfigDrift"]],
        What::Validating | What::Mutating => &[WEBHOOKS],
        What::Namespaces => &[&["WebhookRisk"]],
        What::DnsServices | What::DnsSlices => &[&["ClusterDnsUnreachable"]],
        // The map of the agents and the changes before a failure are made of these, and no finding.
        What::ApiService
        | What::ApiSlices
        | What::IpamConfigs
        | What::GlobalPolicies
        | What::CalicoPolicies
        | What::Policies => &[],
    }
}

fn of_look(look: Look) -> &'static [Codes] {
    match look {
        Look::Blocks => &[ADDRESSES],
        Look::Backends => &[WEBHOOKS],
        Look::Password => &[&["BgpPasswordSecretMissing"]],
        // What this process has seen itself it knows.
        Look::Memory => &[],
    }
}

/// All of it, what has the same reason together.
pub(in super::super) fn unseen(cluster: &Cluster, now: Timestamp) -> Vec<CannotLook> {
    let mut all: Vec<CannotLook> = Vec::new();
    let mut add = |name: &str, codes: &[Codes], why: &str, since: Timestamp| {
        let at = all.iter().position(|known| known.why == why).unwrap_or_else(|| {
            all.push(CannotLook { what: Vec::new(), why: why.to_owned(), since, codes: Vec::new() });
            all.len() - 1
        });
        let known = &mut all[at];
        known.since = known.since.min(since);
        add_new(&mut known.what, [name]);
        add_new(&mut known.codes, codes.iter().copied().flatten().copied());
    };
    for what in What::ALL {
        if let Some(lost) = cluster.surroundings.is_unseen(what, now) {
            add(what.kind().name, codes(what), &lost.why, lost.since);
        }
    }
    for (look, sight) in &cluster.looks {
        if let Some(lost) = sight.is_blind(now) {
            add(look.name(), of_look(*look), &lost.why, lost.since);
        }
    }
    all
}

fn add_new<'a>(list: &mut Vec<String>, more: impl IntoIterator<Item = &'a str>) {
    for one in more {
        if !list.iter().any(|known| known == one) {
            list.push(one.to_owned());
        }
    }
}

/// The findings that would be made of what was seen before it was lost. What must not be looked at was forgotten, so that
/// what is told all the same comes from elsewhere.
pub(super) fn outdated(cluster: &Cluster, now: Timestamp) -> Vec<&'static str> {
    let kinds = What::ALL.into_iter().filter(|what| cluster.surroundings.is_blind(*what, now)).map(codes);
    let looks = cluster.looks.iter().filter(|(_, sight)| sight.is_blind(now).is_some()).map(|(look, _)| of_look(*look));
    kinds.chain(looks).flatten().copied().flatten().copied().collect()
}

#[cfg(test)]
mod tests;
