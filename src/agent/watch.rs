//! The loop over one node: take updates in, judge, and tell.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use super::Judge;
use super::announce::Announcer;
use super::evidence::Keeper;
use super::observe::{self, HostRoot, Observer};
use super::publish::Kept;
use super::run::FIRST_LOOK;
use super::watchdog::Heart;
use crate::clock::{awake, now, since_boot};
use crate::config::Config;
use crate::facts::{Learned, Seen, Writes};
use crate::verdict::{Raised, Told, Verdict, told};

/// After a change the loop waits this long for more: events come in bursts, and one verdict tells of all.
const BURST: Duration = Duration::from_millis(20);
/// While the Node waits for evidence, it is looked after this often.
const SHORTLY: Duration = Duration::from_millis(100);
/// A loop that was away for longer was paused: sources tell of their looks every few seconds.
const PAUSED: Duration = Duration::from_secs(30);
/// So much later than asked for nobody judges unless the process was stopped.
const LATE: Duration = Duration::from_secs(5);
/// The clocks that count suspended time and those that do not differ by more only where there was some.
const SLEPT: Duration = Duration::from_millis(500);

/// A node that is being watched: the judge and its last verdict, shared with the pages.
#[derive(Debug)]
pub(crate) struct Watched {
    state: Mutex<(Judge, Option<Verdict>)>,
    stats: observe::Stats,
}

impl Watched {
    pub(super) fn new(judge: Judge, stats: observe::Stats) -> Self {
        Watched { state: Mutex::new((judge, None)), stats }
    }

    /// Counters of the sources.
    pub(crate) fn stats(&self) -> &observe::Stats {
        &self.stats
    }

    /// Reads what is known and believed; no verdict before the first look.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Judge, Option<&Verdict>) -> T) -> T {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        read(&state.0, state.1.as_ref())
    }

    /// How many nodes the cluster had when that was last known; 0 before.
    pub(super) fn nodes(&self) -> usize {
        self.read(|judge, _| judge.nodes())
    }

    fn change<T>(&self, change: impl FnOnce(&mut Judge) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Judges what is known now; answers with the findings before and the verdict.
    fn judge(&self) -> (Option<Verdict>, Verdict) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let verdict = state.0.judge(now());
        let before = state.1.replace(verdict.clone());
        (before, verdict)
    }
}

/// A watched node with its sources started, for the process that holds agent and aggregator together.
pub(crate) fn start(host: &HostRoot, config: &Config) -> (Arc<Watched>, Observer) {
    let observer = observe::start(host, None, Learned::default());
    let judge = Judge::new(observe::identity(host), config, now());
    (Arc::new(Watched::new(judge, observer.stats().clone())), observer)
}

/// Watches the node for ever: takes updates in, judges when something changed or a hold-down ends, and tells.
pub(crate) async fn watch_node(
    watched: &Watched,
    mut observer: Observer,
    mut writes: Option<watch::Receiver<Seen<Writes>>>,
    tell: &mut Tell,
    heart: &Heart,
) {
    let (first_look, doubt) = (Instant::now() + FIRST_LOOK, Arc::clone(&tell.doubt));
    let mut judge_at = Some(first_look);
    let mut rounds = Rounds { last: Clocks::now(), due: None };
    let known: Vec<String> = watched.read(|judge, _| judge.episodes().lasting().map(|it| it.code.clone()).collect());
    // Before anything is judged: what was waited for while nobody looked proves nothing.
    let notice_absence = |rounds: &mut Rounds| {
        let absence = rounds.next(Clocks::now());
        if let Some(absence) = absence {
            tracing::info!(seconds = absence.as_secs(), "was paused or suspended");
            watched.change(|judge| judge.was_away(now()));
            doubt.notify_one();
        }
        absence.is_some()
    };
    loop {
        let wake = async {
            match judge_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            update = observer.next() => {
                let Some(update) = update else { return };
                let (changed, complete) = watched.change(|judge| (judge.take(update), judge.complete()));
                let started = watched.read(|_, verdict| verdict.is_some());
                if changed && (started || complete) {
                    let soon = Instant::now() + BURST;
                    judge_at = Some(judge_at.map_or(soon, |at| at.min(soon)));
                }
            }
            new = changed(&mut writes) => {
                watched.change(|judge| judge.take_writes(new));
                judge_at = Some(Instant::now() + BURST);
            }
            () = wake => {
                notice_absence(&mut rounds);
                let (before, verdict) = watched.judge();
                log(before.as_ref(), &verdict, &known);
                rounds.due = verdict.look_again_in.map(|wait| since_boot() + wait);
                judge_at = verdict.look_again_in.map(|wait| Instant::now() + wait.max(BURST));
                if let Some(wait) = take_evidence(watched, tell, &verdict) {
                    let then = Instant::now() + wait;
                    judge_at = Some(judge_at.map_or(then, |at| at.min(then)));
                }
                if say(watched, tell, &verdict) == Said::Later {
                    judge_at = Some(Instant::now() + SHORTLY);
                }
            }
        }
        heart.beat();
        let waits = rounds.due.is_some();
        if notice_absence(&mut rounds) && waits {
            // The timer did not go on meanwhile, and what it waits for is due.
            judge_at = Some(Instant::now() + BURST);
        }
    }
}

/// The rounds of the loop.
#[derive(Debug)]
struct Rounds {
    last: Clocks,
    /// When something is to be judged again, on the boot clock.
    due: Option<Duration>,
}

impl Rounds {
    /// For how long nobody looked since the last round; none where all went on. What was due then is late once.
    fn next(&mut self, now: Clocks) -> Option<Duration> {
        let absence = now.absence(std::mem::replace(&mut self.last, now), self.due)?;
        self.due = None;
        Some(absence)
    }
}

/// The clocks of one round of the loop.
#[derive(Debug, Clone, Copy)]
struct Clocks {
    since_boot: Duration,
    /// Without the time in which the machine was suspended.
    awake: Duration,
}

impl Clocks {
    fn now() -> Self {
        Clocks { since_boot: since_boot(), awake: awake() }
    }

    /// For how long nobody looked between the round before and this one, which was `due` then; none where all went on.
    fn absence(self, before: Clocks, due: Option<Duration>) -> Option<Duration> {
        let went_by = self.since_boot.saturating_sub(before.since_boot);
        let slept = went_by.saturating_sub(self.awake.saturating_sub(before.awake));
        let late = due.is_some_and(|due| self.since_boot.saturating_sub(due) > LATE);
        (went_by > PAUSED || slept > SLEPT || late).then_some(went_by)
    }
}

/// The next news of the writes; never where nobody writes.
async fn changed(writes: &mut Option<watch::Receiver<Seen<Writes>>>) -> Seen<Writes> {
    if let Some(writes) = writes
        && writes.changed().await.is_ok()
    {
        return writes.borrow_and_update().clone();
    }
    std::future::pending().await
}

/// Whom a verdict is told.
pub(crate) struct Tell {
    /// What should be on the Node.
    pub(crate) told: watch::Sender<Option<Told>>,
    /// What should be in the state file.
    pub(crate) keep: watch::Sender<Option<Kept>>,
    /// Woken when the Node has to be read again.
    pub(crate) doubt: Arc<Notify>,
    /// Who tells what begins and is over by Events, where they are wanted.
    pub(crate) announcer: Option<Announcer>,
    /// Who keeps evidence, where there is a directory for it.
    pub(crate) evidence: Option<Keeper>,
}

/// Whether the Node was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Now,
    /// It waits for evidence.
    Later,
}

/// Has evidence taken when something has just become bad. Answers with when to judge again where that has to wait.
fn take_evidence(watched: &Watched, tell: &mut Tell, verdict: &Verdict) -> Option<Duration> {
    let keeper = tell.evidence.as_mut()?;
    if let Some(episode) = keeper.wants(verdict) {
        let report = watched.read(|judge, _| judge.report(verdict.clone()));
        keeper.take(episode, report, watched.stats().trail.walks());
    }
    keeper.owes_in()
}

/// Hands on what should be in the state file and on the Node, if it is different from before: local first.
fn say(watched: &Watched, tell: &mut Tell, verdict: &Verdict) -> Said {
    let new = watched.read(|judge, _| {
        let (identity, episodes) = (&judge.snapshot().identity, judge.episodes());
        if let Some(announcer) = &mut tell.announcer {
            announcer.tell(verdict, episodes, judge.nodes());
        }
        let new = told(verdict, identity, episodes);
        tell.keep.send_if_modified(|old| {
            let (boot, past) = (&identity.boot_id, judge.snapshot().past.get());
            let said = old.as_ref().is_some_and(|old| old.says(verdict, &new.conditions, boot, episodes, past));
            if !said {
                let past = past.cloned().unwrap_or_default();
                *old = Some(Kept::new(verdict, new.conditions.clone(), boot, episodes.clone(), past));
            }
            !said
        });
        new
    });
    if tell.evidence.as_ref().is_some_and(|keeper| keeper.holds(tell.told.borrow().as_ref(), &new)) {
        return Said::Later;
    }
    tell.told.send_if_modified(|old| {
        let different = old.as_ref() != Some(&new);
        if different {
            *old = Some(new);
        }
        different
    });
    Said::Now
}

/// One line for everything that changed. What an earlier process of the agent knew is no news.
fn log(before: Option<&Verdict>, now: &Verdict, known: &[String]) {
    let empty = Vec::new();
    let (raised, pending) = before.map_or((&empty, &empty), |before| (&before.findings, &before.pending));
    let same = |a: &Raised, b: &Raised| a.code == b.code && a.subject == b.subject;
    for finding in now.findings.iter().filter(|finding| !raised.iter().any(|old| same(old, finding))) {
        let Raised { code, severity, subject, detail, next, since, .. } = finding;
        let severity = severity.as_str();
        if before.is_none() && known.contains(code) {
            tracing::info!(code, severity, subject, detail, next, %since, "finding goes on");
        } else {
            tracing::warn!(code, severity, subject, detail, next, %since, "finding raised");
        }
    }
    for finding in now.pending.iter().filter(|finding| !pending.iter().any(|old| same(old, finding))) {
        let Raised { code, subject, detail, .. } = finding;
        tracing::info!(code, subject, detail, "finding seen, held down");
    }
    for finding in raised.iter().filter(|old| !now.findings.iter().any(|finding| same(finding, old))) {
        let Raised { code, subject, since, .. } = finding;
        tracing::info!(code, subject, %since, "finding cleared");
    }
    if before.is_none_or(|before| before.state != now.state) {
        tracing::info!(state = now.state.as_str(), settling = now.settling, "worker state");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(since_boot: u64, awake: u64) -> Clocks {
        Clocks { since_boot: Duration::from_millis(since_boot), awake: Duration::from_millis(awake) }
    }

    #[test]
    fn an_absence_is_noticed_once() {
        // Suspended for three minutes: the timer stood still, so that what was due is still to come for it.
        let mut rounds = Rounds { last: at(1_000_000, 900_000), due: Some(Duration::from_secs(1060)) };
        assert_eq!(rounds.next(at(1_180_000, 900_010)), Some(Duration::from_secs(180)));
        assert_eq!(rounds.next(at(1_180_020, 900_030)), None);
        rounds.due = Some(Duration::from_secs(1190));
        assert_eq!(rounds.next(at(1_189_000, 909_010)), None, "it goes on");
        assert_eq!(rounds.next(at(1_199_000, 919_010)), Some(Duration::from_secs(10)), "stopped when it was due");
    }

    #[test]
    fn who_did_not_look_for_a_while_was_paused_or_suspended() {
        let before = at(1_000_000, 900_000);
        let cases = [
            // The next source tells; one that is slow to; nobody for long, stopped or suspended.
            (at(1_002_000, 902_000), None, false),
            (at(1_020_000, 920_000), None, false),
            (at(1_031_000, 931_000), None, true),
            (at(1_180_000, 900_010), None, true),
            // Suspended for seconds, with and without something that waits; the clock is set by some milliseconds.
            (at(1_008_000, 901_000), Some(1_060_000), true),
            (at(1_008_000, 901_000), None, true),
            (at(1_002_400, 902_000), None, false),
            // Stopped for seconds, in which something was to be judged; the machine has much to do.
            (at(1_008_000, 908_000), Some(1_002_000), true),
            (at(1_006_000, 906_000), Some(1_002_000), false),
            (at(1_008_000, 908_000), Some(1_060_000), false),
        ];
        for (now, due, away) in cases {
            let absence = now.absence(before, due.map(Duration::from_millis));
            assert_eq!(absence.is_some(), away, "{now:?} {due:?}");
        }
    }
}
