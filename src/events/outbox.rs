//! What waits to be told, what has been told lately, and when the next may go. Pure.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Counts, Now};
use crate::backoff::{Backoff, part};
use crate::facts::utc as seconds;

/// What is older is told no more: that long the API server keeps an Event (`--event-ttl`).
const TOO_OLD: Duration = Duration::from_secs(3600);
/// What comes back within this time is counted on the same Event.
const SERIES: Duration = Duration::from_secs(1800);
/// So many wait at most, and so many series are remembered.
const MOST: usize = 256;
/// A writer's first and longest wait after a failure.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(120));
/// A node that does not know how many there are takes its cluster for one of so many.
const WRITERS_UNKNOWN: usize = 500;
/// Longest gap between two Events that the size of the cluster makes.
const LONGEST_GAP: Duration = Duration::from_secs(600);

/// How much may be told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Budget {
    /// Events of one writer at once.
    pub(crate) burst: u32,
    /// Events of one writer in the long run.
    pub(crate) per_hour: u32,
    /// Events a second of all writers together, when all tell at once.
    pub(crate) all_per_second: u32,
}

/// What an Event is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Object {
    pub(crate) api_version: &'static str,
    pub(crate) kind: &'static str,
    /// Empty for what is in no namespace.
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Empty as long as it has not been asked for.
    pub(crate) uid: String,
}

/// What Events are about besides Nodes: with its group and version, and as paths name it.
const KINDS: [(&str, &str, &str); 9] = [
    ("Lease", "coordination.k8s.io/v1", "leases"),
    ("DaemonSet", "apps/v1", "daemonsets"),
    ("Deployment", "apps/v1", "deployments"),
    ("Service", "v1", "services"),
    ("ValidatingWebhookConfiguration", "admissionregistration.k8s.io/v1", "validatingwebhookconfigurations"),
    ("MutatingWebhookConfiguration", "admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations"),
    ("IPPool", "crd.projectcalico.org/v1", "ippools"),
    ("BGPConfiguration", "crd.projectcalico.org/v1", "bgpconfigurations"),
    ("FelixConfiguration", "crd.projectcalico.org/v1", "felixconfigurations"),
];

impl Object {
    /// What a finding names: `DaemonSet kube-system/calico-node`, `IPPool default`; none if it is of another kind.
    pub(crate) fn named(text: &str) -> Option<Self> {
        let (kind, name) = text.split_once(' ')?;
        let (kind, api_version, _) = *KINDS.iter().find(|known| known.0 == kind)?;
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        let plain = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
        let known = !name.is_empty() && plain(name) && plain(namespace);
        known.then(|| Object {
            api_version,
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: String::new(),
        })
    }

    /// The Node of this name.
    pub(crate) fn node(name: &str) -> Self {
        Object { api_version: "v1", kind: "Node", namespace: String::new(), name: name.to_owned(), uid: String::new() }
    }

    /// A Lease.
    pub(crate) fn lease(namespace: &str, name: &str) -> Self {
        let (api_version, kind) = ("coordination.k8s.io/v1", "Lease");
        Object { api_version, kind, namespace: namespace.to_owned(), name: name.to_owned(), uid: String::new() }
    }

    /// Whether it has the same name.
    pub(super) fn is(&self, other: &Object) -> bool {
        (self.kind, &self.namespace, &self.name) == (other.kind, &other.namespace, &other.name)
    }

    /// Where it is.
    pub(super) fn path(&self) -> String {
        let Object { api_version, kind, namespace, name, .. } = self;
        let plural = KINDS.iter().find(|known| known.0 == *kind).map_or("", |known| known.2);
        let below = if namespace.is_empty() { String::new() } else { format!("namespaces/{namespace}/") };
        match *kind {
            "Node" => format!("/api/v1/nodes/{name}"),
            "Service" => format!("/api/v1/{below}{plural}/{name}"),
            "Lease" => format!("/apis/{api_version}/{below}{plural}/{name}"),
            // These may be listed, and not asked for one by one.
            _ => format!("/apis/{api_version}/{below}{plural}?fieldSelector=metadata.name%3D{name}"),
        }
    }

    /// The namespace of Events about it: the API server wants those about what is in none in `default`.
    pub(super) fn events_in(&self) -> &str {
        if self.namespace.is_empty() { "default" } else { &self.namespace }
    }
}

/// Something that happened to an object.
#[derive(Debug, Clone)]
pub(crate) struct Occurrence {
    pub(crate) object: Object,
    /// A finding code, or one of the reasons of the verdict.
    pub(crate) reason: String,
    /// Whether it is a fault rather than the end of one.
    pub(crate) warning: bool,
    /// What is wrong since when and what to do, at most 1 KiB.
    pub(crate) message: String,
    /// Since when what it tells of has been so: with the reason, what makes it the same after a restart.
    pub(crate) since: Timestamp,
    /// When it came to count.
    pub(crate) at: Timestamp,
}

impl Occurrence {
    fn is(&self, other: &Occurrence) -> bool {
        self.warning == other.warning && self.reason == other.reason && self.object.is(&other.object)
    }
}

/// One that waits: several of the same are one.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    /// The first of them, with the message of the last.
    pub(super) what: Occurrence,
    last: Timestamp,
    count: u32,
    pushed: Duration,
}

/// One that has been told.
#[derive(Debug)]
struct Told {
    what: Occurrence,
    name: String,
    count: u32,
    at: Duration,
}

/// What to do now.
#[derive(Debug)]
pub(super) enum Turn {
    /// Nothing waits.
    Nothing,
    /// Not yet.
    Wait(Duration),
    /// Tell this, and say what became of it.
    Tell(Box<Waiting>),
}

/// What became of a try.
#[derive(Debug)]
pub(super) enum Fate {
    /// The API server has it.
    Told,
    /// The Event that was to be counted up is gone: it has to be made anew.
    Expired,
    /// It will never be taken.
    Refused(String),
    /// It is tried again, after this time at the soonest.
    Failed(String, Duration),
}

/// What waits and what has been told.
#[derive(Debug)]
pub(super) struct Outbox {
    budget: Budget,
    waiting: Vec<Waiting>,
    told: Vec<Told>,
    /// Events that may go at once, and when that was counted.
    tokens: (f64, Duration),
    /// None goes before.
    not_before: Duration,
    /// Between two Events, so that all writers together keep to their rate.
    gap: Duration,
    backoff: Backoff,
    pub(super) counts: Counts,
}

impl Outbox {
    pub(super) fn new(budget: Budget) -> Self {
        Outbox {
            budget,
            waiting: Vec::new(),
            told: Vec::new(),
            tokens: (f64::from(budget.burst), Duration::ZERO),
            not_before: Duration::ZERO,
            gap: Duration::ZERO,
            backoff: Backoff::new(BACK_OFF.0, BACK_OFF.1),
            counts: Counts::default(),
        }
    }

    /// Takes one in. Of the same that waits already only the count grows.
    pub(super) fn push(&mut self, what: Occurrence, writers: usize, now: Now) {
        let writers = if writers == 0 { WRITERS_UNKNOWN } else { writers };
        let gap = f64::from(u32::try_from(writers).unwrap_or(u32::MAX)) / f64::from(self.budget.all_per_second.max(1));
        self.gap = Duration::from_secs_f64(gap).min(LONGEST_GAP);
        if self.waiting.is_empty() {
            // Whatever all nodes notice at once they tell one after the other.
            self.not_before = self.not_before.max(now.since_boot + part(self.gap));
        }
        let new = Waiting::new(what, now);
        match self.waiting.iter_mut().find(|waiting| waiting.what.is(&new.what)) {
            Some(same) => same.again(new),
            None => self.waiting.push(new),
        }
        if self.waiting.len() > MOST {
            self.waiting.remove(0);
            self.counts.dropped += 1;
        }
    }

    /// What to do now.
    pub(super) fn turn(&mut self, now: Now) -> Turn {
        let waited = self.waiting.len();
        self.waiting.retain(|waiting| now.since(waiting.pushed) < TOO_OLD);
        self.counts.dropped += (waited - self.waiting.len()) as u64;
        self.told.retain(|told| now.since(told.at) < SERIES);
        let (tokens, at) = self.tokens;
        let rate = f64::from(self.budget.per_hour.max(1)) / 3600.0;
        let tokens = (tokens + now.since(at).as_secs_f64() * rate).min(f64::from(self.budget.burst));
        self.tokens = (tokens, now.since_boot);
        let early = self.not_before.saturating_sub(now.since_boot);
        if self.waiting.is_empty() {
            Turn::Nothing
        } else if !early.is_zero() {
            Turn::Wait(early)
        } else if tokens < 1.0 {
            Turn::Wait(Duration::from_secs_f64((1.0 - tokens) / rate) + Duration::from_millis(1))
        } else {
            Turn::Tell(Box::new(self.waiting.remove(0)))
        }
    }

    /// How one is told about this object: whether an Event of it exists, its name, and the body of the request.
    pub(super) fn request(
        &self,
        one: &Waiting,
        object: &Object,
        component: &str,
        instance: &str,
    ) -> (bool, String, Value) {
        let Waiting { what, last, count, .. } = one;
        if let Some(told) = self.told.iter().find(|told| told.what.is(what) && told.what.object.uid == object.uid) {
            let body = json!({"message": what.message, "lastTimestamp": seconds(*last), "count": told.count + count});
            return (true, told.name.clone(), body);
        }
        let name = name(what, object);
        let body = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": object.events_in()},
            "involvedObject": {
                "apiVersion": object.api_version, "kind": object.kind, "name": object.name, "uid": object.uid,
                "namespace": object.namespace,
            },
            "reason": what.reason,
            "message": what.message,
            "type": if what.warning { "Warning" } else { "Normal" },
            "firstTimestamp": seconds(what.at),
            "lastTimestamp": seconds(*last),
            "count": count,
            "source": {"component": component, "host": instance},
            "reportingComponent": component,
            "reportingInstance": instance,
        });
        (false, name, body)
    }

    /// Takes in what became of one that was told about this object.
    pub(super) fn settle(&mut self, one: Waiting, object: &Object, fate: &Fate, now: Now) {
        // By chance only the first time: from then on each keeps its place between the others.
        self.not_before = now.since_boot + self.gap;
        match fate {
            Fate::Told => {
                self.tokens.0 -= 1.0;
                self.backoff.reset();
                self.counts.written += 1;
                self.remember(one, object, now);
            }
            Fate::Refused(_) => {
                self.tokens.0 -= 1.0;
                self.counts.dropped += 1;
            }
            Fate::Expired => {
                self.told.retain(|told| !told.what.is(&one.what));
                self.put_back(one);
            }
            Fate::Failed(_, asked) => {
                self.counts.failed += 1;
                self.not_before = now.since_boot + *asked + self.backoff.wait();
                self.put_back(one);
            }
        }
    }

    fn put_back(&mut self, mut one: Waiting) {
        if let Some(same) = self.waiting.iter().position(|waiting| waiting.what.is(&one.what)) {
            one.again(self.waiting.remove(same));
        }
        self.waiting.insert(0, one);
    }

    fn remember(&mut self, one: Waiting, object: &Object, now: Now) {
        let same = |told: &&mut Told| told.what.is(&one.what) && told.what.object.uid == object.uid;
        if let Some(told) = self.told.iter_mut().find(same) {
            told.count += one.count;
            told.at = now.since_boot;
        } else {
            let name = name(&one.what, object);
            let what = Occurrence { object: object.clone(), message: String::new(), ..one.what };
            self.told.push(Told { what, name, count: one.count, at: now.since_boot });
        }
        if self.told.len() > MOST {
            self.told.remove(0);
        }
    }
}

impl Waiting {
    /// One that has just happened.
    pub(super) fn new(what: Occurrence, now: Now) -> Self {
        Waiting { last: what.at, what, count: 1, pushed: now.since_boot }
    }

    /// The same has happened once more.
    fn again(&mut self, later: Waiting) {
        self.last = self.last.max(later.last);
        self.count += later.count;
        self.what.message = later.what.message;
    }
}

/// The name of an Event: the same for the same, so that nothing is told twice, whoever tells it and after which restart.
fn name(what: &Occurrence, object: &Object) -> String {
    let mut hasher = DefaultHasher::new();
    (&object.uid, &what.reason, what.warning, what.since.as_second()).hash(&mut hasher);
    let stem: String = object.name.chars().take(200).collect();
    let stem = stem.trim_end_matches(['.', '-']);
    format!("{stem}.{:016x}", hasher.finish())
}
