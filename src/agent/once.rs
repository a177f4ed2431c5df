//! One look, live or in a bundle, without any history.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::observe::{self, HostRoot};
use super::{Judge, Report};
use crate::bundle::Facts;
use crate::clock::now;
use crate::config::Config;
use crate::facts::Learned;
use crate::verdict::{Episodes, Now};

/// One look of `nodevitals check` takes this long at most.
const ONE_LOOK: Duration = Duration::from_secs(8);

/// One look at this machine. There is no history in it, so whatever it sees counts at once.
pub(crate) async fn look_once(host: &HostRoot, config: &Config) -> Report {
    let mut observer = observe::start(host, None, Learned::default());
    let mut judge = Judge::new(observe::identity(host), config, now());
    let end = Instant::now() + ONE_LOOK;
    while !judge.complete() {
        let Ok(Some(update)) = tokio::time::timeout_at(end, observer.next()).await else { break };
        judge.take(update);
    }
    // What one source learnt another may need: the pods their routes, the runtime's directories their files.
    loop {
        let patience = Duration::from_millis(if judge.settled() { 300 } else { 3000 });
        let until = end.min(Instant::now() + patience);
        let Ok(Some(update)) = tokio::time::timeout_at(until, observer.next()).await else { break };
        judge.take(update);
    }
    at_once(&mut judge, now())
}

/// What is seen counts, however short a time it has been there.
fn at_once(judge: &mut Judge, at: Now) -> Report {
    judge.judge(at);
    let verdict = judge.judge_as_seen(Now { since_boot: at.since_boot + Duration::from_secs(24 * 3600), ..at });
    judge.report(verdict)
}

/// Judges what a bundle holds as [`look_once`] judges what it sees, as of the time when it was seen. What was believed then
/// stands for the history.
pub(crate) fn judge_again(facts: Facts, config: &Config) -> Report {
    let Facts { snapshot, findings } = facts;
    let at = Now { wall: snapshot.taken_at, since_boot: snapshot.up_for };
    let mut judge = Judge::new(snapshot.identity.clone(), config, at);
    judge.restore(&findings, &BTreeMap::new(), None, Episodes::default(), at);
    judge.remember(&findings);
    judge.take_all(snapshot);
    at_once(&mut judge, at)
}
