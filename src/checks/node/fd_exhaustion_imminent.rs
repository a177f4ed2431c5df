//! Open files, or watches of files, will soon run out.
//!
//! *Looks at* `fs.file-nr`, and tries for a moment whether inotify instances and a watch can still be made: the kernel counts
//! them for each user and tells nobody the count, and this program has the kubelet's user. *Trap*: `fs.file-max` is
//! practically without end on many nodes; that this process alone may open no more files is not the node's fault
//! (catalogue R034).

use std::time::Duration;

use super::super::space::{self, Supply};
use super::super::{Area, Check, Finding, Look, Outcome, Severity, findings_or_unknown, first_error};
use crate::facts::{InotifyRoom, Quantity};

pub(super) const CHECK: Check = Check {
    code: "FdExhaustionImminent",
    area: Area::Capacity,
    severity: Severity::Warning,
    why: "when none is left programs fail with \"too many open files\": the kubelet cannot start, `kubectl logs -f` breaks off, and connections are refused",
    next_step: "find the owner (`ls -l /proc/*/fd 2>/dev/null | grep -c inotify`, `lsof -n | sort | uniq -c`), restart it, and raise `fs.file-max`, `fs.inotify.max_user_instances` or `fs.inotify.max_user_watches`",
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
    let findings = files.into_iter().chain(strain.inotify.get().into_iter().flat_map(watches));
    findings_or_unknown(findings.collect(), first_error([strain.files.error(), strain.inotify.error()]))
}

fn watches(room: &InotifyRoom) -> impl Iterator<Item = Finding> {
    let instances = (room.instances < room.tried).then(|| {
        let left = if room.instances == 0 { "none".to_owned() } else { format!("only {}", room.instances) };
        let detail = format!("Of {} inotify instances that the kubelet's user may have {left} can be made", room.limit);
        Finding::new("inotify instances", detail)
    });
    let watch = (room.watch == Some(false)).then(|| {
        let detail = format!("None of the {} inotify watches that the kubelet's user may have is left", room.watches);
        Finding::new("inotify watches", detail)
    });
    instances.into_iter().chain(watch)
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
