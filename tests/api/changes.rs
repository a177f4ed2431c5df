//! What changed before a failure, and before there was an aggregator: of each kind that is written down, by what the API server
//! knows of its last change, and by what an agent says of its worker's boot.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::bench::{Bench, Finding, Running, now, soon};

const CRD: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const CALICO: &str = "crd.projectcalico.org";
const OPERATOR: &str = "operator.tigera.io";
const HOUR: i64 = 3600;
/// So many are told with a failure.
const TOLD: usize = 5;
/// Between two of these changes, in seconds.
const APART: i64 = 600;

/// Something that is written down when it changes: the group of its kind, its plural and kind, and where it is.
struct Thing(&'static str, &'static str, &'static str, &'static str);

/// The last that changed comes first. Of DaemonSets, those of the system count.
const THINGS: [Thing; 11] = [
    Thing(CALICO, "ippools", "IPPool", ""),
    Thing(CALICO, "felixconfigurations", "FelixConfiguration", ""),
    Thing("apps", "daemonsets", "DaemonSet", "kube-system"),
    Thing("admissionregistration.k8s.io", "mutatingwebhookconfigurations", "MutatingWebhookConfiguration", ""),
    Thing("networking.k8s.io", "networkpolicies", "NetworkPolicy", "default"),
    Thing(CALICO, "globalnetworkpolicies", "GlobalNetworkPolicy", ""),
    Thing(OPERATOR, "installations", "Installation", ""),
    Thing(CALICO, "networkpolicies", "NetworkPolicy", "default"),
    Thing("admissionregistration.k8s.io", "validatingwebhookconfigurations", "ValidatingWebhookConfiguration", ""),
    Thing(CALICO, "bgppeers", "BGPPeer", ""),
    Thing(CALICO, "bgpconfigurations", "BGPConfiguration", ""),
];

impl Thing {
    fn is_calicos(&self) -> bool {
        [CALICO, OPERATOR].contains(&self.0)
    }

    fn definition(&self) -> Value {
        let Thing(group, plural, kind, namespace) = self;
        let scope = if namespace.is_empty() { "Cluster" } else { "Namespaced" };
        let names =
            json!({"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List")});
        let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.{group}")},
            "spec": {"group": group, "scope": scope, "names": names,
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema}]}})
    }

    fn path(&self) -> String {
        let Thing(group, plural, _, namespace) = self;
        let below = if namespace.is_empty() { String::new() } else { format!("namespaces/{namespace}/") };
        format!("/apis/{group}/v1/{below}{plural}")
    }

    /// As a change of it is told.
    fn told(&self) -> String {
        let Thing(group, _, kind, namespace) = self;
        let of = if (*group, *kind) == (CALICO, "NetworkPolicy") { " (Calico)" } else { "" };
        let below = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
        format!("{kind}{of} {below}default changed")
    }

    fn make(&self, bench: &Bench) -> Result<()> {
        let Thing(group, _, kind, _) = self;
        let labels = json!({"matchLabels": {"a": "b"}});
        let template =
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
        let spec = match *kind {
            "DaemonSet" => json!({"selector": labels, "template": template}),
            "NetworkPolicy" => json!({"podSelector": {}}),
            _ => json!({"cidr": "172.30.0.0/16"}),
        };
        let mut object =
            json!({"apiVersion": format!("{group}/v1"), "kind": kind, "metadata": {"name": "default"}, "spec": spec});
        if kind.ends_with("WebhookConfiguration") {
            object["webhooks"] = json!([]);
            object.as_object_mut().expect("an object").remove("spec");
        }
        bench.admin(&format!("POST {}", self.path()), &object).map(drop)
    }

    /// It was changed last so long ago, by a program of this name.
    fn changed(&self, bench: &Bench, ago: i64, by: &str) -> Result<()> {
        let field = if self.2.ends_with("WebhookConfiguration") { "f:webhooks" } else { "f:spec" };
        let entry = json!({"manager": by, "operation": "Update", "apiVersion": format!("{}/v1", self.0), "time": at(ago),
            "fieldsType": "FieldsV1", "fieldsV1": {field: {}}});
        let path = format!("PATCH merge {}/default", self.path());
        bench.admin(&path, &json!({"metadata": {"managedFields": [entry]}})).map(drop)
    }
}

fn at(ago: i64) -> String {
    let at = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(ago);
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// All of these, until this is dropped: other tests have no Calico.
struct Things<'a>(&'a Bench);

impl<'a> Things<'a> {
    fn make(bench: &'a Bench) -> Result<Self> {
        let things = Self(bench);
        for thing in THINGS.iter().filter(|thing| thing.is_calicos()) {
            bench.apply(&thing.definition().to_string())?;
        }
        for thing in &THINGS {
            // A kind takes a moment until it is served.
            if thing.is_calicos() {
                soon("the kind is served", || thing.make(bench));
            } else {
                thing.make(bench)?;
            }
        }
        Ok(things)
    }
}

impl Drop for Things<'_> {
    fn drop(&mut self) {
        // Not all may have been made.
        for Thing(group, plural, ..) in THINGS.iter().filter(|thing| thing.is_calicos()) {
            let _ = self.0.admin(&format!("DELETE {CRD}/{plural}.{group}"), &Value::Null);
        }
        for thing in THINGS.iter().filter(|thing| !thing.is_calicos()) {
            let _ = self.0.admin(&format!("DELETE {}/default", thing.path()), &Value::Null);
        }
    }
}

/// Three failures, the later ones of which began the longer ago.
const FAILURES: [Finding; 3] = [
    ("KubeProxyChainsUnhooked", "critical", "packetFilter", "PacketFilterProblem"),
    ("CniConfigMissing", "critical", "cni", "CNIProblem"),
    ("ContainerdDown", "critical", "runtime", "RuntimeProblem"),
];

/// What is told to have changed before this failure: what and by whom.
fn before(aggregator: &Running, code: &str) -> Result<Vec<(String, String)>> {
    let report: Value = serde_json::from_str(&aggregator.page("/api/v1/report")?)?;
    let all = report["findings"].as_array().into_iter().flatten().find(|finding| finding["code"] == code);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let told = all.into_iter().flat_map(|finding| finding["before"].as_array().into_iter().flatten());
    Ok(told.map(|change| (text(&change["what"]), text(&change["by"]))).collect())
}

#[test]
fn what_changed_before_there_was_an_aggregator_is_told_with_each_failure() -> Result<()> {
    let bench = Bench::take()?;
    let _things = Things::make(&bench)?;
    // What the control plane and this test make themselves is younger than all failures.
    for (number, thing) in THINGS.iter().enumerate() {
        thing.changed(&bench, 2 * HOUR + APART * (i64::try_from(number)? + 1), &format!("hand-{number}"))?;
    }
    for (number, finding) in FAILURES.into_iter().enumerate() {
        let name = format!("b{number}");
        bench.add_worker(&name, &json!({}))?;
        bench.age(&format!("/api/v1/nodes/{name}"), &format!("minions/{name}"), 30 * 24 * HOUR)?;
        // Between two of the changes.
        let skipped = APART * i64::try_from(number * TOLD)? + if number > 0 { APART / 2 } else { 0 };
        bench.tell(&name, Some(finding), &at(2 * HOUR + skipped))?;
    }
    bench.add_worker("b3", &json!({}))?;
    bench.add_pod("aggregator-b", "aggregator", "b3")?;
    let aggregator = bench.aggregator("aggregator-b")?;
    let mut expected: Vec<Vec<(String, String)>> = THINGS
        .chunks(TOLD)
        .enumerate()
        .map(|(chunk, things)| {
            let by = |number: usize| format!("hand-{}", chunk * TOLD + number);
            things.iter().enumerate().map(|(number, thing)| (thing.told(), by(number))).collect()
        })
        .collect();
    soon("each is told what changed before", || {
        for ((code, ..), expected) in FAILURES.iter().zip(&expected) {
            let told = before(&aggregator, code)?;
            ensure!(told == *expected, "{code}: {told:#?}\nrather than {expected:#?}");
        }
        Ok(())
    });

    // And that a worker booted, before all of these.
    let booted = jiff::Timestamp::now().as_second() - 5 * HOUR;
    soon("its agent says so", || aggregator.page(&format!("/api/v1/map?node=b2&boot={booted}")));
    expected[2].push(("worker b2 booted anew".to_owned(), String::new()));
    soon("it is told as well", || {
        let told = before(&aggregator, FAILURES[2].0)?;
        ensure!(told == expected[2], "{told:#?}");
        Ok(())
    });

    for (number, _) in FAILURES.iter().enumerate() {
        bench.tell(&format!("b{number}"), None, &now())?;
    }
    soon("they are over", || {
        let report: Value = serde_json::from_str(&aggregator.page("/api/v1/report")?)?;
        ensure!(report["findings"] == json!([]), "{}", report["findings"]);
        Ok(())
    });
    Ok(())
}
