//! BIRD is dead, or hangs.
//!
//! *Looks at* BIRD's control socket: it refuses, or accepts and does not answer within 2 s. Its peers notice a dead one at
//! once, but keep its routes for 120 s (graceful restart); a hung one they notice after 240 s (hold time), and then drop
//! its routes in the same second; the API never knows (recorded: incident 02). *Traps*: a rolling update restarts BIRD
//! within 4 to 8 s, and with a slow image within 76 s (recorded: incident 18), which is held down; VXLAN and clusters
//! without BGP have no BIRD, and may have the socket of one from before (catalogue R164).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, bgp, findings_or_unknown, seen};
use crate::facts::{BirdDaemon, LookError, Program, Reason};

pub(super) const CHECK: Check = Check {
    code: "BgpDaemonDown",
    area: Area::PodRouting,
    severity: Severity::Critical,
    why: "when its peers give up on this BIRD, 2 to 4 minutes after it stopped, the pods here can no longer be reached from other nodes",
    next_step: "look at calico-node here (its log, `birdcl show status` in it) and delete its pod so that BIRD is started again",
    // Hung: three answers in a row are waited for, 2 s each. Dead is held down longer, see `DEAD`.
    raise_after: Duration::from_millis(4500),
    clear_after: Duration::from_secs(4),
    run,
};

/// A slow update takes 76 s (incident 18); routes go after 120 s, so half a minute is left.
const DEAD: Duration = Duration::from_secs(90);

fn run(look: &Look<'_>) -> Outcome {
    let seen = seen!(look.now.bgp, Outcome::NotApplicable(bgp::NONE.into()));
    let daemons: Vec<&BirdDaemon> = bgp::daemons(look, seen).collect();
    if daemons.is_empty() {
        return Outcome::NotApplicable("no BIRD runs here: its control socket is left over".into());
    }
    let (mut findings, mut blind) = (Vec::new(), None);
    for daemon in daemons {
        match daemon.bird.error() {
            None => {}
            Some(error) => match wrong(look, daemon, error) {
                Some(finding) => findings.push(finding),
                None => blind = Some(error),
            },
        }
    }
    findings_or_unknown(findings, blind)
}

fn wrong(look: &Look<'_>, daemon: &BirdDaemon, error: &LookError) -> Option<Finding> {
    let (socket, family) = (&daemon.socket, daemon.family);
    let process = look.now.processes.get().and_then(|processes| processes.of(Program::Bird));
    let process = match process {
        Some(process) if process.state == 'T' => format!("; its process {} is stopped by a signal", process.pid),
        Some(process) if process.state == 'D' => format!("; its process {} is stuck in the kernel", process.pid),
        _ => String::new(),
    };
    match error.reason {
        Reason::TimedOut => {
            let detail = format!("BIRD ({family}) hangs: {socket} {}{process}", error.detail);
            Some(Finding::new(socket.clone(), detail))
        }
        Reason::Refused | Reason::Missing | Reason::Failed => {
            let detail = format!("BIRD ({family}) does not run: {socket}: {}", error.detail);
            Some(Finding::new(socket.clone(), detail).repaired_within(DEAD))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{ClusterMap, Encapsulation, Family, Pool, Process, Seen};

    fn answers(reason: Reason) -> Node {
        Node::worker().bgp(move |bgp| bgp.daemons[0].bird = testing::error("bird.ctl", reason))
    }

    fn findings(node: &Node) -> Vec<Finding> {
        let Outcome::Findings(findings) = run(&node.look()) else { panic!("findings, not {:?}", run(&node.look())) };
        findings
    }

    #[test]
    fn hung_is_told_at_once() {
        let found = findings(&answers(Reason::TimedOut));
        assert_eq!(found[0].subject, "/var/run/calico/bird.ctl");
        assert!(found[0].detail.starts_with("BIRD (IPv4) hangs"), "{}", found[0].detail);
        assert_eq!(found[0].owner_repairs_within, None);
        assert!(CHECK.raise_after > Duration::from_secs(4) && CHECK.raise_after < Duration::from_secs(6));
    }

    #[test]
    fn a_stopped_process_is_named() {
        let node = answers(Reason::TimedOut).edit(|now| {
            let Seen::Yes(processes) = &mut now.processes else { panic!("seen") };
            let bird = Process { program: Program::Bird, pid: 77, state: 'T', started_at: now.taken_at };
            processes.found.push(bird);
        });
        assert!(findings(&node)[0].detail.ends_with("; its process 77 is stopped by a signal"));
    }

    #[test]
    fn healthy_and_clears_and_not_applicable_without_bird() {
        assert_eq!(run(&Node::worker().bgp(|_| ()).look()), Outcome::Healthy);
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn trap_an_update_takes_up_to_76_seconds() {
        for reason in [Reason::Refused, Reason::Missing, Reason::Failed] {
            let hold = findings(&answers(reason))[0].owner_repairs_within.expect("held down longer");
            assert!(hold > Duration::from_secs(77) && hold < bgp::GRACEFUL, "{hold:?}");
        }
    }

    #[test]
    fn trap_a_socket_from_before_the_switch_to_vxlan() {
        let stale = || answers(Reason::Refused).bgp(|bgp| bgp.daemons[0].had_peers = false);
        assert!(matches!(run(&stale().look()), Outcome::NotApplicable(_)));
        let routes = stale().routing(|routing| routing.by_protocol.push((Family::V4, 12, 3)));
        assert_eq!(findings(&routes).len(), 1);
        let vxlan = Pool {
            name: "default".into(),
            cidr: "10.244.0.0/16".parse().expect("a prefix"),
            ipip: Encapsulation::Never,
            vxlan: Encapsulation::Always,
            disabled: false,
        };
        let map = ClusterMap {
            own: "n1".into(),
            nodes: vec![],
            pools: vec![vxlan],
            full_mesh: None,
            services: vec![],
            typha_port: None,
        };
        let switched = routes.edit(|now| now.cluster = Seen::Yes(map));
        assert!(matches!(run(&switched.look()), Outcome::NotApplicable(_)));
        let ran = switched.remember(|before| _ = before.programs.insert(Program::Bird));
        assert_eq!(findings(&ran).len(), 1);
    }

    #[test]
    fn trap_bird_for_ipv6_without_peers() {
        let second = |had_peers| {
            Node::worker().bgp(move |bgp| {
                let mut six = bgp.daemons[0].clone();
                six.socket = "/var/run/calico/bird6.ctl".into();
                six.family = Family::V6;
                six.had_peers = had_peers;
                six.bird = testing::error("bird6.ctl", Reason::Refused);
                bgp.daemons.push(six);
            })
        };
        assert_eq!(run(&second(false).look()), Outcome::Healthy);
        assert_eq!(findings(&second(true))[0].subject, "/var/run/calico/bird6.ctl");
    }

    #[test]
    fn unknown_when_the_socket_cannot_be_used() {
        for reason in [Reason::Denied, Reason::Malformed, Reason::WrongKind] {
            assert!(matches!(run(&answers(reason).look()), Outcome::Unknown(_)), "{reason:?}");
        }
    }
}
