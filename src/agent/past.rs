//! What an earlier process or boot left for this one to know: by the state file, else by the Node's annotations.

use std::time::Duration;

use super::observe::{self, Blocking, HostRoot};
use super::publish::{Kept, NodeNow};
use crate::clock::now;
use crate::facts::{End, Identity, Machine, Past};
use crate::verdict::annotation;

/// Longest wait for the few files that tell.
const DEADLINE: Duration = Duration::from_secs(2);

/// What is known of the node from before, as far as anybody kept it.
pub(crate) async fn recall(host: &HostRoot, identity: &Identity, kept: Option<&Kept>, node: Option<&NodeNow>) -> Past {
    let (blocking, now) = (Blocking::default(), now());
    let files = host.clone();
    let machine = blocking.run("identity of the machine", DEADLINE, move || Ok(observe::machine(&files))).await;
    let (of, until, before) = match (kept, node) {
        (Some(kept), _) => (kept.boot_id.clone(), kept.saved_at, kept.past.clone()),
        (None, Some(node)) => told_by(node, now.wall),
        (None, None) => (String::new(), now.wall, Past::default()),
    };
    let began = now.wall.checked_sub(now.since_boot).unwrap_or(now.wall);
    let cordoned = node.map(|node| node.cordoned);
    let mut past = before.carried((&of, until), (&identity.boot_id, began), machine.unwrap_or_default(), cordoned);
    past.registered(cordoned, node.and_then(|node| node.created));
    if let Some(boot) = &mut past.boot
        && boot.end == End::Untold
    {
        let (files, id, machine_id) = (host.clone(), boot.id.clone(), identity.machine_id.clone());
        let look = move || Ok(observe::how_it_ended(&files, &id, &machine_id, began));
        boot.end = blocking.run("records of shutdowns", DEADLINE, look).await.unwrap_or(End::Untold);
    }
    past
}

/// What the annotations say. When they were written nobody knows, but not before the Node was there.
fn told_by(node: &NodeNow, now: jiff::Timestamp) -> (String, jiff::Timestamp, Past) {
    let text = |key| node.annotations.get(key).cloned().unwrap_or_default();
    let machine = Machine { machine_id: text(annotation::MACHINE_ID), ..Machine::default() };
    (text(annotation::BOOT_ID), node.created.unwrap_or(now), Past { machine, ..Past::default() })
}
