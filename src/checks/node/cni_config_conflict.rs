//! Another CNI's configuration is in force instead of the cluster's.
//!
//! *Looks at* the file in force against the CNI that is known to be here: Calico by its chains or its Felix. The node stays
//! Ready and pods start, without Calico's routes and policies (recorded: incident 06 D). A leftover that sorts later is
//! harmless until Calico's file vanishes; then the runtime takes it without a word. *Traps*: Multus is first by design and
//! calls the others; Calico may do no more than policies beside another CNI (EKS, AKS), so that a file of its own counts as
//! missed only if it was in force in this boot or its links to pods are there (catalogue R065).

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
    // A bad file is told by CniConfigInvalid.
    let Some((active, config)) = cni.active().and_then(|file| Some((file, valid(file)?))) else {
        return Outcome::Healthy;
    };
    if config.has("calico") || META.iter().any(|meta| config.has(meta)) {
        return Outcome::Healthy;
    }
    let calicos = is_calicos(look);
    let plugin = config.plugins.first().map_or("?", |plugin| plugin.kind.as_str());
    let path = format!("{}/{}", cni.conf_dir, active.name);
    let rightful = files.iter().find(|file| valid(file).is_some_and(|config| config.has("calico")));
    let why = match rightful {
        Some(rightful) => format!("because it sorts before {}, which is Calico's", rightful.name),
        None if calicos => "because Calico's own configuration is gone".to_owned(),
        None => return Outcome::Healthy,
    };
    // What is missed is missed in the directory, whichever leftover is in force; `Remembered::restore` goes by that.
    let subject = if rightful.is_some() { &path } else { &cni.conf_dir };
    let finding = Finding::new(subject, format!("The runtime uses {path} (plugin {plugin}) {why}"));
    let finding = if rightful.is_none() { finding.next(RESTORE) } else { finding };
    Outcome::from_findings(vec![if calicos { finding.severity(Severity::Critical) } else { finding }])
}

/// When there is nothing to fall back to.
const RESTORE: &str = "delete the calico-node pod, whose container install-cni writes Calico's file again, move the leftover away, and recreate the pods that were started meanwhile";

/// Whether the cluster's CNI is Calico: its configuration was in force in this boot, or its plugin made links to pods.
fn is_calicos(look: &Look<'_>) -> bool {
    let links = look.now.routing.get().map_or(&[][..], |routing| routing.links.as_slice());
    look.before.calico_cni || links.iter().any(crate::facts::Link::is_calico_pod)
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

    fn severity(node: &Node) -> Option<Severity> {
        let Outcome::Findings(findings) = run(&node.look()) else { panic!("a finding") };
        findings[0].severity
    }

    #[test]
    fn a_leftover_is_in_force_since_calicos_file_is_gone() {
        let leftover = || files(&[("99-bridge.conf", "bridge")]);
        let node = leftover().remember(|before| before.calico_cni = true);
        assert_eq!(testing::subjects(&run(&node.look())), ["/etc/cni/net.d"]);
        let detail =
            "The runtime uses /etc/cni/net.d/99-bridge.conf (plugin bridge) because Calico's own configuration is gone";
        assert_eq!(testing::details(&run(&node.look())), [detail]);
        assert_eq!(severity(&node), Some(Severity::Critical));
        let node = leftover().routing(|routing| {
            routing.links[0].name = "cali0123456789a".into();
            routing.links[0].kind = Some("veth".into());
        });
        assert_eq!(severity(&node), Some(Severity::Critical), "the links of its pods are there");
        let node = files(&[("10-calico.conflist", "calico"), ("99-bridge.conf", "bridge")])
            .remember(|before| before.calico_cni = true);
        assert_eq!(run(&node.look()), Outcome::Healthy, "and back");
    }

    #[test]
    fn worse_where_calico_is_known_to_be_the_clusters_cni() {
        let node = files(&[("05-stray.conflist", "bridge"), ("10-calico.conflist", "calico")]);
        assert_eq!(severity(&node), None);
        assert_eq!(severity(&node.remember(|before| before.calico_cni = true)), Some(Severity::Critical));
    }

    #[test]
    fn trap_calico_for_policies_beside_another_cni() {
        assert_eq!(run(&files(&[("10-aws.conflist", "aws-cni")]).look()), Outcome::Healthy);
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
