//! How long kube-proxy is waited for: while it starts, and while it writes again what is missing.

use std::time::Duration;

use super::Gaps;
use crate::checks::{Finding, Look};
use crate::facts::{Backend, Family, Process, Program, ProxyMode};

/// What kube-proxy may take from its start to its first sync, also on a busy node.
const STARTS: Duration = Duration::from_secs(60);

/// Within which time a living kube-proxy writes again what is missing: in IPVS mode it does so each `syncPeriod` of 30 s. None
/// where it does not live, and in the other modes, where it looks once an hour (recorded: incident 05). One that has just
/// started lives, though its health port does not answer yet: in this mode it makes chain, jump and set one by one, by a
/// program each.
fn synced_within(look: &Look<'_>) -> Option<Duration> {
    let starts = process(look).map_or_else(|| is_not_known_yet(look), |it| has_just_started(look, it));
    let lives = starts || look.now.health.kube_proxy.get().is_some_and(|answer| answer.status < 300);
    (lives && look.expected.kube_proxy == Some(ProxyMode::Ipvs)).then_some(Duration::from_secs(35))
}

fn process<'a>(look: &Look<'a>) -> Option<&'a Process> {
    look.now.processes.get().and_then(|processes| processes.of(Program::KubeProxy))
}

/// Whether kube-proxy may run without its process having been found: on a node that joins it is found up to a minute after its first
/// chains, since the process table is walked that seldom while no program is missed.
fn is_not_known_yet(look: &Look<'_>) -> bool {
    !look.before.programs.contains(&Program::KubeProxy)
}

fn has_just_started(look: &Look<'_>, process: &Process) -> bool {
    look.now.taken_at.duration_since(process.started_at).unsigned_abs() < STARTS
}

/// A finding that waits for a living kube-proxy: see [`synced_within`].
pub(in crate::checks) fn awaited(look: &Look<'_>, finding: Finding) -> Finding {
    match synced_within(look) {
        Some(time) => finding.repaired_within(time),
        None => finding,
    }
}

/// The same about these gaps and jumps among them, which also waits for the first start of kube-proxy: see [`begins`].
pub(in crate::checks) fn awaited_from_the_start(
    look: &Look<'_>,
    finding: Finding,
    gaps: &Gaps,
    jumps: &[String],
) -> Finding {
    if begins(look, gaps, jumps) { finding.repaired_within(STARTS) } else { awaited(look, finding) }
}

/// Whether kube-proxy may be about to make its chains and these jumps for the first time of this boot: what nobody ever saw is not
/// lost. Until its configuration or its sets are read IPVS mode does not show, so this holds in the mode of iptables too; the
/// native one makes all in one transaction.
fn begins(look: &Look<'_>, gaps: &Gaps, jumps: &[String]) -> bool {
    let young = match process(look) {
        Some(process) => !jumps.is_empty() && has_just_started(look, process),
        None => is_not_known_yet(look),
    };
    let here = |(backend, family, _): &&(Backend, Family, String)| (*backend, *family) == (gaps.backend, gaps.family);
    let mut seen = look.before.kube_proxy_jumps.iter().filter(here);
    let lost = seen.any(|(_, _, jump)| jumps.is_empty() || jumps.contains(jump));
    young && !lost && look.expected.kube_proxy != Some(ProxyMode::Nftables)
}
