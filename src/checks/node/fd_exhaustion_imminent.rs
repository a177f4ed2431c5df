//! Open files, or watches of files, will soon run out.
//!
//! *Looks at* `fs.file-nr`, and tries for a moment whether inotify instances and a watch can still be made: the kernel counts
//! them for each user and tells nobody the count, and this program has the kubelet's user. Who holds most of them is told where
//! this program may look into other processes. *Trap*: `fs.file-max` is practically without end on many nodes; that this process
//! alone may open no more files is not the node's fault (catalogue R034).

use std::time::Duration;

use super::super::space::{self, Supply};
use super::super::{Area, Check, Finding, Look, Outcome, Severity, findings_or_unknown, first_error};
use crate::facts::{InotifyRoom, InotifyUsers, Quantity};

pub(super) const CHECK: Check = Check {
    code: "FdExhaustionImminent",
    area: Area::Capacity,
    severity: Severity::Warning,
    why: "when none is left programs fail with \"too many open files\": the kubelet cannot start, `kubectl logs -f` breaks off, and connections are refused",
    next_step: "find the owner (`find /proc/[0-9]*/fd -lname 'anon_inode:inotify' 2>/dev/null | cut -d/ -f3 | sort | uniq -c | sort -n | tail`; `lsof -n` for files), restart it, and raise `fs.file-max`, `fs.inotify.max_user_instances` or `fs.inotify.max_user_watches`",
    raise_after: Duration::from_secs(30),
    clear_after: Duration::from_secs(90),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let strain = &look.now.strain;
    let files = strain.files.get().and_then(|files| {
        let own = Quantity::Percent(look.limits.full_percent).of(files.limit);
        let supply = Supply::plain(files.limit, files.limit.saturating_sub(files.allocated), own, files.per_second);
        let mut finding = supply.warn_or_full(look.limits, "files", "Open files of the node", human)?;
        finding.detail.push_str(&space::most("there is room for most in", &strain.file_tables, human));
        Some(finding)
    });
    let findings = files
        .into_iter()
        .chain(strain.inotify.get().into_iter().flat_map(|room| watches(room, strain.inotify_users.as_ref())));
    findings_or_unknown(findings.collect(), first_error([strain.files.error(), strain.inotify.error()]))
}

fn watches(room: &InotifyRoom, users: Option<&InotifyUsers>) -> impl Iterator<Item = Finding> {
    let instances = (room.instances < room.tried).then(|| {
        let left = if room.instances == 0 { "none".to_owned() } else { format!("only {}", room.instances) };
        let held = held(users, |users| &users.instances);
        let detail =
            format!("Of {} inotify instances that the kubelet's user may have {left} can be made{held}", room.limit);
        Finding::new("inotify instances", detail)
    });
    let watch = (room.watch == Some(false)).then(|| {
        let held = held(users, |users| &users.watches);
        let detail =
            format!("None of the {} inotify watches that the kubelet's user may have is left{held}", room.watches);
        Finding::new("inotify watches", detail)
    });
    instances.into_iter().chain(watch)
}

/// Who has most of them, as far as anybody may know.
fn held(users: Option<&InotifyUsers>, of: fn(&InotifyUsers) -> &Vec<(String, u64)>) -> String {
    let Some(users) = users.filter(|users| !of(users).is_empty()) else { return String::new() };
    let most: Vec<String> = of(users).iter().map(|(name, count)| format!("{name} {count}")).collect();
    let hidden = match users.hidden {
        0 => String::new(),
        hidden => {
            format!(", of those that may be looked into ({hidden} may not: `nodevitals check` as root on the node may)")
        }
    };
    format!("; most are held by {}{hidden}", most.join(", "))
}

fn human(number: u64) -> String {
    format!("{number} files")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{Files, Seen};

    fn files(allocated: u64, limit: u64) -> Outcome {
        let files = Files { allocated, limit, per_second: Some(1.0) };
        run(&Node::worker().edit(|now| now.strain.files = Seen::Yes(files)).look())
    }

    fn room(instances: u32, watch: Option<bool>) -> Outcome {
        let room = InotifyRoom { instances, tried: 8, limit: 128, watch, watches: 8_192 };
        run(&Node::worker().edit(|now| now.strain.inotify = Seen::Yes(room)).look())
    }

    #[test]
    fn files_instances_and_watches() {
        assert_eq!(testing::subjects(&files(95_000, 100_000)), ["files"]);
        assert_eq!(testing::subjects(&files(100_000, 100_000)), ["files"]);
        let files = Files { allocated: 95_000, limit: 100_000, per_second: None };
        let named = Node::worker().edit(|now| {
            now.strain.files = Seen::Yes(files);
            now.strain.file_tables = vec![("java (process 8)".into(), 65_536)];
        });
        let detail = &testing::details(&run(&named.look()))[0];
        assert!(detail.ends_with("; there is room for most in java (process 8) (65536 files)"), "{detail}");
        assert!(testing::details(&room(0, None))[0].ends_with("none can be made"));
        assert!(testing::details(&room(3, Some(true)))[0].contains("only 3"));
        assert_eq!(testing::subjects(&room(8, Some(false))), ["inotify watches"]);
    }

    #[test]
    fn who_holds_them() {
        let users = |hidden| InotifyUsers {
            instances: vec![("promtail (process 8)".into(), 90), ("kubelet (process 7)".into(), 12)],
            watches: vec![("node (process 9)".into(), 8_000)],
            hidden,
        };
        let details = |hidden| {
            let room = InotifyRoom { instances: 0, tried: 8, limit: 128, watch: Some(false), watches: 8_192 };
            let node = Node::worker().edit(|now| {
                now.strain.inotify = Seen::Yes(room);
                now.strain.inotify_users = Some(users(hidden));
            });
            testing::details(&run(&node.look()))
        };
        let [instances, watches] = &details(0)[..] else { panic!("two") };
        assert!(
            instances.ends_with("; most are held by promtail (process 8) 90, kubelet (process 7) 12"),
            "{instances}"
        );
        assert!(watches.ends_with("; most are held by node (process 9) 8000"), "{watches}");
        assert!(details(180)[0].contains("12, of those that may be looked into (180 may not: "));
        let nobody = InotifyUsers { hidden: 3, ..InotifyUsers::default() };
        assert_eq!(held(Some(&nobody), |users| &users.instances), "", "nothing is known of anybody");
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
        assert_eq!(room(8, Some(true)), Outcome::Healthy);
        assert_eq!(files(50_000, 100_000), Outcome::Healthy);
    }

    #[test]
    fn trap_no_end_of_files() {
        assert_eq!(files(90_000_000, i64::MAX.unsigned_abs()), Outcome::Healthy);
    }

    #[test]
    fn unknown_when_it_cannot_be_tried() {
        let node = Node::worker().edit(|now| now.strain.inotify = testing::denied("inotify"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
