//! Bad input: a clear message that names the thing, exit status 64, and never a panic or a hang.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::machine::{Machine, program};
use crate::support::wait::eventually;

/// Runs the program; answers with exit status and standard error.
fn says(arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let output = Machine::plain()?.nodevitals(arguments)?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[test]
fn bad_usage_is_64_and_names_the_thing() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = directory.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let typo = file("typo.yaml", "limits:\n  conntrackNearFul: 3\n")?;
    let broken = file("kubeconfig", "clusters: [")?;
    let cases: &[(&[&str], &str)] = &[
        (&["check", "--no-such-option"], "--no-such-option"),
        (&["chek"], "chek"),
        (&["check", "--config", &typo], "conntrackNearFul"),
        (&["check", "--config", "/no/such/file"], "/no/such/file"),
        (&["check", "--host-root", "/no/such/root"], "/no/such/root"),
        (&["agent"], "--node-name"),
        (&["agent", "--node-name", "Not A Name"], "Not A Name"),
        (&["agent", "--node-name", "n1", "--listen", "127.0.0.1:0", "--kubeconfig", &broken], "kubeconfig"),
        (&["agent", "--node-name", "n1", "--listen", "127.0.0.1:0", "--kubeconfig", "/no/such/file"], "/no/such/file"),
        (&["report", "--kubeconfig", &broken], "kubeconfig"),
        (&["explain"], "CODE|TEXT|-"),
        (&["explain", " "], "empty"),
        (&["explain", "--product", "iks", "Critical"], "iks-classic"),
    ];
    for (arguments, named) in cases {
        let (status, error) = says(arguments)?;
        assert_eq!(status, Some(64), "{arguments:?}: {error}");
        assert!(error.contains(named) && !error.contains("panicked"), "{arguments:?}: {error}");
    }
    Ok(())
}

#[test]
fn help_is_an_answer() -> Result<()> {
    for command in ["check", "standalone", "agent", "aggregator", "report", "explain", "generate"] {
        let output = Machine::plain()?.nodevitals(&[command, "--help"])?;
        assert!(output.status.success(), "{command}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("Usage:"), "{command}");
    }
    Ok(())
}

#[test]
fn what_is_known_is_0_and_what_is_not_is_1() -> Result<()> {
    let explain = |text: &str| -> Result<(Option<i32>, String)> {
        let output = Machine::plain()?.nodevitals(&["explain", text])?;
        Ok((output.status.code(), String::from_utf8(output.stdout)?))
    };
    let (status, text) = explain("The specified worker node couldn't be\nfound. (E0011)")?;
    assert!(status == Some(0) && text.starts_with("WorkerRemovedConfirmed  info\n"), "{status:?}: {text}");
    let (status, text) = explain("no such message")?;
    assert!(status == Some(1) && text.contains("do not know"), "{status:?}: {text}");
    Ok(())
}

#[test]
fn a_log_from_standard_input_is_explained() -> Result<()> {
    use std::io::Write as _;

    let mut command = std::process::Command::new(program());
    command
        .args(["explain", "-o", "json", "-"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped());
    let mut child = command.spawn()?;
    let mut log = b"not \xff UTF-8\n".repeat(400_000);
    log.extend_from_slice(b"kernel: nf_conntrack: table full, dropping packet\n");
    child.stdin.take().expect("piped").write_all(&log)?;
    let output = child.wait_with_output()?;
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(answer["explanations"][0]["name"], "ConntrackFull");
    assert_eq!(output.status.code(), Some(0));
    Ok(())
}

#[test]
fn a_directory_in_place_of_the_socket_is_said() -> Result<()> {
    let machine = Machine::worker()?;
    std::fs::create_dir_all(machine.path("run/containerd/containerd.sock"))?;
    let checked = machine.check()?;
    let unknown = checked.unknown();
    let said = unknown.iter().find(|(code, _)| *code == "ContainerdDown");
    assert!(said.is_some_and(|(_, why)| why.contains("directory")), "{unknown:?}");
    Ok(())
}

#[test]
fn yaml_holds_what_json_holds() -> Result<()> {
    let machine = Machine::plain()?;
    let output = machine.nodevitals(&["check", "-o", "yaml", "--host-root", &machine.place("")])?;
    let text = String::from_utf8(output.stdout)?;
    for key in ["verdict:", "snapshot:", "  routing:", "  memory:"] {
        assert!(text.contains(key), "{key}: {text}");
    }
    Ok(())
}

#[test]
fn who_asks_for_backtraces_gets_the_message_all_the_same() -> Result<()> {
    let mut command = std::process::Command::new(program());
    let output = command
        .args(["agent", "--node-name", "n1", "--kubeconfig", "/none"])
        .envs([("RUST_BACKTRACE", "1"), ("RUST_LIB_BACKTRACE", "1")])
        .output()?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(64), "{errors}");
    assert!(errors.contains("/none"), "{errors}");
    Ok(())
}

#[test]
fn an_agent_that_can_trust_no_server_says_so_and_goes_on() -> Result<()> {
    let machine = Machine::plain()?;
    for (port, server) in [(10_583, "http://127.0.0.1:9"), (10_584, "https://127.0.0.1:9")] {
        let kubeconfig = format!(
            "clusters: [{{name: c, cluster: {{server: '{server}'}}}}]\nusers: [{{name: u, user: {{}}}}]\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n"
        );
        machine.write("agent.conf", &kubeconfig)?;
        let log = std::path::PathBuf::from(machine.place(&format!("log-{port}")));
        let mut command = machine.net().command(program());
        command.args(["agent", "--node-name", "n1", "--listen", &format!("127.0.0.1:{port}")]);
        command.args(["--host-root", &machine.place(""), "--kubeconfig", &machine.place("agent.conf")]);
        // A machine without CAs.
        command.envs([("SSL_CERT_FILE", "/none"), ("SSL_CERT_DIR", "/none")]);
        let mut running = command.stdout(std::fs::File::create(&log)?).stderr(std::process::Stdio::null()).spawn()?;
        let said = eventually("it goes on until it has tried to write", Duration::from_secs(20), || {
            let text = std::fs::read_to_string(&log)?;
            ensure!(text.contains("cannot write to the Node"), "{text}");
            Ok(text)
        });
        let ended = running.try_wait()?;
        running.kill()?;
        running.wait()?;
        ensure!(ended.is_none() && said.contains("no certificate of a server can be trusted"), "{ended:?}: {said}");
    }
    Ok(())
}
