//! Whether the API server takes writes, which the agent's own patches are the best probe of.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::timeout;

use super::super::{NodeNow, read_node};
use super::Writer;
use crate::api::chain;
use crate::facts::{KubeletSaid, LookError, Reason, Seen, Writes};

impl Writer {
    /// What an answer to a patch says about writes.
    pub(super) async fn judge(&mut self, answer: &Result<NodeNow, kube::Error>, took: Duration) {
        let seconds = took.as_secs_f32();
        match answer {
            Ok(_) if took < self.patience => self.tell_writes(None),
            Ok(_) => {
                let patience = self.patience.as_secs();
                self.held_up(format!("a patch was taken after {seconds:.0} s only; others give up after {patience} s"))
                    .await;
            }
            Err(kube::Error::Api(status)) if status.code >= 500 || status.message.contains("admission webhook") => {
                let said: String = status.message.chars().take(300).collect();
                self.held_up(format!("a patch failed after {seconds:.0} s with {}: {said}", status.code)).await;
            }
            Err(kube::Error::Api(_)) => self.tell_writes(None),
            Err(error) => {
                self.held_up(format!("a patch was given up after {seconds:.0} s: {}", chain(error))).await;
            }
        }
    }

    /// A write was held up: that is a fault of its own only if a read is answered meanwhile.
    pub(super) async fn held_up(&mut self, why: String) {
        let read = timeout(self.patience, read_node(&self.ways[0].unary, &self.node)).await;
        match read {
            Ok(Ok(now)) => {
                self.tell_writes(Some(why));
                self.tell_node(&now);
            }
            // What was known of writes is neither confirmed nor refuted.
            _ if self.is_blocked() => {
                let error = LookError::new(&self.ways[0].server, Reason::TimedOut, "reads are not answered either");
                if let Seen::Yes(before) = self.writes.send_replace(Seen::Unreadable(error)) {
                    self.before = before;
                }
            }
            _ => {}
        }
    }

    fn tell_writes(&self, blocked: Option<String>) {
        let server = self.ways[0].server.clone();
        self.writes.send_if_modified(|old| {
            // What the Node says holds until it is read again.
            let new = Seen::Yes(Writes { server, blocked, ..old.get().unwrap_or(&self.before).clone() });
            let different = *old != new;
            if different {
                *old = new;
            }
            different
        });
    }

    /// Hands on what the Node says of itself; while nobody knows about writes it waits.
    pub(super) fn tell_node(&self, now: &NodeNow) {
        self.writes.send_if_modified(|writes| {
            let Seen::Yes(writes) = writes else { return false };
            let said = KubeletSaid { read_at: Timestamp::now(), conditions: now.said.clone() };
            // What stays well is nothing new with each of its heartbeats.
            let well = said.is_well() && writes.said.as_ref().is_some_and(KubeletSaid::is_well);
            let said = if well { writes.said.take() } else { Some(said) };
            let told = (Some(now.cordoned), now.created);
            let news = !well || told != (writes.cordoned, writes.registered_at);
            (writes.cordoned, writes.registered_at, writes.said) = (told.0, told.1, said);
            news
        });
    }

    pub(super) fn is_blocked(&self) -> bool {
        match &*self.writes.borrow() {
            Seen::Yes(writes) => writes.blocked.is_some(),
            Seen::Unreadable(_) => true,
            Seen::Absent => false,
        }
    }
}
