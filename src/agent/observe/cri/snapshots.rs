//! Snapshots of containers' file systems that nobody owns, by containerd's own API on the socket of the CRI
//! (`api/services/snapshots/v1/snapshots.proto`, the same in containerd 1.6 and 2). Other runtimes have no such thing.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tokio::time::timeout;

use super::connection::{self, Connection};
use super::{CALLS, CONTAINERS, CriSource, INVENTORY, Inventory, digest, messages};
use crate::facts::{LookError, Reason, Seen, Snapshots};

/// They are asked for this often.
pub(super) const EVERY: Duration = Duration::from_secs(600);
/// Whoever makes or removes the container of a younger one may not be done (catalogue R061).
const YOUNG: SignedDuration = SignedDuration::from_mins(10);
/// The lease of an image that is being unpacked lasts a day (containerd `client/lease.go`), and what it holds is then collected.
const UNPACKING: SignedDuration = SignedDuration::from_hours(25);
/// Of so many no more is read: the rest of the answer is not asked for.
const MOST: usize = 20_000;

pub(super) const LIST: &str = "/containerd.services.snapshots.v1.Snapshots/List";
/// How containerd names the directory of a snapshotter, which is where the CRI says that images are.
const DIRECTORY: &str = "/io.containerd.snapshotter.v1.";
/// `ACTIVE` of `Kind`: what can be written to. The others are layers of images.
const ACTIVE: i32 = 2;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ListSnapshotsRequest {
    #[prost(string, tag = "1")]
    pub(super) snapshotter: String,
    #[prost(string, repeated, tag = "2")]
    pub(super) filters: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ListSnapshotsResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) info: Vec<Info>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Info {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(int32, tag = "3")]
    pub(super) kind: i32,
    #[prost(message, optional, tag = "4")]
    pub(super) created_at: Option<Time>,
}

/// `google.protobuf.Timestamp`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Time {
    #[prost(int64, tag = "1")]
    pub(super) seconds: i64,
}

/// `ListContainersResponse` of the CRI, with nothing but the ids.
#[derive(Clone, PartialEq, prost::Message)]
struct ListIdsResponse {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<Id>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

impl CriSource {
    /// Looks for snapshots without an owner, if it is time to: for the first time a minute after the runtime was first counted,
    /// which a single look never is. An answer that fails leaves what was known. May be cancelled.
    pub(super) async fn look_at_snapshots(&mut self, connection: &Connection) {
        let now = Instant::now();
        let (due, _) = self.snapshots.get_or_insert((now + INVENTORY, Seen::Absent));
        if now < *due || self.meter.count() + 2 > CALLS {
            return;
        }
        *due = now + EVERY;
        let Some((_, Some(inventory))) = &self.inventory else { return };
        let asked = self.ownerless(connection, inventory, Timestamp::now());
        // Both calls in the time of one.
        let answer = timeout(connection::CALL, asked).await;
        let answer = answer.unwrap_or_else(|_| Err(LookError::timed_out("snapshots", connection::CALL.as_secs_f32())));
        if let Err(error) = &answer {
            tracing::debug!(%error, "snapshots are not told");
        }
        let Some((_, known)) = &mut self.snapshots else { return };
        let has_none = |error: &LookError| error.reason == Reason::Unsupported;
        if known.get().is_none() || answer.as_ref().err().is_none_or(has_none) {
            *known = answer.map_or_else(Seen::Unreadable, Seen::Yes);
        }
        if let Some((_, Some(inventory))) = &mut self.inventory {
            Arc::make_mut(inventory).snapshots = known.clone();
        }
    }

    /// Asks for them. The containers first: what is made meanwhile is young, and what is removed then has no snapshot either.
    pub(super) async fn ownerless(
        &self,
        connection: &Connection,
        inventory: &Inventory,
        now: Timestamp,
    ) -> Result<Snapshots, LookError> {
        let paths = self.images.as_ref().and_then(|(_, seen)| seen.get()).map(Vec::as_slice).unwrap_or_default();
        let named = paths.iter().find_map(|path| Some(path.split_once(DIRECTORY)?.1));
        if named.is_none() && !paths.is_empty() {
            return Err(LookError::new(
                "snapshots",
                Reason::Unsupported,
                "this runtime does not keep images in a snapshotter",
            ));
        }
        let snapshotter = named.unwrap_or("overlayfs").to_owned();
        let request = messages::ListContainersRequest { filter: None };
        let containers: ListIdsResponse = connection.call(CONTAINERS, request).await?;
        let containers: HashSet<u64> = containers.containers.iter().map(|container| digest(&container.id)).collect();
        let request = ListSnapshotsRequest { snapshotter, filters: vec!["kind==active".to_owned()] };
        let (mut read, mut oldest, mut count) = (0, None, 0);
        let take = |answer: ListSnapshotsResponse| {
            read += answer.info.len();
            for info in answer.info {
                let id = digest(&info.name);
                let owned = containers.contains(&id) || inventory.sandboxes.contains_key(&id);
                if let Some(since) = since(&info, now).filter(|_| !owned) {
                    count += 1;
                    if oldest.as_ref().is_none_or(|(_, earliest)| since < *earliest) {
                        oldest = Some((info.name, since));
                    }
                }
            }
            read < MOST
        };
        connection.stream(LIST, request, take).await?;
        Ok(Snapshots { count, oldest })
    }
}

/// Since when there is one that somebody must own by now: a container or sandbox of the CRI, whose id of 64 hexadecimal digits it has
/// for a name, or an image that is unpacked. None of other names: those are somebody else's.
fn since(info: &Info, now: Timestamp) -> Option<Timestamp> {
    let of_container = info.name.len() == 64 && info.name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let age = match (of_container, info.name.starts_with("extract-")) {
        (true, _) => YOUNG,
        (_, true) => UNPACKING,
        _ => return None,
    };
    let since = Timestamp::from_second(info.created_at?.seconds).ok()?;
    (info.kind == ACTIVE && now.duration_since(since) >= age).then_some(since)
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(answer: ListSnapshotsResponse) {
    for info in answer.info {
        let since = since(&info, Timestamp::UNIX_EPOCH);
        assert!(since.is_none_or(|since| since <= Timestamp::UNIX_EPOCH - YOUNG));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_must_own_by_now() {
        let now = Timestamp::from_second(2_000_000_000).expect("valid");
        let id = "0123456789abcdef".repeat(4);
        let told = |name: &str, kind, age: i64| {
            let created_at = Some(Time { seconds: 2_000_000_000 - age });
            since(&Info { name: name.into(), kind, created_at }, now).map(|since| now.duration_since(since).as_secs())
        };
        assert_eq!((told(&id, ACTIVE, 600), told(&id, ACTIVE, 599)), (Some(600), None));
        assert_eq!(told(&id, 1, 7200), None, "a view");
        assert_eq!(told(&id, 3, 7200), None, "a layer of an image");
        assert_eq!(
            (told("extract-1 sha256:a", ACTIVE, 90_000), told("extract-1 sha256:a", ACTIVE, 86_400)),
            (Some(90_000), None)
        );
        assert_eq!((told("buildkit-1", ACTIVE, 90_000), told(&id[1..], ACTIVE, 90_000)), (None, None));
        // Of a clock that was set back.
        assert_eq!(told(&id, ACTIVE, -5), None);
        assert_eq!(since(&Info { name: id, kind: ACTIVE, created_at: None }, now), None);
    }
}
