//! Files without which the kubelet or the CNI does not work are empty or in pieces.
//!
//! *Looks at* the kubelet's configuration, kubeconfig, certificate, checkpoints and static pods, the files of the CNI and Calico's
//! name of the node. containerd's database is `ContainerdStoreCorrupt`; what a whole file says wrongly is for the checks of what
//! it is about. *Trap*: a file in the middle of a rewrite: it counts once it has not changed for two seconds (catalogue R003).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};

pub(super) const CHECK: Check = Check {
    code: "NodeFilesDamaged",
    area: Area::Integrity,
    severity: Severity::Critical,
    why: "what reads it does not start, or starts without what it knew; a crash that damaged one file may have damaged others",
    next_step: "cordon, gather, drain, then reload (classic) or replace (VPC) the worker",
    // Whoever writes it at its own start, as calico-node does, has done so by then.
    raise_after: Duration::from_secs(25),
    clear_after: Duration::ZERO,
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let faults = seen!(look.now.files, Outcome::NotApplicable("this is no Kubernetes worker".into()));
    let finding = |fault: &crate::facts::FileFault| {
        let (user, cure) = about(look, &fault.path);
        let finding = Finding::new(fault.path.clone(), format!("{} {}: {user}", fault.path, fault.what));
        match cure {
            Some(cure) => finding.next(cure),
            None => finding,
        }
    };
    Outcome::from_findings(faults.iter().map(finding).collect())
}

/// What a damaged file of this path means, and what helps if less than a reload may.
fn about(look: &Look<'_>, path: &str) -> (&'static str, Option<&'static str>) {
    let static_pods = look.now.kubelet.get().map(|kubelet| std::path::Path::new(&kubelet.static_pods));
    let is_static_pod = |path: &str| static_pods.is_some_and(|dir| std::path::Path::new(path).parent() == Some(dir));
    let in_kubelets = path.contains("/kubelet") || path.starts_with("/var/lib/rancher");
    match path {
        _ if is_static_pod(path) => (
            "the kubelet does not run its static pod",
            Some(
                "restore the manifest, from another worker of the pool if need be; look for more damage, and if there is some cordon, gather, drain and reload the worker",
            ),
        ),
        _ if path.ends_with("_state") || path.ends_with("_checkpoint") => (
            "the kubelet does not start with a corrupt checkpoint",
            Some(
                "cordon, gather and drain; then stop the kubelet, delete this file, which it makes anew, and start it; if there is more damage reload or replace the worker",
            ),
        ),
        _ if path.ends_with("/nodename") => (
            "Calico's plugin cannot tell for which node it sets up pods",
            Some(
                "delete the calico-node pod of this node, which writes the file again; look for more damage, and if there is some cordon, gather, drain and reload the worker",
            ),
        ),
        _ if in_kubelets => ("the kubelet does not start without it", None),
        _ => (
            "pods get no network by it",
            Some(
                "let the CNI's agent write it again (delete the calico-node pod); look for more damage, and if there is some cordon, gather, drain and reload the worker",
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{FileFault, Seen};

    fn damaged(path: &str) -> Node {
        let fault = FileFault { path: path.into(), what: "is empty".into() };
        Node::worker().edit(move |now| now.files = Seen::Yes(vec![fault.clone()]))
    }

    #[test]
    fn each_sort_of_file_says_what_stands_still_and_what_helps() {
        for (path, user, helps) in [
            ("/var/lib/kubelet/config.yaml", "the kubelet does not start without it", false),
            ("/etc/kubernetes/kubelet.conf", "the kubelet does not start without it", false),
            ("/var/lib/kubelet/cpu_manager_state", "corrupt checkpoint", true),
            ("/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint", "corrupt checkpoint", true),
            ("/etc/kubernetes/manifests/haproxy.yaml", "static pod", true),
            ("/var/lib/calico/nodename", "Calico's plugin", true),
            ("/etc/cni/net.d/10-calico.conflist", "no network", true),
        ] {
            let outcome = run(&damaged(path).look());
            assert_eq!(testing::subjects(&outcome), [path]);
            let details = testing::details(&outcome);
            assert!(details[0].starts_with(&format!("{path} is empty: ")) && details[0].contains(user), "{details:?}");
            let Outcome::Findings(findings) = outcome else { unreachable!() };
            assert_eq!(findings[0].next_step.is_some(), helps, "{path}");
        }
    }

    #[test]
    fn static_pods_are_where_the_kubelet_has_them() {
        let node = damaged("/opt/kubelet/pods/proxy.yaml").edit(|now| {
            let crate::facts::Seen::Yes(kubelet) = &mut now.kubelet else { panic!("seen") };
            kubelet.static_pods = "/opt/kubelet/pods/".into();
        });
        assert!(testing::details(&run(&node.look()))[0].contains("does not run its static pod"));
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_no_worker_has_none_of_them() {
        assert!(matches!(run(&Node::plain_machine().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_they_cannot_be_read() {
        let node = Node::worker().edit(|now| now.files = testing::denied("/var/lib/kubelet/config.yaml"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
