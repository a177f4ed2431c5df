//! What was given cannot be used: one clear line, and exit status 64.

use std::process::Command;

use anyhow::Result;

use crate::bench::program;

fn refused(arguments: &[&str], says: &[&str]) -> Result<()> {
    let output = Command::new("timeout").arg("20").arg(program()).args(arguments).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{arguments:?}: {output:?}");
    assert!(says.iter().all(|text| errors.contains(text)), "{arguments:?}: {errors}");
    assert!(!errors.contains("panicked"), "{errors}");
    Ok(())
}

#[test]
fn kubeconfigs_that_are_none() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("kubeconfig");
    let place = file.display().to_string();
    let agent = ["agent", "--node-name", "n1", "--listen", "127.0.0.1:0", "--kubeconfig", &place];
    let aggregator = ["aggregator", "--listen", "127.0.0.1:0", "--kubeconfig", &place];
    let report = ["report", "--kubeconfig", &place];
    for arguments in [&agent[..], &aggregator, &report] {
        for text in [None, Some("{"), Some("apiVersion: v1\nkind: Config\n"), Some("\u{0}\u{1}")] {
            match text {
                None => _ = std::fs::remove_file(&file),
                Some(text) => std::fs::write(&file, text)?,
            }
            refused(arguments, &[&place, "--kubeconfig"])?;
        }
    }
    Ok(())
}

#[test]
fn names_and_addresses_that_are_none() -> Result<()> {
    refused(&["agent", "--node-name", "N/1"], &["--node-name"])?;
    refused(&["agent", "--node-name", "n1", "--listen", "nowhere"], &["--listen"])?;
    refused(&["aggregator", "--namespace", "a/b"], &["--namespace"])?;
    refused(&["aggregator", "--lead"], &["--lead"])?;
    refused(&["report", "../x"], &["NODE"])?;
    Ok(())
}
