//! Whether the control plane is being updated (catalogue R018): its API servers answer with another version than before, or
//! in turns with two. Nothing else is a sign of it: that they are away for a while may be anything.

use std::time::Duration;

use http::Request;
use http::header::CONNECTION;
use jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};

use super::store::Store;
use crate::clock::since_boot;

/// It is asked this often. A change is seen whenever it is asked after it, so that this need not be soon.
const EVERY: Duration = Duration::from_secs(30);
/// Whether it was away is looked at this often.
const LOOK: Duration = Duration::from_secs(1);
/// One request.
const DEADLINE: Duration = Duration::from_secs(10);
/// No version is longer.
const LONGEST: usize = 64;

/// What is known of the version of the API servers.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Master {
    /// What was answered last.
    version: Box<str>,
    /// The last time that it was another one than before.
    changed: Option<Change>,
}

/// Another version than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// In seconds since the epoch.
    pub(crate) at: i64,
    /// What was answered before.
    pub(crate) from: Box<str>,
    /// And then.
    pub(crate) to: Box<str>,
    /// When one of the two was answered after the other last, in seconds since the epoch.
    last: i64,
}

/// Two servers that answer in turns are one change. After this time, in seconds, without a turn it is another.
const SAME: i64 = 3_600;

impl Master {
    /// An API server answered this. Says whether that is news. What is no version says nothing.
    pub(super) fn answered(&mut self, version: &str, now: Timestamp) -> bool {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".+-_".contains(&byte);
        if version.is_empty() || version.len() > LONGEST || !version.bytes().all(plain) || version == &*self.version {
            return false;
        }
        let from = std::mem::replace(&mut self.version, version.into());
        if from.is_empty() {
            return false;
        }
        let (at, to) = (now.as_second(), &self.version);
        let turn = |change: &Change| {
            let same = (&from, to) == (&change.from, &change.to) || (&from, to) == (&change.to, &change.from);
            same && at.saturating_sub(change.last) < SAME
        };
        if let Some(change) = self.changed.as_mut().filter(|change| turn(change)) {
            change.last = at;
            return false;
        }
        self.changed = Some(Change { at, from, to: version.into(), last: at });
        true
    }

    /// The last change, if the control plane may still be put together anew after it: for so many seconds.
    pub(crate) fn update(&self, within: i64, now: Timestamp) -> Option<&Change> {
        self.changed.as_ref().filter(|change| now.as_second().saturating_sub(change.at) < within)
    }

    /// Whether that may be why something has been so since then: it began at most so many seconds before the change.
    pub(crate) fn explains(&self, since: Option<Timestamp>, within: i64, now: Timestamp) -> bool {
        let near = |change: &Change, since: Timestamp| change.at.saturating_sub(since.as_second()) <= within;
        self.update(within, now).is_some_and(|change| since.is_some_and(|since| near(change, since)))
    }

    /// As it is written down: what was answered is asked anew.
    pub(super) fn write(&self) -> Value {
        self.changed.as_ref().map_or(Value::Null, |change| json!([change.at, change.from, change.to]))
    }

    /// Takes in what was written, unless a later change has been seen since.
    pub(super) fn read(&mut self, written: &Value) {
        if let (Some(at), Some(from), Some(to)) = (written[0].as_i64(), written[1].as_str(), written[2].as_str())
            && self.changed.as_ref().is_none_or(|change| change.at < at)
        {
            self.changed = Some(Change { at, from: from.into(), to: to.into(), last: at });
        }
    }
}

/// Asks for ever; as soon as the API server is back, too: then it is likeliest to be another one.
pub(super) async fn run(client: &Client, store: &Store) -> std::convert::Infallible {
    let mut next = Duration::ZERO;
    loop {
        if store.lock().cluster.nodes_sight.is_lost().is_some() {
            next = Duration::ZERO;
        } else if since_boot() >= next {
            next = since_boot() + EVERY;
            if let Some(version) = ask(client).await {
                store.change(|cluster| {
                    let news = cluster.memory.master.answered(&version, Timestamp::now());
                    cluster.revision += u64::from(news);
                });
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// None when nobody answered. The connection ends with the answer: a load balancer gives the next one to any of the servers.
async fn ask(client: &Client) -> Option<String> {
    let request = Request::get("/version").header(CONNECTION, "close").body(Vec::new()).ok()?;
    version(&tokio::time::timeout(DEADLINE, client.request::<Value>(request)).await.ok()?.ok()?)
}

/// A new program goes on as the version before it, until it is told to be itself: that is a part of the update.
fn version(answer: &Value) -> Option<String> {
    let text = |key: &str| answer[key].as_str().unwrap_or_default();
    let own = text("gitVersion");
    let as_if = (text("emulationMajor"), text("emulationMinor"));
    let is_itself = as_if.1.is_empty() || as_if == (text("major"), text("minor").trim_end_matches('+'));
    (!own.is_empty()).then(|| if is_itself { own.to_owned() } else { format!("{own}-as-{}.{}", as_if.0, as_if.1) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregator::testing::at;

    const WITHIN: i64 = 45 * 60;

    #[test]
    fn another_version_is_an_update_for_its_time() {
        let mut master = Master::default();
        assert!(!master.answered("v1.34.2", at(0)), "the first is no other one");
        assert!(!master.answered("v1.34.2", at(30)));
        assert_eq!(master.update(WITHIN, at(30)), None);
        assert!(master.answered("v1.35.4+IKS", at(60)));
        let change = master.update(WITHIN, at(60 + WITHIN - 1)).expect("an update");
        assert_eq!((&*change.from, &*change.to, change.at), ("v1.34.2", "v1.35.4+IKS", at(60).as_second()));
        assert_eq!(master.update(WITHIN, at(60 + WITHIN)), None, "it clears");
    }

    #[test]
    fn two_servers_that_answer_in_turns_are_one_change_that_ends() {
        let mut master = Master::default();
        assert!(!master.answered("v1.34.2", at(0)) && master.answered("v1.35.4", at(60)));
        for second in (90..2 * WITHIN).step_by(60) {
            assert!(!master.answered("v1.34.2", at(second)) && !master.answered("v1.35.4", at(second + 30)));
        }
        assert!(master.update(WITHIN, at(60 + WITHIN - 1)).is_some());
        assert_eq!(master.update(WITHIN, at(60 + WITHIN)), None, "it clears, though both still answer");
        assert!(master.answered("v1.36.0", at(2 * WITHIN)), "a third is another change");
        assert!(!master.answered("v1.35.4", at(2 * WITHIN + SAME - 1)), "a turn");
        assert!(master.answered("v1.36.0", at(2 * WITHIN + 2 * SAME)), "much later it is another change");
    }

    #[test]
    fn trap_what_began_long_before_an_update_is_not_its_doing() {
        let mut master = Master::default();
        assert!(!master.answered("v1.34.2", at(0)) && master.answered("v1.35.4", at(10_000)));
        let explains = |since| master.explains(Some(at(since)), WITHIN, at(10_100));
        assert!(explains(9_900) && explains(10_050) && explains(10_000 - WITHIN));
        assert!(!explains(10_000 - WITHIN - 1) && !master.explains(None, WITHIN, at(10_100)));
        assert!(!master.explains(Some(at(9_900)), WITHIN, at(10_000 + WITHIN)), "it is over");
    }

    #[test]
    fn what_is_no_version_says_nothing() {
        let mut master = Master::default();
        master.answered("v1.34.2", at(0));
        for odd in ["", "<b>", "v1 35", &"v".repeat(65)] {
            assert!(!master.answered(odd, at(1)), "{odd}");
        }
        assert!(!master.answered("v1.34.2", at(2)), "nor is it remembered");
    }

    #[test]
    fn a_server_that_goes_on_as_the_version_before_is_not_yet_itself() {
        let answer = |minor: &str, as_if: &str| {
            version(
                &json!({"gitVersion": "v1.35.4", "major": "1", "minor": minor, "emulationMajor": "1", "emulationMinor": as_if}),
            )
        };
        assert_eq!(answer("35", "34").as_deref(), Some("v1.35.4-as-1.34"));
        assert_eq!(answer("35", "35").as_deref(), Some("v1.35.4"));
        assert_eq!(answer("35+", "35").as_deref(), Some("v1.35.4"));
        assert_eq!(version(&json!({"gitVersion": "v1.29.1"})).as_deref(), Some("v1.29.1"), "older ones do not say it");
        assert_eq!(version(&json!({"kind": "Status"})), None);
    }

    #[test]
    fn it_outlives_the_process() {
        let mut master = Master::default();
        master.answered("v1.34.2", at(0));
        assert_eq!(master.write(), Value::Null);
        master.answered("v1.35.4", at(60));
        let mut next = Master::default();
        next.answered("v1.35.4", at(90));
        for damaged in [json!(null), json!([1]), json!([1, 2, 3]), json!("x")] {
            next.read(&damaged);
        }
        assert_eq!(next.update(WITHIN, at(90)), None);
        next.read(&master.write());
        assert_eq!(next.update(WITHIN, at(90)), master.update(WITHIN, at(90)));
        assert!(next.answered("v1.36.0", at(99)));
        next.read(&master.write());
        assert_eq!(next.update(WITHIN, at(99)).map(|it| &*it.to), Some("v1.36.0"), "what was seen since is newer");
    }
}
