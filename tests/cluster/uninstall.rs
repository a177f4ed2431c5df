//! `nodevitals uninstall` on real nodes: what the agents kept there is gone, and what is left is named.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::product::{Product, SOON, program};
use crate::support::wait::eventually;

const KEPT: &str = "/var/lib/nodevitals";

/// Exit status and all that it prints.
fn uninstall(product: &Product, arguments: &[&str]) -> Result<(i32, String)> {
    let mut command = product.cluster.command_in(program());
    command.arg("uninstall").args(arguments).arg("--kubeconfig").arg(product.cluster.admin_kubeconfig()?);
    let done = command.output()?;
    let text = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    Ok((done.status.code().context("an exit status")?, text))
}

/// What the directory of the state holds on a node; none where there is no such directory.
fn kept(product: &Product, node: &str) -> Result<Option<String>> {
    let node = product.cluster.node(node)?;
    let there = node.read(&["sh", "-c", &format!("if [ -e {KEPT} ]; then echo there; find {KEPT}; fi")])?;
    Ok((!there.is_empty()).then_some(there))
}

#[test]
fn nothing_that_the_agents_kept_is_left_on_any_node() -> Result<()> {
    let product = Product::deployed()?;
    for node in ["n1", "n2"] {
        product.wait_until_healthy(node);
    }
    // Evidence is kept of it.
    product.cluster.node("n1")?.read(&[
        "sh",
        "-c",
        "mkdir /etc/cni/away && mv /etc/cni/net.d/*.conflist /etc/cni/away/",
    ])?;
    product.wait_for("n1", "CNIProblem", "True", "CniConfigMissing");
    eventually("n1 keeps a bundle and its state", SOON, || {
        let kept = kept(&product, "n1")?.context("no directory")?;
        ensure!(kept.contains("-CniConfigMissing/manifest.json") && kept.contains("/state.json"), "{kept}");
        Ok(())
    });
    // It erases without a CNI too: n1 has none.
    product.cluster.kubectl(&["--namespace", "nodevitals", "delete", "daemonset", "nodevitals-agent"])?;
    product.cluster.node("n2")?.read(&["touch", "/var/lib/nodevitals/mine"])?;
    let (code, said) = uninstall(&product, &["--dry-run"])?;
    ensure!(
        code == 0 && kept(&product, "n1")?.is_some_and(|kept| kept.contains("-CniConfigMissing/")),
        "{code}: {said}"
    );
    let (code, said) = uninstall(&product, &[])?;
    ensure!(code == 1 && said.contains("gone from 1 nodes") && said.contains("  n2: "), "{code}: {said}");
    ensure!(said.contains("holds what no agent made, which is left there: mine"), "{said}");
    ensure!(kept(&product, "n1")?.is_none(), "{:?}", kept(&product, "n1")?);
    ensure!(kept(&product, "n2")?.is_some_and(|kept| !kept.contains("state.json")), "{:?}", kept(&product, "n2")?);
    // A kubelet that does not answer.
    let n2 = product.cluster.node("n2")?;
    n2.read(&["rm", "/var/lib/nodevitals/mine"])?;
    n2.signal("kubelet", Signal::SIGSTOP)?;
    let (code, said) = uninstall(&product, &["n2", "--timeout", "5"])?;
    n2.signal("kubelet", Signal::SIGCONT)?;
    ensure!(code == 1 && said.contains("  n2: the Pod that erases has not ended within 5 s"), "{code}: {said}");
    ensure!(said.contains("kubectl debug node/n2 ") && said.contains("-- rm -r /host/var/lib/nodevitals"), "{said}");
    let (code, said) = uninstall(&product, &[])?;
    ensure!(code == 0 && said.contains("gone from 2 nodes"), "{code}: {said}");
    for node in ["n1", "n2"] {
        ensure!(kept(&product, node)?.is_none(), "{node}: {:?}", kept(&product, node)?);
        let (pods, object) = (product.agent_pod(node), product.cluster.node(node)?.object(&product.cluster)?);
        ensure!(pods.is_err() && !object.to_string().contains("nodevitals.dev/"), "{node}: {}", object["metadata"]);
    }
    Ok(())
}
