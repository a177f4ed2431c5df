//! Another CNI's configuration sorts before the one that should be in force.
//!
//! *Looks at* the first file against the CNI that is known to be here: Calico by its chains or its Felix. The node stays
//! Ready and pods start, without Calico's routes and policies (recorded: incident 06 D). *Traps*: Multus is first by
//! design and calls the others; a leftover that sorts later is harmless (catalogue R065).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use crate::facts::{CniConfig, CniFile};

pub(super) const CHECK: Check = Check {
    code: "CniConfigConflict",
    area: Area::Cni,
    severity: Severity::Warning,
    why: "new pods start and become Ready on the wrong network: not reachable from other nodes, and no policy holds for them",
    next_step: "move the foreign file out of the directory, then recreate the pods that were started since it came",
    raise_after: Duration::from_millis(500),
    clear_after: Duration::from_secs(2),
    run,
};

/// Meta plugins that are first by design and delegate to the cluster's CNI.
const META: [&str; 4] = ["multus", "multus-shim", "istio-cni", "linkerd-cni"];

fn run(look: &Look<'_>) -> Outcome {
    let cni = &look.now.cni;
    let files = seen!(cni.files, Outcome::NotApplicable("there is no CNI configuration".into()));
    if look.expected.calico.is_none() {
        return Outcome::NotApplicable("which CNI should be in force here is not known".into());
    }
    let Some(config) = files.first().and_then(valid) else {
        return Outcome::Healthy;
    };
    let rightful = files.iter().find(|file| valid(file).is_some_and(|config| config.has("calico")));
    let (first, Some(rightful)) = (&files[0], rightful) else { return Outcome::Healthy };
    if first.name == rightful.name || META.iter().any(|meta| config.has(meta)) {
        return Outcome::Healthy;
    }
    let plugin = config.plugins.first().map_or("?", |plugin| plugin.kind.as_str());
    let path = format!("{}/{}", cni.conf_dir, first.name);
    let detail = format!(
        "The runtime uses {path} (plugin {plugin}) because it sorts before {}, which is Calico's",
        rightful.name
    );
    Outcome::from_findings(vec![Finding::new(path, detail)])
}

fn valid(file: &CniFile) -> Option<&CniConfig> {
    file.content.as_ref().ok()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{Backend, Seen};

    fn files(names: &[(&str, &str)]) -> Node {
        Node::worker().calico(Backend::Nftables).edit(|now| {
            now.cni.files = Seen::Yes(names.iter().map(|(name, plugin)| testing::cni_file(name, plugin)).collect());
        })
    }

    #[test]
    fn a_stray_file_that_sorts_first() {
        let node = files(&[("05-stray.conflist", "bridge"), ("10-calico.conflist", "calico")]);
        assert_eq!(testing::subjects(&run(&node.look())), ["/etc/cni/net.d/05-stray.conflist"]);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&files(&[("10-calico.conflist", "calico")]).look()), Outcome::Healthy);
    }

    #[test]
    fn trap_multus_first_and_a_leftover_last() {
        let node = files(&[("00-multus.conf", "multus"), ("10-calico.conflist", "calico")]);
        assert_eq!(run(&node.look()), Outcome::Healthy);
        let node = files(&[("10-calico.conflist", "calico"), ("99-bridge.conf", "bridge")]);
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn trap_a_cluster_without_calico() {
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_the_directory_cannot_be_read() {
        let node = files(&[]).edit(|now| now.cni.files = testing::denied("/etc/cni/net.d"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
