//! One destination of this node's own connections holds nearly all local ports.
//!
//! *Looks at* the local ports in use per destination (source, destination, port) against
//! `net.ipv4.ip_local_port_range`. *Traps*: ports are counted anew for every destination, so that many connections to many
//! destinations are fine; reserved ports are not chosen; TIME_WAIT holds a port unless the kernel uses it again
//! (`tcp_tw_reuse`); pods have ports of their own, their network namespaces are not looked at (catalogue R039).

use std::net::SocketAddr;
use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use crate::facts::{Destination, MINUTES};

pub(super) const CHECK: Check = Check {
    code: "EphemeralPortsNearFull",
    area: Area::PacketFilter,
    severity: Severity::Warning,
    why: "when none is left this node's next connection to that destination fails with EADDRNOTAVAIL, which looks like a fault of the destination",
    next_step: "find who connects there (`ss -tnp dst ADDRESS`) and let it reuse its connections; a wider `net.ipv4.ip_local_port_range` or `net.ipv4.tcp_tw_reuse=1` buys time",
    raise_after: Duration::from_secs(5),
    clear_after: Duration::from_secs(30),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let sockets = seen!(look.now.traffic.sockets, Outcome::NotApplicable("there is no TCP here".into()));
    let percent = u64::from(look.limits.ephemeral_ports_percent);
    let near = |it: &&Destination| u64::from(it.sockets) * 100 >= u64::from(sockets.ports) * percent;
    let findings = sockets.busiest.iter().filter(near).map(|it| {
        let to = SocketAddr::new(it.destination, it.port);
        let subject = format!("{} to {to}", it.source);
        let waiting = if it.time_wait > 0 { format!(", {} of them in TIME_WAIT", it.time_wait) } else { String::new() };
        let detail = format!(
            "Connections from {subject} hold {} of {} local ports{waiting}{}",
            it.sockets,
            sockets.ports,
            syn_retransmits(look)
        );
        Finding::new(subject, detail)
    });
    Outcome::from_findings(findings.collect())
}

/// What the kernel's count of SYNs that were sent again adds to a detail: connections that were not answered.
pub(super) fn syn_retransmits(look: &Look<'_>) -> String {
    match look.now.traffic.sockets.get().map_or(0, |sockets| sockets.syn_retransmits_since) {
        0 => String::new(),
        count => format!(", and {count} SYNs were sent again in the last {MINUTES} minutes"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{Seen, Sockets};

    fn with(sockets: u32) -> Node {
        Node::worker().edit(|now| {
            let destination = |last: u8, sockets| Destination {
                source: "10.0.0.5".parse().expect("an address"),
                destination: [10, 0, 0, last].into(),
                port: 443,
                sockets,
                time_wait: sockets / 2,
            };
            let busiest = vec![destination(9, sockets), destination(8, 100)];
            now.traffic.sockets = Seen::Yes(Sockets { ports: 1_000, in_use: 5_000, busiest, ..Sockets::default() });
        })
    }

    #[test]
    fn one_destination_holds_nearly_all() {
        let node = with(800).edit(|now| {
            let Seen::Yes(sockets) = &mut now.traffic.sockets else { panic!("seen") };
            sockets.syn_retransmits_since = 9;
        });
        let outcome = run(&node.look());
        assert_eq!(testing::subjects(&outcome), ["10.0.0.5 to 10.0.0.9:443"]);
        let detail = &testing::details(&outcome)[0];
        assert!(detail.contains("800 of 1000 local ports, 400 of them in TIME_WAIT, and 9 SYNs"), "{detail}");
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&with(799).look()), Outcome::Healthy);
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_many_connections_to_many_destinations() {
        let node = with(100);
        assert_eq!(node.look().now.traffic.sockets.get().map(|sockets| sockets.in_use), Some(5_000));
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn unknown_when_it_cannot_be_counted() {
        let node = Node::worker().edit(|now| now.traffic.sockets = testing::denied("socket dump"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
