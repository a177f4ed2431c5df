//! Configuration that a provider wrote and somebody changed by hand (catalogue R173), by `metadata.managedFields`: there each
//! writer's own fields are named.

use jiff::Timestamp;
use serde_json::Value;

use super::object::{text, time};

/// Annotation by which a provider marks what it wrote.
const MARK: &str = "created-by";
/// What hands use; the provider's own programs have other names.
const HANDS: [&str; 8] =
    ["kubectl-edit", "kubectl-patch", "kubectl-replace", "calicoctl", "k9s", "node-fetch", "Mozilla", "curl"];
/// Settings that are named, and of each so many letters.
const MOST: (usize, usize) = (8, 64);

/// A change by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Drift {
    /// When it was made.
    pub(crate) at: Timestamp,
    /// With which program.
    pub(crate) by: Box<str>,
    /// Which settings.
    pub(crate) fields: Vec<String>,
}

impl Drift {
    /// Reads the last one from `metadata`. The MTU may be set by everybody.
    pub(super) fn read(meta: &Value) -> Option<Box<Drift>> {
        meta["annotations"][MARK].as_str().filter(|by| !by.is_empty())?;
        let entries = meta["managedFields"].as_array()?.iter().filter(|entry| entry["subresource"] != "status");
        let by_hand =
            |entry: &&Value| entry["manager"].as_str().is_some_and(|by| HANDS.iter().any(|hand| by.starts_with(hand)));
        let drifts = entries.filter(by_hand).filter_map(|entry| {
            let fields = entry["fieldsV1"]["f:spec"].as_object()?.keys();
            let fields = fields.filter(|key| !key.to_ascii_lowercase().contains("mtu")).take(MOST.0);
            let named = |key: &String| key.trim_start_matches("f:").chars().take(MOST.1).collect();
            let fields: Vec<String> = fields.map(named).collect();
            let by = text(&entry["manager"]).chars().take(MOST.1).collect::<String>().into();
            (!fields.is_empty()).then_some(Drift { at: time(&entry["time"])?, by, fields })
        });
        drifts.max_by_key(|drift| drift.at).map(Box::new)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::aggregator::testing::at;

    fn read(mark: &str, manager: &str, fields: &Value, second: i64) -> Option<Box<Drift>> {
        Drift::read(&json!({"annotations": {"created-by": mark}, "managedFields": [
            {"manager": "kubectl-client-side-apply", "time": at(-1), "fieldsV1": {"f:spec": {"f:asNumber": {}}}},
            {"manager": manager, "time": at(second), "fieldsV1": {"f:spec": fields}},
            {"manager": "kubectl-edit", "subresource": "status", "time": at(9), "fieldsV1": {"f:spec": {"f:x": {}}}},
        ]}))
    }

    #[test]
    fn what_hands_set_of_a_providers_configuration_is_told() {
        let set = json!({"f:bpfEnabled": {}, "f:mtu": {}, "f:logSeverityScreen": {}});
        let drift = read("IBMCloudKubernetesService", "kubectl-edit", &set, 5).expect("a change by hand");
        assert_eq!(
            (drift.at, &*drift.by, drift.fields),
            (at(5), "kubectl-edit", vec!["bpfEnabled".to_owned(), "logSeverityScreen".to_owned()])
        );
    }

    #[test]
    fn everything_else_is_routine() {
        let set = json!({"f:bpfEnabled": {}});
        assert_eq!(read("", "kubectl-edit", &set, 5), None, "one's own configuration");
        assert_eq!(read("IBM", "cluster-updater", &set, 5), None, "the provider");
        assert_eq!(read("IBM", "kubectl-edit", &json!({"f:ipipMTU": {}, "f:mtu": {}}), 5), None, "what may be set");
        assert_eq!(read("IBM", "kubectl-edit", &json!({}), 5), None);
        for damaged in [json!({}), json!({"annotations": {"created-by": "IBM"}, "managedFields": 7}), json!([])] {
            assert_eq!(Drift::read(&damaged), None);
        }
    }
}
