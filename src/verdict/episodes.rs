//! When which fault was there: episodes, how often they came back, and what cured them (catalogue H13, R118).

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Now, Raised};
use crate::checks::{Area, Check, Severity};
use crate::facts::{Program, Seen, Snapshot};

/// Episodes are kept this long (catalogue R177), and so many at most.
const KEPT: SignedDuration = SignedDuration::from_hours(14 * 24);
const MOST: usize = 128;

/// A time in which there was at least one finding of a code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Episode {
    /// Finding code.
    pub code: String,
    /// What the first finding was about.
    pub subject: String,
    /// The worst that it was.
    pub severity: Severity,
    /// Its area.
    pub area: Area,
    /// When it was first seen.
    pub since: Timestamp,
    /// When it was last seen; none while it lasts, and when only an earlier process of the agent saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Timestamp>,
    /// When it was over; none while it lasts.
    pub cleared: Option<Timestamp>,
    /// How many episodes of this code began within seven days, or as configured (catalogue H13), this one included.
    pub times: u32,
    /// What cured it, as far as can be seen from the node.
    pub cure: Option<Cure>,
    /// The boot, the machine and the processes in which it began.
    pub(super) began_in: Around,
}

impl Episode {
    /// One that has begun, for the nth time.
    fn begun(finding: &Raised, times: u32, began_in: &Around) -> Self {
        Episode {
            code: finding.code.clone(),
            subject: finding.subject.clone(),
            severity: finding.severity,
            area: finding.area,
            since: finding.since,
            seen: None,
            cleared: None,
            times,
            cure: None,
            began_in: began_in.clone(),
        }
    }
}

/// What cured an episode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Cure {
    /// The machine was installed anew: what was wrong was in its image or data.
    Reload,
    /// It was booted: what was wrong was in the kernel or at run time.
    Reboot,
    /// A process that has to do with it was started anew.
    ProcessRestart,
    /// Nothing of that kind: it went by itself, or by a hand that leaves no trace here.
    Nothing,
}

/// What tells one boot and one process from the next.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Around {
    boot_id: String,
    machine_id: String,
    /// Process ids of kubelet, runtime, kube-proxy, Felix and BIRD; none when the process table could not be read.
    processes: Option<Vec<(String, i32)>>,
}

impl Around {
    /// As a look saw it.
    pub fn of(now: &Snapshot) -> Self {
        let processes = match &now.processes {
            Seen::Yes(processes) => {
                Some(processes.found.iter().map(|it| (name(it.program).to_owned(), it.pid)).collect())
            }
            Seen::Absent | Seen::Unreadable(_) => None,
        };
        let identity = &now.identity;
        Around { boot_id: identity.boot_id.clone(), machine_id: identity.machine_id.clone(), processes }
    }

    /// As the Node's annotations tell it; who ran there they do not.
    pub(crate) fn told(boot_id: String, machine_id: String) -> Self {
        Around { boot_id, machine_id, processes: None }
    }

    /// What happened between this and `now` that may have cured a fault of an area.
    fn cure(&self, now: &Around, area: Area) -> Cure {
        let differ = |before: &str, now: &str| !before.is_empty() && !now.is_empty() && before != now;
        if differ(&self.machine_id, &now.machine_id) {
            return Cure::Reload;
        }
        if differ(&self.boot_id, &now.boot_id) {
            return Cure::Reboot;
        }
        let (Some(before), Some(after)) = (&self.processes, &now.processes) else { return Cure::Nothing };
        let concerned = |process: &&(String, i32)| concerned(area).iter().any(|program| name(*program) == process.0);
        let restarted = after.iter().filter(concerned).any(|process| !before.contains(process));
        if restarted { Cure::ProcessRestart } else { Cure::Nothing }
    }
}

fn name(program: Program) -> &'static str {
    match program {
        Program::Kubelet => "kubelet",
        Program::Containerd => "containerd",
        Program::Crio => "crio",
        Program::KubeProxy => "kube-proxy",
        Program::Felix => "felix",
        Program::Bird => "bird",
    }
}

/// The programs whose restart may cure a fault of an area.
fn concerned(area: Area) -> &'static [Program] {
    match area {
        Area::Integrity | Area::Capacity => &[],
        Area::ControlPlanePath => &[Program::Kubelet],
        Area::Runtime => &[Program::Containerd, Program::Crio],
        Area::Cni => &[Program::Containerd, Program::Crio, Program::Felix],
        Area::PodRouting => &[Program::Felix, Program::Bird],
        Area::PacketFilter => &[Program::Felix, Program::KubeProxy],
    }
}

/// The journal of episodes, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Episodes(Vec<Episode>);

impl Episodes {
    /// Takes in which findings count now and when each code was last seen, and tells the findings how often they came back
    /// within a time and what cured them last.
    pub(super) fn update(
        &mut self,
        findings: &mut [Raised],
        around: &Around,
        seen: &BTreeMap<&'static str, Timestamp>,
        recurs_within: SignedDuration,
        now: Now,
    ) {
        for finding in findings.iter().filter(|finding| finding.is_problem()) {
            match self.0.iter_mut().find(|episode| episode.cleared.is_none() && episode.code == finding.code) {
                Some(episode) => episode.severity = episode.severity.max(finding.severity),
                None => self.begin(finding, around, recurs_within),
            }
        }
        for episode in self.0.iter_mut().filter(|episode| episode.cleared.is_none()) {
            if !findings.iter().any(|finding| finding.is_problem() && finding.code == episode.code) {
                episode.seen = seen.get(episode.code.as_str()).copied();
                episode.cleared = Some(now.wall);
                episode.cure = Some(episode.began_in.cure(around, episode.area));
            }
        }
        while self.0.len() > MOST {
            let oldest = self.0.iter().position(|episode| episode.cleared.is_some()).unwrap_or(0);
            self.0.remove(oldest);
        }
        for finding in findings {
            let mut of_code = self.0.iter().rev().filter(|episode| episode.code == finding.code);
            let Some(this) = of_code.next().filter(|episode| episode.cleared.is_none()) else { continue };
            finding.times = this.times;
            finding.last_cure = of_code.next().and_then(|before| before.cure);
        }
    }

    fn begin(&mut self, finding: &Raised, around: &Around, recurs_within: SignedDuration) {
        let recent = |it: &&Episode| it.code == finding.code && finding.since.duration_since(it.since) < recurs_within;
        let times = self.0.iter().filter(recent).count() + 1;
        self.0.push(Episode::begun(finding, u32::try_from(times).unwrap_or(u32::MAX), around));
    }

    /// Forgets those that are over for long, by the clock on the wall: not while that cannot be trusted.
    pub(super) fn forget(&mut self, now: Now) {
        self.0.retain(|episode| episode.cleared.is_none_or(|at| now.wall.duration_since(at) < KEPT));
    }

    /// The journal as an earlier process told it on the Node, where its own file of it is lost: what was over (the annotation
    /// `episodes`), and what counted (`findings`), which began there. What cannot be read, and codes that are no more, is left out.
    pub(crate) fn told(over: &str, counted: &[Raised], began_in: &Around, table: &[&Check]) -> Self {
        #[derive(Deserialize)]
        struct Over {
            code: String,
            since: Timestamp,
            cleared: Timestamp,
            times: u32,
            cure: Option<Cure>,
        }
        let elements: Vec<serde_json::Value> = serde_json::from_str(over).unwrap_or_default();
        let over = elements.into_iter().filter_map(|it| serde_json::from_value::<Over>(it).ok());
        let over = over.filter_map(|it| {
            let check = table.iter().find(|check| check.code == it.code)?;
            Some(Episode {
                code: it.code,
                subject: String::new(),
                severity: check.severity,
                area: check.area,
                since: it.since,
                seen: None,
                cleared: Some(it.cleared),
                times: it.times,
                cure: it.cure,
                began_in: Around::default(),
            })
        });
        let mut all: Vec<Episode> = over.collect();
        all.sort_by_key(|it| it.since);
        let known = |it: &&Raised| it.is_problem() && table.iter().any(|check| check.code == it.code);
        for finding in counted.iter().filter(known) {
            match all.iter_mut().find(|it| it.cleared.is_none() && it.code == finding.code) {
                Some(episode) => {
                    episode.severity = episode.severity.max(finding.severity);
                    episode.since = episode.since.min(finding.since);
                }
                None => all.push(Episode::begun(finding, finding.times, began_in)),
            }
        }
        Episodes(all)
    }

    /// All of them, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Episode> {
        self.0.iter()
    }

    /// Those that are not over.
    pub(crate) fn lasting(&self) -> impl Iterator<Item = &Episode> {
        self.iter().filter(|episode| episode.cleared.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const WEEK: SignedDuration = SignedDuration::from_hours(7 * 24);
    static UNSEEN: BTreeMap<&str, Timestamp> = BTreeMap::new();

    fn at(hours: i64) -> Now {
        let wall = Timestamp::from_second(1_700_000_000 + hours * 3600).expect("valid");
        Now { wall, since_boot: Duration::from_secs(u64::try_from(hours * 3600).expect("positive")) }
    }

    fn finding(code: &str, area: Area, since: Now) -> Raised {
        Raised {
            code: code.into(),
            severity: Severity::Critical,
            area,
            subject: "s".into(),
            since: since.wall,
            detail: "d".into(),
            next: "n".into(),
            caused_by: None,
            times: 1,
            last_cure: None,
        }
    }

    fn around(boot: &str, machine: &str, kubelet: i32) -> Around {
        let processes = Some(vec![("kubelet".into(), kubelet)]);
        Around { boot_id: boot.into(), machine_id: machine.into(), processes }
    }

    #[test]
    fn what_cured_it_is_told_as_far_as_it_shows() {
        let cases = [
            (around("b", "m", 1), Cure::Nothing),
            (around("b", "m", 2), Cure::ProcessRestart),
            (around("c", "m", 1), Cure::Reboot),
            (around("c", "n", 1), Cure::Reload),
            (Around { processes: None, ..around("b", "m", 1) }, Cure::Nothing),
        ];
        for (after, cure) in cases {
            let mut episodes = Episodes::default();
            let mut findings = [finding("KubeletDown", Area::ControlPlanePath, at(0))];
            episodes.update(&mut findings, &around("b", "m", 1), &UNSEEN, WEEK, at(0));
            assert_eq!((findings[0].times, findings[0].last_cure), (1, None));
            episodes.update(&mut [], &after, &BTreeMap::from([("KubeletDown", at(0).wall)]), WEEK, at(1));
            let mut again = [finding("KubeletDown", Area::ControlPlanePath, at(2))];
            episodes.update(&mut again, &after, &UNSEEN, WEEK, at(2));
            assert_eq!((again[0].times, again[0].last_cure), (2, Some(cure)));
            let ended = episodes.iter().next().expect("one is over");
            assert_eq!((ended.since, ended.seen, ended.cleared), (at(0).wall, Some(at(0).wall), Some(at(1).wall)));
        }
        // A kubelet that was started anew has nothing to do with a route.
        assert_eq!(around("b", "m", 1).cure(&around("b", "m", 2), Area::PodRouting), Cure::Nothing);
        assert_eq!(around("", "", 1).cure(&around("b", "m", 1), Area::Cni), Cure::Nothing);
    }

    #[test]
    fn episodes_recur_within_seven_days_and_are_kept_for_fourteen() {
        let mut episodes = Episodes::default();
        let mut times = |hours: i64| {
            episodes.forget(at(hours));
            let mut findings =
                [finding("DiskFull", Area::Capacity, at(hours)), finding("DiskFull", Area::Capacity, at(hours))];
            episodes.update(&mut findings, &Around::default(), &UNSEEN, WEEK, at(hours));
            let times = findings[1].times;
            episodes.update(&mut [], &Around::default(), &UNSEEN, WEEK, at(hours + 1));
            (times, episodes.iter().count())
        };
        assert_eq!([times(0), times(100), times(167)], [(1, 1), (2, 2), (3, 3)]);
        assert_eq!(times(171), (3, 4), "the first is longer ago than seven days");
        assert_eq!(times(171 + 15 * 24), (1, 1));
    }

    #[test]
    fn the_journal_is_bounded_and_keeps_what_lasts() {
        let mut episodes = Episodes::default();
        let lasting = finding("DiskFull", Area::Capacity, at(0));
        for number in 0..400 {
            let mut both = [lasting.clone(), finding("KubeletDown", Area::ControlPlanePath, at(number / 4))];
            episodes.update(&mut both, &Around::default(), &UNSEEN, WEEK, at(number / 4));
            episodes.update(&mut [lasting.clone()], &Around::default(), &UNSEEN, WEEK, at(number / 4));
        }
        assert_eq!(episodes.iter().count(), MOST);
        assert!(episodes.iter().any(|episode| episode.code == "DiskFull" && episode.cleared.is_none()));
        let json = serde_json::to_string(&episodes).expect("plain");
        assert!(json.len() < 64 * 1024, "{}", json.len());
        assert_eq!(serde_json::from_str::<Episodes>(&json).expect("reads"), episodes);
    }
}
