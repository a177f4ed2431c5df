//! Tasks wait for disks most of the time.
//!
//! *Looks at* pressure stall information (`full`: all tasks that had something to do waited) and at how many tasks wait at
//! this moment. *Traps*: one task that reads on an idle node waits all the time, and nobody suffers; many
//! distributions boot with `psi=0`, where the question cannot be asked at all, and a node that could never be known for
//! it would be Unknown for ever (catalogue R036).

use std::time::Duration;

use super::super::space::human_bytes;
use super::super::{Area, Check, Finding, Look, Outcome, Severity, pods, seen};

pub(super) const CHECK: Check = Check {
    code: "IoPressureHigh",
    area: Area::Capacity,
    severity: Severity::Warning,
    why: "the runtime and the kubelet wait for the same disks: probes time out, pods start late, and in the end the node turns NotReady",
    next_step: "see who writes (`iotop -oPa`, `cat /sys/fs/cgroup/kubepods.slice/*/io.stat`) and how the disk does (`iostat -x 2`: await, %util), then move or throttle that workload or repair the disk",
    raise_after: Duration::from_secs(60),
    clear_after: Duration::from_secs(120),
    run,
};

/// Of the time, in percent, over 10 s and over a minute.
const MUCH: f64 = 40.0;
/// Fewer tasks than this are nobody's trouble but their own.
const SEVERAL: u64 = 2;

fn run(look: &Look<'_>) -> Outcome {
    let none = "this kernel has no PSI; boot it with psi=1 if it was built in";
    let stall = seen!(look.now.strain.io, Outcome::NotApplicable(none.into()));
    let blocked = look.now.strain.blocked.unwrap_or(0);
    if stall.full_avg10 < MUCH || stall.full_avg60 < MUCH || blocked < SEVERAL {
        return Outcome::Healthy;
    }
    let detail = format!(
        "All tasks wait for disks {:.0} % of the time over a minute ({:.0} % over 10 s), {blocked} of them at this moment{}",
        stall.full_avg60,
        stall.full_avg10,
        pods::biggest(look, |bytes| format!("{} a second", human_bytes(bytes)), pods::Kind::Disks)
    );
    Outcome::from_findings(vec![Finding::new("io", detail)])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{Seen, Stall};

    fn with(full_avg10: f64, full_avg60: f64, blocked: u64) -> Outcome {
        let stall = Stall { some_avg10: 90.0, some_avg60: 90.0, full_avg10, full_avg60 };
        run(&Node::worker()
            .edit(|now| {
                now.strain.io = Seen::Yes(stall);
                now.strain.blocked = Some(blocked);
            })
            .look())
    }

    #[test]
    fn fires_when_several_tasks_wait() {
        assert!(testing::details(&with(70.0, 62.0, 5))[0].contains("62 % of the time over a minute"));
    }

    #[test]
    fn who_uses_the_disks_is_named() {
        let stall = Stall { some_avg10: 90.0, some_avg60: 90.0, full_avg10: 70.0, full_avg60: 62.0 };
        let node = Node::worker().edit(|now| {
            (now.strain.io, now.strain.blocked) = (Seen::Yes(stall), Some(5));
            now.strain.pods = testing::pods();
        });
        let details = testing::details(&run(&node.look()));
        assert!(details[0].ends_with("; most is used by default/web (12.0 MiB a second)"), "{details:?}");
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
        assert_eq!(with(0.0, 60.0, 9), Outcome::Healthy, "over");
        assert_eq!(with(90.0, 10.0, 9), Outcome::Healthy, "a burst");
    }

    #[test]
    fn trap_one_reader_on_an_idle_node() {
        assert_eq!(with(95.0, 95.0, 1), Outcome::Healthy);
    }

    #[test]
    fn trap_a_kernel_without_psi_is_not_unknown_for_ever() {
        let node = Node::worker().edit(|now| now.strain.io = Seen::Absent);
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_it_cannot_be_read() {
        let node = Node::worker().edit(|now| now.strain.io = testing::denied("/proc/pressure/io"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
