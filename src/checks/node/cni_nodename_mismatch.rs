//! Calico's plugin registers pods under another name than this Node's.
//!
//! *Looks at* `/var/lib/calico/nodename`, which calico-node writes at its start, against the Node's name as the agent was
//! told it, or as the kubelet's arguments settle it. The file wins over everything in the CNI configuration. *Traps*: the
//! file is absent until calico-node has started, which removes it when it ends in an orderly way; a host's name says nothing about the Node's where a
//! cloud provider names it; with an etcd of its own Calico may name its nodes otherwise; a fully qualified and a short name
//! are different names, and the most frequent way to this fault (catalogue R068).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use crate::facts::{Program, Seen};

pub(super) const CHECK: Check = Check {
    code: "CniNodenameMismatch",
    area: Area::Cni,
    severity: Severity::Critical,
    why: "new pods are registered on a node that is not this one, so that Felix here gives them neither routes nor policies",
    next_step: "set NODENAME of calico-node from spec.nodeName, and restart calico-node on this node (delete its pod), which writes the file again",
    raise_after: Duration::from_secs(1),
    clear_after: Duration::from_secs(2),
    run,
};

const FILE: &str = "/var/lib/calico/nodename";

/// calico-node writes the file before it starts Felix; this is a margin.
const STARTED: Duration = Duration::from_secs(60);

fn felix_runs_since(look: &Look<'_>, time: Duration) -> bool {
    let felix = look.now.processes.get().and_then(|processes| processes.of(Program::Felix));
    felix.is_some_and(|felix| look.now.taken_at.duration_since(felix.started_at).unsigned_abs() >= time)
}

fn run(look: &Look<'_>) -> Outcome {
    let cni = &look.now.cni;
    if let Some(error) = cni.files.error() {
        return Outcome::unknown(error);
    }
    let calico = cni.config().and_then(|config| config.plugins.iter().find(|plugin| plugin.kind == "calico"));
    let Some(calico) = calico.filter(|calico| !calico.etcd) else {
        return Outcome::NotApplicable("no CNI here takes the node's name from Calico's file".into());
    };
    if cni.nodename == Seen::Absent && !calico.nodename_optional && felix_runs_since(look, STARTED) {
        let detail = format!("{FILE} does not exist, though calico-node has started: its plugin refuses every pod");
        return Outcome::from_findings(vec![Finding::new(FILE, detail)]);
    }
    let told = look.now.identity.node_name.as_ref();
    let kubelets = || look.now.kubelet.get().and_then(|kubelet| kubelet.node_name.as_ref());
    let Some(node) = told.or_else(kubelets) else {
        return Outcome::NotApplicable("the Node's name is not known here".into());
    };
    let name = seen!(cni.nodename, Outcome::NotApplicable("calico-node has not started here yet".into()));
    if name == node {
        return Outcome::Healthy;
    }
    let what = match name.as_str() {
        "" => "is empty".to_owned(),
        // Whatever is in there need not be a name.
        name => format!("says {:?}", name.chars().take(253).collect::<String>()),
    };
    Outcome::from_findings(vec![Finding::new(FILE, format!("{FILE} {what}, and the Node is {node:?}"))])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{CniConfig, Process};

    fn named(file: &str) -> Node {
        Node::worker().cni_plugin("calico").edit(|now| now.cni.nodename = Seen::Yes(file.into()))
    }

    #[test]
    fn another_name_or_none() {
        let outcome = run(&named("n2").look());
        assert_eq!(testing::subjects(&outcome), [FILE]);
        assert_eq!(testing::details(&outcome), ["/var/lib/calico/nodename says \"n2\", and the Node is \"n1\""]);
        assert!(testing::details(&run(&named("").look()))[0].contains("is empty"));
        assert!(testing::details(&run(&named(&"x".repeat(4096)).look()))[0].len() < 400);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&named("n1").look()), Outcome::Healthy);
    }

    #[test]
    fn trap_a_qualified_name_is_another_name() {
        assert!(matches!(run(&named("n1.example.com").look()), Outcome::Findings(_)));
    }

    #[test]
    fn trap_where_the_nodes_name_comes_from() {
        let by_kubelet = named("10.1.2.3").edit(|now| {
            now.identity.node_name = None;
            let Seen::Yes(kubelet) = &mut now.kubelet else { panic!("seen") };
            kubelet.node_name = Some("10.1.2.3".into());
        });
        assert_eq!(run(&by_kubelet.look()), Outcome::Healthy, "the host is called otherwise, the Node is not");
        let unknown = by_kubelet.edit(|now| now.kubelet = Seen::Absent);
        assert!(matches!(run(&unknown.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn no_file_though_calico_node_runs() {
        let node = |seconds| {
            named("").edit(|now| {
                now.cni.nodename = Seen::Absent;
                let started_at = now.taken_at - jiff::SignedDuration::from_secs(seconds);
                let Seen::Yes(processes) = &mut now.processes else { panic!("seen") };
                processes.found.push(Process { program: Program::Felix, pid: 20, state: 'S', started_at });
            })
        };
        assert!(testing::details(&run(&node(61).look()))[0].contains("does not exist"));
        assert!(matches!(run(&node(5).look()), Outcome::NotApplicable(_)));
        let node = node(600).edit(|now| {
            let Seen::Yes(files) = &mut now.cni.files else { panic!("seen") };
            let Ok(CniConfig { plugins, .. }) = &mut files[0].content else { panic!("good") };
            plugins[0].nodename_optional = true;
        });
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn trap_no_file_yet_another_cni_and_an_etcd() {
        let node = named("").edit(|now| now.cni.nodename = Seen::Absent);
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
        let node = Node::worker().edit(|now| now.cni.nodename = Seen::Yes("other".into()));
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
        let node = named("other").edit(|now| {
            let Seen::Yes(files) = &mut now.cni.files else { panic!("seen") };
            let Ok(CniConfig { plugins, .. }) = &mut files[0].content else { panic!("good") };
            plugins[0].etcd = true;
        });
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_it_cannot_be_read() {
        let node = named("").edit(|now| now.cni.nodename = testing::denied(FILE));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
