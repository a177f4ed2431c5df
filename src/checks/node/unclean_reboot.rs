//! The worker came up after a stop that was neither orderly nor prepared: files that were being written may be damaged.
//!
//! *Looks at* what the state file knows of the boot before, at the records of shutdowns, the journal and the journals that
//! file systems replayed; and at what the looks for damage find since. *Traps*: a reboot after a cordon and the first boot of a
//! node are planned; a wrong clock must not make a boot old; a volume that was torn off elsewhere is replayed here too; damage
//! that comes later has other causes (catalogue R002).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, kernel, not_yet, seen};
use crate::facts::{End, FileFault, KernelFault, Seen, utc};

pub(super) const CHECK: Check = Check {
    code: super::UNCLEAN_REBOOT,
    area: Area::Integrity,
    severity: Severity::Warning,
    why: "files of containerd, the kubelet, kube-proxy and Calico that were being written may be empty or half there",
    next_step: "look at what fails on this worker since; if something does, cordon it, gather, drain, and reload or replace it. Cordon and drain before the next reboot",
    raise_after: Duration::ZERO,
    clear_after: Duration::from_secs(60),
    run,
};

/// Damage that shows has shown by then: containerd has loaded its store, the kubelet has started its pods (catalogue H12).
const PROVEN: Duration = Duration::from_secs(600);

fn run(look: &Look<'_>) -> Outcome {
    let past = seen!(look.now.past, Outcome::NotApplicable("no state of an earlier boot is kept here".into()));
    let Some(boot) = &past.boot else {
        return Outcome::NotApplicable("no boot before this one is known, or nothing is to be feared from it".into());
    };
    if boot.cordoned == Some(true) {
        return Outcome::Healthy;
    }
    let young = look.now.up_for < super::REBOOT_STANDS;
    let log = &look.now.kernel_log;
    let written = match &boot.end {
        End::Abrupt(why) => Some(why.clone()),
        End::Orderly | End::Untold => None,
    };
    let Some(why) = replayed(look).or(written) else {
        return match (&boot.end, log.error()) {
            (End::Untold, Some(error)) if young => Outcome::unknown(error),
            _ => Outcome::Healthy,
        };
    };
    let damage: Vec<String> = damage(look).map(|fault| format!("{} {}", fault.path, fault.what)).collect();
    if damage.is_empty() && (!young || (look.now.up_for >= PROVEN && all_answers(look))) {
        return Outcome::Healthy;
    }
    let drained = match boot.cordoned {
        Some(_) => "it had not been cordoned before",
        None => "whether it had been cordoned before is not known",
    };
    let (found, severity) = match damage.as_slice() {
        [] => ("no damage was found so far".to_owned(), Severity::Warning),
        some => (format!("damaged: {}", some.join(", ")), Severity::Critical),
    };
    let detail = format!("The boot at {} followed on no orderly stop: {why}; {drained}; {found}", utc(boot.next_at));
    Outcome::from_findings(vec![Finding::new("boot", detail).severity(severity)])
}

/// A file system with a role on this node that had not been unmounted, as the kernel says.
fn replayed(look: &Look<'_>) -> Option<String> {
    let (log, filesystems) = (look.now.kernel_log.get(), look.now.filesystems.get()?);
    let mut events = filesystems.iter().filter(|it| !it.roles.is_empty()).filter_map(|filesystem| {
        let event = kernel::about(log, filesystem, &[KernelFault::JournalReplayed])?;
        Some(format!("{} had not been unmounted (\"{}\")", filesystem.mount_point, event.line))
    });
    events.next()
}

fn damage<'a>(look: &'a Look<'_>) -> impl Iterator<Item = &'a FileFault> {
    look.now.files.get().into_iter().chain(look.now.store.get()).flatten()
}

/// Whether everything that could show damage was looked at, and the runtime answers.
fn all_answers(look: &Look<'_>) -> bool {
    let looked = |seen: &Seen<Vec<FileFault>>| seen.error().is_none();
    let runtime = &look.now.runtime;
    looked(&look.now.files)
        && looked(&look.now.store)
        && (runtime.status.get().is_some() || runtime.socket == Seen::Absent)
        && !not_yet(&look.now.kubelet)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{FormerBoot, Past, Reason};
    use jiff::{SignedDuration, Timestamp};

    const RECOVERED: &str = "EXT4-fs (vda1): recovery complete";

    /// A worker whose last boot ended so, up for some minutes.
    fn rebooted(end: &End, cordoned: Option<bool>, minutes: u64) -> Node {
        Node::worker().edit(|now| {
            let began = now.taken_at - SignedDuration::from_secs(i64::try_from(minutes * 60).expect("few"));
            let boot = FormerBoot { id: "a".into(), until: began, next_at: began, cordoned, end: end.clone() };
            now.past = Seen::Yes(Past { boot: Some(boot), ..Past::default() });
            now.up_for = Duration::from_secs(minutes * 60);
        })
    }

    fn crashed(minutes: u64) -> Node {
        rebooted(&End::Abrupt("/var/log/wtmp has no shutdown since the boot at T".into()), Some(false), minutes)
    }

    fn damaged(node: Node) -> Node {
        let fault = FileFault { path: "/var/lib/kubelet/config.yaml".into(), what: "is empty".into() };
        node.edit(move |now| now.files = Seen::Yes(vec![fault.clone()]))
    }

    fn severity(node: &Node) -> Option<Severity> {
        match run(&node.look()) {
            Outcome::Findings(findings) => findings[0].severity,
            other => panic!("a finding, not {other:?}"),
        }
    }

    #[test]
    fn an_abrupt_end_is_a_warning_and_damage_is_critical() {
        let said = testing::details(&run(&crashed(2).look()));
        assert_eq!(
            said,
            [
                "The boot at 2023-11-14T22:11:20Z followed on no orderly stop: /var/log/wtmp has no shutdown since the boot \
              at T; it had not been cordoned before; no damage was found so far"
            ]
        );
        assert_eq!(severity(&crashed(2)), Some(Severity::Warning));
        assert_eq!(severity(&damaged(crashed(2))), Some(Severity::Critical));
        assert!(testing::details(&run(&damaged(crashed(90)).look()))[0].ends_with("config.yaml is empty"));
        let untold = rebooted(&End::Untold, None, 2).kernel_says(KernelFault::JournalReplayed, "vda1", RECOVERED);
        assert!(testing::details(&run(&untold.look()))[0].contains("/ had not been unmounted"));
        let unfinished =
            rebooted(&End::Orderly, Some(false), 2).kernel_says(KernelFault::JournalReplayed, "vda1", RECOVERED);
        assert_eq!(severity(&unfinished), Some(Severity::Warning), "the shutdown did not come to its end");
    }

    #[test]
    fn healthy_and_clears_after_clean_looks_or_an_hour() {
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
        assert_eq!(run(&rebooted(&End::Orderly, Some(false), 2).look()), Outcome::Healthy);
        assert_eq!(run(&crashed(10).look()), Outcome::Healthy);
        let silent = crashed(10).edit(|now| now.runtime.status = testing::timed_out("CRI"));
        assert_eq!(severity(&silent), Some(Severity::Warning), "the runtime may not have come up for damage");
        let silent = crashed(61).edit(|now| now.runtime.status = testing::timed_out("CRI"));
        assert_eq!(run(&silent.look()), Outcome::Healthy);
    }

    #[test]
    fn trap_a_planned_reboot_a_first_boot_and_another_nodes_volume() {
        let planned = rebooted(&End::Abrupt("w".into()), Some(true), 2);
        assert_eq!(run(&planned.look()), Outcome::Healthy);
        let first = Node::worker().edit(|now| now.past = Seen::Yes(Past::default()));
        assert!(matches!(run(&first.look()), Outcome::NotApplicable(_)));
        let volume = rebooted(&End::Untold, Some(false), 2).kernel_says(KernelFault::JournalReplayed, "sdb", RECOVERED);
        assert_eq!(run(&volume.look()), Outcome::Healthy);
        let tomorrow = crashed(2).edit(|now| now.taken_at = Timestamp::from_second(1_800_000_000).expect("valid"));
        assert_eq!(severity(&tomorrow), Some(Severity::Warning), "the clock was set, the boot is young all the same");
    }

    #[test]
    fn unknown_when_nobody_could_tell() {
        let node = |minutes| {
            rebooted(&End::Untold, Some(false), minutes)
                .edit(|now| now.kernel_log = testing::error("/dev/kmsg", Reason::Denied))
        };
        assert!(matches!(run(&node(2).look()), Outcome::Unknown(_)));
        assert_eq!(run(&node(61).look()), Outcome::Healthy);
        let unkept = Node::worker().edit(|now| now.past = testing::denied("state.json"));
        assert!(matches!(run(&unkept.look()), Outcome::Unknown(_)));
    }
}
