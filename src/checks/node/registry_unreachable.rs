//! A registry that images here come from cannot be reached any more.
//!
//! *Looks at* the ways by which the runtime pulls: its mirrors and the registry itself, with one question without credentials.
//! *Traps*: 401 and 429 are answers, and so is any other status; one mirror of several is enough; a registry that this
//! node has never reached may never have been meant to (no way to the Internet, images brought along); one failed probe is
//! noise; images of a registry that was given up stay here for long, and a Pod that waits for an image has no container yet, so
//! that one that no container uses is missed for a day (catalogue R051).

use std::time::Duration;

use super::super::path;
use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use crate::facts::Registry;

pub(super) const CHECK: Check = Check {
    code: "RegistryUnreachable",
    area: Area::ControlPlanePath,
    severity: Severity::Warning,
    why: "containers whose images are not here yet do not start, and a worker that is replaced or added in this subnet does not come up",
    next_step: "look at this subnet's way to the registry (`curl -v URL/v2/` from the node: DNS, firewall, gateway, proxy); once it works pulls are tried again by themselves, and a worker that failed to deploy is replaced, not reloaded",
    // Three looks.
    raise_after: Duration::from_secs(70),
    clear_after: Duration::from_secs(10),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let registries =
        seen!(look.now.registries, Outcome::NotApplicable("no images of a registry are known here".into()));
    if !registries.iter().any(|it| it.reached) {
        return Outcome::NotApplicable("no registry has been reached from here, so none is missed".into());
    }
    let lost = registries.iter().filter(|it| it.reached && !it.ways.iter().any(Registry::leads));
    let findings = lost.map(|registry| {
        let ways: Vec<String> = registry.ways.iter().map(|way| format!("{} {}", way.to, path::short(way))).collect();
        let mut detail = format!("Images of {} cannot be pulled: {}", registry.name, ways.join("; "));
        if let Some(rule) = registry.ways.iter().find_map(|way| path::dropping_rule(look, way)) {
            detail.extend(["; it is this node itself that drops it, by ", &rule]);
        }
        if registry.unused {
            detail.push_str("; no container here is of an image of it, and if that stays so it is missed for a day");
        }
        Finding::new(registry.name.clone(), detail)
    });
    Outcome::from_findings(findings.collect())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node, end, fault, leg, rule};
    use super::*;
    use crate::facts::{Backend, FaultKind, PathEnd, PathStep, Seen};

    fn node(reached: bool, ends: &[PathEnd]) -> Node {
        let to = ["10.9.0.1:5000", "10.9.0.2:443"];
        let ways = to.iter().zip(ends).map(|(to, end)| leg(to, end.clone())).collect();
        let registry = Registry { name: "icr.io".into(), ways, reached, unused: false };
        Node::worker().edit(|now| now.registries = Seen::Yes(vec![registry]))
    }

    #[test]
    fn all_ways_are_cut() {
        let outcome = run(&node(true, &[fault(PathStep::Connect, FaultKind::Refused), end()]).look());
        assert_eq!(testing::subjects(&outcome), ["icr.io"]);
        let expected =
            "Images of icr.io cannot be pulled: 10.9.0.1:5000 refuses TCP; 10.9.0.2:443 does not answer to TCP";
        assert_eq!(testing::details(&outcome), [expected]);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&node(true, &[PathEnd::Answered(200), end()]).look()), Outcome::Healthy);
        assert_eq!(run(&node(true, &[end(), PathEnd::Answered(200)]).look()), Outcome::Healthy);
    }

    #[test]
    fn trap_answers_that_are_no_matter_of_the_network() {
        for status in [401, 403, 404, 429, 503] {
            assert_eq!(run(&node(true, &[PathEnd::Answered(status)]).look()), Outcome::Healthy, "{status}");
        }
        assert!(CHECK.raise_after >= Duration::from_secs(60));
    }

    #[test]
    fn trap_a_registry_that_was_never_reached() {
        assert!(matches!(run(&node(false, &[end(), end()]).look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn trap_one_that_no_container_uses_is_missed_while_it_was_reached_lately() {
        let unused = |reached| {
            node(reached, &[end(), end()]).edit(|now| {
                let Seen::Yes(registries) = &mut now.registries else { panic!("asked") };
                registries[0].unused = true;
            })
        };
        let detail = testing::details(&run(&unused(true).look())).remove(0);
        assert!(
            detail.ends_with("; no container here is of an image of it, and if that stays so it is missed for a day")
        );
        assert!(matches!(run(&unused(false).look()), Outcome::NotApplicable(_)), "it was given up");
    }

    #[test]
    fn trap_a_rule_of_this_node() {
        let own = node(true, &[end(), end()]).edit_chains(Backend::Nftables, "filter", |chains| {
            chains.push(testing::base("OUTPUT", vec![rule("-d 10.9.0.0/16 -j DROP")]));
        });
        assert!(testing::details(&run(&own.look()))[0].contains("it is this node itself that drops it"));
    }

    #[test]
    fn unknown_and_not_applicable() {
        let node = Node::worker().edit(|now| now.registries = testing::timed_out("registries"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
        assert!(matches!(run(&Node::plain_machine().look()), Outcome::NotApplicable(_)));
    }
}
