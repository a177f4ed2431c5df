//! The CNI directory: real files, and the recorded incident 06.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::machine::{Machine, program, recording};
use crate::standalone::Running;
use crate::support::wait::eventually;

const DIRECTORY: &str = "etc/cni/net.d";
const KUBECONFIG: &str = "etc/cni/net.d/calico-kubeconfig";
const NODENAME: &str = "var/lib/calico/nodename";
/// The first part of the token.
const SECRET: &str = "c2VjcmV0";
const SOON: Duration = Duration::from_secs(60);

/// A worker whose CNI directory holds the files of a recording, and whose plugins are all installed. The recordings hold
/// no credentials; those that calico-node would have written are made.
fn worker(files: &[(&str, &str)]) -> Result<Machine> {
    let machine = Machine::worker()?;
    std::fs::create_dir_all(machine.path(DIRECTORY))?;
    machine.write(KUBECONFIG, kubeconfig(&machine, 18 * 3600)?)?;
    for (name, text) in files {
        machine.write(&format!("{DIRECTORY}/{name}"), text)?;
    }
    for plugin in ["calico", "calico-ipam", "portmap", "bridge", "host-local"] {
        install(&machine, plugin)?;
    }
    Ok(machine)
}

/// As calico-node writes it, with a token that ends so many seconds from now.
fn kubeconfig(machine: &Machine, ends_in: i64) -> Result<String> {
    let claims = format!("{{\"exp\":{},\"sub\":\"test\"}}", jiff::Timestamp::now().as_second() + ends_in);
    let claims = machine.feed(&["sh", "-c", "base64 -w0 | tr '+/' '-_' | tr -d ="], &claims)?;
    Ok(format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: local\n  cluster:\n    server: https://[192.0.2.10]:443\nusers:\n- name: calico\n  user:\n    token: {SECRET}.{}.c2ln\ncontexts:\n- name: calico-context\n  context: {{cluster: local, user: calico}}\ncurrent-context: calico-context\n",
        claims.trim()
    ))
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
    let checked = worker(&[("10-calico.conflist", &calico()?)])?.check()?;
    assert!(checked.codes_like("Cni").is_empty(), "{:?}", checked.codes());
    Ok(())
}

#[test]
fn incident_06_a_missing_and_back() -> Result<()> {
    let machine = worker(&[])?;
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
    says(&machine, "is not JSON")?;
    machine.write(&file, b"\xef\xbb\xbf{}")?;
    says(&machine, "byte order mark")?;
    machine.write(&file, format!("{{\"name\": [{}1]}}", "1,".repeat(400_000)))?;
    says(&machine, "values")?;
    machine.write(&file, calico()?.replace("0.3.1", "3.0.0"))?;
    says(&machine, "cniVersion \\\"3.0.0\\\"")?;
    // Odd, and as good as any other: a long text, a key twice, lines that end in CRLF.
    let long = format!("{{\"a\": \"{}\", \"name\": \"x\", ", "x".repeat(900_000));
    machine.write(&file, calico()?.replacen('{', &long, 1).replace('\n', "\r\n"))?;
    let codes = machine.check()?;
    assert!(codes.codes_like("Cni").is_empty(), "{:?}", codes.codes());
    Ok(())
}

#[test]
fn a_half_written_file_is_read_again() -> Result<()> {
    let machine = worker(&[])?;
    let (file, text) = (format!("{DIRECTORY}/10-calico.conflist"), calico()?);
    machine.write(&file, &text[..text.len() / 2])?;
    let checked = std::thread::scope(|scope| {
        // The rest comes while the program looks.
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(200));
            machine.write(&file, &text)
        });
        machine.check()
    })?;
    assert!(checked.codes_like("Cni").is_empty(), "{:?}", checked.codes());
    Ok(())
}

#[test]
fn the_plugins_credentials_end_are_renewed_vanish_and_are_never_told() -> Result<()> {
    let machine = worker(&[("10-calico.conflist", &calico()?)])?;
    let checked = machine.check()?;
    assert!(checked.finding("CniKubeconfigInvalid").is_err(), "{:?}", checked.codes());
    let named = checked.json["snapshot"]["cni"]["kubeconfigs"].as_object().context("kubeconfigs")?.len();
    assert_eq!(named, 1, "{}", checked.json["snapshot"]["cni"]);

    machine.write(KUBECONFIG, kubeconfig(&machine, -60)?)?;
    let checked = machine.check()?;
    let finding = checked.finding("CniKubeconfigInvalid")?;
    assert!(finding["detail"].to_string().contains("holds a token that expired at"), "{finding}");
    assert_eq!(finding["severity"], "critical");
    assert!(!checked.json.to_string().contains(SECRET));

    machine.write(KUBECONFIG, kubeconfig(&machine, 300)?)?;
    assert_eq!(machine.check()?.finding("CniKubeconfigInvalid")?["severity"], "warning");
    machine.write(KUBECONFIG, kubeconfig(&machine, 18 * 3600)?)?;
    assert!(machine.check()?.finding("CniKubeconfigInvalid").is_err());

    std::fs::remove_file(machine.path(KUBECONFIG))?;
    assert!(machine.check()?.finding("CniKubeconfigInvalid")?["detail"].to_string().contains("does not exist"));
    machine.write(KUBECONFIG, "clusters: [")?;
    assert!(machine.check()?.finding("CniKubeconfigInvalid")?["detail"].to_string().contains("is not a kubeconfig"));
    Ok(())
}

#[test]
fn plugins_that_are_there_and_cannot_run() -> Result<()> {
    let machine = worker(&[("10-calico.conflist", &calico()?)])?;
    let detail = |machine: &Machine| -> Result<String> {
        Ok(machine.check()?.finding("CniBinaryMissing")?["detail"].to_string())
    };
    let mut foreign = b"\x7fELF\x02\x02\x01".to_vec();
    foreign.resize(18, 0);
    foreign.extend([0, 22]);
    machine.write("opt/cni/bin/calico", &foreign)?;
    assert!(detail(&machine)?.contains("is built for s390x"), "{}", detail(&machine)?);
    machine.write("opt/cni/bin/calico", [0; 4096])?;
    assert!(detail(&machine)?.contains("neither an ELF program nor a script"));
    install(&machine, "calico")?;
    assert!(machine.check()?.finding("CniBinaryMissing").is_err());

    let bin = machine.place("opt/cni/bin");
    machine.run(&["mount", "--bind", &bin, &bin])?;
    machine.run(&["mount", "-o", "remount,bind,noexec", &bin])?;
    assert!(detail(&machine)?.contains("mounted noexec"));
    machine.run(&["mount", "-o", "remount,bind,exec", &bin])?;
    assert!(machine.check()?.finding("CniBinaryMissing").is_err());
    Ok(())
}

#[test]
fn multus_delegates_and_waits() -> Result<()> {
    let multus = r#"{"cniVersion": "0.3.1", "name": "multus-cni-network", "type": "multus",
        "readinessindicatorfile": "/run/multus/cni/net.d/10-calico.conflist",
        "delegates": [{"cniVersion": "0.3.1", "name": "net", "plugins": [{"type": "macvlan"}]}]}"#;
    let machine = worker(&[("00-multus.conf", multus), ("10-calico.conflist", &calico()?)])?;
    install(&machine, "multus")?;
    let checked = machine.check()?;
    assert_eq!(checked.finding("CniBinaryMissing")?["subject"], "macvlan");
    assert_eq!(checked.finding("CniConfigMissing")?["subject"], "/run/multus/cni/net.d/10-calico.conflist");
    install(&machine, "macvlan")?;
    machine.write("run/multus/cni/net.d/10-calico.conflist", calico()?)?;
    let checked = machine.check()?;
    assert!(checked.codes_like("Cni").is_empty(), "{:?}", checked.codes());
    Ok(())
}

/// What a process of this product finds, which serves its pages on this machine.
fn finding(machine: &Machine, port: u16, code: &str) -> Result<Value> {
    let page = machine.run(&["curl", "-sf", "-m", "5", &format!("http://127.0.0.1:{port}/findings")])?;
    let page: Value = serde_json::from_str(&page)?;
    let findings = page["verdict"]["findings"].as_array().context("findings")?;
    Ok(findings.iter().find(|finding| finding["code"] == code).cloned().unwrap_or(Value::Null))
}

#[test]
fn a_leftover_takes_over_when_calicos_file_vanishes() -> Result<()> {
    let bridge = r#"{"cniVersion": "1.0.0", "name": "left", "type": "bridge", "ipam": {"type": "host-local"}}"#;
    let machine = worker(&[("10-calico.conflist", &calico()?), ("99-bridge.conf", bridge)])?;
    machine.run(&["iptables-nft", "-t", "filter", "-N", "cali-FORWARD"])?;
    let mut command = machine.net().command(program());
    command.args(["standalone", "--host-root", &machine.place("")]).stdout(Stdio::null()).stderr(Stdio::null());
    let _running = Running(command.spawn()?);
    eventually("Calico is in force", SOON, || {
        ensure!(finding(&machine, 10580, "CniConfigConflict")?.is_null(), "a conflict");
        Ok(())
    });
    std::fs::remove_file(machine.path(&format!("{DIRECTORY}/10-calico.conflist")))?;
    eventually("the leftover is told", SOON, || {
        let finding = finding(&machine, 10580, "CniConfigConflict")?;
        ensure!(
            finding["severity"] == "critical" && finding["detail"].to_string().contains("99-bridge.conf"),
            "{finding}"
        );
        Ok(())
    });
    machine.write(&format!("{DIRECTORY}/10-calico.conflist"), calico()?)?;
    eventually("and Calico's file is back", SOON, || {
        ensure!(finding(&machine, 10580, "CniConfigConflict")?.is_null(), "still");
        Ok(())
    });
    Ok(())
}

#[test]
fn pods_are_registered_under_another_name() -> Result<()> {
    let machine = worker(&[("10-calico.conflist", &calico()?)])?;
    machine.write(NODENAME, "n1.example.com")?;
    machine.write("agent.conf", kubeconfig(&machine, 3600)?)?;
    let mut command = machine.net().command(program());
    command.args(["agent", "--node-name", "n1", "--listen", "127.0.0.1:10581"]);
    command.args(["--host-root", &machine.place(""), "--kubeconfig", &machine.place("agent.conf")]);
    let _running = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    eventually("the other name is told", SOON, || {
        let finding = finding(&machine, 10581, "CniNodenameMismatch")?;
        ensure!(finding["detail"].to_string().contains("n1.example.com"), "{finding}");
        Ok(())
    });
    machine.write(NODENAME, "n1\n")?;
    // The directory that is watched is another one: an event there lets it look.
    eventually("the right name is seen", SOON, || {
        machine.write(KUBECONFIG, kubeconfig(&machine, 18 * 3600)?)?;
        ensure!(finding(&machine, 10581, "CniNodenameMismatch")?.is_null(), "still");
        Ok(())
    });
    Ok(())
}
