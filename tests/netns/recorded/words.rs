//! What the kubelet of a recorded worker says of itself on the Node: quoted by what it is about, told where nothing else explains
//! it, and over when it says otherwise.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Node, Recording, codes};
use crate::support::wait::within;

/// Longer than it takes to read the Node again while its words are bad, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// As recorded 250 s after containerd was stopped, and when it went on.
const HUNG: &str = "[container runtime is down, PLEG is not healthy: pleg was last seen active 4m10.290886978s ago; threshold is 3m0s]";
const GOES_ON: &str = "PLEG is not healthy: pleg was last seen active 4m21.174849822s ago; threshold is 3m0s";

#[test]
fn incident_08_the_kubelet_follows_its_runtime() -> Result<()> {
    let incident = "08-containerd-hung";
    let before = Recording::read(incident, "before", "n3")?;
    let mut node = Node::recorded(incident, "during-a-hung-late", "n3")?;
    let api = node.api()?;
    api.set_ready("False", "KubeletNotReady", HUNG);
    node.run_agent()?;
    within(SOON, || {
        let verdict = node.verdict()?;
        ensure!(codes(&verdict["findings"]) == ["ContainerdUnresponsive"], "{verdict}");
        let said = verdict["findings"][0]["detail"].to_string();
        ensure!(said.contains("; the kubelet says so too since ") && !said.contains("PLEG"), "{said}");
        ensure!(!codes(&verdict["pending"]).contains(&"KubeletUnhealthy".to_owned()), "{verdict}");
        Ok(())
    })?;
    // It is told to wait: these words stay for some seconds when the runtime goes on.
    api.set_ready("False", "KubeletNotReady", GOES_ON);
    node.become_(&before)?;
    within(SOON, || {
        let verdict = node.verdict()?;
        ensure!(
            codes(&verdict["findings"]).is_empty() && codes(&verdict["pending"]) == ["KubeletUnhealthy"],
            "{verdict}"
        );
        let said = verdict["pending"][0]["detail"].as_str().unwrap_or_default();
        ensure!(said.contains("not ready since ") && said.ends_with(&format!("\"{GOES_ON}\"")), "{said}");
        Ok(())
    })?;
    api.set_ready("True", "KubeletReady", "kubelet is posting ready status");
    within(SOON, || {
        let verdict = node.verdict()?;
        ensure!(codes(&verdict["pending"]).is_empty() && verdict["state"] == "Normal", "{verdict}");
        Ok(())
    })?;
    let raised = node.ever_raised()?;
    let others: Vec<_> = raised.iter().filter(|line| !line.contains("ContainerdUnresponsive")).collect();
    ensure!(!raised.is_empty() && others.is_empty(), "also raised: {others:#?}");
    Ok(())
}
