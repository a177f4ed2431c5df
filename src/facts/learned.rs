//! What it took hours to learn of this node, so that a process of the agent that is started anew does not begin with nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{CallLatency, ClusterDns, Debris, Processes, Program, Reader, Registry, Replay, Runtime, Seen, Starts};

/// Numbers by name, which only their source understands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Memo(pub BTreeMap<String, Vec<u64>>);

/// What looks have shown over hours and days. It is kept beside what was told, and changes seldom.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Learned {
    /// Registries of images that were reached.
    pub registries: BTreeSet<String>,
    /// Ways to the cluster's DNS on which an answer came from another node ([`ClusterDns::way`]).
    pub dns: BTreeSet<String>,
    /// Starts of the kubelet in this boot.
    pub kubelet_starts: Starts,
    /// How long each CRI call usually takes, in milliseconds; and its last two windows where they are slow, with the processes of
    /// the runtime at that time.
    pub latency: Memo,
    /// What the source of debris goes on from, in this boot.
    pub debris: Memo,
}

impl Learned {
    /// What of it holds in another boot: processes, cgroups and mounts have begun anew.
    #[must_use]
    pub fn after_boot(mut self) -> Self {
        self.forget_slowness();
        Learned { kubelet_starts: Starts::default(), debris: Memo::default(), ..self }
    }

    /// Takes in what is known now. What could not be looked at stays.
    pub fn update(
        &mut self,
        registries: &Seen<Vec<Registry>>,
        runtime: &Runtime,
        processes: &Seen<Processes>,
        debris: &Seen<Debris>,
        kubelet_starts: &Starts,
    ) {
        if let Some(registries) = registries.get() {
            self.registries = registries.iter().filter(|it| it.reached).map(|it| it.name.clone()).collect();
        }
        for call in &runtime.latency {
            self.take_latency(call, processes.get());
        }
        if runtime.latency.is_empty() && runtime.status.get().is_some() {
            // Another process answers: that the one before was slow says nothing of it.
            self.forget_slowness();
        }
        if let Some(debris) = debris.get()
            && self.debris != debris.memo
        {
            self.debris.clone_from(&debris.memo);
        }
        if self.kubelet_starts != *kubelet_starts {
            self.kubelet_starts.clone_from(kubelet_starts);
        }
    }

    /// Takes in which ways to the cluster's DNS were reached.
    pub fn take_dns(&mut self, dns: &Seen<ClusterDns>) {
        if let Some(dns) = dns.get() {
            self.dns = dns.reached().collect();
        }
    }

    fn forget_slowness(&mut self) {
        self.latency.0.values_mut().for_each(|numbers| numbers.truncate(1));
    }

    /// What moved by no more than a tenth, or 4 ms, is no news for the disk.
    fn take_latency(&mut self, call: &CallLatency, processes: Option<&Processes>) {
        let slow = call.lasts();
        let known = self.latency.0.get(call.call).map_or(&[][..], Vec::as_slice);
        let usual = u64::from(call.usual.unwrap_or(0));
        let near = known.first().is_some_and(|known| usual.abs_diff(*known) <= (known / 10).max(4));
        if near && slow == (known.len() > 1) || usual == 0 && !slow && known.is_empty() {
            return;
        }
        let mut numbers = vec![usual];
        if slow {
            numbers.extend([u64::from(call.now), u64::from(call.before)]);
            let found = processes.map_or(&[][..], |processes| processes.found.as_slice());
            let runtimes = found.iter().filter(|it| matches!(it.program, Program::Containerd | Program::Crio));
            numbers.extend(runtimes.filter_map(|it| u64::try_from(it.pid).ok()));
        }
        self.latency.0.insert(call.call.to_owned(), numbers);
    }
}

/// A bundle is judged by itself: what its agent would have gone on from is in its findings.
impl Replay for Learned {
    fn replay(_: &mut Reader<'_>) -> Self {
        Learned::default()
    }
}

impl Replay for Memo {
    fn replay(_: &mut Reader<'_>) -> Self {
        Memo::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{DnsWay, Process, RuntimeStatus};

    fn call(now: u32, before: u32, usual: Option<u32>) -> CallLatency {
        CallLatency { call: "Status", now, before, usual }
    }

    fn after(learned: &mut Learned, call: CallLatency) -> Vec<u64> {
        let runtime = Runtime { latency: vec![call], ..Runtime::absent() };
        let process = |program, pid| Process { program, pid, state: 'S', started_at: jiff::Timestamp::UNIX_EPOCH };
        let found = vec![process(Program::Kubelet, 6), process(Program::Containerd, 7)];
        let processes = Seen::Yes(Processes { found, ..Processes::default() });
        learned.update(&Seen::Absent, &runtime, &processes, &Seen::Absent, &Starts::default());
        learned.latency.0.get("Status").cloned().unwrap_or_default()
    }

    #[test]
    fn what_is_usual_is_kept_and_small_changes_of_it_are_no_news() {
        let mut learned = Learned::default();
        assert_eq!(after(&mut learned, call(9, 9, None)), [0; 0]);
        assert_eq!(after(&mut learned, call(9, 9, Some(40))), [40]);
        assert_eq!(after(&mut learned, call(9, 9, Some(44))), [40]);
        assert_eq!(after(&mut learned, call(9, 9, Some(45))), [45]);
        assert_eq!(after(&mut learned, call(2000, 1500, Some(45))), [45, 2000, 1500, 7]);
        assert_eq!(after(&mut learned, call(2500, 1900, Some(45))), [45, 2000, 1500, 7], "slow already");
        assert_eq!(after(&mut learned, call(50, 1900, Some(45))), [45]);
        let mut young = Learned::default();
        assert_eq!(after(&mut young, call(2000, 1500, None)), [0, 2000, 1500, 7]);
        let error = crate::facts::LookError::timed_out("CRI", 2.0);
        let mut sees = |runtime: &Runtime| {
            young.update(&Seen::Absent, runtime, &Seen::Absent, &Seen::Absent, &Starts::default());
            young.latency.0["Status"].clone()
        };
        assert_eq!(sees(&Runtime::silent(Seen::Absent, error)), [0, 2000, 1500, 7], "it does not answer");
        let status = RuntimeStatus {
            name: "containerd".into(),
            version: "2".into(),
            conditions: Vec::new(),
            cni_dirs: None,
            cni_loopback: false,
            cni_load: None,
        };
        let another = Runtime { status: Seen::Yes(status), ..Runtime::absent() };
        assert_eq!(sees(&another), [0], "another process does");
    }

    #[test]
    fn what_cannot_be_looked_at_stays() {
        let registry = |reached| Registry { name: "icr.io".into(), ways: Vec::new(), reached, unused: false };
        let debris = Debris { memo: Memo([("mounts".to_owned(), vec![1, 2])].into()), ..Debris::default() };
        let mut starts = Starts::default();
        starts.take(7, "2026-11-21T10:00:00Z".parse().expect("a time"));
        let mut learned = Learned::default();
        let none = Runtime::absent();
        let way =
            |protocol: &str, reached| DnsWay { protocol: protocol.to_owned(), fault: None, failed: false, reached };
        let ways = vec![way("UDP", true), way("TCP", false)];
        let dns = ClusterDns { address: [10, 96, 0, 10].into(), ways, own_pod: false };
        learned.update(&Seen::Yes(vec![registry(true)]), &none, &Seen::Absent, &Seen::Yes(debris.clone()), &starts);
        learned.take_dns(&Seen::Yes(dns));
        assert_eq!((learned.registries.len(), &learned.debris, &learned.kubelet_starts), (1, &debris.memo, &starts));
        assert_eq!(learned.dns, ["UDP 10.96.0.10".to_owned()].into());
        let before = learned.clone();
        learned.update(&Seen::not_yet("registries"), &none, &Seen::Absent, &Seen::Absent, &starts);
        learned.take_dns(&Seen::not_yet("DNS"));
        assert_eq!(learned, before);
        learned.update(&Seen::Yes(vec![registry(false)]), &none, &Seen::Absent, &Seen::Absent, &starts);
        assert!(learned.registries.is_empty(), "no image is from there any more");
    }

    #[test]
    fn another_boot_begins_anew_with_what_belongs_to_one() {
        let mut learned = Learned { registries: ["icr.io".to_owned()].into(), ..Learned::default() };
        learned.kubelet_starts.take(7, "2026-11-21T10:00:00Z".parse().expect("a time"));
        learned.latency.0.insert("Status".into(), vec![40, 900, 800, 7]);
        learned.debris.0.insert("mounts".into(), vec![1]);
        let then = learned.clone().after_boot();
        assert_eq!(then.registries, learned.registries);
        assert_eq!(then.latency.0["Status"], [40], "who was slow is gone");
        assert_eq!((then.kubelet_starts, then.debris), (Starts::default(), Memo::default()));
    }
}
