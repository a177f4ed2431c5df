//! The CNI directory: real files, and the recorded incident 06.

use std::os::unix::fs::PermissionsExt;

use anyhow::Result;

use crate::machine::{Machine, recording};

const DIRECTORY: &str = "etc/cni/net.d";

/// A worker whose CNI directory holds the files of a recording, and whose plugins are all installed.
fn worker(files: &[(&str, &str)]) -> Result<Machine> {
    let machine = Machine::worker()?;
    std::fs::create_dir_all(machine.path(DIRECTORY))?;
    for (name, text) in files {
        machine.write(&format!("{DIRECTORY}/{name}"), text)?;
    }
    for plugin in ["calico", "calico-ipam", "portmap", "bridge", "host-local"] {
        install(&machine, plugin)?;
    }
    Ok(machine)
}

fn install(machine: &Machine, plugin: &str) -> Result<()> {
    let file = format!("opt/cni/bin/{plugin}");
    machine.write(&file, "#!/bin/sh\n")?;
    Ok(std::fs::set_permissions(machine.path(&file), std::fs::Permissions::from_mode(0o755))?)
}

fn calico() -> Result<String> {
    recording("06-cni-healthy/cni-net.d/10-calico.conflist")
}

#[test]
fn incident_06_before_is_healthy() -> Result<()> {
    let checked = worker(&[("10-calico.conflist", &calico()?), ("calico-kubeconfig", "")])?.check()?;
    assert!(checked.codes_like("Cni").is_empty(), "{:?}", checked.codes());
    Ok(())
}

#[test]
fn incident_06_a_missing_and_back() -> Result<()> {
    let machine = worker(&[("calico-kubeconfig", "")])?;
    let finding = machine.check()?.finding("CniConfigMissing")?.clone();
    assert_eq!(finding["subject"], "/etc/cni/net.d");
    machine.write(&format!("{DIRECTORY}/10-calico.conflist"), calico()?)?;
    assert!(machine.check()?.codes_like("Cni").is_empty());
    Ok(())
}

#[test]
fn incident_06_b_invalid_json() -> Result<()> {
    let broken = recording("06-b-invalid-json/cni-net.d/10-calico.conflist")?;
    let checked = worker(&[("10-calico.conflist", &broken)])?.check()?;
    let detail = checked.finding("CniConfigInvalid")?["detail"].to_string();
    assert!(
        detail.contains("10-calico.conflist") && detail.contains("is not JSON") && detail.contains("line"),
        "{detail}"
    );
    Ok(())
}

#[test]
fn incident_06_c_a_plugin_is_gone_and_back() -> Result<()> {
    let machine = worker(&[("10-calico.conflist", &calico()?)])?;
    std::fs::remove_file(machine.path("opt/cni/bin/calico"))?;
    let checked = machine.check()?;
    assert_eq!(checked.finding("CniBinaryMissing")?["subject"], "calico");
    install(&machine, "calico")?;
    assert!(machine.check()?.codes_like("Cni").is_empty());
    Ok(())
}

#[test]
fn incident_06_d_a_stray_file_sorts_first() -> Result<()> {
    let stray = recording("06-d-stray-conf/cni-net.d/00-other.conf")?;
    let machine = worker(&[("00-other.conf", &stray), ("10-calico.conflist", &calico()?)])?;
    // Calico is known to be here by its chains.
    machine.run(&["iptables-nft", "-t", "filter", "-N", "cali-FORWARD"])?;
    let detail = machine.check()?.finding("CniConfigConflict")?["detail"].to_string();
    assert!(detail.contains("00-other.conf (plugin bridge)"), "{detail}");
    std::fs::remove_file(machine.path(&format!("{DIRECTORY}/00-other.conf")))?;
    assert!(machine.check()?.finding("CniConfigConflict").is_err());
    Ok(())
}

#[test]
fn files_that_are_none_cost_themselves() -> Result<()> {
    let machine = worker(&[])?;
    let file = format!("{DIRECTORY}/10-calico.conflist");
    let says = |machine: &Machine, what: &str| -> Result<()> {
        let checked = machine.check()?;
        let detail = checked.finding("CniConfigInvalid")?["detail"].to_string();
        assert!(detail.contains(what), "{detail}");
        std::fs::remove_file(machine.path(&file))?;
        Ok(())
    };
    machine.run(&["mkfifo", &machine.place(&file)])?;
    says(&machine, "is a FIFO")?;
    machine.run(&["truncate", "-s", "100M", &machine.place(&file)])?;
    says(&machine, "104857600 bytes")?;
    machine.write(&file, b"{\"name\": \"\xff\"}")?;
    says(&machine, "is not UTF-8")?;
    machine.write(&file, "")?;
    says(&machine, "is empty")?;
    machine.write(&file, "[".repeat(500_000))?;
    says(&machine, "is not JSON")
}
