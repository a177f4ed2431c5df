//! Programs of Calico's eBPF dataplane: where they should be attached, and are not.
//!
//! Felix attaches two to every pod's link and to the links that lead out: by tc, or by TCX or netkit where kernel and version
//! allow, and these it pins. What is missed is what a link had in this boot, or what most links of pods have; where none has
//! any, and a living Felix may have found another way, nothing is known.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Finding, Look, Outcome};
use crate::facts::Seen;

/// So many links are named.
const NAMED: usize = 3;
/// A pod's link is there a moment before its programs are.
const ATTACHED: Duration = Duration::from_secs(10);

/// What is missed; `felix` says how long a living Felix is waited for.
pub(super) fn missing(look: &Look<'_>, felix: Option<Duration>) -> Outcome {
    let now = match look.now.routing.get().map(|routing| &routing.programs) {
        Some(Seen::Yes(now)) => now,
        Some(Seen::Unreadable(error)) => return Outcome::unknown(error),
        Some(Seen::Absent) | None => return Outcome::NotApplicable("the links have not been looked at".into()),
    };
    let had = &look.before.attached;
    let none = !now.values().flatten().any(|attached| *attached);
    if none && (had.is_empty() || felix.is_some()) {
        // A living Felix that takes all of them away puts others there.
        return Outcome::Unknown(
            "no program of Calico's eBPF dataplane is seen, neither attached by tc nor pinned below /sys/fs/bpf (should that have been mounted after this agent began: delete the agent's Pod)".into(),
        );
    }
    let usual = usual(now);
    let gone: Vec<String> = now
        .iter()
        .filter_map(|(link, attached)| {
            let before = had.get(link).copied().unwrap_or_default();
            let is_up = || look.now.routing.get().is_some_and(|it| it.links.iter().any(|it| it.name == *link && it.up));
            let wanted = |at: usize| before[at] || (usual[at] && is_pods(link));
            let lost: Vec<&str> = [(0, "in"), (1, "out")]
                .iter()
                .filter(|(at, _)| wanted(*at) && !attached[*at] && is_up())
                .map(|it| it.1)
                .collect();
            (!lost.is_empty()).then(|| format!("{link} ({})", lost.join(" and ")))
        })
        .collect();
    if gone.is_empty() {
        return Outcome::Healthy;
    }
    let more = gone.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more links") } else { String::new() };
    let detail = format!(
        "Programs of Calico's eBPF dataplane are gone, so policies are NOT enforced: {}{more}",
        gone[..gone.len().min(NAMED)].join(", ")
    );
    let next = "delete the calico-node pod, which attaches them again; then find who removed them (`tc filter show dev LINK ingress`, `ls /sys/fs/bpf/tcx`)";
    let finding = Finding::new("eBPF", detail).next(next);
    Outcome::from_findings(vec![finding.repaired_within(felix.unwrap_or(ATTACHED))])
}

/// Whether most links of pods have a program, by direction.
fn usual(now: &BTreeMap<String, [bool; 2]>) -> [bool; 2] {
    let pods: Vec<&[bool; 2]> = now.iter().filter(|(link, _)| is_pods(link)).map(|(_, attached)| attached).collect();
    [0, 1].map(|at| pods.iter().filter(|attached| attached[at]).count() * 2 > pods.len())
}

fn is_pods(link: &str) -> bool {
    link.starts_with("cali")
}
