//! How often a source looks, how long one look may take, and what is counted of it.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use tokio::sync::{Notify, mpsc};
use tokio::time::{self, sleep, sleep_until, timeout};

use crate::agent::observe::{Stats, Update};
use crate::facts::LookError;

/// A look that an event wakes waits for this long at most.
const LONGEST_BREATH: Duration = Duration::from_secs(1);

/// How often each source looks when nothing wakes it, and how long one look may take.
pub(super) struct Rhythm {
    pub(super) name: &'static str,
    pub(super) every: Duration,
    pub(super) deadline: Duration,
}

pub(super) const fn rhythm(name: &'static str, every: u64, deadline: u64) -> Rhythm {
    Rhythm { name, every: Duration::from_secs(every), deadline: Duration::from_secs(deadline) }
}

/// One source's way to the outside.
#[derive(Clone)]
pub(super) struct Outlet {
    pub(super) updates: mpsc::Sender<Update>,
    pub(super) stats: Stats,
}

impl Outlet {
    /// Sends what one look saw, and counts the look.
    pub(super) async fn tell(&self, rhythm: &Rhythm, began: Instant, success: bool, update: Update) {
        self.stats.count(rhythm.name, began.elapsed(), success);
        // Nobody listens any more only while the process ends.
        self.updates.send(update).await.ok();
    }

    /// [`rest`], which is counted where an event ends it.
    pub(super) async fn rest(&self, rhythm: &Rhythm, began: Instant, wake: Option<&Notify>) -> bool {
        let woken = rest(rhythm, began, wake).await;
        if woken {
            self.stats.count_wake(rhythm.name);
        }
        woken
    }
}

/// Waits for the next look: the next beat, or an event. An event waits for a breath first, longer after a look that took long,
/// so that a storm of events does not become one of looks. Answers whether it was an event.
async fn rest(rhythm: &Rhythm, began: Instant, wake: Option<&Notify>) -> bool {
    let beat = next_beat(rhythm.every);
    let Some(wake) = wake else {
        sleep(beat).await;
        return false;
    };
    let breath = (began.elapsed() * 20).clamp(Duration::from_millis(50), LONGEST_BREATH);
    let rested = time::Instant::now() + breath;
    let told = timeout(beat.max(breath), wake.notified()).await.is_ok();
    if told {
        sleep_until(rested).await;
        // What was told meanwhile is seen by the look that follows.
        wake.notified().now_or_never();
    }
    told
}

/// How long it is until the next beat of this rhythm. Sources of the same rhythm look together: the process wakes once for all of
/// them, and one verdict tells of all. The measure is shorter by up to a tenth, other on each node, so that nodes do not march in
/// step.
fn next_beat(every: Duration) -> Duration {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    let measure = every.mul_f64(1.0 - f64::from(std::process::id() % 100) / 1000.0);
    until_beat(FIRST.get_or_init(Instant::now).elapsed(), measure)
}

/// How long it is, so long after the first beat, until the next multiple of the measure.
fn until_beat(past: Duration, measure: Duration) -> Duration {
    measure.saturating_sub(Duration::from_secs_f64(past.as_secs_f64() % measure.as_secs_f64()))
}

/// One look with its deadline.
pub(super) async fn within<T>(
    rhythm: &Rhythm,
    look: impl Future<Output = Result<T, LookError>>,
) -> Result<T, LookError> {
    match timeout(rhythm.deadline, look).await {
        Ok(result) => result,
        Err(_) => Err(LookError::timed_out(rhythm.name, rhythm.deadline.as_secs_f32())),
    }
}

/// One look with its deadline through a source that holds a connection to the kernel: it is opened when there is none, and
/// after a look that failed the next one has a new one.
pub(super) async fn through<S, T>(
    rhythm: &Rhythm,
    source: &mut Option<S>,
    open: impl FnOnce() -> Result<S, LookError>,
    look: impl AsyncFnOnce(&mut S) -> Result<T, LookError>,
) -> Result<T, LookError> {
    let seen = within(rhythm, async {
        let source = match &mut *source {
            Some(source) => source,
            none => none.insert(open()?),
        };
        look(source).await
    })
    .await;
    if seen.is_err() {
        *source = None;
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_of_one_rhythm_look_together() {
        let measure = Duration::from_millis(9_370);
        for (past, beat) in [(0, 1), (30, 1), (9_369, 1), (9_370, 2), (12_000, 2), (86_400_000, 9_221)] {
            let end = Duration::from_millis(past) + until_beat(Duration::from_millis(past), measure);
            let apart = end.abs_diff(measure * beat);
            assert!(apart < Duration::from_micros(1), "{past} ms: {apart:?} from beat {beat}");
        }
        let every = Duration::from_secs(10);
        assert!(next_beat(every) <= every && next_beat(Duration::from_nanos(1)) <= Duration::from_nanos(1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_is_waited_for_and_what_follows_within_a_breath_is_the_same_look() {
        let (wake, seldom) = (Notify::new(), rhythm("test", 3600, 1));
        let (looked, began) = (Instant::now(), time::Instant::now());
        wake.notify_one();
        let again = async {
            sleep(Duration::from_millis(10)).await;
            wake.notify_one();
        };
        tokio::join!(rest(&seldom, looked, Some(&wake)), again);
        assert!(began.elapsed() >= Duration::from_millis(50), "it takes a breath");
        assert!(wake.notified().now_or_never().is_none(), "nothing is left to look for");
    }
}
