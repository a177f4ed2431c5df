//! Recorded faults as they come and go under a running agent: what it raises, in which order, and that it clears; and
//! that a routine update, seen from beginning to end, raises nothing.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::{Node, Recording, codes, exists};
use crate::support::wait::within;

/// Longer than any hold-down of the faults below, on a busy machine.
const SOON: Duration = Duration::from_secs(35);

/// Lets a fault come and go: these findings are raised, root first, are cleared again, and nothing else ever is.
fn comes_and_goes(incident: &str, name: &str, fault: &str, expected: &[&str]) -> Result<()> {
    let expected: Vec<&str> = expected.iter().copied().filter(|code| exists(code)).collect();
    let before = Recording::read(incident, "before", name)?;
    let mut node = Node::recorded(incident, "before", name)?;
    node.watch()?;
    node.become_(&Recording::read(incident, fault, name)?)?;
    within(SOON, || {
        ensure!(node.codes()? == expected, "{}", node.verdict()?);
        Ok(())
    })
    .context("it is raised")?;
    node.become_(&before)?;
    within(SOON, || {
        ensure!(node.codes()?.is_empty(), "{}", node.verdict()?);
        Ok(())
    })
    .context("it is cleared")?;
    let raised = node.ever_raised()?;
    let others: Vec<_> =
        raised.iter().filter(|line| !expected.iter().any(|code| line.contains(&format!("code=\"{code}\"")))).collect();
    ensure!(others.is_empty(), "also raised: {others:#?}");
    Ok(())
}

#[test]
fn jumps_of_a_live_kube_proxy_deleted() -> Result<()> {
    comes_and_goes("05-kube-proxy-stopped", "n2", "during-d-alive-jumps-gone", &["KubeProxyChainsUnhooked"])
}

#[test]
fn jumps_of_a_dead_felix_deleted() -> Result<()> {
    comes_and_goes("04-felix-stopped", "n1", "during-b-dead-and-jumps-gone", &["CalicoChainsUnhooked"])
}

#[test]
fn a_stray_cni_configuration() -> Result<()> {
    comes_and_goes("06-cni-config-missing", "n2", "during-d-stray-conf", &["CniConfigConflict"])
}

#[test]
fn a_hung_containerd() -> Result<()> {
    comes_and_goes("08-containerd-hung", "n3", "during-a-hung-20s", &["ContainerdUnresponsive"])
}

#[test]
fn a_dead_containerd() -> Result<()> {
    comes_and_goes("08-containerd-hung", "n3", "during-b-killed", &["ContainerdDown"])
}

#[test]
fn the_route_of_a_pod_with_felix_dead() -> Result<()> {
    comes_and_goes("11-pod-route-missing", "n1", "during-b-felix-dead", &["PodRouteMissing"])
}

/// Felix lives, but does not look into pods: nothing is waited for.
#[test]
fn the_end_of_a_link_inside_a_pod() -> Result<()> {
    let node = Node::recorded("11-pod-route-missing", "before", "n1")?;
    node.watch()?;
    node.set_inside("cali415c2f8ba99", "down")?;
    within(SOON, || {
        let verdict = node.verdict()?;
        ensure!(codes(&verdict["findings"]) == ["PodRouteMissing"], "{verdict}");
        ensure!(verdict["findings"][0].to_string().contains("cali415c2f8ba99, which has no carrier"), "{verdict}");
        Ok(())
    })
    .context("it is raised")?;
    node.set_inside("cali415c2f8ba99", "up")?;
    within(SOON, || {
        ensure!(node.codes()?.is_empty(), "{}", node.verdict()?);
        Ok(())
    })
    .context("it is cleared")?;
    Ok(())
}

#[test]
fn a_bird_that_hangs() -> Result<()> {
    comes_and_goes("02-bird-stopped", "n2", "during-stopped", &["BgpDaemonDown"])
}

#[test]
fn a_legacy_policy_that_drops() -> Result<()> {
    comes_and_goes("17-mixed-backends", "n2", "during-a-legacy-rules", &["ForwardPolicyDrop"])
}

/// Lets a fault come and go before its hold-down ends: it is seen, and nothing is raised.
fn is_seen_and_held(incident: &str, name: &str, fault: &str, expected: &str) -> Result<()> {
    let before = Recording::read(incident, "before", name)?;
    let mut node = Node::recorded(incident, "before", name)?;
    node.watch()?;
    node.become_(&Recording::read(incident, fault, name)?)?;
    within(SOON, || {
        let pending = codes(&node.verdict()?["pending"]);
        ensure!(pending == [expected] || !exists(expected), "{pending:?}");
        Ok(())
    })
    .context("it is seen")?;
    // Long enough to outlast the hold-down of what nobody repairs.
    sleep(Duration::from_secs(4));
    node.become_(&before)?;
    within(SOON, || {
        ensure!(codes(&node.verdict()?["pending"]).is_empty(), "{}", node.verdict()?);
        Ok(())
    })
    .context("it is over")?;
    ensure!(node.ever_raised()?.is_empty(), "{:#?}", node.ever_raised()?);
    Ok(())
}

#[test]
fn what_a_live_felix_repairs_is_seen_and_held() -> Result<()> {
    is_seen_and_held("04-felix-stopped", "n1", "during-c-alive-jumps-gone", "CalicoChainsUnhooked")
}

#[test]
fn a_kube_proxy_that_may_come_back_is_seen_and_held() -> Result<()> {
    is_seen_and_held("05-kube-proxy-stopped", "n2", "during-a-stopped", "KubeProxyDown")
}

#[test]
fn a_rolling_restart_of_calico_is_silent() -> Result<()> {
    let incident = "18-rolling-restart";
    let mut node = Node::recorded(incident, "before", "n2")?;
    node.watch()?;
    // BIRD and Felix were away for 7.5 s on this node.
    for (phase, seconds) in [("during-n2", 7), ("after-rolling", 1), ("during-slow-n2", 7), ("after", 2)] {
        node.become_(&Recording::read(incident, phase, "n2")?)?;
        sleep(Duration::from_secs(seconds));
    }
    ensure!(node.ever_raised()?.is_empty(), "{:#?}", node.ever_raised()?);
    ensure!(node.verdict()?["state"] == "Normal", "{}", node.verdict()?);
    Ok(())
}

/// Stops the process for longer than any hold-down here, while something is done; `NODEVITALS_PAUSE_SECONDS` makes it longer.
fn paused(node: &mut Node, meanwhile: impl FnOnce(&mut Node) -> Result<()>) -> Result<()> {
    let seconds = std::env::var("NODEVITALS_PAUSE_SECONDS").map_or(Ok(12), |text| text.parse())?;
    node.host.signal("nodevitals", Signal::SIGSTOP)?;
    meanwhile(node)?;
    sleep(Duration::from_secs(seconds));
    node.host.signal("nodevitals", Signal::SIGCONT)?;
    Ok(())
}

/// A process that was stopped takes nothing for having lasted, or for being over, that it did not see.
#[test]
fn a_pause_is_no_transition() -> Result<()> {
    let (incident, hangs) = ("02-bird-stopped", "during-stopped");
    let (before, during) = (Recording::read(incident, "before", "n2")?, Recording::read(incident, hangs, "n2")?);
    let mut node = Node::recorded(incident, "before", "n2")?;
    node.watch()?;
    paused(&mut node, |_| Ok(()))?;
    // What was seen for a moment before the pause, and is gone after it.
    node.become_(&during)?;
    within(SOON, || {
        ensure!(codes(&node.verdict()?["pending"]) == ["BgpDaemonDown"], "{}", node.verdict()?);
        Ok(())
    })
    .context("it is seen")?;
    paused(&mut node, |node| node.become_(&before))?;
    within(SOON, || {
        let verdict = node.verdict()?;
        ensure!(codes(&verdict["pending"]).is_empty() && verdict["state"] == "Normal", "{verdict}");
        Ok(())
    })
    .context("it is over")?;
    // Longer than the hold-down of what would have been seen last.
    sleep(Duration::from_secs(6));
    ensure!(node.ever_raised()?.is_empty(), "{:#?}", node.ever_raised()?);
    // What counts goes on counting, and is told as one.
    node.become_(&during)?;
    within(SOON, || {
        ensure!(node.codes()? == ["BgpDaemonDown"], "{}", node.verdict()?);
        Ok(())
    })
    .context("it is raised")?;
    let since = node.verdict()?["findings"][0]["since"].clone();
    paused(&mut node, |_| Ok(()))?;
    sleep(Duration::from_secs(6));
    let findings = node.verdict()?["findings"].clone();
    ensure!(codes(&findings) == ["BgpDaemonDown"] && findings[0]["since"] == since, "{findings}");
    ensure!(node.ever_raised()?.len() == 1, "{:#?}", node.ever_raised()?);
    Ok(())
}
