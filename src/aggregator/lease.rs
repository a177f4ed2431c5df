//! Who leads: of several replicas, the one that holds a Lease writes.
//!
//! Whether the holder still lives is judged by this machine's own clock alone: a Lease whose version has not changed for
//! its duration, as observed here, has no live holder. What the holder's clock wrote into it is for people.

use std::time::Duration;

use http::{Method, Request};
use jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};

/// Name of the Lease.
pub(super) const NAME: &str = "nodevitals-aggregator";
/// A Lease that nobody has renewed for this long is free.
const LASTS: Duration = Duration::from_secs(15);
/// It is renewed, or looked at, this often.
pub(super) const EVERY: Duration = Duration::from_secs(5);
/// The holder stops writing this long after the last renewal that it began: well before others may take the Lease.
const LEADS_FOR: Duration = Duration::from_secs(10);
/// A request has to be answered within this time.
const ANSWER_WITHIN: Duration = Duration::from_secs(4);

/// What to do about the Lease.
#[derive(Debug, PartialEq)]
enum Step {
    Create(Value),
    Replace(Value),
    Wait,
}

/// Why a round has failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The API server does not answer.
    Unreachable(String),
    /// It answers, and refuses.
    Refused(String),
}

/// One candidate.
#[derive(Debug)]
pub(super) struct Elector {
    namespace: String,
    identity: String,
    /// The version that was seen last, and when it was seen first.
    observed: Option<(String, Duration)>,
    leads_until: Option<Duration>,
}

impl Elector {
    pub(super) fn new(namespace: &str, identity: &str) -> Self {
        Elector { namespace: namespace.to_owned(), identity: identity.to_owned(), observed: None, leads_until: None }
    }

    /// Whether this process leads.
    pub(super) fn leads(&self, now: Duration) -> bool {
        self.leads_until.is_some_and(|until| now < until)
    }

    /// Looks at the Lease, and renews or takes it where it can. `clock` never jumps.
    pub(super) async fn round(&mut self, client: &Client, clock: fn() -> Duration) -> Result<(), Failure> {
        let begun = clock();
        let lease = self.get(client).await?;
        let led = self.leads(begun);
        match self.decide(lease, clock(), Timestamp::now()) {
            Step::Wait => self.leads_until = None,
            Step::Create(lease) => self.put(client, Method::POST, &lease, begun).await?,
            Step::Replace(lease) => self.put(client, Method::PUT, &lease, begun).await?,
        }
        if led != self.leads(clock()) {
            tracing::info!(identity = self.identity, leads = !led, "leadership has changed");
        }
        Ok(())
    }

    /// Gives the Lease up, so that another replica need not wait for it to run out.
    pub(super) async fn release(&mut self, client: &Client, clock: fn() -> Duration) {
        if self.leads_until.take().is_none() {
            return;
        }
        let Ok(Some(mut lease)) = self.get(client).await else { return };
        if holder(&lease) == self.identity {
            lease["spec"]["holderIdentity"] = "".into();
            // Losing this costs the others a wait, and nothing else.
            self.put(client, Method::PUT, &lease, clock()).await.ok();
            self.leads_until = None;
        }
    }

    fn decide(&mut self, lease: Option<Value>, now: Duration, wall: Timestamp) -> Step {
        let Some(lease) = lease else {
            return Step::Create(self.mine(&Value::Null, wall));
        };
        let (version, holder) = (version(&lease), holder(&lease));
        if self.observed.as_ref().is_none_or(|(known, _)| known != version) {
            self.observed = Some((version.to_owned(), now));
        }
        let unchanged_for = self.observed.as_ref().map_or(Duration::ZERO, |(_, since)| now.saturating_sub(*since));
        let seconds = lease["spec"]["leaseDurationSeconds"].as_u64().unwrap_or(0);
        let lasts = LASTS.max(Duration::from_secs(seconds.min(60)));
        if holder == self.identity || holder.is_empty() || unchanged_for >= lasts {
            return Step::Replace(self.mine(&lease, wall));
        }
        Step::Wait
    }

    /// This Lease, held by this process.
    fn mine(&self, lease: &Value, wall: Timestamp) -> Value {
        let now = wall.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        let mut spec = lease["spec"].clone();
        if holder(lease) != self.identity {
            spec["leaseTransitions"] =
                spec["leaseTransitions"].as_u64().map_or(0, |count| count.saturating_add(1)).into();
            spec["acquireTime"] = now.as_str().into();
        }
        spec["holderIdentity"] = self.identity.as_str().into();
        spec["leaseDurationSeconds"] = LASTS.as_secs().into();
        spec["renewTime"] = now.into();
        let mut metadata = json!({ "name": NAME, "namespace": self.namespace });
        // With the version that was seen: of two that take it at once, one is refused.
        if !version(lease).is_empty() {
            metadata["resourceVersion"] = version(lease).into();
        }
        json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec })
    }

    async fn get(&self, client: &Client) -> Result<Option<Value>, Failure> {
        let uri = format!("{}/{NAME}", self.path());
        match send(client, Request::get(uri).body(Vec::new())).await {
            Ok(lease) => Ok(Some(lease)),
            Err((Some(404), _)) => Ok(None),
            Err(error) => Err(failure(error)),
        }
    }

    async fn put(&mut self, client: &Client, method: Method, lease: &Value, begun: Duration) -> Result<(), Failure> {
        let uri = if method == Method::POST { self.path() } else { format!("{}/{NAME}", self.path()) };
        let body = lease.to_string().into_bytes();
        let request = Request::builder().method(method).uri(uri).header("Content-Type", "application/json").body(body);
        match send(client, request).await {
            Ok(stored) => {
                self.observed = Some((version(&stored).to_owned(), begun));
                self.leads_until = Some(begun + LEADS_FOR);
                Ok(())
            }
            // Somebody else was faster.
            Err((Some(409), _)) => {
                self.leads_until = None;
                Ok(())
            }
            Err(error) => Err(failure(error)),
        }
    }

    fn path(&self) -> String {
        format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace)
    }
}

fn holder(lease: &Value) -> &str {
    lease["spec"]["holderIdentity"].as_str().unwrap_or_default()
}

fn version(lease: &Value) -> &str {
    lease["metadata"]["resourceVersion"].as_str().unwrap_or_default()
}

type Answer = Result<Value, (Option<u16>, String)>;

async fn send(client: &Client, request: Result<Request<Vec<u8>>, http::Error>) -> Answer {
    let request = request.map_err(|error| (None, error.to_string()))?;
    match tokio::time::timeout(ANSWER_WITHIN, client.request(request)).await {
        Err(_) => Err((None, format!("no answer within {} s", ANSWER_WITHIN.as_secs()))),
        Ok(Ok(lease)) => Ok(lease),
        Ok(Err(kube::Error::Api(status))) => Err((Some(status.code), status.message)),
        Ok(Err(error)) => Err((None, crate::api::chain(&error))),
    }
}

fn failure((code, why): (Option<u16>, String)) -> Failure {
    match code {
        // An API server that is overloaded or has lost its store cannot be relied on to be seen.
        Some(code) if code < 500 => Failure::Refused(format!("{code}: {why}")),
        Some(code) => Failure::Unreachable(format!("{code}: {why}")),
        None => Failure::Unreachable(why),
    }
}

#[cfg(test)]
mod tests;
