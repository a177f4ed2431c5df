//! A healthy worker, and ways to break it, for the table tests of the checks.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::super::{Limits, Look, Outcome};
use crate::facts::*;

mod machine;
mod network;
mod packet_filter;

pub(super) use self::machine::*;
pub(super) use self::network::*;
pub(super) use self::packet_filter::*;

/// A node under test.
#[derive(Debug, Clone)]
pub(super) struct Node {
    now: Snapshot,
    before: Remembered,
    expected: Expected,
    limits: Limits,
}

/// What could not be looked at for lack of permission.
pub(super) fn denied<T>(what: &str) -> Seen<T> {
    error(what, Reason::Denied)
}

/// What did not answer.
pub(super) fn timed_out<T>(what: &str) -> Seen<T> {
    Seen::Unreadable(LookError::timed_out(what, 2.0))
}

/// Any error.
pub(super) fn error<T>(what: &str, reason: Reason) -> Seen<T> {
    Seen::Unreadable(LookError::new(what, reason, "for this test"))
}

/// The subjects of findings; fails when there are none.
pub(super) fn subjects(outcome: &Outcome) -> Vec<String> {
    let Outcome::Findings(findings) = outcome else { panic!("findings, not {outcome:?}") };
    findings.iter().map(|finding| finding.subject.clone()).collect()
}

/// The details of findings; fails when there are none.
pub(super) fn details(outcome: &Outcome) -> Vec<String> {
    let Outcome::Findings(findings) = outcome else { panic!("findings, not {outcome:?}") };
    findings.iter().map(|finding| finding.detail.clone()).collect()
}

/// The kubelet and kube-proxy are well, and there is no Felix.
fn health() -> Health {
    let felix = error("127.0.0.1:9099", Reason::Refused);
    Health { kubelet: answers(200), kube_proxy: answers(200), felix, restores_failing: 0 }
}

impl Node {
    /// A worker with kubelet, containerd, a bridge CNI, kube-proxy on nf_tables and one pod. Nothing is wrong with it.
    pub(super) fn worker() -> Self {
        let at = Timestamp::from_second(1_700_000_000).expect("valid");
        let mut now = Snapshot::blank(
            at,
            Identity {
                hostname: "n1".into(),
                boot_id: "b".into(),
                machine_id: "m".into(),
                kernel: "6".into(),
                node_name: Some("n1".into()),
            },
        );
        let process =
            |program, pid| Process { program, pid, state: 'S', started_at: at - SignedDuration::from_hours(1) };
        now.routing = Seen::Yes(routing());
        now.forwarding = Forwarding { ipv4: Seen::Yes(true), ipv6: Seen::Yes(true) };
        now.nftables = no_tables(Backend::Nftables);
        now.legacy = Seen::Absent;
        (now.ip_sets, now.ipvs) = (Seen::Absent, Seen::Absent);
        now.xtables_lock = Seen::Absent;
        now.traffic = traffic();
        now.conntrack = Seen::Yes(Conntrack { count: 10, max: 1_000, ..Conntrack::default() });
        now.cni.files = Seen::Yes(vec![cni_file("10-bridge.conflist", "bridge")]);
        let binary = Binary { path: "/opt/cni/bin/bridge".into(), size: 1, executable: true, unusable: None };
        now.cni.loopback = Seen::Yes(Binary { path: "/opt/cni/bin/loopback".into(), ..binary.clone() });
        now.cni.binaries = BTreeMap::from([("bridge".to_owned(), Seen::Yes(binary))]);
        now.cni.nodename = Seen::Yes("n1".into());
        now.runtime = runtime(at);
        now.debris = Seen::Yes(Debris::default());
        now.store = Seen::Yes(vec![]);
        now.files = Seen::Yes(vec![]);
        now.filesystems = Seen::Yes(vec![root_filesystem()]);
        now.kernel_log = Seen::Yes(KernelLog::default());
        now.memory = Seen::Yes(memory());
        now.strain = strain();
        let found =
            vec![process(Program::Kubelet, 10), process(Program::Containerd, 11), process(Program::KubeProxy, 12)];
        now.processes = Seen::Yes(Processes { found, ..Processes::default() });
        now.kubelet = Seen::Yes(kubelet());
        now.health = health();
        now.control_plane = Seen::Yes(ControlPlanePath {
            server: "https://10.0.0.9:6443".into(),
            kubelet: leg("10.0.0.9:6443", PathEnd::Answered(403)),
            endpoints: vec![],
            service: None,
            cni: vec![],
            host_answers: None,
            peers: vec![],
            kernel_clock: Seen::Absent,
        });
        now.cluster = Seen::Absent;
        now.cluster_dns = Seen::Absent;
        now.registries = Seen::Absent;
        now.bgp = Seen::Absent;
        now.tunnels = Seen::Absent;
        let before = Remembered::default();
        let expected = Expected::of(&now, &before);
        Node { now, before, expected, limits: Limits::default() }.kube_proxy(Backend::Nftables)
    }

    /// A machine that has nothing to do with Kubernetes.
    pub(super) fn plain_machine() -> Self {
        Node::worker().edit(|now| {
            now.kubelet = Seen::Absent;
            now.processes = Seen::Yes(Processes::default());
            now.nftables = no_tables(Backend::Nftables);
            now.runtime = Runtime::absent();
            now.debris = Seen::Absent;
            now.store = Seen::Absent;
            now.files = Seen::Absent;
            now.cni.files = Seen::Absent;
            now.cni.binaries.clear();
            now.control_plane = Seen::Absent;
        })
    }

    /// Changes what was seen.
    pub(super) fn edit(mut self, change: impl FnOnce(&mut Snapshot)) -> Self {
        change(&mut self.now);
        self.expected = Expected::of(&self.now, &self.before);
        self
    }

    /// Changes what was seen earlier.
    pub(super) fn remember(mut self, change: impl FnOnce(&mut Remembered)) -> Self {
        change(&mut self.before);
        self.edit(|_| ())
    }

    /// What a check may see of it.
    pub(super) fn look(&self) -> Look<'_> {
        Look { now: &self.now, before: &self.before, expected: &self.expected, limits: &self.limits }
    }
}

#[test]
fn a_healthy_worker_and_a_plain_machine_raise_nothing() {
    // Made one by one: all at once they are too much for the stack.
    let nodes: [fn() -> Node; 5] = [
        Node::worker,
        Node::plain_machine,
        || Node::worker().calico(Backend::Nftables).without(Program::KubeProxy),
        Node::calico_worker,
        || Node::calico_worker().with_map(|_| ()),
    ];
    for node in nodes {
        let node = node();
        for check in super::ALL {
            let outcome = (check.run)(&node.look());
            assert!(matches!(outcome, Outcome::Healthy | Outcome::NotApplicable(_)), "{}: {outcome:?}", check.code);
        }
    }
}

#[test]
fn everything_is_unknown_or_not_applicable_before_the_first_look() {
    let worker = Node::worker();
    let blank = Snapshot::blank(worker.now.taken_at, worker.now.identity.clone());
    let before = Remembered::default();
    let expected =
        Expected { worker: true, kube_proxy: Some(ProxyMode::Iptables), calico: Some(CalicoDataplane::Iptables) };
    let look = Look { now: &blank, before: &before, expected: &expected, limits: &worker.limits };
    for check in super::ALL {
        let outcome = (check.run)(&look);
        assert!(!matches!(outcome, Outcome::Healthy | Outcome::Findings(_)), "{}: {outcome:?}", check.code);
    }
}
