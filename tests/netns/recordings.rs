//! Recorded incidents: the chains that a real node had, restored into a real kernel.

use anyhow::Result;

use crate::machine::{Machine, recording};

/// A worker with the recorded rules of both backends.
fn replay(incident: &str) -> Result<Machine> {
    let machine = Machine::worker()?;
    machine.feed(&["ipset", "restore"], &recording(&format!("{incident}/ipset-save.txt"))?)?;
    machine.feed(&["iptables-nft-restore"], &recording(&format!("{incident}/iptables-nft-save.txt"))?)?;
    machine.feed(&["ip6tables-nft-restore"], &recording(&format!("{incident}/ip6tables-nft-save.txt"))?)?;
    machine.feed(&["iptables-legacy-restore"], &recording(&format!("{incident}/iptables-legacy-save.txt"))?)?;
    Ok(machine)
}

#[test]
fn incident_01_healthy_raises_nothing_in_the_packet_filter() -> Result<()> {
    let checked = replay("01-healthy")?.check()?;
    assert_eq!(checked.condition("PacketFilterProblem"), ("False", "PacketFilterHealthy"));
    assert_eq!(checked.json["expected"]["kubeProxy"], "iptables");
    assert_eq!(checked.json["expected"]["calico"], "iptables");
    Ok(())
}

#[test]
fn incident_04_felix_dead_and_its_jumps_gone() -> Result<()> {
    let checked = replay("04-felix-dead-jumps-gone")?.check()?;
    assert_eq!(checked.codes_like("Chains"), ["CalicoChainsUnhooked"]);
    let detail = checked.finding("CalicoChainsUnhooked")?["detail"].to_string();
    assert!(
        detail.contains("filter FORWARD -> cali-FORWARD") && detail.contains("filter INPUT -> cali-INPUT"),
        "{detail}"
    );
    Ok(())
}

#[test]
fn incident_05_d_kube_proxy_alive_and_its_jumps_gone() -> Result<()> {
    let checked = replay("05-d-jumps-gone")?.check()?;
    assert_eq!(checked.codes_like("Chains"), ["KubeProxyChainsUnhooked"]);
    let detail = checked.finding("KubeProxyChainsUnhooked")?["detail"].to_string();
    assert!(
        detail.contains("nat PREROUTING -> KUBE-SERVICES") && detail.contains("nat OUTPUT -> KUBE-SERVICES"),
        "{detail}"
    );
    Ok(())
}

#[test]
fn incident_05_e_kube_proxy_alive_and_nat_flushed() -> Result<()> {
    let checked = replay("05-e-nat-flushed")?.check()?;
    let detail = checked.finding("KubeProxyChainsMissing")?["detail"].to_string();
    assert!(detail.contains("nat KUBE-SERVICES"), "{detail}");
    let detail = checked.finding("CalicoChainsMissing")?["detail"].to_string();
    assert!(detail.contains("nat cali-PREROUTING"), "{detail}");
    Ok(())
}

#[test]
fn incident_17_leftovers_in_the_other_backend_are_no_missing_chains() -> Result<()> {
    let checked = replay("17-mixed-backends")?.check()?;
    assert!(checked.codes_like("Chains").is_empty(), "{:?}", checked.codes());
    let legacy = &checked.json["snapshot"]["legacy"]["yes"]["tables"];
    assert!(legacy.as_array().is_some_and(|tables| tables.len() == 4), "both backends are read: {legacy}");
    Ok(())
}
