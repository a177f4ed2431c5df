//! The ConfigMap in which is kept what has to outlive this process: it is read and written, and where neither can be done that is told.

use std::time::Duration;

use http::Request;
use jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};

use crate::aggregator::looked::Look;
use crate::aggregator::store::Store;
use crate::aggregator::warned::{News, Warned};
use crate::clock::since_boot;

/// Name of the ConfigMap.
const NAME: &str = "nodevitals-aggregator";
/// It is written in every so manyth round at most, and where it was refused tried again after as many.
const WRITE: u32 = 3;
/// One request.
const DEADLINE: Duration = Duration::from_secs(10);
/// What a failure costs.
const LOST: &str =
    "what has to outlive the aggregator (nodes that are gone, when calico-node failed where) is lost when it ends";

/// Why it was not read, or not written.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Failure {
    /// The API server refuses: the status of its answer, and what it says.
    Refused(u16, String),
    /// It did not answer, or cannot for now.
    Unanswered(String),
}

impl Failure {
    fn of(error: &kube::Error) -> Failure {
        match error {
            // Another wrote just now, or too many ask.
            kube::Error::Api(status)
                if (400..500).contains(&status.code) && !matches!(status.code, 408 | 409 | 429) =>
            {
                Failure::Refused(status.code, status.message.clone())
            }
            error => Failure::Unanswered(crate::api::chain(error)),
        }
    }

    /// The status, by which one reason is told from another: what is said with it may differ each time.
    fn reason(&self) -> u16 {
        match self {
            Failure::Refused(code, _) => *code,
            Failure::Unanswered(_) => 0,
        }
    }

    /// For people.
    fn words(&self) -> String {
        match self {
            Failure::Refused(404, _) => {
                format!("there is none, and the aggregator may not make it (deploy/aggregator.yaml does); {LOST}")
            }
            Failure::Refused(403, _) => {
                format!("no permission to get and patch it (deploy/rbac-aggregator.yaml gives it); {LOST}")
            }
            Failure::Refused(code, says) => format!("the API server says {code}: {says}; {LOST}"),
            Failure::Unanswered(why) => format!("{why}; {LOST}"),
        }
    }
}

/// What has become of it.
#[derive(Debug)]
pub(super) struct Keeping {
    path: String,
    /// It was read, or is not to be: what is known is known until the end of this process.
    loaded: bool,
    led: bool,
    /// Rounds since it was written, or was refused.
    rounds: u32,
    /// As it is there.
    written: Option<Value>,
    /// Why it was not read last, or not written.
    unread: Option<Failure>,
    unwritten: Option<Failure>,
    /// By what the API server answered.
    warned: Warned<u16>,
}

impl Keeping {
    /// Of the aggregator of this namespace. Nothing is asked yet.
    pub(super) fn new(namespace: &str) -> Self {
        Keeping {
            path: format!("/api/v1/namespaces/{namespace}/configmaps/{NAME}"),
            loaded: false,
            led: false,
            rounds: 0,
            written: None,
            unread: None,
            unwritten: None,
            warned: Warned::default(),
        }
    }

    /// Reads what was written before, and writes what is another since, if this process leads.
    pub(super) async fn round(&mut self, client: &Client, store: &Store, leads: bool) {
        self.rounds += 1;
        let due = self.rounds >= WRITE;
        // Who begins to lead may have missed what the other wrote.
        let led = std::mem::replace(&mut self.led, leads);
        let begins = leads && !led;
        if !self.loaded || begins || (due && self.unread.is_some()) {
            let read = load(client, &self.path).await;
            self.read(store, read);
        }
        let now = store.lock().cluster.memory.write();
        if leads && self.loaded && due && (self.unwritten.is_some() || self.written.as_ref() != Some(&now)) {
            let saved = save(client, &self.path, &now).await;
            self.saved(saved, now);
        }
        if !leads {
            // The one that leads knows.
            self.unwritten = None;
        }
        if due && self.unread.is_some() {
            self.rounds = 0;
        }
        self.tell(store, since_boot());
    }

    fn read(&mut self, store: &Store, read: Result<Value, Failure>) {
        match read {
            Ok(before) => {
                store.change(|cluster| {
                    cluster.memory.read(&before);
                    cluster.memory.forget(Timestamp::now().as_second());
                    cluster.revision += 1;
                });
                (self.loaded, self.unread, self.written) = (true, None, Some(before));
            }
            Err(why @ Failure::Refused(..)) => {
                (self.loaded, self.unread) = (true, Some(why));
            }
            Err(Failure::Unanswered(_)) => {}
        }
    }

    fn saved(&mut self, saved: Result<(), Failure>, now: Value) {
        let unanswered = matches!(saved, Err(Failure::Unanswered(_)));
        match saved {
            Ok(()) => (self.written, self.unwritten) = (Some(now), None),
            Err(why) => self.unwritten = Some(why),
        }
        // Who did not answer is asked again in the next round.
        if !unanswered {
            self.rounds = 0;
        }
    }

    /// That the API server does not answer is told for all of it.
    fn tell(&mut self, store: &Store, now: Duration) {
        let failure = self.unread.as_ref().or(self.unwritten.as_ref());
        let refused = failure.filter(|why| matches!(why, Failure::Refused(..))).map(Failure::words);
        store.change(|cluster| cluster.looked(Look::Memory, refused, Timestamp::now()));
        match (self.warned.step(failure.map(Failure::reason), now), failure) {
            (Some(News::Fails), Some(failure)) => {
                tracing::warn!(path = self.path, why = failure.words(), "cannot keep what has to outlive this process");
            }
            (Some(News::Over), _) => tracing::info!(path = self.path, "what has to outlive this process is kept again"),
            _ => {}
        }
    }
}

async fn load(client: &Client, path: &str) -> Result<Value, Failure> {
    let object: Value =
        asked(client.request(Request::get(path).body(Vec::new()).map_err(|error| unsaid(&error))?)).await?;
    Ok(serde_json::from_str(object["data"]["memory"].as_str().unwrap_or_default()).unwrap_or_default())
}

async fn save(client: &Client, path: &str, memory: &Value) -> Result<(), Failure> {
    let body = json!({ "data": { "memory": memory.to_string() } }).to_string().into_bytes();
    let path = format!("{path}?fieldManager=nodevitals-aggregator");
    let request = Request::patch(path).header("Content-Type", "application/merge-patch+json").body(body);
    asked(client.request_text(request.map_err(|error| unsaid(&error))?)).await.map(drop)
}

async fn asked<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    let late = |_| Failure::Unanswered(format!("no answer within {} s", DEADLINE.as_secs()));
    tokio::time::timeout(DEADLINE, request).await.map_err(late)?.map_err(|error| Failure::of(&error))
}

fn unsaid(error: &http::Error) -> Failure {
    Failure::Unanswered(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregator::testing::at;

    fn refused(code: u16) -> Failure {
        Failure::Refused(code, "no".to_owned())
    }

    fn told(store: &Store) -> Option<String> {
        let inner = store.lock();
        // Long enough after now that it is no matter of a moment.
        let later = Timestamp::now() + jiff::SignedDuration::from_secs(60);
        inner.cluster.looks.get(&Look::Memory).and_then(|sight| sight.is_blind(later)).map(|lost| lost.why.clone())
    }

    #[test]
    fn what_is_refused_is_told_until_it_is_kept() {
        let (store, mut keeping) = (Store::watched(), Keeping::new("nodevitals"));
        keeping.read(&store, Err(refused(404)));
        keeping.tell(&store, Duration::ZERO);
        assert!(keeping.loaded, "it is not to be");
        let why = told(&store).expect("told");
        assert!(why.starts_with("there is none, and the aggregator may not make it (deploy/aggregator.yaml"), "{why}");
        keeping.read(&store, Ok(Value::Null));
        keeping.saved(Err(refused(403)), json!({}));
        keeping.tell(&store, Duration::ZERO);
        assert_eq!((keeping.rounds, keeping.written.as_ref()), (0, Some(&Value::Null)), "it is tried again later");
        let why = told(&store).expect("told");
        assert!(why.starts_with("no permission to get and patch it (deploy/rbac-aggregator.yaml"), "{why}");
        keeping.saved(Ok(()), json!({}));
        keeping.tell(&store, Duration::ZERO);
        assert_eq!((told(&store), keeping.written), (None, Some(json!({}))));
    }

    #[test]
    fn who_does_not_answer_refuses_nothing() {
        let (store, mut keeping) = (Store::watched(), Keeping::new("nodevitals"));
        keeping.rounds = WRITE;
        keeping.read(&store, Err(Failure::Unanswered("no answer".to_owned())));
        assert!(!keeping.loaded, "it may be there");
        keeping.saved(Err(Failure::Unanswered("no answer".to_owned())), json!({}));
        keeping.tell(&store, Duration::ZERO);
        assert_eq!((told(&store), keeping.rounds), (None, WRITE));
        assert_eq!(keeping.unwritten.as_ref().map(Failure::reason), Some(0), "it is warned of");
    }

    #[test]
    fn what_was_read_is_known_beside_what_was_seen() {
        let (store, mut keeping) = (Store::watched(), Keeping::new("nodevitals"));
        let mut other = super::super::Memory::default();
        other.bury("n1", &[], None, Timestamp::now());
        store.lock().cluster.memory.worker_went(at(0));
        keeping.read(&store, Ok(other.write()));
        let inner = store.lock();
        assert!(inner.cluster.memory.gone("n1").is_some() && inner.cluster.memory.last_gone() == Some(at(0)));
    }
}
