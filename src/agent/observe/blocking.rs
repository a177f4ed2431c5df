//! Calls that can hang in the kernel (a dead NFS server, a disk that never answers): each in a thread of its own, with
//! a deadline, and never a second one for the same thing while the first still hangs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::facts::{LookError, Reason};

/// Runs blocking calls, and remembers which of them have not come back.
#[derive(Debug, Clone, Default)]
pub(crate) struct Blocking {
    running: Arc<Mutex<HashMap<String, Instant>>>,
}

impl Blocking {
    /// Runs `call` about `what`. When it does not come back before the deadline its thread is left alone, and further
    /// calls about the same thing fail at once until it does: a hung file system costs one thread, not one per look.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        what: &str,
        deadline: Duration,
        call: impl FnOnce() -> Result<T, LookError> + Send + 'static,
    ) -> Result<T, LookError> {
        if let Some(since) = self.begin(what) {
            return Err(LookError::new(what, Reason::TimedOut, format!("has not answered for {} s", since.as_secs())));
        }
        let (running, key) = (Arc::clone(&self.running), what.to_owned());
        let task = tokio::task::spawn_blocking(move || {
            let result = call();
            running.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            result
        });
        match tokio::time::timeout(deadline, task).await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => {
                self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(what);
                Err(LookError::new(what, Reason::Failed, panic.to_string()))
            }
            Err(_) => Err(LookError::timed_out(what, deadline.as_secs_f32())),
        }
    }

    /// [`Blocking::run`] with a source that remembers something between its looks: it goes along and comes back. One that
    /// hangs is left where it is, and the next look begins with a new one.
    pub(crate) async fn lend<S: Send + 'static, T: Send + 'static>(
        &self,
        what: &str,
        deadline: Duration,
        source: &mut Option<S>,
        new: impl FnOnce() -> S,
        look: impl FnOnce(&mut S) -> Result<T, LookError> + Send + 'static,
    ) -> Result<T, LookError> {
        let mut lent = source.take().unwrap_or_else(new);
        let (back, seen) = self
            .run(what, deadline, move || {
                let seen = look(&mut lent);
                Ok((lent, seen))
            })
            .await?;
        *source = Some(back);
        seen
    }

    /// Marks `what` as running; answers since when, if it already is.
    fn begin(&self, what: &str) -> Option<Duration> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let since = running.get(what).map(Instant::elapsed);
        if since.is_none() {
            running.insert(what.to_owned(), Instant::now());
        }
        since
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn a_call_that_hangs_is_not_made_twice() {
        let blocking = Blocking::default();
        let (release, wait) = mpsc::channel::<()>();
        let hang = move || {
            wait.recv().ok();
            Ok(1)
        };
        let deadline = Duration::from_millis(20);
        let first = blocking.run("disk", deadline, hang).await.expect_err("it hangs");
        assert_eq!(first.reason, Reason::TimedOut);
        let second = blocking.run("disk", deadline, || Ok(2)).await.expect_err("still hanging");
        assert!(second.detail.starts_with("has not answered for"), "{second}");
        assert_eq!(blocking.run("other", Duration::from_secs(5), || Ok(3)).await, Ok(3));
        release.send(()).expect("the thread waits");
        while blocking.run("disk", Duration::from_secs(5), || Ok(4)).await != Ok(4) {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_source_comes_back_from_a_look_that_fails_and_not_from_one_that_hangs() {
        let blocking = Blocking::default();
        let mut source = None;
        for (expected, answer) in [(1, Ok(())), (2, Err(LookError::new("disk", Reason::Failed, "no")))] {
            let told = answer.clone();
            let looked = blocking.lend(
                "disk",
                Duration::from_secs(5),
                &mut source,
                || 0,
                move |looks| {
                    *looks += 1;
                    told
                },
            );
            assert_eq!(looked.await, answer);
            assert_eq!(source, Some(expected));
        }
        let (release, wait) = mpsc::channel::<()>();
        let hung = blocking.lend(
            "disk",
            Duration::from_millis(20),
            &mut source,
            || 0,
            move |_| {
                wait.recv().ok();
                Ok(())
            },
        );
        assert_eq!(hung.await.expect_err("it hangs").reason, Reason::TimedOut);
        assert_eq!(source, None);
        release.send(()).expect("the thread waits");
    }
}
