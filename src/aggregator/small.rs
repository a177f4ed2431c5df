//! Small forms of what is kept of thousands of objects: texts that many have in common, names, and times. Of each worker
//! there is a row, an agent's Pod, one of calico-node, a block or two and a host endpoint, and all of them name it.

use std::collections::HashSet;
use std::fmt;
use std::num::NonZeroI64;
use std::sync::Arc;

use jiff::Timestamp;

/// Texts that many have in common, each kept once: names of nodes, zones, pools, versions.
#[derive(Debug, Default)]
pub(super) struct Texts(HashSet<Arc<str>>);

impl Texts {
    /// This text.
    pub(super) fn get(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return Arc::clone(known);
        }
        let new: Arc<str> = text.into();
        self.0.insert(Arc::clone(&new));
        new
    }

    /// Forgets what nobody has any more.
    pub(super) fn forget(&mut self) {
        self.0.retain(|text| Arc::strong_count(text) > 1);
        self.0.shrink_to_fit();
    }
}

/// Namespace and name of an object, which its key and what is kept of it have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name(Arc<str>);

impl Name {
    /// Of an object; without a namespace for one of the cluster.
    pub(super) fn new(namespace: &str, name: &str) -> Name {
        Name(format!("{namespace}/{name}").into())
    }

    /// Its namespace; empty for an object of the cluster.
    pub(crate) fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, name)| name)
    }

    /// `namespace/name`; only the name for an object of the cluster.
    pub(crate) fn path(&self) -> &str {
        self.0.trim_start_matches('/')
    }
}

/// A time or none, in a third of the bytes of an `Option<Timestamp>`: in microseconds, where Kubernetes mostly writes seconds.
/// The first microsecond of 1970 counts as none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Time(Option<NonZeroI64>);

impl Time {
    /// When.
    pub(crate) fn get(self) -> Option<Timestamp> {
        Timestamp::from_microsecond(self.0?.get()).ok()
    }

    /// This one, or else the other.
    pub(super) fn or(self, other: Time) -> Time {
        Time(self.0.or(other.0))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path())
    }
}

impl From<Option<Timestamp>> for Time {
    fn from(at: Option<Timestamp>) -> Time {
        Time(at.and_then(|at| NonZeroI64::new(at.as_microsecond())))
    }
}

impl From<Timestamp> for Time {
    fn from(at: Timestamp) -> Time {
        Some(at).into()
    }
}

#[cfg(test)]
mod tests {
    use std::mem::size_of;

    use super::*;
    use crate::aggregator::pods::CalicoPod;
    use crate::aggregator::row::{AgentPod, Condition, Row};

    #[test]
    fn a_text_is_kept_once_and_as_long_as_somebody_has_it() {
        let mut texts = Texts::default();
        let (one, other) = (texts.get("worker-1"), texts.get("worker-1"));
        assert!(Arc::ptr_eq(&one, &other));
        drop((texts.get("worker-2"), other));
        texts.forget();
        assert_eq!(texts.0, HashSet::from([Arc::clone(&one)]));
        drop(one);
        texts.forget();
        assert!(texts.0.is_empty());
    }

    #[test]
    fn a_name_says_its_parts() {
        let of = |namespace, name| {
            let key = Name::new(namespace, name);
            (key.namespace().to_owned(), key.name().to_owned(), key.to_string())
        };
        assert_eq!(of("kube-system", "a"), ("kube-system".into(), "a".into(), "kube-system/a".into()));
        assert_eq!(of("", "a"), (String::new(), "a".into(), "a".into()));
        assert_eq!(of("", ""), (String::new(), String::new(), String::new()));
    }

    #[test]
    fn a_time_is_what_it_was_to_the_microsecond() {
        for text in
            ["2026-11-21T10:00:00Z", "2026-11-21T10:00:00.123456Z", "1969-12-31T23:59:59Z", "9999-12-30T22:00:00Z"]
        {
            let at: Timestamp = text.parse().expect("a time");
            assert_eq!(Time::from(at).get(), Some(at));
        }
        assert_eq!((Time::from(None).get(), Time::from(Timestamp::UNIX_EPOCH).get()), (None, None));
    }

    /// What is there five thousand times and more: a hundred bytes of any of these are half a megabyte. Where one has to grow,
    /// `scripts/bench.sh scale` tells whether the memory of 5,000 Nodes is still within its limit.
    #[test]
    fn what_is_kept_of_each_worker_stays_small() {
        assert!(size_of::<Row>() <= 416, "Row: {}", size_of::<Row>());
        assert!(size_of::<Condition>() <= 24, "there are ten of each node: {}", size_of::<Condition>());
        assert!(size_of::<AgentPod>() <= 32, "AgentPod: {}", size_of::<AgentPod>());
        assert!(size_of::<CalicoPod>() <= 128, "CalicoPod: {}", size_of::<CalicoPod>());
        assert_eq!(size_of::<Time>(), 8);
    }
}
