//! Pods do not start on a worker, as its agent says, and calico-node does not run there, which its agent cannot see: the one
//! follows from the other (decision tree 4.3 of the catalogue). Pure.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::judge::Judged;
use crate::verdict::Raised;

/// What agents say of it.
pub(super) const SANDBOX: &str = "PodSandboxFailing";

/// Says it of these workers, if calico-node does not run there: by name, the code by which that is told.
pub(super) fn explain(nodes: &mut [Judged<'_>], without_calico: &BTreeMap<String, &'static str>) {
    let starts_none = |node: &Judged<'_>| node.findings().iter().any(|it| it.code == SANDBOX && it.caused_by.is_none());
    for node in nodes.iter_mut().filter(|node| !without_calico.is_empty() && starts_none(node)) {
        node.without_calico = without_calico.get(node.name).copied();
    }
}

/// Whether nothing explains this finding of the worker.
pub(super) fn is_root(node: &Judged<'_>, finding: &Raised) -> bool {
    finding.caused_by.is_none() && (node.without_calico.is_none() || finding.code != SANDBOX)
}

/// What is to be done there, if that is the worst that its agent says.
pub(super) fn calico_first(node: &Judged<'_>) -> Option<Rc<str>> {
    let code = node.without_calico.filter(|_| node.reason == Some(SANDBOX))?;
    let next =
        format!("calico-node does not run as it should here, and no Pod gets a network without it: go on with {code}");
    Some(next.into())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::aggregator::cluster::Cluster;
    use crate::aggregator::report::{Agents, Scope, Source, build};
    use crate::aggregator::surroundings::What;
    use crate::aggregator::testing::{agent, at, cluster, moment, node};
    use crate::aggregator::watch::{Change, NotThere};

    const WORKERS: usize = 12;

    fn calico_node(number: usize, ready: bool, since: i64) -> Value {
        let status = if ready { "True" } else { "False" };
        json!({"metadata": {"name": format!("calico-node-{number:02}"), "namespace": "kube-system", "creationTimestamp": at(-86_400),
                "labels": {"k8s-app": "calico-node"}},
            "spec": {"nodeName": format!("n{number:02}")},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": at(since)}]}})
    }

    /// Pods do not start on two workers; calico-node on the first of them is like this.
    fn planted(calico: &Value) -> Cluster {
        let workers = (0..WORKERS).map(|number| {
            let sandboxes: &[_] = if number < 2 { &[(SANDBOX, "warning", "cni", "they fail")] } else { &[] };
            node(&format!("n{number:02}"), "a", "p", if number < 2 { "Warning" } else { "Normal" }, sandboxes)
        });
        let agents: Vec<Value> = (0..WORKERS).map(|it| agent(&format!("a{it}"), &format!("n{it:02}"), true)).collect();
        let mut cluster = cluster(&workers.collect::<Vec<_>>(), &agents);
        let mut take = |change| cluster.surroundings.take(What::CalicoPods, change, at(-86_400));
        [Change::Found, Change::ListBegins].into_iter().for_each(&mut take);
        for pod in (1..WORKERS).map(|number| calico_node(number, true, -86_400)).chain([calico.clone()]) {
            take(Change::Here(serde_json::from_value(pod).expect("a Pod")));
        }
        take(Change::ListEnds);
        cluster
    }

    /// Of how many workers it counts, and the next step of these two.
    fn told(cluster: &Cluster) -> (usize, Scope, [String; 2]) {
        let report = build(cluster, Agents::Once, Source::Aggregator, None, moment(0));
        let finding = report.findings.iter().find(|finding| finding.code == SANDBOX).expect("it is told");
        assert_eq!(finding.nodes, 2);
        let next = |name: &str| report.nodes.iter().find(|node| node.name == name).and_then(|node| node.next.clone());
        (finding.counted, finding.scope, ["n00", "n01"].map(|name| next(name).unwrap_or_default()))
    }

    const OWN: &str = "do what helps against PodSandboxFailing";

    #[test]
    fn where_calico_node_fails_it_comes_first_and_elsewhere_and_afterwards_it_does_not() {
        let (counted, scope, [first, second]) = told(&planted(&calico_node(0, false, -300)));
        assert_eq!((counted, scope, &*second), (1, Scope::Few, OWN));
        assert!(first.ends_with("go on with CalicoNodeFailingOnNode"), "{first}");
        let mut cluster = planted(&calico_node(0, false, -300));
        let well = serde_json::from_value(calico_node(0, true, -10)).expect("a Pod");
        cluster.surroundings.take(What::CalicoPods, Change::Here(well), at(0));
        assert_eq!(told(&cluster), (2, Scope::Few, [OWN, OWN].map(str::to_owned)));
    }

    #[test]
    fn an_init_container_that_fails_keeps_pods_from_starting_too() {
        let mut pod = calico_node(0, false, -300);
        pod["status"]["initContainerStatuses"] = json!([{"name": "install-cni",
            "state": {"terminated": {"exitCode": 1, "reason": "Error", "message": "no space left on device"}}}]);
        let (counted, _, [first, _]) = told(&planted(&pod));
        assert_eq!(counted, 1);
        assert!(first.ends_with("go on with CalicoInitFailed"), "{first}");
    }

    #[test]
    fn trap_it_starts_anew_or_is_not_seen() {
        assert_eq!(told(&planted(&calico_node(0, false, -10))).0, 2, "that takes a moment");
        let mut cluster = planted(&calico_node(0, false, -300));
        cluster.surroundings.take(What::CalicoPods, Change::NotThere(NotThere::Denied), at(0));
        assert_eq!(told(&cluster).0, 2, "nobody knows");
    }
}
