//! DaemonSets and Deployments of the system, and the Pods of theirs that could not be made, pruned to what is counted.

use jiff::Timestamp;

use super::object::ObjectView;
use super::row::clipped;

/// Namespaces of the system. In `openshift-*` too.
const SYSTEM: [&str; 6] =
    ["kube-system", "calico-system", "tigera-operator", "calico-apiserver", "ibm-system", "kube-flannel"];
/// What is kept of a message.
const LONGEST: usize = 400;

/// Whether the cluster needs what is in this namespace.
pub(crate) fn is_system(namespace: &str) -> bool {
    SYSTEM.contains(&namespace) || namespace.starts_with("openshift-")
}

/// A DaemonSet or a Deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Workload {
    /// Its namespace.
    pub(crate) namespace: Box<str>,
    /// Its name.
    pub(crate) name: Box<str>,
    /// When it was made.
    pub(crate) created: Option<Timestamp>,
    /// Of a Deployment: how many Pods there should be.
    pub(crate) replicas: u32,
    /// Of a Deployment: how many there are and have been Ready for long enough.
    pub(crate) available: u32,
    /// Of a DaemonSet: on how many nodes a Pod should be.
    pub(crate) desired: u32,
    /// Of a DaemonSet: on how many there is one.
    pub(crate) current: u32,
    /// Of a DaemonSet: how many of them are as they should be by now.
    pub(crate) updated: u32,
    /// Of a DaemonSet: on how many nodes it may be away at once while it is updated.
    pub(crate) most_away: u32,
}

impl Workload {
    /// What is kept of one; nothing of those that are not the system's.
    pub(super) fn read(object: &ObjectView) -> Option<Workload> {
        let (meta, status) = (&object.metadata, &object.status);
        let [desired, current, updated] = status.scheduled;
        let here = is_system(&meta.namespace) && meta.deletion_timestamp.is_none();
        here.then(|| Workload {
            namespace: meta.namespace.as_str().into(),
            name: meta.name.as_str().into(),
            created: meta.creation_timestamp,
            replicas: object.spec.replicas.unwrap_or(1),
            available: status.available,
            desired,
            current,
            updated,
            most_away: most_away(object.spec.max_unavailable.as_deref(), desired),
        })
    }
}

/// Kubernetes rounds a share up, and takes 1 where nothing is said.
fn most_away(said: Option<&str>, desired: u32) -> u32 {
    let share = said.and_then(|said| said.strip_suffix('%')?.parse::<u64>().ok());
    let share = share.map(|share| u32::try_from((share * u64::from(desired)).div_ceil(100)).unwrap_or(u32::MAX));
    share.or_else(|| said?.parse().ok()).unwrap_or(1).max(1)
}

/// An Event about a Pod that could not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FailedCreate {
    /// Namespace of the Pod.
    pub(crate) namespace: Box<str>,
    /// Whose Pod: `DaemonSet calico-node`.
    pub(crate) owner: Box<str>,
    /// What the API server said.
    pub(crate) message: Box<str>,
    /// When it was said last.
    pub(crate) at: Timestamp,
}

impl FailedCreate {
    /// What is kept of one: Pods of the system that a webhook kept from being made.
    pub(super) fn read(object: &ObjectView) -> Option<FailedCreate> {
        let event = object.event.as_ref()?;
        let by_webhook = event.message.contains("webhook") || event.message.contains("context deadline exceeded");
        let message: String = clipped(&event.message).chars().take(LONGEST).collect();
        (is_system(&event.namespace) && by_webhook).then_some(FailedCreate {
            namespace: event.namespace.as_str().into(),
            owner: format!("{} {}", clipped(&event.kind), clipped(&event.name)).into(),
            message: message.into(),
            at: event.last?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_many_may_be_away_is_a_number_or_a_share_and_one_where_nothing_is_said() {
        for (said, desired, most) in [
            (None, 40, 1),
            (Some("3"), 40, 3),
            (Some("10%"), 41, 5),
            (Some("0%"), 40, 1),
            (Some("0"), 40, 1),
            (Some("many"), 40, 1),
            (Some("x%"), 40, 1),
            (Some("100%"), 40, 40),
        ] {
            assert_eq!(most_away(said, desired), most, "{said:?}");
        }
    }
}
