//! The decision trees of the runbooks, branch by branch, planted on one real API server: what is told, of how many workers and
//! with which next step, and that nothing else is. What is routine, or another one's fault, is silent.

mod branches;
mod moving;
mod old;
mod plants;
mod rolling;
mod states;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use self::branches::BRANCHES;
use self::moving::MOVING;
use self::plants::name;
use self::states::{LEFT_OVER, STATES};
use crate::bench::{Bench, Running, soon};
use crate::support::wait::eventually;

/// Workers; the first of them are pool red.
const WORKERS: usize = 12;
const RED: usize = 5;
/// Long before every hold-down.
const LONG_AGO: &str = "2026-11-01T10:00:00Z";
/// A move of Calico stands still, and a worker is too long on its way, after a minute here, which is the longest that is waited for, and a while.
const LIMITS: &str = "cluster: {migrationMinutes: 1, transitMinutes: 1}\nsettlingSeconds: 0\n";
const TOLD: Duration = Duration::from_secs(120);
const SETS: &str = "/apis/apps/v1/namespaces/kube-system/daemonsets";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/kube-system/deployments/calico-kube-controllers";
const MEMORY: &str = "/api/v1/namespaces/nodevitals/configmaps/nodevitals-aggregator";

/// A cluster with Calico in which all is well.
struct Trees<'a>(&'a Bench);

/// A branch of a tree.
struct Branch {
    /// Which, by the catalogue's section 4.
    of: &'static str,
    /// Makes it so, and puts it right again.
    plant: fn(&Trees<'_>, bool) -> Result<()>,
    /// All that is told about the cluster, by code and severity; what is to be done first is the first.
    cluster: &'static [(&'static str, &'static str)],
    /// All that the agents tell, by code and scope.
    told: &'static [(&'static str, &'static str)],
    /// What the workers of the first of these have in common, if that is known.
    share: &'static str,
    /// Of the first of these: its workers by their numbers, unless there are more than are worth writing down.
    on: &'static [usize],
    /// And words of its detail and of its next step; of what agents tell, of the first worker's.
    says: [&'static str; 2],
    /// Words of the worst worker's own next step, where the first of these is about the cluster.
    worst: &'static str,
}

impl<'a> Trees<'a> {
    /// The aggregator, with these limits.
    fn aggregator(&self, limits: &str) -> Result<Running<'a>> {
        let limits = self.0.config("limits", limits)?;
        self.0.aggregator_with("aggregator-t", &["--config", &limits])
    }

    /// An aggregator that begins remembers this.
    fn remembers(&self, memory: &Value) -> Result<()> {
        self.0.admin(&format!("PATCH merge {MEMORY}"), &json!({"data": {"memory": memory.to_string()}})).map(drop)
    }

    /// Plants one after the other. What one leaves behind would be told beside the next.
    fn walk(&self, branches: &[Branch], aggregator: &Running) -> Result<()> {
        for branch in branches {
            (branch.plant)(self, true).context(branch.of)?;
            eventually(branch.of, TOLD, || told(branch, &report(aggregator)?));
            (branch.plant)(self, false).context(branch.of)?;
        }
        Ok(())
    }
}

const QUIET: Branch = Branch {
    of: "all is well",
    plant: |_, _| Ok(()),
    cluster: &[],
    told: &[],
    share: "",
    on: &[],
    says: ["", ""],
    worst: "",
};

fn report(aggregator: &Running) -> Result<Value> {
    Ok(serde_json::from_str(&aggregator.page("/api/v1/report")?)?)
}

/// Two texts of each, sorted.
fn pairs<'a>(list: &'a Value, keys: [&str; 2]) -> Vec<(&'a str, &'a str)> {
    let text = |value: &'a Value| value.as_str().unwrap_or_default();
    let mut all: Vec<_> =
        list.as_array().into_iter().flatten().map(|it| (text(&it[keys[0]]), text(&it[keys[1]]))).collect();
    all.sort_unstable();
    all
}

/// Just this is told, and says what it should.
fn told(branch: &Branch, report: &Value) -> Result<()> {
    let (cluster, told) = (&report["cluster"], &report["findings"]);
    let mut expected = branch.cluster.to_vec();
    expected.sort_unstable();
    ensure!(pairs(cluster, ["code", "severity"]) == expected, "{cluster:#}");
    ensure!(pairs(told, ["code", "scope"]) == branch.told, "{told:#}");
    let shared = told[0]["suspects"][0]["sentence"].as_str().unwrap_or_default();
    ensure!(branch.share.is_empty() || branch.share == shared, "{told:#}");
    let Some((code, _)) = branch.cluster.first().or(branch.told.first()) else { return Ok(()) };
    let finding = if branch.cluster.is_empty() {
        &report["nodes"][0]
    } else {
        let all = cluster.as_array().context("findings")?;
        all.iter().find(|finding| finding["code"] == *code).context("just found")?
    };
    if !branch.on.is_empty() {
        let on: Vec<String> = branch.on.iter().copied().map(name).collect();
        ensure!(finding["workers"] == json!(on), "{finding:#}");
    }
    for (key, words) in ["detail", "next"].into_iter().zip(branch.says) {
        ensure!(finding[key].as_str().is_some_and(|text| text.contains(words)), "no {words:?} in {finding:#}");
    }
    let worst = &report["nodes"][0];
    let says = branch.worst.is_empty() || worst["next"].as_str().is_some_and(|next| next.contains(branch.worst));
    ensure!(says, "no {:?} in {worst:#}", branch.worst);
    Ok(())
}

#[test]
fn every_branch_of_the_trees_is_told_for_what_it_is() -> Result<()> {
    let bench = Bench::take()?;
    let trees = Trees(&bench);
    trees.no_workloads();
    trees.set_up()?;
    bench.add_calico_kind("bgpconfigurations", "BGPConfiguration")?;
    bench.add_pod("aggregator-t", "aggregator", &name(11))?;
    let aggregator = trees.aggregator(LIMITS)?;
    trees.walk(BRANCHES, &aggregator)?;
    trees.walk(STATES, &aggregator)?;
    trees.walk(MOVING, &aggregator)?;
    drop(aggregator);

    // A control plane that was updated just now, as another aggregator had seen it.
    let day = |days: i64| jiff::Timestamp::now().as_second() - days * 86_400;
    trees.remembers(&json!({"master": [day(0), "v1.34.2", "v1.35.4"]}))?;
    let aggregator = trees.aggregator(LIMITS)?;
    trees.walk(&[LEFT_OVER], &aggregator)?;
    drop(aggregator);

    // What failed twice within a week.
    trees.remembers(&json!({"calico": {"red/10.0.1.4": [[day(5), day(5) + 3_600], [day(2), day(2) + 3_600]]}}))?;
    // And what takes two minutes otherwise takes seconds.
    let aggregator = trees.aggregator("cluster: {routineSeconds: 10}\n")?;
    let recurring = Branch {
        of: "4.1 it comes back every few days",
        cluster: &[("CalicoFailureRecurring", "warning")],
        on: &[3],
        says: ["failed again and again within 7 days on 1 workers", "do not reload them once more: look at Typha"],
        ..QUIET
    };
    soon(recurring.of, || told(&recurring, &report(&aggregator)?));
    nothing_at_all(&trees, &aggregator)
}

/// calico-node is on no worker, for four reasons one after the other, and in the end calico-kube-controllers is gone too.
fn nothing_at_all(trees: &Trees<'_>, aggregator: &Running) -> Result<()> {
    let bench = trees.0;
    trees.selects(0, 0)?;
    (0..WORKERS).try_for_each(|number| trees.gone(&format!("calico-node-{number:02}")))?;
    let absent = Branch {
        of: "4.1 nowhere: no node is selected",
        cluster: &[("CalicoNodeAbsent", "critical")],
        says: ["calico-node runs on no worker: its DaemonSet selects no node", "compare the DaemonSet's nodeSelector"],
        ..QUIET
    };
    eventually(absent.of, TOLD, || told(&absent, &report(aggregator)?));

    trees.rolled(WORKERS)?;
    let none = Branch {
        of: "4.1 nowhere: nobody makes its Pods",
        cluster: &[("CalicoNodeAbsent", "critical")],
        says: ["calico-node runs on no worker: its DaemonSet has no Pod", "whether kube-controller-manager runs"],
        ..QUIET
    };
    soon(none.of, || told(&none, &report(aggregator)?));

    let owner =
        json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "calico-node", "namespace": "kube-system"});
    trees.refused(&owner, true)?;
    let blocked = Branch {
        of: "4.1 nowhere: a webhook blocks it",
        cluster: &[("CalicoNodeAbsent", "critical"), ("WebhookBlocksSystemPods", "critical")],
        says: ["its Pods cannot be made: Error creating", "fix that webhook first"],
        ..QUIET
    };
    soon(blocked.of, || told(&blocked, &report(aggregator)?));

    trees.refused(&owner, false)?;
    trees.gone("kc-0")?;
    bench.admin(&format!("DELETE {DEPLOYMENT}"), &Value::Null)?;
    bench.admin(&format!("DELETE {SETS}/calico-node"), &Value::Null)?;
    let missing = Branch {
        of: "4.1 nowhere: the DaemonSet is gone, and 4.4: so is the Deployment",
        cluster: &[("CalicoKubeControllersMissing", "warning"), ("CalicoNodeAbsent", "critical")],
        says: ["was there and is neither in kube-system nor in calico-system any more", "let its owner make it again"],
        ..QUIET
    };
    eventually(missing.of, TOLD, || told(&missing, &report(aggregator)?));
    let absent = report(aggregator)?["cluster"].clone();
    ensure!(pairs(&absent, ["code", "subject"]).contains(&("CalicoNodeAbsent", "DaemonSetMissing")), "{absent:#}");
    Ok(())
}
