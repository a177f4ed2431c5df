//! Snapshots that containerd keeps for a container that nobody knows any more: counted once they are old, named, and over when
//! they are removed.

use super::left::said;
use super::*;
use crate::agent::observe::debris::DebrisSource;
use crate::agent::observe::processes::Attendants;

async fn one_without_a_container(program: PathBuf) {
    let containerd = Containerd::start(program);
    let mut source = containerd.source();
    eventually(&containerd, &mut source, "ready", answers).await;
    let asking = Asking::of(&containerd).await;
    let sandbox = asking.sandbox("web", 0, true).await.expect("it starts");
    std::fs::create_dir(containerd.root.path().join("var/lib/kubelet/pods/uid-web-0")).expect("mkdir");
    asking.containers(&sandbox, 0, 3).await;
    let (lost, unpacking) = ("5e".repeat(32), "extract-1 sha256:2d");
    for key in [&lost, unpacking, "of-somebody-else"] {
        containerd.ctr(&["snapshots", "prepare", key]);
    }
    source.inventory = None;
    source.look(None, true).await;
    later(&mut source, INVENTORY);
    source.look(None, true).await;
    let mut inventory = (*source.inventory().expect("counted")).clone();
    assert_eq!(
        (inventory.sandboxes.len(), &inventory.snapshots),
        (1, &Seen::Yes(Snapshots::default())),
        "all are young"
    );

    let connection =
        Connection::open(SOCKET, &containerd.socket(), Arc::default(), Arc::default()).await.expect("it listens");
    let in_minutes = |minutes| jiff::Timestamp::now() + jiff::SignedDuration::from_mins(minutes);
    let later = source.ownerless(&connection, &inventory, in_minutes(11)).await.expect("told");
    assert_eq!((later.count, later.oldest.as_ref().map(|(key, _)| key)), (1, Some(&lost)));
    let next_day = source.ownerless(&connection, &inventory, in_minutes(26 * 60)).await.expect("told");
    assert_eq!(next_day.count, 2, "and what no unpacking takes that long for");

    let mut debris = DebrisSource::new(HostRoot::new(containerd.root.path()));
    let mut told = |now, snapshots| {
        inventory.snapshots = Seen::Yes(snapshots);
        let pods = ("/var/lib/kubelet/pods", "/");
        said(debris.look(now, &inventory, &Attendants::default(), pods).expect("readable"))
    };
    let old = Duration::from_secs(600);
    assert!(told(Duration::ZERO, later.clone()).is_empty(), "it may just be removed");
    let leak = told(old, later).remove("RuntimeObjectLeak").expect("told");
    assert!(
        leak.starts_with(&format!("1 objects have no pod any more: 1 snapshots (the oldest is {lost} of 20")),
        "{leak}"
    );
    containerd.ctr(&["snapshots", "rm", &lost]);
    let inventory = source.inventory().expect("counted");
    let now = source.ownerless(&connection, &inventory, in_minutes(11)).await.expect("told");
    assert_eq!(now, Snapshots::default());
    assert!(told(old * 2, now).is_empty(), "it is removed");
}

#[tokio::test]
async fn containerd_1_a_snapshot_without_a_container() {
    one_without_a_container(one()).await;
}

#[tokio::test]
async fn containerd_2_a_snapshot_without_a_container() {
    one_without_a_container(two()).await;
}
