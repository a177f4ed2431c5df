//! What an earlier process or boot left for this one to know: by the state file, else by the Node's annotations.

use std::time::Duration;

use super::observe::{self, Blocking, HostRoot};
use super::publish::{Kept, NodeNow};
use crate::clock::now;
use crate::facts::{End, Identity, Learned, Machine, Past};
use crate::verdict::annotation;

/// Longest wait for the few files that tell.
const DEADLINE: Duration = Duration::from_secs(2);

/// What is known of the node from before, as far as anybody kept it.
pub(crate) async fn recall(host: &HostRoot, identity: &Identity, kept: Option<&Kept>, node: Option<&NodeNow>) -> Past {
    let (blocking, now, machine) = (Blocking::default(), now(), machine(host).await);
    let (of, until, before) = match (kept, node) {
        (Some(kept), _) => (kept.boot_id.clone(), kept.saved_at, kept.past.clone()),
        (None, Some(node)) => told_by(node, now.wall),
        (None, None) => (String::new(), now.wall, Past::default()),
    };
    let began = now.wall.checked_sub(now.since_boot).unwrap_or(now.wall);
    let cordoned = node.map(|node| node.cordoned);
    let mut past = before.carried((&of, until), (&identity.boot_id, began), machine, cordoned);
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

/// What earlier processes have learned of this node, as far as it holds in this boot and on this machine.
pub(crate) async fn learned(host: &HostRoot, kept: Option<&Kept>, boot_id: &str) -> Learned {
    let Some(kept) = kept else { return Learned::default() };
    kept.past.learned_for(kept.boot_id == boot_id && !boot_id.is_empty(), &machine(host).await)
}

/// What makes this machine the one that it is; of what cannot be read in time nothing is known.
async fn machine(host: &HostRoot) -> Machine {
    let host = host.clone();
    let blocking = Blocking::default();
    blocking.run("identity of the machine", DEADLINE, move || Ok(observe::machine(&host))).await.unwrap_or_default()
}

/// What the annotations say. When they were written nobody knows, but not before the Node was there.
fn told_by(node: &NodeNow, now: jiff::Timestamp) -> (String, jiff::Timestamp, Past) {
    let text = |key| node.annotations.get(key).cloned().unwrap_or_default();
    let machine = Machine { machine_id: text(annotation::MACHINE_ID), ..Machine::default() };
    (text(annotation::BOOT_ID), node.created.unwrap_or(now), Past { machine, ..Past::default() })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::{SignedDuration, Timestamp};

    use super::*;

    fn identity() -> Identity {
        Identity {
            hostname: "n1".into(),
            boot_id: "b2".into(),
            machine_id: "m".into(),
            kernel: "6".into(),
            node_name: None,
        }
    }

    /// A node with this machine id.
    fn host(machine_id: &str) -> (tempfile::TempDir, HostRoot) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir_all(dir.path().join("etc")).expect("mkdir");
        std::fs::write(dir.path().join("etc/machine-id"), machine_id).expect("write");
        let host = HostRoot::new(dir.path());
        (dir, host)
    }

    fn before(minutes: i64) -> Timestamp {
        Timestamp::now() - SignedDuration::from_mins(minutes)
    }

    /// What a process of the boot `b1` kept an hour ago, while the Node was as it says.
    fn kept(cordoned: bool) -> Kept {
        let past = Past {
            machine: Machine { machine_id: "m".into(), ..Machine::default() },
            cordoned: Some(cordoned),
            ..Past::default()
        };
        let kept = serde_json::json!({
            "schema": 1, "version": "0", "savedAt": before(60), "bootId": "b1", "findings": [], "conditions": [],
            "state": "Normal", "since": before(60), "episodes": crate::verdict::Episodes::default(), "past": past,
        });
        serde_json::from_value(kept).expect("as it is written")
    }

    fn node(cordoned: bool, created: Timestamp) -> NodeNow {
        NodeNow { cordoned, created: Some(created), ..NodeNow::default() }
    }

    #[tokio::test]
    async fn a_boot_after_one_of_which_something_is_kept() {
        let (_dir, host) = host("m");
        let old = node(false, before(600));
        let past = recall(&host, &identity(), Some(&kept(false)), Some(&old)).await;
        let boot = past.boot.expect("there was one");
        assert_eq!((boot.id.as_str(), boot.cordoned, boot.end), ("b1", Some(false), End::Untold));
        assert_eq!((past.former_machine, past.cordoned), (None, Some(false)));
        let drained = recall(&host, &identity(), Some(&kept(false)), Some(&node(true, before(600)))).await;
        assert_eq!(drained.boot.expect("one").cordoned, Some(true), "within the last minutes");
        let silent = recall(&host, &identity(), Some(&kept(true)), None).await;
        assert_eq!(silent.boot.expect("one").cordoned, Some(true), "the API server does not answer");
        let same = Identity { boot_id: "b1".into(), ..identity() };
        assert_eq!(recall(&host, &same, Some(&kept(false)), Some(&old)).await.boot, None);
        assert_eq!(recall(&host, &identity(), None, None).await.boot, None, "the first boot");
    }

    #[tokio::test]
    async fn what_was_learned_in_another_boot_holds_in_part_and_on_another_machine_not_at_all() {
        let (_dir, here) = host("m");
        let mut before = kept(false);
        before.past.learned.registries.insert("icr.io".into());
        before.past.learned.debris.0.insert("mounts".into(), vec![1]);
        assert_eq!(learned(&here, Some(&before), "b1").await, before.past.learned);
        assert_eq!(learned(&here, Some(&before), "b2").await, before.past.learned.clone().after_boot());
        assert_eq!(learned(&here, None, "b1").await, Learned::default());
        let (_dir, other) = host("other");
        assert_eq!(learned(&other, Some(&before), "b1").await, Learned::default());
        let past = recall(&other, &identity(), Some(&before), None).await;
        assert_eq!(past.learned, Learned::default(), "by the same rule");
    }

    #[tokio::test]
    async fn a_clone_or_a_reload_that_registers_anew_has_no_past() {
        let (_dir, host) = host("other");
        let old = recall(&host, &identity(), Some(&kept(false)), Some(&node(false, before(600)))).await;
        assert!(old.boot.is_some() && old.former_machine.is_some_and(|former| former.machine.machine_id == "m"));
        let new = recall(&host, &identity(), Some(&kept(false)), Some(&node(false, before(5)))).await;
        assert_eq!((new.boot, new.former_machine), (None, None));
    }

    #[tokio::test]
    async fn without_a_state_file_the_annotations_tell() {
        let (_dir, host) = host("other");
        let texts = [(annotation::BOOT_ID, "b1"), (annotation::MACHINE_ID, "m")];
        let annotations: BTreeMap<_, _> = texts.map(|(key, text)| (key.to_owned(), text.to_owned())).into();
        let told = NodeNow { annotations, ..node(false, before(600)) };
        let past = recall(&host, &identity(), None, Some(&told)).await;
        assert_eq!(past.boot.map(|boot| (boot.id, boot.cordoned)), Some(("b1".into(), Some(false))));
        assert_eq!(past.former_machine.map(|former| former.machine.machine_id), Some("m".into()));
        assert_eq!(
            recall(&host, &identity(), None, Some(&node(false, before(5)))).await.boot,
            None,
            "it tells nothing"
        );
    }
}
