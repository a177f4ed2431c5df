//! Server-sent events: a client that shows a page is told when there is something new to fetch.
//!
//! Only a number travels, which is another one when something has changed: what is shown is fetched as a page, so that
//! a slow client gets the latest and never a queue. A stream ends before its connection would be closed for its age, and
//! the browser opens the next one by itself (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, Stream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep, timeout_at};

/// A stream ends after this time.
const LIVES: Duration = Duration::from_secs(20);
/// Changes within this time are one.
const BREATH: Duration = Duration::from_millis(500);
/// How soon a browser opens the next stream, in milliseconds.
const AGAIN: &str = "retry: 500\n\n";

/// Who listens, and to what.
#[derive(Debug)]
pub(crate) struct Live {
    revision: watch::Receiver<u64>,
    /// Given back when the stream ends.
    _place: OwnedSemaphorePermit,
}

impl Live {
    /// Listens to a number that moves when something has changed, on one of the places for those who may.
    pub(crate) fn new(revision: watch::Receiver<u64>, place: OwnedSemaphorePermit) -> Live {
        Live { revision, _place: place }
    }
}

/// What is sent.
pub(super) type Events = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

/// The revision at once, and again whenever it has moved, until the time is over.
pub(super) fn events(live: Live) -> Events {
    let end = Instant::now() + LIVES;
    Box::pin(stream::unfold((live, true), move |(mut live, is_first)| async move {
        let mut before = AGAIN;
        if !is_first {
            before = "";
            // Where nobody is left who changes anything the stream ends, and the client asks again.
            timeout_at(end, live.revision.changed()).await.ok()?.ok()?;
            sleep(BREATH).await;
        }
        let revision = *live.revision.borrow_and_update();
        Some((Bytes::from(format!("{before}data: {revision}\n\n")), (live, false)))
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::StreamExt;
    use tokio::sync::Semaphore;

    use super::*;

    fn listen(revision: &watch::Sender<u64>, places: &Arc<Semaphore>) -> Events {
        let place = Arc::clone(places).try_acquire_owned().expect("a place");
        events(Live::new(revision.subscribe(), place))
    }

    #[tokio::test(start_paused = true)]
    async fn many_changes_are_one_event_and_the_stream_ends_in_time_and_gives_its_place_back() {
        let (revision, places) = (watch::Sender::new(7), Arc::new(Semaphore::new(1)));
        let mut stream = listen(&revision, &places);
        assert_eq!(stream.next().await.as_deref(), Some(&b"retry: 500\n\ndata: 7\n\n"[..]));
        assert!(Arc::clone(&places).try_acquire_owned().is_err());
        for _ in 0..1000 {
            revision.send_modify(|revision| *revision += 1);
        }
        let begun = Instant::now();
        assert_eq!(stream.next().await.as_deref(), Some(&b"data: 1007\n\n"[..]));
        assert_eq!(stream.next().await, None);
        assert!(begun.elapsed() <= LIVES, "{:?}", begun.elapsed());
        drop(stream);
        assert!(places.try_acquire_owned().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_stream_of_a_store_that_is_gone_ends() {
        let (revision, places) = (watch::Sender::new(1), Arc::new(Semaphore::new(1)));
        let mut stream = listen(&revision, &places);
        assert!(stream.next().await.is_some());
        drop(revision);
        assert_eq!(stream.next().await, None);
    }
}
