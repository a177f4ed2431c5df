//! Times in which calico-node failed on a worker, and what was done to it before it was well again (catalogue R118): what cured
//! it tells where to look when it comes back. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize as _;
use serde_json::{Value, json};

use super::{Memory, SAME};
use crate::aggregator::cluster::Cluster;
use crate::aggregator::pods::{App, CalicoPod};
use crate::aggregator::report::place;
use crate::aggregator::row::Row;
use crate::aggregator::small::Time;
use crate::aggregator::surroundings::What;
use crate::verdict::Cure;

/// What comes so soon after another step, in seconds, follows from it: who is installed anew boots, and gets new Pods.
const WITH_IT: i64 = 600;
/// Names of Nodes are DNS subdomains (RFC 1123).
const LONGEST_NAME: usize = 253;

/// A time in which calico-node failed, in seconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Spell {
    /// When it was noticed.
    pub(super) from: i64,
    /// When it was over, unless it still fails.
    pub(super) to: Option<i64>,
    /// What cured it. None while that is not known, and where nobody saw it well again.
    pub(super) cure: Option<Cure>,
}

impl Spell {
    /// It begins.
    pub(super) fn new(from: i64) -> Spell {
        Spell { from, to: None, cure: None }
    }

    pub(super) fn write(&self) -> Value {
        match self.cure {
            None => json!([self.from, self.to]),
            Some(cure) => json!([self.from, self.to, cure]),
        }
    }

    pub(super) fn read(written: &Value) -> Option<Spell> {
        let (from, to) = (written[0].as_i64()?, written[1].as_i64());
        Some(Spell { from, to, cure: Cure::deserialize(&written[2]).ok().filter(|_| to.is_some()) })
    }

    /// From when to when it was, if it is over, and what cured it.
    fn ended(&self) -> Option<(Timestamp, Timestamp, Option<Cure>)> {
        let time = |second| Timestamp::from_second(second).ok();
        Some((time(self.from)?, time(self.to?)?, self.cure))
    }
}

impl Memory {
    /// The times in which calico-node failed in this place (pool and address of a worker), the last at the end.
    fn spells(&self, place: &str) -> &[Spell] {
        self.calico.get(place).map_or(&[], Vec::as_slice)
    }

    /// The same that are over: from when to when, and what cured it.
    pub(crate) fn ended<'a>(
        &'a self,
        place: &str,
    ) -> impl Iterator<Item = (Timestamp, Timestamp, Option<Cure>)> + use<'a> {
        self.spells(place).iter().filter_map(Spell::ended)
    }

    /// What cured it there the last time that is known.
    pub(crate) fn last_cure(&self, place: &str) -> Option<Cure> {
        self.spells(place).iter().rev().find_map(|spell| spell.cure)
    }

    /// That is what cured it there now.
    pub(crate) fn cured(&mut self, place: &str, cure: Cure) {
        if let Some(last) = self.calico.get_mut(place).and_then(|all| all.last_mut()) {
            last.cure = Some(cure);
        }
    }

    /// The last time in each place, where it is over for too short to have ended for good and its cure is not known yet.
    fn uncured(&self, now: Timestamp) -> BTreeMap<String, i64> {
        let young = |spell: &&Spell| {
            spell.cure.is_none() && spell.to.is_some_and(|to| now.as_second().saturating_sub(to) <= SAME)
        };
        let last = self.calico.iter().filter_map(|(place, all)| Some((place, all.last().filter(young)?)));
        last.map(|(place, spell)| (place.to_string(), spell.from)).collect()
    }
}

/// Finds out what cured it where calico-node is Ready again. That it is not told any more is no cure: somebody may have cordoned
/// the worker, or something deeper may be wrong there by now.
pub(super) fn find_cures(cluster: &mut Cluster, now: Timestamp) {
    let open = cluster.memory.uncured(now);
    if open.is_empty() {
        return;
    }
    let pods = cluster.surroundings.calico_pods().filter(|pod| pod.ready);
    let pods: BTreeMap<&str, &CalicoPod> = pods.map(|pod| (&*pod.node, pod)).collect();
    let over = |(name, row): (&str, &Row)| {
        let place = place(name, row);
        let by = cure(*open.get(&place)?, row, pods.get(name)?);
        Some((place, by))
    };
    let all: Vec<(String, Cure)> = cluster.nodes().filter_map(over).collect();
    for (place, by) in all {
        cluster.memory.cured(&place, by);
    }
}

/// The last step that was taken since then, as far as it left a trace.
fn cure(from: i64, row: &Row, pod: &CalicoPod) -> Cure {
    let since = |time: Time| time.get().map(Timestamp::as_second).filter(|at| *at > from);
    let steps = [
        (Cure::Reload, since(row.created).max(since(row.reloaded))),
        (Cure::Reboot, since(row.rebooted)),
        (Cure::ProcessRestart, since(pod.created)),
    ];
    let is_last = |at: i64| steps.iter().filter_map(|(_, other)| *other).all(|other| other <= at + WITH_IT);
    let last = steps.iter().find(|(_, at)| at.is_some_and(is_last));
    last.map_or(Cure::Nothing, |(cure, _)| *cure)
}

/// How calico-kube-controllers was cured, after its Pods on one or several workers had not come up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ControllersCured {
    /// When it had been Ready for long enough, in seconds since the epoch.
    pub(super) at: i64,
    /// Where it did not come up last.
    pub(crate) from: Box<str>,
    /// Where it did: on the same worker a new Pod was enough.
    pub(crate) to: Box<str>,
}

impl ControllersCured {
    /// When.
    pub(crate) fn at(&self) -> Option<Timestamp> {
        Timestamp::from_second(self.at).ok()
    }

    pub(super) fn write(&self) -> Value {
        json!([self.at, self.from, self.to])
    }

    pub(super) fn read(written: &Value) -> Option<ControllersCured> {
        let name = |at: usize| Some(Box::from(written[at].as_str().filter(|name| name.len() <= LONGEST_NAME)?));
        Some(ControllersCured { at: written[0].as_i64()?, from: name(1)?, to: name(2)? })
    }
}

/// Finds out whether calico-kube-controllers is well again after it was tried in vain elsewhere, or before.
pub(super) fn find_controllers_cure(cluster: &mut Cluster, now: Timestamp) {
    let around = &cluster.surroundings;
    let Some((from, tried)) = around.tried.last().filter(|_| around.is_clear(What::CalicoPods)) else { return };
    let known = cluster.memory.controllers.as_ref().is_some_and(|known| known.at >= tried.as_second());
    let well = around.pods(App::Controllers).find(|pod| pod.well_until(cluster.limits(), now));
    if let Some(pod) = well.filter(|_| !known) {
        let cured = ControllersCured { at: now.as_second(), from: from.clone(), to: Box::from(&*pod.node) };
        cluster.memory.controllers = Some(cured);
        cluster.revision += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregator::object::ObjectView;
    use crate::aggregator::report::failing_calico;
    use crate::aggregator::testing::{apply, at, cluster, node};
    use crate::aggregator::watch::Change;

    const LONG_AGO: i64 = -86_400;

    /// What has happened to a Pod.
    type Comes = fn(ObjectView) -> Change<ObjectView>;

    fn calico(cluster: &mut Cluster, change: Comes, name: &str, made: i64, ready: bool, since: i64) {
        let pod = json!({
            "metadata": {"name": name, "namespace": "kube-system", "creationTimestamp": at(made), "labels": {"k8s-app": "calico-node"}},
            "spec": {"nodeName": "n1"},
            "status": {"conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": at(since)}]}});
        let pod = serde_json::from_value(pod).expect("a Pod");
        cluster.surroundings.take(What::CalicoPods, change(pod), at(since));
    }

    fn worker(made: i64, boot: &str, installed: &str) -> Value {
        let mut node = node("n1", "a", "p", "Normal", &[]);
        node["metadata"]["creationTimestamp"] = json!(at(made));
        node["status"]["nodeInfo"] = json!({"bootID": boot, "machineID": installed});
        node["status"]["addresses"] = json!([{"type": "InternalIP", "address": "10.0.0.1"}]);
        node
    }

    /// calico-node has failed on one of several workers since the beginning.
    fn failing() -> Cluster {
        let others: Vec<Value> = (2..8).map(|number| node(&format!("n{number}"), "a", "p", "Normal", &[])).collect();
        let mut cluster = cluster(&others, &[]);
        apply(&mut cluster, &worker(LONG_AGO, "b", "m"));
        cluster.surroundings.take(What::CalicoPods, Change::ListBegins, at(LONG_AGO));
        calico(&mut cluster, Change::Here, "old", LONG_AGO, false, -300);
        cluster.surroundings.take(What::CalicoPods, Change::ListEnds, at(LONG_AGO));
        round(&mut cluster, 0);
        cluster
    }

    fn round(cluster: &mut Cluster, second: i64) {
        let failing = failing_calico(cluster, at(second)).expect("it is seen");
        let places: Vec<String> =
            failing.iter().map(|name| place(name, cluster.node(name).expect("it is there"))).collect();
        cluster.memory.note(&places.iter().map(String::as_str).collect::<Vec<_>>(), at(second));
        find_cures(cluster, at(second));
    }

    fn cured(cluster: &Cluster) -> Option<Cure> {
        cluster.memory.last_cure("p/10.0.0.1")
    }

    /// Its Pod is deleted then, and the new one is Ready after half a minute.
    fn new_pod(cluster: &mut Cluster, second: i64) {
        calico(cluster, Change::Gone, "old", LONG_AGO, false, second);
        calico(cluster, Change::Here, "new", second, false, second);
        round(cluster, second + 5);
        assert_eq!(cured(cluster), None, "it is not well yet");
        calico(cluster, Change::Here, "new", second, true, second + 30);
        round(cluster, second + 40);
    }

    #[test]
    fn the_last_step_that_was_taken_is_what_cured_it() {
        type Steps = fn(&mut Cluster);
        let well: Steps = |cluster| calico(cluster, Change::Here, "old", LONG_AGO, true, 5_000);
        let boots: Steps = |cluster| apply_at(cluster, &worker(LONG_AGO, "other", "m"), 4_900);
        let reloaded: Steps = |cluster| apply_at(cluster, &worker(LONG_AGO, "other", "new"), 4_900);
        for (steps, expected) in [
            (&[well][..], Cure::Nothing),
            (&[boots, well], Cure::Reboot),
            (&[reloaded, well], Cure::Reload),
            // Its Pod was made anew with the boot, or long after it, when that had not helped.
            (&[boots, |cluster| new_pod(cluster, 5_000)], Cure::Reboot),
            (&[boots, |cluster| new_pod(cluster, 6_000)], Cure::ProcessRestart),
            (&[|cluster| new_pod(cluster, 5_000)], Cure::ProcessRestart),
            (
                &[
                    |cluster| cluster.remove_node("n1", at(4_000)),
                    |cluster| apply_at(cluster, &worker(4_900, "x", "y"), 4_900),
                    |cluster| new_pod(cluster, 5_000),
                ],
                Cure::Reload,
            ),
        ] {
            let mut cluster = failing();
            assert_eq!(cured(&cluster), None);
            for step in steps {
                step(&mut cluster);
            }
            round(&mut cluster, 7_000);
            assert_eq!(cured(&cluster), Some(expected), "{:?}", cluster.memory.spells("p/10.0.0.1"));
        }
    }

    fn apply_at(cluster: &mut Cluster, node: &Value, second: i64) {
        cluster.apply_node(&serde_json::from_value(node.clone()).expect("a node"), at(second));
    }

    #[test]
    fn what_is_not_told_any_more_is_not_cured() {
        let mut cluster = failing();
        let mut silent = worker(LONG_AGO, "b", "m");
        silent["status"]["conditions"][0]["status"] = "Unknown".into();
        apply_at(&mut cluster, &silent, 100);
        round(&mut cluster, 120);
        let spell = cluster.memory.spells("p/10.0.0.1")[0];
        assert_eq!(
            (spell.to, spell.cure),
            (Some(at(120).as_second()), None),
            "its kubelet is silent: that is another fault"
        );
        // What comes back at once was not cured by what came between.
        new_pod(&mut cluster, 200);
        assert_eq!(cured(&cluster), Some(Cure::ProcessRestart));
        apply_at(&mut cluster, &worker(LONG_AGO, "b", "m"), 250);
        calico(&mut cluster, Change::Here, "new", 200, false, 260);
        round(&mut cluster, 400);
        assert_eq!((cured(&cluster), cluster.memory.spells("p/10.0.0.1").len()), (None, 1));
        // Well for long, it is not asked any more what cured it.
        apply_at(&mut cluster, &silent, 500);
        round(&mut cluster, 510);
        calico(&mut cluster, Change::Here, "new", 200, true, 510 + SAME);
        round(&mut cluster, 511 + SAME);
        assert_eq!(cured(&cluster), None);
    }

    #[test]
    fn it_is_read_back_as_it_was_written_and_damage_costs_itself() {
        let spell = Spell { from: 5, to: Some(9), cure: Some(Cure::Reboot) };
        assert_eq!(Spell::read(&spell.write()), Some(spell));
        assert_eq!(Spell::read(&Spell::new(5).write()), Some(Spell::new(5)));
        let bare = Spell { cure: None, ..spell };
        for written in [json!([5, 9]), json!([5, 9, "magic"]), json!([5, 9, 7])] {
            assert_eq!(Spell::read(&written), Some(bare), "as it was written before, or by nobody");
        }
        assert_eq!(Spell::read(&json!([5, null, "reboot"])), Some(Spell::new(5)), "what goes on was not cured");
        assert_eq!(Spell::read(&json!(["x"])), None);
    }

    /// A Pod of calico-kube-controllers came, or went.
    fn controllers(cluster: &mut Cluster, name: &str, node: &str, ready: bool, since: i64, gone: bool) {
        let pod = json!({
            "metadata": {"name": name, "namespace": "kube-system", "creationTimestamp": at(since), "labels": {"k8s-app": "calico-kube-controllers"}},
            "spec": {"nodeName": node},
            "status": {"conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": at(since)}]}});
        let pod = serde_json::from_value(pod).expect("a Pod");
        cluster.surroundings.take(
            What::CalicoPods,
            if gone { Change::Gone(pod) } else { Change::Here(pod) },
            at(since),
        );
    }

    #[test]
    fn a_move_and_a_new_pod_of_the_controllers_are_remembered_once_it_is_well() {
        for to in ["n2", "n1"] {
            let mut cluster = failing();
            controllers(&mut cluster, "kc-1", "n1", false, 0, false);
            controllers(&mut cluster, "kc-1", "n1", false, 10, true);
            controllers(&mut cluster, "kc-2", to, true, 20, false);
            find_controllers_cure(&mut cluster, at(100));
            assert_eq!(cluster.memory.controllers, None, "it has just come up");
            for second in [200, 300] {
                find_controllers_cure(&mut cluster, at(second));
            }
            let cured = ControllersCured { at: at(200).as_second(), from: "n1".into(), to: to.into() };
            assert_eq!(cluster.memory.controllers.as_ref(), Some(&cured), "since it was well first");
            let mut after = Memory::default();
            after.read(&cluster.memory.write());
            assert_eq!(after.controllers, Some(cured.clone()));
            after.read(&json!({"controllers": [cured.at + 9, "n1"]}));
            assert_eq!(after.controllers, Some(cured), "damage costs itself");
            after.forget(at(200).as_second() + super::super::LONGEST + 1);
            assert_eq!(after.controllers, None);
        }
        // One that was always well, and one that is not seen.
        let mut cluster = failing();
        controllers(&mut cluster, "kc-1", "n1", true, 0, false);
        find_controllers_cure(&mut cluster, at(200));
        assert_eq!(cluster.memory.controllers, None);
        let mut lost = failing();
        controllers(&mut lost, "kc-1", "n1", false, 0, false);
        controllers(&mut lost, "kc-1", "n1", false, 10, true);
        controllers(&mut lost, "kc-2", "n2", true, 20, false);
        lost.surroundings.take(What::CalicoPods, Change::Lost("refused".to_owned()), at(30));
        find_controllers_cure(&mut lost, at(200));
        assert_eq!(lost.memory.controllers, None);
    }
}
