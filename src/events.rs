//! Kubernetes Events about what began and what is over: a budget, one delivery at a time, nothing told twice.
//!
//! They are written through `v1`, not `events.k8s.io/v1`: only there may the message, the count and the last time of one that
//! exists be brought up to date, and both are the same objects to everybody who reads them. Events are worth less than
//! conditions: what cannot be delivered within an hour is dropped and counted.

mod outbox;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Request;
use http::header::{ACCEPT, CONTENT_TYPE};
use hyper::body::Bytes;
use serde_json::Value;
use tokio::sync::Notify;

pub(crate) use outbox::{Budget, Object, Occurrence};
use outbox::{Fate, Outbox, Turn, Waiting};

use crate::api::{self, Api, asked, said};
use crate::clock::now;
use crate::verdict::Now;

/// Longest wait for an answer: longer than any admission webhook may take.
const DEADLINE: Duration = Duration::from_secs(35);
/// An object's UID is asked for again after this time: one of the same name may have taken its place.
const UID_KEPT: Duration = Duration::from_secs(600);
/// Asks for an object without what it is about.
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
/// The same of a list.
const METADATA_OF_ALL: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

/// Writes Events.
#[derive(Debug)]
pub(crate) struct Reporter {
    /// `nodevitals-agent`, `nodevitals-aggregator`.
    component: &'static str,
    /// The node or the Pod that tells.
    instance: String,
    outbox: Mutex<Outbox>,
    wake: Notify,
}

/// Tells one thing at once, for a command that ends after it; of its object the UID is known.
///
/// # Errors
/// Why the API server does not have it.
pub(crate) async fn tell_once(api: &Api, component: &'static str, what: Occurrence) -> Result<(), String> {
    let object = what.object.clone();
    let reporter = Reporter::new(component, component.to_owned(), Budget { burst: 1, per_hour: 1, all_per_second: 1 });
    match reporter.deliver(api, &Waiting::new(what, now()), &object).await {
        Fate::Told | Fate::Expired => Ok(()),
        Fate::Refused(why) | Fate::Failed(why, _) => Err(why),
    }
}

/// What became of Events so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Taken by the API server.
    pub(crate) written: u64,
    /// Tries that failed.
    pub(crate) failed: u64,
    /// Never told: refused, too old, or too many.
    pub(crate) dropped: u64,
}

impl Reporter {
    /// One who speaks as `component` on `instance`.
    pub(crate) fn new(component: &'static str, instance: String, budget: Budget) -> Self {
        Reporter { component, instance, outbox: Mutex::new(Outbox::new(budget)), wake: Notify::new() }
    }

    /// Takes in what happened. `writers` are those that may all tell the same at once, this one included.
    pub(crate) fn tell(&self, happened: impl IntoIterator<Item = Occurrence>, writers: usize) {
        let mut outbox = self.outbox();
        for one in happened {
            outbox.push(one, writers, now());
        }
        drop(outbox);
        self.wake.notify_one();
    }

    /// What became of them.
    pub(crate) fn counts(&self) -> Counts {
        self.outbox().counts
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Delivers over the first of `ways` that works. Never ends.
    pub(crate) async fn run(&self, mut ways: Vec<Api>) -> std::convert::Infallible {
        let mut known: Option<(Object, Duration)> = None;
        loop {
            let turn = self.outbox().turn(now());
            let one = match turn {
                Turn::Nothing => {
                    self.wake.notified().await;
                    continue;
                }
                // What is told meanwhile does not come sooner than what waits.
                Turn::Wait(time) => {
                    tokio::time::sleep(time).await;
                    continue;
                }
                Turn::Tell(one) => one,
            };
            let fresh = |(object, at): &(Object, Duration)| object.is(&one.what.object) && now().since(*at) < UID_KEPT;
            if !known.as_ref().is_some_and(fresh) {
                known = None;
            }
            let fate = match &known {
                Some((object, _)) => self.deliver(&ways[0], &one, object).await,
                None => match identify(&ways[0], one.what.object.clone()).await {
                    Ok(object) => {
                        let (object, _) = known.insert((object, now().since_boot));
                        self.deliver(&ways[0], &one, object).await
                    }
                    Err(fate) => fate,
                },
            };
            match &fate {
                Fate::Refused(why) => {
                    tracing::warn!(why, "an Event was refused and is dropped; is all of deploy/ applied?");
                }
                Fate::Failed(why, _) => {
                    tracing::debug!(why, "an Event could not be written; it is tried again");
                    ways.rotate_left(1);
                }
                Fate::Told | Fate::Expired => {}
            }
            let object = known.as_ref().map_or(&one.what.object, |(object, _)| object).clone();
            self.outbox().settle(*one, &object, &fate, now());
        }
    }

    async fn deliver(&self, way: &Api, one: &Waiting, object: &Object) -> Fate {
        let (exists, name, body) = self.outbox().request(one, object, self.component, &self.instance);
        let events = format!("/api/v1/namespaces/{}/events", object.events_in());
        let manager = self.component;
        let request = if exists {
            let path = format!("{events}/{name}?fieldManager={manager}");
            Request::patch(path).header(CONTENT_TYPE, "application/merge-patch+json")
        } else {
            Request::post(format!("{events}?fieldManager={manager}")).header(CONTENT_TYPE, "application/json")
        };
        match send(way, request.body(body.to_string().into_bytes())).await {
            Ok(_) => Fate::Told,
            // An answer was lost, or an earlier process told it.
            Err(kube::Error::Api(status)) if status.code == 409 && !exists => Fate::Told,
            Err(kube::Error::Api(status)) if status.code == 404 && exists => Fate::Expired,
            Err(error) => fate(error),
        }
    }
}

fn fate(error: kube::Error) -> Fate {
    match error {
        kube::Error::Api(status) if status.code < 500 && status.code != 429 && status.code != 409 => {
            Fate::Refused(format!("{}: {}", status.code, status.message))
        }
        error => Fate::Failed(said(&error), asked(&error)),
    }
}

/// The object with its UID, by which `kubectl describe` finds what is told about it.
async fn identify(way: &Api, mut object: Object) -> Result<Object, Fate> {
    let path = object.path();
    let accept = if path.contains('?') { METADATA_OF_ALL } else { METADATA };
    let request = Request::get(path).header(ACCEPT, accept).body(Vec::new());
    let answer = send(way, request).await.map_err(fate)?;
    let found: Value = serde_json::from_slice(&answer).map_err(|error| Fate::Refused(error.to_string()))?;
    let one = found.get("items").map_or(&found, |items| &items[0]);
    one["metadata"]["uid"].as_str().unwrap_or_default().clone_into(&mut object.uid);
    // Of what is gone nobody needs to be told; `Expired` would be tried again.
    if object.uid.is_empty() { Err(Fate::Refused("what it is about is gone".to_owned())) } else { Ok(object) }
}

async fn send(way: &Api, request: Result<Request<Vec<u8>>, http::Error>) -> Result<Bytes, kube::Error> {
    let request = request.map_err(kube::Error::HttpError)?;
    let late = |_| Err(kube::Error::Service(format!("no answer within {} s", DEADLINE.as_secs()).into()));
    tokio::time::timeout(DEADLINE, api::send(&way.unary, request)).await.unwrap_or_else(late)
}

#[cfg(test)]
mod tests;
