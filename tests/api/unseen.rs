//! What the aggregator may not look at is said to be unknown, on a real API server with the roles of `deploy/`.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::bench::{Bench, Running, soon};
use crate::support::wait::eventually;

const ROLE: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles/nodevitals-aggregator";
/// What is denied is asked for again only after a minute.
const AGAIN: Duration = Duration::from_secs(90);

/// The aggregators' role without some of its rules, until this is dropped.
struct Less<'a> {
    bench: &'a Bench,
    /// All that it has.
    rules: &'a [Value],
}

impl Drop for Less<'_> {
    /// Also after a failure: other tests need them.
    fn drop(&mut self) {
        // If that fails, whoever needs them says so.
        let _ = self.bench.admin(&format!("PATCH merge {ROLE}"), &json!({"rules": self.rules}));
    }
}

/// Waits until the API server answers this aggregator by its role as it is now, of which it learns a moment later.
fn asks(bench: &Bench, aggregator: &str, code: u16) -> Result<()> {
    let token = bench.token("aggregator", aggregator)?;
    soon("the role as it is now", || {
        for kind in ["pods", "events"] {
            let answer = bench.send(&token, &format!("GET /api/v1/{kind}?limit=1"), &Value::Null)?;
            ensure!(answer.code == code, "{kind}: {answer:?}");
        }
        Ok(())
    });
    Ok(())
}

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
    let kept: Vec<&Value> = rules.iter().filter(|rule| !about(rule, "pods") && !about(rule, "events")).collect();
    assert_eq!(kept.len() + 2, rules.len(), "{whole}");
    let less = Less { bench: &bench, rules };
    bench.admin(&format!("PATCH merge {ROLE}"), &json!({"rules": kept}))?;
    bench.add_pod("aggregator-less", "aggregator", "n1")?;
    asks(&bench, "aggregator-less", 403)?;
    let without = bench.aggregator("aggregator-less")?;
    let cannot = soon("what it may not see", || {
        let cannot = view(&without)?["cannotLook"][0].clone();
        ensure!(cannot["what"] == json!(["pods", "events"]), "{cannot}");
        Ok(cannot)
    });
    drop(less);
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
    asks(&bench, "aggregator-whole", 200)?;
    let with = bench.aggregator("aggregator-whole")?;
    eventually("it is ready", AGAIN, || with.page("/readyz"));
    eventually("every kind is listed, or not there", AGAIN, || {
        with.page("/api/v1/map?node=n1")?;
        ensure!(view(&with)?["cannotLook"].is_null(), "{}", view(&with)?);
        Ok(())
    });
    assert!(!with.check_metrics()?.contains("cannot_look{"));
    Ok(())
}
