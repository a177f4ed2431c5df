//! The pure middle of the agent: updates go in, verdicts come out.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use super::observe::Update;
use crate::checks::{self, Limits, Look};
use crate::config::Config;
use crate::facts::{Expected, Identity, Past, Remembered, Sandbox, Seen, Snapshot, Writes};
use crate::verdict::{Around, Beliefs, Episodes, Now, Patience, Raised, Settling, Status, Verdict, WorkerState};

/// What the agent knows and believes about its node.
#[derive(Debug)]
pub(crate) struct Judge {
    snapshot: Snapshot,
    remembered: Remembered,
    beliefs: Beliefs,
    limits: Limits,
    patience: Patience,
    seen: [bool; Update::KINDS],
    nodes: usize,
}

/// A verdict, with everything that it rests on.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// What is believed.
    pub(crate) verdict: Verdict,
    /// What should be on this node.
    pub(crate) expected: Expected,
    /// What was seen.
    pub(crate) snapshot: Snapshot,
}

impl Judge {
    /// A judge that has seen nothing.
    pub(crate) fn new(identity: Identity, config: &Config, now: Now) -> Self {
        Judge {
            snapshot: Snapshot::blank(now.wall, identity),
            remembered: Remembered::default(),
            beliefs: Beliefs::default().with_patience(config.patience()),
            limits: config.limits.clone(),
            patience: config.patience(),
            seen: [false; Update::KINDS],
            nodes: 0,
        }
    }

    /// Goes on from what an earlier process of this agent wrote on the Node.
    pub(crate) fn restore(
        &mut self,
        findings: &[Raised],
        conditions: &BTreeMap<String, (Status, Timestamp)>,
        state: Option<(WorkerState, Timestamp)>,
        episodes: Episodes,
        now: Now,
    ) {
        self.beliefs = Beliefs::restore(checks::node::ALL, findings, conditions, state, now)
            .with_patience(self.patience.clone())
            .with_episodes(episodes);
    }

    /// Takes in all that somebody saw.
    pub(crate) fn take_all(&mut self, snapshot: Snapshot) {
        self.snapshot = snapshot;
    }

    /// Leaves a node that has just booted or joined its time.
    pub(crate) fn settle(&mut self, joined: Option<Timestamp>, now: Now) {
        self.beliefs.settle(Settling::of(self.patience.settling, joined, now));
    }

    /// Takes in what became of the agent's own writes.
    pub(crate) fn take_writes(&mut self, writes: Seen<Writes>) {
        if let (Seen::Yes(past), Some(writes)) = (&mut self.snapshot.past, writes.get()) {
            past.registered(writes.cordoned, writes.registered_at);
        }
        self.snapshot.writes = writes;
    }

    /// Takes in what is known from before.
    pub(crate) fn take_past(&mut self, mut past: Past) {
        past.learned.kubelet_starts.forget_future(self.snapshot.taken_at);
        self.remembered.kubelet_starts.clone_from(&past.learned.kubelet_starts);
        self.snapshot.past = Seen::Yes(past);
    }

    /// This process was stopped or the machine suspended.
    pub(crate) fn was_away(&mut self, now: Now) {
        self.beliefs.was_away(now);
    }

    /// Takes over what an earlier process of this boot must have seen, from the findings that it raised: chains that are
    /// missed have been there.
    pub(crate) fn remember(&mut self, findings: &[Raised]) {
        self.remembered.restore(findings.iter().map(|finding| (finding.code.as_str(), finding.subject.as_str())));
    }

    /// Takes an update in; answers whether it changed anything.
    pub(crate) fn take(&mut self, update: Update) -> bool {
        let first = !std::mem::replace(&mut self.seen[update.kind()], true);
        let changed = update.apply(&mut self.snapshot);
        // The map may be lost in the moment in which all have something to write.
        self.nodes = self.snapshot.cluster.get().map_or(self.nodes, |map| map.nodes.len());
        changed || first
    }

    /// How many nodes the cluster had when that was last known; 0 before.
    pub(crate) fn nodes(&self) -> usize {
        self.nodes
    }

    /// Whether every source has looked at least once.
    pub(crate) fn complete(&self) -> bool {
        self.seen.iter().all(|seen| *seen)
    }

    /// Whether the sources have what they need from each other: the routes of all pods, the files of the runtime's own CNI
    /// directory and the kubelet's way to its control plane have been looked at.
    pub(crate) fn settled(&self) -> bool {
        let Snapshot { runtime, routing, cni, kubelet, control_plane, .. } = &self.snapshot;
        let own = |sandbox: &&Sandbox| sandbox.host_network == Some(false) && !sandbox.addresses.is_empty();
        let mut pods = runtime.sandboxes.get().into_iter().flatten().filter(own);
        let routed = routing.get().is_none_or(|routing| pods.all(|pod| routing.pods.contains_key(&pod.id)));
        let dirs = runtime.status.get().and_then(|status| status.cni_dirs.as_ref());
        let walked = kubelet.get().is_none_or(|it| it.server.is_none()) || *control_plane != Seen::Absent;
        routed && walked && dirs.is_none_or(|(conf_dir, _)| *conf_dir == cni.conf_dir)
    }

    /// Judges what is known now.
    pub(crate) fn judge(&mut self, now: Now) -> Verdict {
        (self.snapshot.taken_at, self.snapshot.up_for) = (now.wall, now.since_boot);
        self.judge_as_seen(now)
    }

    /// Judges what was seen before; only what is believed of it goes on to this time.
    pub(crate) fn judge_as_seen(&mut self, now: Now) -> Verdict {
        let expected = self.expected();
        self.beliefs.look_around(Around::of(&self.snapshot));
        let look = Look { now: &self.snapshot, before: &self.remembered, expected: &expected, limits: &self.limits };
        let answers = checks::run_all(&look);
        let verdict = self.beliefs.step(&answers, now);
        self.remembered.update(&self.snapshot);
        if let Seen::Yes(past) = &mut self.snapshot.past
            && self.snapshot.up_for > checks::node::REBOOT_STANDS
            && !verdict.findings.iter().chain(&verdict.pending).any(|it| it.code == checks::node::UNCLEAN_REBOOT)
        {
            // Damage that comes later has another cause.
            past.boot = None;
        }
        let Snapshot { past, registries, cluster_dns, runtime, processes, debris, .. } = &mut self.snapshot;
        if let Seen::Yes(past) = past {
            past.learned.update(registries, runtime, processes, debris, &self.remembered.kubelet_starts);
            past.learned.take_dns(cluster_dns);
        }
        verdict
    }

    /// A verdict with everything that it rests on.
    pub(crate) fn report(&self, verdict: Verdict) -> Report {
        Report { verdict, expected: self.expected(), snapshot: self.snapshot.clone() }
    }

    /// The journal of episodes.
    pub(crate) fn episodes(&self) -> &Episodes {
        self.beliefs.episodes()
    }

    /// What was seen.
    pub(crate) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    fn expected(&self) -> Expected {
        Expected::of(&self.snapshot, &self.remembered)
    }
}
