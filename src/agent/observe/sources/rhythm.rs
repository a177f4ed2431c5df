//! How often a source looks, how long one look may take, and what is counted of it.

use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

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
}

/// Waits for the next look: the period, spread by up to a tenth so that nodes do not march in step, or an event. An event
/// waits for a breath first, longer after a look that took long, so that a storm of events does not become one of looks.
/// Answers whether it was an event.
pub(super) async fn rest(rhythm: &Rhythm, began: Instant, wake: Option<&Notify>) -> bool {
    if wake.is_some() {
        let breath = (began.elapsed() * 20).clamp(Duration::from_millis(50), LONGEST_BREATH);
        tokio::time::sleep(breath).await;
    }
    let tenths = (std::process::id() + u32::from(rhythm.name.as_bytes()[0])) % 100;
    let period = rhythm.every.mul_f64(1.0 - f64::from(tenths) / 1000.0);
    if let Some(wake) = wake {
        return timeout(period, wake.notified()).await.is_ok();
    }
    tokio::time::sleep(period).await;
    false
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
