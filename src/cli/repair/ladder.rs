//! The ladders: what each step needs, destroys, and how it is seen that it worked. The words and commands are those of
//! the explanations, under the name of the part.

use serde::Serialize;

use super::memory::Outcome;
use super::situation::{Pod, Situation};

/// Who takes a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum By {
    /// This command, with `--yes`.
    Command,
    /// A person: by the provider's own tools, or because only its owner can decide it.
    Person,
}

/// A step of a ladder.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) key: &'static str,
    /// The beginning of a sentence.
    pub(super) noun: &'static str,
    /// The part of the explanations.
    pub(super) part: &'static str,
    pub(super) by: By,
    pub(super) destroys: &'static str,
    pub(super) verify: &'static str,
    asks: &'static [fn(&Situation) -> Need],
    /// Whether it needs not be taken (again), by live answers and by what the repair remembers.
    pub(super) done: fn(&Situation) -> bool,
}

/// What a step needs, and the live answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Need {
    pub(super) what: &'static str,
    pub(super) holds: bool,
    pub(super) answer: String,
    /// What to do instead where it does not hold.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) safer: &'static str,
}

impl Step {
    /// All that it needs; what is never answered does not hold.
    pub(super) fn needs(&self, situation: &Situation) -> Vec<Need> {
        let own = self.asks.iter().map(|ask| ask(situation));
        let rights = (self.by == By::Command).then(|| rights(situation));
        own.chain(rights).collect()
    }
}

const CORDON: Step = Step {
    key: "cordon",
    noun: "A cordon",
    part: "cordon",
    by: By::Command,
    destroys: "nothing; no new pods land there",
    verify: "the node is unschedulable",
    asks: &[evidence, not_the_last, alone_in_zone],
    done: |situation| situation.node.cordoned,
};

const DELETE_CALICO_NODE: Step = Step {
    key: "delete-calico-node",
    noun: "The deletion of its calico-node pod",
    part: "delete-calico-node",
    by: By::Command,
    destroys: "the pod, its logs and how it failed; pods keep their networks meanwhile",
    verify: "the new pod is Ready on this node, and the finding is gone",
    asks: &[evidence, not_the_last, alone_in_zone, made_anew, nothing_keeps_pods_away],
    done: |situation| tried(situation, "delete-calico-node"),
};

const DRAIN: Step = Step {
    key: "drain",
    noun: "A drain",
    part: "drain",
    by: By::Person,
    destroys: "emptyDir data and pods without a controller",
    verify: "only pods of DaemonSets are left on the node",
    asks: &[not_the_last, zone_keeps_one, no_budget],
    done: |situation| situation.node.cordoned && situation.to_move.as_ref().is_ok_and(Vec::is_empty),
};

const REBOOT: Step = Step {
    key: "reboot",
    noun: "A reboot",
    part: "reboot",
    by: By::Person,
    destroys: "what is in memory: processes, routes, packet filter, kernel log",
    verify: "the node is Ready with another boot id, and the finding is gone",
    asks: &[evidence, not_the_last, alone_in_zone, zone_keeps_one, controllers_elsewhere],
    done: |situation| {
        situation.remembered().is_some_and(|memory| !memory.boot.is_empty() && memory.boot != situation.node.boot)
    },
};

const FRESH_SYSTEM: Step = Step {
    key: "fresh-system",
    noun: "A fresh system",
    part: "fresh-system",
    by: By::Person,
    destroys: "everything on the worker's disks: local data, images, logs",
    verify: "the worker is deployed again, Ready, and the finding is gone",
    asks: &[evidence, not_the_last, alone_in_zone, zone_keeps_one, controllers_elsewhere, pool_refills],
    done: |_| false,
};

/// The last step of each ladder, once it has cured.
pub(super) const UNCORDON: Step = Step {
    key: "uncordon",
    noun: "The uncordon",
    part: "uncordon",
    by: By::Command,
    destroys: "",
    verify: "the node is schedulable",
    asks: &[],
    done: |situation| !situation.node.cordoned,
};

const COPY_BGP_SECRET: Step = Step {
    key: "copy-bgp-secret",
    noun: "The copy of the BGP password's Secret",
    part: "copy-bgp-secret",
    by: By::Command,
    destroys: "nothing; it is never printed, and the copy has no owner and no labels of the old one",
    verify: "the Secret is in calico-system",
    asks: &[evidence, secret_there],
    done: |situation| situation.bgp.as_ref().is_some_and(|bgp| bgp.here),
};

const BGP_SECRET_ACCESS: Step = Step {
    key: "bgp-secret-access",
    noun: "The Role and RoleBinding for the BGP password",
    part: "bgp-secret-access",
    by: By::Command,
    destroys: "nothing",
    verify: "calico-node becomes Ready on this node, and the finding is gone",
    asks: &[evidence],
    done: |situation| situation.bgp.as_ref().is_some_and(|bgp| bgp.readable) && tried(situation, "bgp-secret-access"),
};

/// calico-node fails on a few workers.
pub(super) const CALICO: [&Step; 5] = [&CORDON, &DELETE_CALICO_NODE, &DRAIN, &REBOOT, &FRESH_SYSTEM];
/// The worker's own system is worn out or damaged.
pub(super) const WORKER: [&Step; 3] = [&CORDON, &DRAIN, &FRESH_SYSTEM];
/// calico-node cannot read the password of BGP's peers.
pub(super) const BGP: [&Step; 2] = [&COPY_BGP_SECRET, &BGP_SECRET_ACCESS];

/// The name of the last step alone.
pub(super) const END: &str = "end of a repair";

/// How these steps are called together.
pub(super) fn name(steps: &[&Step]) -> &'static str {
    match steps.first().map(|step| step.key) {
        Some("copy-bgp-secret") => "BGP password",
        Some("uncordon") => END,
        _ if steps.iter().any(|step| step.key == "delete-calico-node") => "calico-node",
        _ => "worker",
    }
}

/// Whether it was tried, and what came of it is known.
fn tried(situation: &Situation, step: &str) -> bool {
    let outcome = situation.remembered().and_then(|memory| memory.outcome(step));
    outcome.is_some_and(|outcome| outcome != Outcome::Begun)
}

fn need(what: &'static str, (holds, answer): (bool, String), safer: &'static str) -> Need {
    Need { what, holds, answer, safer: if holds { "" } else { safer } }
}

fn evidence(situation: &Situation) -> Need {
    need(
        "evidence of this episode",
        situation.evidence(),
        "gather it first (`nodevitals gather NODE -o DIR`) and name it (--evidence DIR/NODE), or have the owner decline it (--no-evidence)",
    )
}

fn not_the_last(situation: &Situation) -> Need {
    let able = situation.able().count();
    let answer = match able {
        0 => "no other worker is Ready and takes pods".to_owned(),
        able => format!("{able} others are Ready and take pods"),
    };
    need(
        "not the last Ready worker",
        (able > 0, answer),
        "add a worker first, or let pods into another one: without any, nothing of the cluster has a place to run",
    )
}

fn alone_in_zone(situation: &Situation) -> Need {
    let zone = &situation.node.zone;
    let open = |text: &String| super::memory::Memory::parse(text).is_some_and(|memory| memory.cordoned);
    let other = situation.others.iter().find(|peer| peer.zone == *zone && peer.repair.as_ref().is_some_and(open));
    let answer = other.map_or_else(|| "none".to_owned(), |peer| format!("{} is under repair", peer.name));
    need(
        "no other repair in the zone",
        (other.is_none(), answer),
        "finish that one first: two at once may take a zone down",
    )
}

fn zone_keeps_one(situation: &Situation) -> Need {
    let zone = situation.node.zone.as_deref();
    let left = situation.able().filter(|peer| peer.zone.as_deref() == zone).count();
    let (holds, answer) = match (&situation.ingress, zone) {
        (Ok(false), _) => (true, "there is no Ingress".to_owned()),
        (Ok(true), _) if left > 0 => (true, format!("{left} others serve there")),
        (Ok(true), Some(zone)) => (false, format!("there is Ingress, and nobody else serves it in {zone}")),
        (Ok(true), None) => (true, "there is Ingress, and nodes have no zones".to_owned()),
        (Err(why), _) => (false, why.clone()),
    };
    need(
        "the zone still serves Ingress",
        (holds, answer),
        "add a worker in this zone first: two in each zone that serves Ingress",
    )
}

/// Whether no budget holds a Pod here, in words.
pub(super) fn budgets(situation: &Situation) -> (bool, String) {
    match &situation.budgets {
        Ok(budgets) if budgets.is_empty() => (true, "none holds a pod here".to_owned()),
        Ok(budgets) => (false, budgets.join(", ")),
        Err(why) => (false, why.clone()),
    }
}

fn no_budget(situation: &Situation) -> Need {
    need(
        "no PodDisruptionBudget forbids it",
        budgets(situation),
        "give the workload one replica more, or ask its owner to relax the budget; do not delete the pod past it",
    )
}

fn controllers_elsewhere(situation: &Situation) -> Need {
    let (holds, answer) = match &situation.calico {
        Err(why) => (false, why.clone()),
        Ok(pods) => {
            let all = || pods.iter().filter(|pod| pod.app == "calico-kube-controllers" && !pod.deleting);
            match all().find(|pod| pod.node == situation.node.name) {
                None => (true, "they are not here".to_owned()),
                Some(_) if all().any(|pod| pod.node != situation.node.name && pod.ready) => {
                    (true, "another is Ready elsewhere".to_owned())
                }
                Some(pod) => (false, format!("{}/{} is the only one", pod.namespace, pod.name)),
            }
        }
    };
    need(
        "not the last host of calico-kube-controllers",
        (holds, answer),
        "delete that pod once the node is cordoned, and wait until it is Ready elsewhere: while it is away nobody cleans up after deleted nodes",
    )
}

fn pool_refills(situation: &Situation) -> Need {
    let stopped = situation.around.iter().any(|code| code == "PoolNotRefilled");
    let answer = if stopped {
        "the pool did not replace the last worker that left it".to_owned()
    } else if situation.node.platform.has("vpc") {
        "not to be seen from here: `ibmcloud ks worker-pool ls` shows whether workers are missing".to_owned()
    } else {
        "the worker keeps its place".to_owned()
    };
    need(
        "the pool puts a new worker in its place",
        (!stopped, answer),
        "rebalance or resize the pool first (`nodevitals explain PoolNotRefilled`)",
    )
}

fn made_anew(situation: &Situation) -> Need {
    let (holds, answer) = match (&situation.calico, situation.calico_node()) {
        (Err(why), _) => (false, why.clone()),
        (_, None) => (false, "there is none on this node".to_owned()),
        (_, Some(pod)) if pod.of_daemon_set => (true, describe(pod)),
        (_, Some(pod)) => (false, format!("{}/{} belongs to no DaemonSet", pod.namespace, pod.name)),
    };
    need(
        "its DaemonSet makes the pod anew",
        (holds, answer),
        "see why the DaemonSet has no pod here: `kubectl describe daemonset -A -l k8s-app=calico-node`",
    )
}

/// A Pod in a few words.
pub(super) fn describe(pod: &Pod) -> String {
    let ready = if pod.ready { "Ready" } else { "not Ready" };
    format!("{}/{} {}, {ready}, {} restarts", pod.namespace, pod.name, pod.phase, pod.restarts)
}

fn nothing_keeps_pods_away(situation: &Situation) -> Need {
    let blocked = ["WebhookBlocksSystemPods", "WebhookDeadlock", "ApiWriteBlocked", "CalicoNodeAbsent"];
    let mut codes = situation.codes.iter().chain(&situation.around);
    let found = codes.find(|code| blocked.contains(&code.as_str()));
    let answer = found.map_or_else(|| "nothing is known to refuse pods".to_owned(), |code| format!("{code} is told"));
    need(
        "a new pod is let in",
        (found.is_none(), answer),
        "cure that first: a pod that is deleted now does not come back",
    )
}

fn secret_there(situation: &Situation) -> Need {
    let there = situation.bgp.as_ref().is_some_and(|bgp| bgp.there);
    let answer = if there { "it is" } else { "it is not, or must not be seen" };
    need(
        "the Secret is in kube-system",
        (there, answer.to_owned()),
        "ask whoever changed the BGP password for it, and make the Secret in calico-system",
    )
}

/// Whether the caller has the rights for what this command itself does, in words.
pub(super) fn may(situation: &Situation) -> (bool, String) {
    match &situation.lacks[..] {
        [] => (true, "enough".to_owned()),
        lacks => (false, format!("missing: {}", lacks.join(", "))),
    }
}

fn rights(situation: &Situation) -> Need {
    need("your kubeconfig may do it", may(situation), "ask for these rights, or let somebody who has them do it")
}
