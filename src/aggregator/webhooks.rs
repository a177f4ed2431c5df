//! Admission webhooks, pruned to what they could stop: writes of a Node's status, Pods of the system, Leases of kubelets.

use serde_json::Value;

use super::model::NAMESPACE_NAME;
use super::object::{ObjectView, each, text};
use super::row::clipped;
use super::workloads::is_system;
use crate::config::ClusterLimits;

/// Webhooks of one configuration, and conditions of one of them, that are kept.
const MOST: usize = 64;
/// Labels of a namespace that are kept.
const MOST_LABELS: usize = 64;
/// Namespace of the kubelets' Leases.
pub(crate) const LEASES: &str = "kube-node-lease";
/// What the API server takes where nothing is said, in seconds.
const USUAL_TIMEOUT: u8 = 10;

/// A configuration of webhooks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Webhooks {
    /// Its name.
    pub(crate) name: Box<str>,
    /// Those that are asked about something that matters here.
    pub(crate) all: Box<[Webhook]>,
}

/// A webhook.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, as the API server says it")]
pub(crate) struct Webhook {
    /// Its name, which the API server gives in its errors.
    pub(crate) name: Box<str>,
    /// It is asked about changes of a Node's status.
    pub(crate) status: bool,
    /// It is asked about new Pods.
    pods: bool,
    /// It is asked about changes of Leases.
    leases: bool,
    /// Without its answer the request is refused.
    pub(crate) fails: bool,
    /// How long its answer is waited for, in seconds.
    pub(crate) timeout: u8,
    /// Namespace and name of the Service that answers, unless that is outside of the cluster.
    pub(crate) service: Option<(Box<str>, Box<str>)>,
    /// It is asked about some objects only, by their labels or by an expression: about which is not known.
    pub(crate) conditional: bool,
    /// By which labels of namespaces it chooses: all of these hold.
    chooses: Box<[Requirement]>,
}

/// A requirement of a selector.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: Box<str>,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    operator: Box<str>,
    values: Box<[Box<str>]>,
}

/// A namespace of the system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Namespace {
    /// Its name.
    pub(crate) name: Box<str>,
    labels: Box<[(Box<str>, Box<str>)]>,
}

impl Webhooks {
    /// What is kept of a configuration.
    pub(super) fn read(object: &ObjectView) -> Option<Webhooks> {
        let matters = |webhook: &&Webhook| webhook.status || webhook.pods || webhook.leases;
        let all: Box<[Webhook]> = object.webhooks.iter().filter(matters).take(MOST).cloned().collect();
        (!all.is_empty()).then(|| Webhooks { name: clipped(&object.metadata.name).into(), all })
    }
}

impl Namespace {
    /// What is kept of a namespace; nothing of those that are not the system's.
    pub(super) fn read(object: &ObjectView) -> Option<Namespace> {
        let meta = &object.metadata;
        let labels = meta.labels.0.iter().take(MOST_LABELS);
        let labels = labels.map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect();
        let ours = (is_system(&meta.name) || meta.name == LEASES) && meta.deletion_timestamp.is_none();
        ours.then(|| Namespace { name: meta.name.as_str().into(), labels })
    }

    fn label(&self, key: &str) -> Option<&str> {
        let said = self.labels.iter().find(|(name, _)| **name == *key).map(|(_, value)| &**value);
        said.or((key == NAMESPACE_NAME).then_some(&*self.name))
    }
}

impl Webhook {
    /// Reads one. What is damaged is asked about nothing.
    pub(super) fn read(tree: &Value) -> Webhook {
        let rules = || tree["rules"].as_array().into_iter().flatten();
        let service = &tree["clientConfig"]["service"];
        let chooses = &tree["namespaceSelector"];
        let labels = chooses["matchLabels"].as_object().into_iter().flatten();
        let labels = labels.filter_map(|(key, value)| {
            Some(Requirement {
                key: key.as_str().into(),
                operator: "In".into(),
                values: [value.as_str()?.into()].into(),
            })
        });
        let said = |tree: &Value| ["matchLabels", "matchExpressions"].iter().any(|key| !is_empty(&tree[key]));
        Webhook {
            name: clipped(&text(&tree["name"])).into(),
            status: rules().any(|rule| asks(rule, "", "UPDATE", ("nodes", "status"), "Cluster")),
            pods: rules().any(|rule| asks(rule, "", "CREATE", ("pods", ""), "Namespaced")),
            leases: rules().any(|rule| asks(rule, "coordination.k8s.io", "UPDATE", ("leases", ""), "Namespaced")),
            fails: tree["failurePolicy"] != "Ignore",
            timeout: tree["timeoutSeconds"].as_u64().and_then(|it| it.try_into().ok()).unwrap_or(USUAL_TIMEOUT),
            service: service.is_object().then(|| (text(&service["namespace"]).into(), text(&service["name"]).into())),
            conditional: said(&tree["objectSelector"]) || !is_empty(&tree["matchConditions"]),
            chooses: labels.chain(each(&chooses["matchExpressions"], requirement)).take(MOST).collect(),
        }
    }

    /// Whether it is asked about new Pods in this namespace, whichever they are.
    pub(crate) fn stops_pods(&self, namespace: &Namespace) -> bool {
        self.pods && self.fails && !self.conditional && self.chooses(namespace)
    }

    /// Whether kubelets cannot renew their Leases without its answer.
    pub(crate) fn stops_leases(&self, namespace: &Namespace) -> bool {
        // A kubelet gives up after 10 s.
        self.leases && !self.conditional && (self.fails || self.timeout >= 10) && self.chooses(namespace)
    }

    /// Whether calico-node may give up waiting for its answer, which it does after 2 s (catalogue H11), so that ignoring a
    /// failure does not help.
    pub(crate) fn stops_status(&self, limits: &ClusterLimits) -> bool {
        self.status && (self.fails || u32::from(self.timeout) >= limits.status_write_seconds)
    }

    fn chooses(&self, namespace: &Namespace) -> bool {
        self.chooses.iter().all(|it| {
            let value = namespace.label(&it.key);
            let among = value.is_some_and(|value| it.values.iter().any(|other| **other == *value));
            match &*it.operator {
                "In" => among,
                "NotIn" => !among,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
    }
}

fn is_empty(tree: &Value) -> bool {
    tree.as_array().is_none_or(Vec::is_empty) && tree.as_object().is_none_or(serde_json::Map::is_empty)
}

fn requirement(tree: &Value) -> Requirement {
    let values = each(&tree["values"], |value| text(value).into());
    Requirement { key: text(&tree["key"]).into(), operator: text(&tree["operator"]).into(), values: values.into() }
}

/// Whether a rule matches: `*` stands for every resource, but only `*/*` for every subresource of it.
fn asks(rule: &Value, group: &str, operation: &str, (resource, sub): (&str, &str), scope: &str) -> bool {
    let any = |key: &str, wanted: &[&str]| {
        rule[key].as_array().into_iter().flatten().any(|it| it.as_str().is_some_and(|it| wanted.contains(&it)))
    };
    let resources = rule["resources"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut resources = resources.map(|it| it.split_once('/').unwrap_or((it, "")));
    any("apiGroups", &[group, "*"])
        && any("apiVersions", &["v1", "*"])
        && any("operations", &[operation, "*"])
        && resources.any(|(of, part)| [resource, "*"].contains(&of) && [sub, "*"].contains(&part))
        && rule["scope"].as_str().is_none_or(|said| said == scope || said == "*")
}

#[cfg(test)]
mod tests;
