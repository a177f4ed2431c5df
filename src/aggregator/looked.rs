//! What the watches do not bring and is asked for: which it is, and when to look again: soon where something is wrong, and at
//! once at something else.

use std::time::Duration;

use http::Request;
use kube::Client;

use super::cluster::{Cluster, Shown};
use crate::clock::since_boot;

/// Whether something else has to be looked at is found out this often.
const TICK: Duration = Duration::from_secs(5);
/// While something is wrong, the same is looked at again after this time.
const SOON: Duration = Duration::from_secs(15);

/// One question.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// What is asked for now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Look {
    /// How Calico gives out addresses.
    Blocks,
    /// Who answers for webhooks.
    Backends,
    /// Whether calico-node may read the password of BGP's peers.
    Password,
    /// What has to outlive this process.
    Memory,
}

impl Look {
    /// Its name beside those of the kinds that are watched.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Look::Blocks => "ipamblocks",
            Look::Backends => "services of webhooks",
            Look::Password => "access to the BGP password",
            Look::Memory => "the ConfigMap nodevitals-aggregator",
        }
    }
}

/// Why nothing was seen.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unread {
    /// There is none, and asking sooner would not help.
    #[error("no permission to look at it")]
    Denied,
    /// Nobody answered.
    #[error("{0}")]
    Failed(String),
}

impl Unread {
    /// There was no answer in time.
    pub(super) fn late(deadline: Duration) -> Unread {
        Unread::Failed(format!("no answer within {} s", deadline.as_secs()))
    }
}

impl From<kube::Error> for Unread {
    fn from(error: kube::Error) -> Unread {
        match error {
            kube::Error::Api(status) if status.code == 403 => Unread::Denied,
            error => Unread::Failed(crate::api::chain(&error)),
        }
    }
}

/// Asks for one object; none where there is no such thing.
pub(super) async fn get<T: serde::de::DeserializeOwned>(client: &Client, path: &str) -> Result<Option<T>, Unread> {
    let request = Request::get(path).body(Vec::new()).map_err(|error| Unread::Failed(error.to_string()))?;
    let answer = tokio::time::timeout(DEADLINE, client.request(request)).await;
    match answer.map_err(|_| Unread::late(DEADLINE))? {
        Ok(object) => Ok(Some(object)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What was looked at last, and when.
#[derive(Debug)]
pub(super) struct Looked<T> {
    what: Vec<T>,
    at: Duration,
}

/// Rounds in which all that is known is judged. Of thousands of nodes that costs a tenth of a second.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    shown: Option<Shown>,
    passed: u32,
}

impl Rounds {
    /// Whether this round is to be taken: something has changed since the last, or so many have come since then, since some of it
    /// begins and ends by time alone.
    pub(super) fn is_due(&mut self, cluster: &Cluster, most: u32) -> bool {
        let shown = Some(cluster.shown());
        self.passed += 1;
        let due = self.shown != shown || self.passed >= most;
        if due {
            (self.shown, self.passed) = (shown, 0);
        }
        due
    }
}

/// Waits until it is time to find out what is to be looked at.
pub(super) async fn tick() {
    tokio::time::sleep(TICK).await;
}

impl<T: PartialEq> Looked<T> {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        Looked { what: Vec::new(), at: Duration::ZERO }
    }

    /// Whether this is due: it is another thing than before, or long enough ago, by whether something is wrong with it.
    pub(super) fn is_due(&self, wanted: &[T], wrong: bool, well: Duration) -> bool {
        let again = if wrong { SOON } else { well };
        self.what != wanted || since_boot().saturating_sub(self.at) >= again
    }

    /// It was looked at just now.
    pub(super) fn at(&mut self, what: Vec<T>) {
        (self.what, self.at) = (what, since_boot());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_is_judged_at_once_and_what_does_not_now_and_then() {
        let mut cluster = Cluster::watched();
        let mut rounds = Rounds::default();
        let mut due = |cluster: &Cluster| rounds.is_due(cluster, 3);
        assert_eq!([due(&cluster), due(&cluster), due(&cluster), due(&cluster)], [true, false, false, true]);
        cluster.revision += 1;
        assert_eq!([due(&cluster), due(&cluster)], [true, false]);
        cluster.nodes_sight.list_ends();
        assert_eq!([due(&cluster), due(&cluster), due(&cluster), due(&cluster)], [true, false, false, true]);
    }

    #[test]
    fn what_is_wrong_is_looked_at_sooner_and_something_else_at_once() {
        let mut looked = Looked::new();
        let (well, now) = (SOON * 4, since_boot());
        assert!(!looked.is_due(&[], false, now + well), "nothing is nothing else");
        assert!(looked.is_due(&["a"], false, now + well));
        looked.at(vec!["a"]);
        assert!(!looked.is_due(&["a"], true, well) && !looked.is_due(&["a"], false, well));
        assert!(looked.is_due(&["b"], false, well) && looked.is_due(&[], false, well));
        looked.at = now.saturating_sub(SOON);
        assert!(looked.is_due(&["a"], true, well) && !looked.is_due(&["a"], false, well));
    }
}
