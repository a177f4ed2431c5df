//! Who may see what the aggregator knows: the policy in `deploy/optional/`, on a real API server with the Deployment of `deploy/`.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::bench::Bench;

const POLICY: &str = include_str!("../../deploy/optional/network-policy.yaml");
const POLICIES: &str = "/apis/networking.k8s.io/v1/namespaces/nodevitals/networkpolicies";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/nodevitals/deployments/nodevitals-aggregator";

/// Takes the policy away, also after a failure.
struct Applied<'a>(&'a Bench);

impl Drop for Applied<'_> {
    fn drop(&mut self) {
        let _ = self.0.admin(&format!("DELETE {POLICIES}/nodevitals-aggregator"), &Value::Null);
    }
}

fn all<'a>(list: &'a Value, what: &'static str) -> Result<&'a Vec<Value>> {
    list.as_array().filter(|all| !all.is_empty()).context(what)
}

#[test]
fn the_policy_for_the_aggregators_port_is_valid_and_is_about_its_pods_and_its_port() -> Result<()> {
    let bench = Bench::take()?;
    let applied = Applied(&bench);
    // What is misspelt is refused, and so is what is no address.
    bench.apply(POLICY)?;
    for (right, wrong) in [("podSelector:", "podSelektor:"), ("192.0.2.0/24", "192.0.2.0/33")] {
        ensure!(POLICY.contains(right), "{right}");
        ensure!(bench.apply(&POLICY.replace(right, wrong)).is_err(), "{wrong} is taken");
    }
    let policy = bench.admin(&format!("GET {POLICIES}/nodevitals-aggregator"), &Value::Null)?;
    let template = &bench.admin(&format!("GET {DEPLOYMENT}"), &Value::Null)?["spec"]["template"];
    let wanted = policy["spec"]["podSelector"]["matchLabels"].as_object().context("labels")?;
    assert!(!wanted.is_empty());
    for (key, value) in wanted {
        assert_eq!(&template["metadata"]["labels"][key], value, "{key}");
    }
    assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress"]), "it asks whom it wants");
    let ports = all(&template["spec"]["containers"][0]["ports"], "ports")?;
    let is_served = |port: &Value| ports.iter().any(|own| own["name"] == *port);
    for rule in all(&policy["spec"]["ingress"], "rules")? {
        // A rule without either lets everybody in, or to every port.
        all(&rule["from"], "a rule lets everybody in")?;
        for port in all(&rule["ports"], "a rule is about every port")? {
            assert!(is_served(&port["port"]), "{port}");
        }
    }
    drop(applied);
    Ok(())
}
