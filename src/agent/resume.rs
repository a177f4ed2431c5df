//! Goes on from what an earlier process of the agent told and kept.

use super::Judge;
use super::publish::{Kept, NodeNow};
use crate::checks::{self, WORKER_PROBLEM};
use crate::clock::now;
use crate::verdict::{self, Around, Episodes, NodeCondition, Status, annotation};

/// Goes on from what was told last: by the state file, which is written first, unless the Node was told something later
/// than that, as happens when the disk takes no writes.
pub(super) fn restore(judge: &mut Judge, node: Option<&NodeNow>, kept: Option<Kept>) {
    let boot_id = judge.snapshot().identity.boot_id.clone();
    let told_at = node.and_then(|node| {
        let ours = node.conditions.values().filter(|it| it.reason != verdict::AGENT_STALE);
        ours.filter_map(|it| it.last_transition_time).max()
    });
    let episodes = match (&kept, node) {
        (Some(kept), _) => kept.episodes.clone(),
        // The file is damaged, of a newer version, or its disk is gone.
        (None, Some(node)) => told_journal(node),
        (None, None) => Episodes::default(),
    };
    let kept = kept.filter(|kept| told_at.is_none_or(|told_at| told_at <= kept.saved_at));
    let told = match (kept, node) {
        (Some(kept), _) => Some((kept.boot_id, kept.findings, kept.conditions, Some((kept.state, kept.since)))),
        (None, Some(node)) => {
            let told = |key: &str| node.annotations.get(key);
            let findings = told(annotation::FINDINGS).map(|json| verdict::parse_findings(json));
            let boot_id = told(annotation::BOOT_ID).cloned().unwrap_or_default();
            let conditions = node.conditions.values().cloned().collect();
            Some((boot_id, findings.unwrap_or_default(), conditions, verdict::parse_state(&node.annotations)))
        }
        (None, None) => None,
    };
    let mut settled = false;
    if let Some((told_in, findings, conditions, state)) = told {
        // An earlier process of this boot has come to a verdict: there is nothing to wait for any more.
        let known = |it: &NodeCondition| it.status != Status::Unknown || it.reason == verdict::AGENT_STALE;
        settled = told_in == boot_id && conditions.iter().any(|it| it.kind == WORKER_PROBLEM && known(it));
        let times = conditions.into_iter().filter_map(|it| Some((it.kind, (it.status, it.last_transition_time?))));
        judge.restore(&findings, &times.collect(), state, episodes, now());
        if told_in == boot_id {
            judge.remember(&findings);
        }
    }
    if !settled {
        judge.settle(node.and_then(|node| node.created), now());
    }
}

/// The journal as far as the Node tells it.
fn told_journal(node: &NodeNow) -> Episodes {
    let text = |key| node.annotations.get(key).cloned().unwrap_or_default();
    let counted = verdict::parse_findings(&text(annotation::FINDINGS));
    let began_in = Around::told(text(annotation::BOOT_ID), text(annotation::MACHINE_ID));
    Episodes::told(&text(annotation::EPISODES), &counted, &began_in, checks::node::ALL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::observe::Update;
    use crate::checks::Area;
    use crate::config::Config;
    use crate::facts::{Identity, Past, Process, Processes, Program, Seen, Snapshot};
    use crate::verdict::{Cure, Now, Verdict, told};
    use jiff::Timestamp;
    use std::time::Duration;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).expect("valid")
    }

    fn judge() -> Judge {
        judge_in("b")
    }

    /// In this boot.
    fn judge_in(boot: &str) -> Judge {
        let identity = Identity {
            hostname: "n1".into(),
            boot_id: boot.into(),
            machine_id: "m".into(),
            kernel: "6".into(),
            node_name: None,
        };
        Judge::new(identity, &Config::default(), now())
    }

    /// What a Node says on which `DiskFull` has been told since then.
    fn node(since: i64) -> NodeNow {
        let finding = serde_json::json!([{
            "code": "DiskFull", "severity": "critical", "area": "capacity", "subject": "/", "since": at(since),
            "detail": "d", "next": "n",
        }]);
        let condition = NodeCondition {
            kind: "CapacityProblem".into(),
            status: Status::True,
            reason: "DiskFull".into(),
            message: "m".into(),
            last_transition_time: Some(at(since)),
        };
        let annotations = [
            (annotation::FINDINGS, finding.to_string()),
            (annotation::STATE, "Critical".into()),
            (annotation::SINCE, at(since).to_string()),
            (annotation::BOOT_ID, "b".into()),
        ];
        NodeNow {
            conditions: [(condition.kind.clone(), condition)].into(),
            annotations: annotations.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
            ..NodeNow::default()
        }
    }

    /// What a process kept that has told the same, and wrote it down then.
    fn kept(since: i64, saved: i64) -> Kept {
        let mut judge = judge();
        restore(&mut judge, Some(&node(since)), None);
        let verdict = Verdict { at: at(saved), ..judge.judge(now()) };
        let told = told(&verdict, &judge.snapshot().identity, judge.episodes());
        Kept::new(&verdict, told.conditions, "b", judge.episodes().clone(), Past::default())
    }

    fn since(node: Option<&NodeNow>, kept: Option<Kept>) -> Option<(Timestamp, Timestamp)> {
        let mut judge = judge();
        restore(&mut judge, node, kept);
        let verdict = judge.judge(now());
        Some((verdict.root()?.since, verdict.condition("CapacityProblem")?.since))
    }

    #[test]
    fn the_newer_of_node_and_state_file_counts() {
        assert_eq!(since(None, None), None);
        assert_eq!(since(Some(&node(10)), None), Some((at(10), at(10))));
        assert_eq!(since(None, Some(kept(20, 25))), Some((at(20), at(20))), "the Node cannot be read");
        assert_eq!(since(Some(&node(10)), Some(kept(20, 25))), Some((at(20), at(20))), "the Node could not be written");
        assert_eq!(since(Some(&node(30)), Some(kept(20, 25))), Some((at(30), at(30))), "the file could not be written");
        // What the aggregator said meanwhile of an agent that was gone is no news of the node.
        let mut marked = node(10);
        for condition in marked.conditions.values_mut() {
            condition.reason = verdict::AGENT_STALE.into();
            condition.status = Status::Unknown;
            condition.last_transition_time = Some(at(40));
        }
        assert_eq!(since(Some(&marked), Some(kept(20, 25))), Some((at(20), at(20))));
    }

    /// A process of the agent that goes on from what another kept and sees a kubelet that was started then; the codes that it
    /// believes, and what it keeps.
    fn sees_kubelet(kept: Option<&Kept>, process: i32, started_at: Timestamp) -> (Vec<String>, Kept) {
        let mut judge = judge();
        judge.take_past(kept.map(|kept| kept.past.clone()).unwrap_or_default());
        restore(&mut judge, None, kept.cloned());
        let kubelet = Process { program: Program::Kubelet, pid: process, state: 'S', started_at };
        judge.take(Update::Processes(Seen::Yes(Processes { found: vec![kubelet], ..Processes::default() })));
        let verdict = judge.judge(now());
        let told = told(&verdict, &judge.snapshot().identity, judge.episodes());
        let past = judge.snapshot().past.get().cloned().expect("one is known");
        let kept = Kept::new(&verdict, told.conditions, "b", judge.episodes().clone(), past);
        (verdict.findings.into_iter().map(|it| it.code).filter(|code| code == "KubeletRestarting").collect(), kept)
    }

    #[test]
    fn a_kubelet_that_restarts_beside_the_agent_is_counted_once_each_time() {
        let base = Timestamp::now();
        let ago = |seconds| base - jiff::SignedDuration::from_secs(seconds);
        let (codes, kept) = sees_kubelet(None, 7, ago(900));
        assert!(codes.is_empty(), "the first start that was ever seen");
        let (codes, kept) = sees_kubelet(Some(&kept), 7, ago(900));
        assert!(codes.is_empty(), "only the agent was restarted");
        let (codes, kept) = sees_kubelet(Some(&kept), 8, ago(300));
        assert!(codes.is_empty(), "an update of both");
        let (codes, kept) = sees_kubelet(Some(&kept), 9, ago(60));
        assert_eq!(codes, ["KubeletRestarting"]);
        let (codes, again) = sees_kubelet(Some(&kept), 9, ago(60));
        assert_eq!(codes, ["KubeletRestarting"], "it goes on");
        assert_eq!(again.past.learned, kept.past.learned, "nothing new for the disk");
        let back: Kept = serde_json::from_value(serde_json::to_value(&kept).expect("plain")).expect("as it is written");
        assert_eq!(back.past.learned, kept.past.learned);
        assert!(sees_kubelet(None, 9, ago(60)).0.is_empty(), "nothing is known");
        // The clock was an hour ahead, and set while no agent ran.
        let (_, kept) = sees_kubelet(None, 7, ago(-3600));
        let (_, kept) = sees_kubelet(Some(&kept), 8, ago(600));
        let (_, kept) = sees_kubelet(Some(&kept), 9, ago(300));
        assert_eq!(sees_kubelet(Some(&kept), 10, ago(60)).0, ["KubeletRestarting"]);
    }

    /// What the judge makes of it when it looks again and sees this too.
    fn looks(judge: &mut Judge, see: impl FnOnce(&mut Snapshot), now: Now) -> Verdict {
        let mut seen = judge.snapshot().clone();
        see(&mut seen);
        judge.take_all(seen);
        judge.judge(now)
    }

    /// The journal: code, since when, until when, and what cured it.
    fn journal(judge: &Judge) -> Vec<(&str, Timestamp, Option<Timestamp>, Option<Cure>)> {
        judge.episodes().iter().map(|it| (it.code.as_str(), it.since, it.cleared, it.cure)).collect()
    }

    #[test]
    fn a_finding_whose_check_is_no_more_is_over_at_the_first_look() {
        let mut kept = kept(20, 25);
        for finding in &mut kept.findings {
            (finding.code, finding.area) = ("GoneCheck".into(), Area::Runtime);
        }
        for condition in kept.conditions.iter_mut().filter(|it| it.kind == "RuntimeProblem") {
            (condition.status, condition.reason) = (Status::True, "GoneCheck".into());
            condition.last_transition_time = Some(at(20));
        }
        let episodes = serde_json::to_string(&kept.episodes).expect("plain").replace("DiskFull", "GoneCheck");
        kept.episodes = serde_json::from_str(&episodes).expect("as it is written");
        let mut judge = judge();
        restore(&mut judge, None, Some(kept));
        assert_eq!(journal(&judge), [("GoneCheck", at(20), None, None)]);
        let no_runtime = |seen: &mut Snapshot| {
            (seen.runtime.socket, seen.runtime.status) = (Seen::Absent, Seen::Absent);
            (seen.store, seen.debris) = (Seen::Absent, Seen::Absent);
        };
        let verdict = looks(&mut judge, no_runtime, now());
        assert_eq!(verdict.findings, []);
        let condition = verdict.condition("RuntimeProblem").expect("always there");
        assert_eq!((condition.status, condition.since), (Status::False, verdict.at), "{condition:?}");
        assert_eq!(journal(&judge), [("GoneCheck", at(20), Some(verdict.at), Some(Cure::Nothing))]);
    }

    #[test]
    fn a_boot_keeps_the_times_of_what_is_still_there_and_has_cured_what_is_not() {
        let mut judge = judge_in("c");
        restore(&mut judge, None, Some(kept(20, 25)));
        let booted = now();
        let verdict = judge.judge(booted);
        let told = (verdict.root().map(|it| it.since), verdict.condition("CapacityProblem").map(|it| it.since));
        assert_eq!(told, (Some(at(20)), Some(at(20))), "nothing says yet that it is over");
        assert_eq!(journal(&judge), [("DiskFull", at(20), None, None)]);
        looks(&mut judge, |seen| seen.filesystems = Seen::Yes(Vec::new()), booted);
        let later = Now { since_boot: booted.since_boot + Duration::from_secs(3600), ..booted };
        let verdict = judge.judge(later);
        assert_eq!(verdict.findings, []);
        assert_eq!(journal(&judge), [("DiskFull", at(20), Some(verdict.at), Some(Cure::Reboot))]);
    }

    #[test]
    fn the_journal_outlives_the_agent_whoever_is_newer() {
        let mut judge = judge();
        restore(&mut judge, Some(&node(30)), Some(kept(20, 25)));
        assert_eq!(judge.episodes().iter().count(), 1);
        judge.judge(now());
        let episodes: &Episodes = judge.episodes();
        assert_eq!(episodes.iter().map(|it| (it.code.as_str(), it.since)).collect::<Vec<_>>(), [("DiskFull", at(20))]);
    }
    #[test]
    fn a_journal_that_is_lost_goes_on_from_what_the_node_tells_of_it() {
        let mut node = node(30);
        let over = serde_json::json!([
            {"code": "DiskFull", "since": at(9), "cleared": at(12), "times": 1, "cure": "processRestart"},
            {"code": "GoneCheck", "since": at(8), "cleared": at(9), "times": 1, "cure": null},
            {"code": "KubeletDown", "since": at(5), "cleared": at(6), "times": 2, "cure": "reboot"},
            {"code": 7}, "half",
        ]);
        node.annotations.insert(annotation::EPISODES.to_owned(), over.to_string());
        let findings = node.annotations[annotation::FINDINGS].replace("\"subject\"", "\"times\":2,\"subject\"");
        node.annotations.insert(annotation::FINDINGS.to_owned(), findings);
        let mut judge = judge_in("c");
        restore(&mut judge, Some(&node), None);
        let before = [
            ("KubeletDown", at(5), Some(at(6)), Some(Cure::Reboot)),
            ("DiskFull", at(9), Some(at(12)), Some(Cure::ProcessRestart)),
        ];
        assert_eq!(journal(&judge), [&before[..], &[("DiskFull", at(30), None, None)]].concat());
        let booted = now();
        let verdict = judge.judge(booted);
        let root = verdict.root().expect("it still counts");
        assert_eq!((root.times, root.last_cure), (2, Some(Cure::ProcessRestart)));
        looks(&mut judge, |seen| seen.filesystems = Seen::Yes(Vec::new()), booted);
        let later = Now { since_boot: booted.since_boot + Duration::from_secs(3600), ..booted };
        let verdict = judge.judge(later);
        let ended = ("DiskFull", at(30), Some(verdict.at), Some(Cure::Reboot));
        assert_eq!(journal(&judge), [&before[..], &[ended]].concat());
        // What the file knows is more.
        let mut judge = super::tests::judge();
        restore(&mut judge, Some(&node), Some(kept(20, 25)));
        assert_eq!(journal(&judge), [("DiskFull", at(20), None, None)]);
    }
}
