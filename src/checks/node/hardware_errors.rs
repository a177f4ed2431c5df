//! Memory, processor or bus report errors.
//!
//! *Looks at* the kernel's log: machine checks, EDAC, the firmware's records (CPER), poisoned memory. *Traps*: errors that the
//! hardware corrected happen on healthy machines now and then; many of them are a module on its way out
//! (node-problem-detector's `CperHardwareError*` and `MemoryReadError`).

use std::time::Duration;

use super::super::{Area, Check, Look, Outcome, Severity, kernel};
use crate::facts::KernelFault;

pub(super) const CHECK: Check = Check {
    code: "HardwareErrors",
    area: Area::Integrity,
    severity: Severity::Warning,
    why: "data in memory may be wrong, processes are killed over it, and the machine can stop at any time",
    next_step: "read the lines around it (`dmesg | grep -iE 'hardware error|edac|mce'`, `ras-mc-ctl --summary`), drain the node, then have the part replaced or replace the worker",
    raise_after: Duration::ZERO,
    clear_after: Duration::ZERO,
    run,
};

/// So many corrected errors within a day are no accident.
const MANY: u64 = 100;

fn run(look: &Look<'_>) -> Outcome {
    let faults = &[KernelFault::HardwareFatal, KernelFault::HardwareUncorrected, KernelFault::HardwareCorrected];
    kernel::each(look, faults, |event| {
        Some(match event.fault {
            KernelFault::HardwareFatal => ("The hardware reports a fatal error".to_owned(), Severity::Critical),
            KernelFault::HardwareUncorrected => {
                ("The hardware reports an error that it could not correct".to_owned(), Severity::Warning)
            }
            _ if event.times >= MANY => ("The hardware has to correct many errors".to_owned(), Severity::Warning),
            _ => ("The hardware corrected an error".to_owned(), Severity::Info),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::Seen;

    fn severities(node: &Node) -> Vec<Option<Severity>> {
        let Outcome::Findings(findings) = run(&node.look()) else { panic!("a finding") };
        findings.into_iter().map(|finding| finding.severity).collect()
    }

    fn corrected() -> Node {
        let line = "EDAC MC0: 1 CE memory read error on DIMM#0 (channel:1)";
        Node::worker().kernel_says(KernelFault::HardwareCorrected, "MC0", line)
    }

    #[test]
    fn as_bad_as_the_hardware_says_and_one_finding_for_each_part() {
        let node = corrected().kernel_says(KernelFault::HardwareUncorrected, "MC0", "EDAC MC0: 1 UE memory read error");
        assert_eq!(severities(&node), [Some(Severity::Warning)]);
        let node = node.kernel_says(KernelFault::HardwareFatal, "", "{1}[Hardware Error]: event severity: fatal");
        assert_eq!(severities(&node), [Some(Severity::Warning), Some(Severity::Critical)]);
        assert_eq!(testing::subjects(&run(&node.look())), ["MC0", "kernel"]);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_few_corrected_errors_are_only_worth_knowing() {
        assert_eq!(severities(&corrected()), [Some(Severity::Info)]);
        let many = corrected().edit(|now| {
            let Seen::Yes(log) = &mut now.kernel_log else { panic!("seen") };
            log.events[0].times = MANY;
        });
        assert_eq!(severities(&many), [Some(Severity::Warning)]);
    }

    #[test]
    fn unknown_when_the_log_cannot_be_read() {
        let node = Node::worker().edit(|now| now.kernel_log = testing::denied("/dev/kmsg"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
