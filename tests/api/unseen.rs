//! What the aggregator may not look at is said to be unknown, on a real API server with the roles of `deploy/`.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::bench::{Bench, Running, soon};

const ROLE: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles/nodevitals-aggregator";

fn view(aggregator: &Running<'_>) -> Result<Value> {
    let report: Value = serde_json::from_str(&aggregator.page("/api/v1/report")?)?;
    ensure!(report["view"]["complete"] == true, "{}", report["view"]);
    Ok(report["view"].clone())
}

#[test]
fn what_may_not_be_looked_at_is_unknown_and_nothing_is_with_the_roles_that_are_deployed() -> Result<()> {
    let bench = Bench::take()?;
    bench.add_worker("n1", &json!({}))?;
    let whole = bench.admin(&format!("GET {ROLE}"), &Value::Null)?;
    let rules = whole["rules"].as_array().expect("rules");
    let about = |rule: &Value, kind: &str| rule["resources"].as_array().is_some_and(|all| all.contains(&json!(kind)));
    let less: Vec<&Value> = rules.iter().filter(|rule| !about(rule, "pods") && !about(rule, "events")).collect();
    assert_eq!(less.len() + 2, rules.len(), "{whole}");
    bench.admin(&format!("PATCH merge {ROLE}"), &json!({"rules": less}))?;
    bench.add_pod("aggregator-less", "aggregator", "n1")?;
    let without = bench.aggregator("aggregator-less")?;
    let cannot = soon("what it may not see", || {
        let cannot = view(&without)?["cannotLook"][0].clone();
        ensure!(cannot["what"] == json!(["pods", "events"]), "{cannot}");
        Ok(cannot)
    });
    bench.admin(&format!("PATCH merge {ROLE}"), &json!({"rules": rules}))?;
    assert_eq!(cannot["why"], "no permission to list and watch it");
    for code in ["CalicoNodeFailingOnNode", "TyphaUnhealthy", "WebhookBlocksSystemPods"] {
        assert!(cannot["codes"].as_array().is_some_and(|all| all.contains(&json!(code))), "{cannot}");
    }
    let metrics = without.check_metrics()?;
    for line in [
        r#"nodevitals_aggregator_cannot_look{resource="events"} 1"#,
        r#"nodevitals_cluster_finding_unknown{code="WebhookBlocksSystemPods"} 1"#,
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
    without.end()?;

    bench.add_pod("aggregator-whole", "aggregator", "n1")?;
    let with = bench.aggregator("aggregator-whole")?;
    soon("it is ready", || with.page("/readyz"));
    soon("every kind is listed, or not there", || {
        with.page("/api/v1/map?node=n1")?;
        ensure!(view(&with)?["cannotLook"].is_null(), "{}", view(&with)?);
        Ok(())
    });
    assert!(!with.check_metrics()?.contains("cannot_look{"));
    Ok(())
}
