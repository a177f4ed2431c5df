//! Follows all objects of one kind: a streaming list where the server has it, pages and a watch where it has not.
//!
//! A stock reflector keeps whole objects, which costs a hundred times the memory that is needed; this one hands slim
//! objects on and keeps none. It never ends and never gives up: what fails is tried again, later each time.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::time::Duration;

use futures::TryStreamExt;
use http::Request;
use http::header::ACCEPT;
use kube::Client;
use kube::core::WatchEvent;
use serde::de::DeserializeOwned;

use super::lenient::Shape;
use super::model::{ListPage, Versioned};
use super::warned::Warned;
use crate::backoff::{Backoff, jitter};
use crate::clock::since_boot;

/// Objects in a page. A page is held in memory as a whole, twice while it is read, and a loaded Node has more than 20 KB.
const PAGE: usize = 50;
/// A page, or the head of a watch's answer, has to arrive within this time.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// The server ends a watch after about this time.
const WATCH_LASTS: Duration = Duration::from_secs(290);
/// A watch on which nothing comes for this long may be dead, and is taken up again where it stopped. The API server sends a bookmark
/// every minute, but none where nothing of the kind has changed since the watch began: that is no loss.
const IDLE: Duration = Duration::from_secs(70);
/// While the first list is streamed. A server that knows nothing of streaming lists goes quiet after it.
const IDLE_IN_LIST: Duration = Duration::from_secs(15);
/// What does not exist in this cluster, or must not be seen, is asked for again after this time.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// For so long what has been seen is not taken for forbidden: an API server that starts refuses everything until it has read
/// the roles.
const BRIEFLY: Duration = Duration::from_secs(15);
/// Annotation of the bookmark that ends a streamed list.
const LIST_ENDS: &str = "k8s.io/initial-events-end";

/// What is to be followed.
#[derive(Debug, Clone)]
pub(super) struct Kind {
    /// For the log: `nodes`.
    pub(super) name: &'static str,
    /// `/api/v1/nodes`; and where else the same kind may be, the first that exists counts.
    pub(super) paths: Vec<String>,
    /// `labelSelector=` or `fieldSelector=` with its value, escaped for a query; empty for all.
    pub(super) selector: &'static str,
    /// Not every cluster has it, and it may be left out of the permissions: neither is an error.
    pub(super) optional: bool,
    /// Nothing but its metadata is read, and so asked for.
    pub(super) metadata_only: bool,
}

/// What has happened.
#[derive(Debug)]
pub(super) enum Change<T> {
    /// The API server answers.
    Found,
    /// A list begins.
    ListBegins,
    /// The object is there, and this is how it is now.
    Here(T),
    /// The object is gone.
    Gone(T),
    /// The list is complete: what was not in it is gone.
    ListEnds,
    /// The API server cannot be asked. The text says why.
    Lost(String),
    /// There is no such kind in this cluster, or no permission to see it.
    NotThere(NotThere),
}

/// Why a kind cannot be seen in an API server that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotThere {
    /// It does not exist.
    Missing,
    /// There is no permission; whether it exists is not known.
    Denied,
}

/// Why a watch is over.
enum End {
    /// The server has ended it in good order, or nothing comes.
    Done,
    /// The version is too old: everything has to be listed again.
    Expired,
    /// The server has no streaming lists.
    NoStreaming(String),
    /// The kind does not exist, or must not be seen.
    NotThere(NotThere, String),
    /// It failed.
    Failed(String),
}

/// An object that can be followed.
pub(super) trait Object: Versioned + Shape + DeserializeOwned + Clone + Send + 'static {}

impl<T: Versioned + Shape + DeserializeOwned + Clone + Send + 'static> Object for T {}

struct Follower<'a, T> {
    client: &'a Client,
    kind: &'a Kind,
    /// Which of the paths.
    at: usize,
    /// What the paths before it answered, where an optional kind was not there.
    missed: Option<NotThere>,
    sink: &'a mut dyn FnMut(Change<T>),
    /// For so long nothing may come.
    idle: Duration,
    /// The version from which to go on; none while everything has to be listed.
    version: Option<String>,
    streaming: bool,
    warned: Warned<String>,
}

/// Follows all objects of a kind, for ever.
pub(super) async fn follow<T: Object>(client: &Client, kind: &Kind, sink: &mut dyn FnMut(Change<T>)) -> Infallible {
    follow_while(client, kind, IDLE, sink).await
}

async fn follow_while<T: Object>(
    client: &Client,
    kind: &Kind,
    idle: Duration,
    sink: &mut dyn FnMut(Change<T>),
) -> Infallible {
    let mut follower = Follower {
        client,
        kind,
        at: 0,
        missed: None,
        sink,
        idle,
        version: None,
        streaming: true,
        warned: Warned::default(),
    };
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
    let mut refused: Option<tokio::time::Instant> = None;
    loop {
        let begun = tokio::time::Instant::now();
        let end = follower.turn().await;
        refused = matches!(end, End::NotThere(NotThere::Denied, _)).then(|| refused.unwrap_or(begun));
        let briefly = follower.version.is_some() && refused.is_some_and(|since| since.elapsed() < BRIEFLY);
        if !matches!(end, End::NotThere(..) | End::NoStreaming(_)) {
            follower.missed = None;
        }
        if begun.elapsed() > Duration::from_secs(60) {
            backoff.reset();
        }
        match end {
            // A server that ends every watch at once must not be asked without a pause.
            End::Done if begun.elapsed() > Duration::from_secs(1) => backoff.reset(),
            End::Done => tokio::time::sleep(backoff.wait()).await,
            End::Expired => {
                tracing::info!(kind = kind.name, "the watch is too far behind, listing again");
                follower.version = None;
                tokio::time::sleep(backoff.wait()).await;
            }
            End::NoStreaming(why) => {
                tracing::info!(kind = kind.name, why, "the API server has no streaming lists, reading pages");
                follower.streaming = false;
            }
            End::NotThere(how, why) if kind.optional && !briefly => {
                if let Some(wait) = follower.not_there(how, &why) {
                    tokio::time::sleep(wait).await;
                }
            }
            End::NotThere(NotThere::Denied, why) => follower.lost(kind.denied(&why), &mut backoff).await,
            End::NotThere(NotThere::Missing, why) | End::Failed(why) => follower.lost(why, &mut backoff).await,
        }
    }
}

impl<T: Object> Follower<'_, T> {
    async fn lost(&mut self, why: String, backoff: &mut Backoff) {
        let wait = backoff.wait();
        if self.warned.step(Some(why.clone()), since_boot()).is_some() {
            tracing::warn!(kind = self.kind.name, why, ?wait, "the watch is lost");
        }
        (self.sink)(Change::Lost(why));
        tokio::time::sleep(wait).await;
    }

    /// It is not at this path: the next one is tried at once; after the last, what was found is told and waited for.
    fn not_there(&mut self, how: NotThere, why: &str) -> Option<Duration> {
        self.version = None;
        self.streaming = true;
        self.at = (self.at + 1) % self.kind.paths.len();
        // Where one path must not be seen, the other does not tell that there is nothing.
        let worst = if self.missed == Some(NotThere::Denied) { NotThere::Denied } else { how };
        if self.at > 0 {
            self.missed = Some(worst);
            return None;
        }
        self.missed = None;
        tracing::debug!(kind = self.kind.name, why, "not in this cluster, or no permission to see it");
        (self.sink)(Change::NotThere(worst));
        Some(jitter(AGAIN_AFTER))
    }

    async fn turn(&mut self) -> End {
        if self.version.is_none() && !self.streaming {
            match list(self.client, self.kind, self.at, self.sink).await {
                Ok(version) => self.version = Some(version),
                Err(error) => return end_of(&error),
            }
        }
        self.watch().await
    }

    /// Watches from where it stopped, or with everything that is there.
    async fn watch(&mut self) -> End {
        let mut listing = self.version.is_none();
        let request = match self.kind.request(self.at, &self.watch_query()) {
            Ok(request) => request,
            Err(error) => return End::Failed(format!("cannot ask for {}: {error}", self.kind.name)),
        };
        let stream = match tokio::time::timeout(ANSWER_WITHIN, self.client.request_events::<T>(request)).await {
            Err(_) => return End::Failed(no_answer()),
            Ok(Err(error)) => return if listing { end_of_list(&error) } else { end_of(&error) },
            Ok(Ok(stream)) => stream,
        };
        let mut stream = std::pin::pin!(stream);
        if self.warned.step(None, since_boot()).is_some() {
            tracing::info!(kind = self.kind.name, "the watch goes on");
        }
        (self.sink)(Change::Found);
        if listing {
            (self.sink)(Change::ListBegins);
        }
        loop {
            let patience = if listing { IDLE_IN_LIST } else { self.idle };
            let event = match tokio::time::timeout(patience, stream.try_next()).await {
                Err(_) if listing => return End::NoStreaming("the list does not end".to_owned()),
                Ok(Ok(Some(event))) => event,
                Ok(Ok(None)) if listing => return End::Failed("the list was cut off".to_owned()),
                Err(_) | Ok(Ok(None)) => return End::Done,
                // One object that cannot be read costs itself. kube takes any JSON object for an empty status.
                Ok(Err(kube::Error::SerdeError(error))) => {
                    tracing::warn!(kind = self.kind.name, %error, "an object cannot be read and is left out");
                    continue;
                }
                Ok(Err(kube::Error::Api(status))) if status.code == 0 => {
                    tracing::warn!(kind = self.kind.name, "an object cannot be read and is left out");
                    continue;
                }
                Ok(Err(error)) => return end_of(&error),
            };
            if let Some(end) = self.take(event, &mut listing) {
                return end;
            }
        }
    }

    fn take(&mut self, event: WatchEvent<T>, listing: &mut bool) -> Option<End> {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                self.went_on(object.version(), *listing);
                (self.sink)(Change::Here(object));
            }
            WatchEvent::Deleted(object) => {
                self.went_on(object.version(), *listing);
                (self.sink)(Change::Gone(object));
            }
            WatchEvent::Bookmark(bookmark) => {
                if *listing && bookmark.metadata.annotations.contains_key(LIST_ENDS) {
                    *listing = false;
                    (self.sink)(Change::ListEnds);
                }
                self.went_on(&bookmark.metadata.resource_version, *listing);
            }
            WatchEvent::Error(status) => return Some(end_of(&kube::Error::Api(status))),
        }
        None
    }

    /// A list that is cut off cannot be gone on with, so versions count only once it is complete.
    fn went_on(&mut self, version: &str, listing: bool) {
        if !listing && !version.is_empty() {
            self.version = Some(version.to_owned());
        }
    }

    fn watch_query(&self) -> String {
        let lasts = jitter(WATCH_LASTS).as_secs();
        let query = format!("watch=true&allowWatchBookmarks=true&timeoutSeconds={lasts}");
        match &self.version {
            Some(version) => format!("{query}&resourceVersion={}", escaped(version)),
            None => format!("{query}&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion="),
        }
    }
}

impl Kind {
    /// Which right is missing, and what the API server says of it.
    fn denied(&self, why: &str) -> String {
        format!("no permission to list and watch {}: {why}", self.name)
    }

    fn request(&self, at: usize, query: &str) -> Result<Request<Vec<u8>>, http::Error> {
        let (path, selector) = (&self.paths[at], self.selector);
        let and = if selector.is_empty() { "" } else { "&" };
        let request = Request::get(format!("{path}?{selector}{and}{query}"));
        // A watch sends the objects, one by one, whatever the list would be.
        let list = if query.starts_with("watch=") { "" } else { "List" };
        let request = if self.metadata_only {
            request.header(ACCEPT, format!("application/json;as=PartialObjectMetadata{list};g=meta.k8s.io;v=v1"))
        } else {
            request
        };
        request.body(Vec::new())
    }
}

/// Lists everything in pages and returns the list's version.
pub(super) async fn list<T: Shape>(
    client: &Client,
    kind: &Kind,
    at: usize,
    sink: &mut dyn FnMut(Change<T>),
) -> kube::Result<String> {
    let mut next = String::new();
    sink(Change::ListBegins);
    loop {
        let mut query = format!("limit={PAGE}");
        if !next.is_empty() {
            let _ = write!(query, "&continue={}", escaped(&next));
        }
        let request = kind.request(at, &query).map_err(kube::Error::HttpError)?;
        let answer = tokio::time::timeout(ANSWER_WITHIN, client.request::<ListPage<T>>(request)).await;
        let page = answer.unwrap_or_else(|_| Err(kube::Error::Service(no_answer().into())))?;
        sink(Change::Found);
        for object in page.items {
            sink(Change::Here(object));
        }
        if page.metadata.next.is_empty() {
            sink(Change::ListEnds);
            return Ok(page.metadata.resource_version);
        }
        next = page.metadata.next;
    }
}

fn no_answer() -> String {
    format!("the API server did not answer within {} s", ANSWER_WITHIN.as_secs())
}

fn end_of(error: &kube::Error) -> End {
    match error {
        kube::Error::Api(status) if status.code == 410 => End::Expired,
        kube::Error::Api(status) => {
            let why = format!("the API server says {}: {}", status.code, status.message);
            match status.code {
                403 => End::NotThere(NotThere::Denied, why),
                404 => End::NotThere(NotThere::Missing, why),
                _ => End::Failed(why),
            }
        }
        other => End::Failed(crate::api::chain(other)),
    }
}

/// A server that has no streaming lists says that the parameters are invalid.
fn end_of_list(error: &kube::Error) -> End {
    match error {
        kube::Error::Api(status) if matches!(status.code, 400 | 422) => End::NoStreaming(status.message.clone()),
        other => end_of(other),
    }
}

/// Escapes a value for a query.
pub(super) fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests;
