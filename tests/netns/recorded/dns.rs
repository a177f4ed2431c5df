//! The cluster's DNS of a recorded worker, behind rules as kube-proxy writes them: it answers, is gone, answers by one protocol alone,
//! answers only that it has failed, and is not led to any more.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

use super::node::MASTER;
use super::{Api, Node, Recording, cluster, over_time};
use crate::support::wait::within;

const INCIDENT: &str = "05-kube-proxy-stopped";
const NODE: &str = "n2";
const CODE: &str = "ClusterDnsUnreachable";
/// The only Pod of CoreDNS, on the network of the control plane's host: that is what is at the far end of the uplink.
const POD: (&str, u16) = (MASTER, 53);
/// Longer than from one question to the next, and what a busy machine adds.
const SOON: Duration = Duration::from_secs(240);
/// The hold-down, much shorter than by default.
const CONFIG: &str = "limits: {imminentPoints: 0, imminentMinutes: 0}\n\
    holdDownSeconds: {ClusterDnsUnreachable: 3, MasterClusterIpUnreachable: 3}\n";

/// The recorded worker with what kube-proxy writes for DNS.
fn recorded(phase: &str) -> Result<Recording> {
    const SERVICES: &str = "-A KUBE-SERVICES -d 10.96.0.1/32 ";
    let recording = Recording::read(INCIDENT, phase, NODE)?;
    let mut lines = Vec::new();
    for line in recording.text("iptables-nft-save.txt")?.lines() {
        if line.starts_with(":KUBE-SVC-NPX46M4PTMTKRN6Y ") {
            let chains =
                ["SVC-TCOU7JCQXEZGVUNU", "SVC-ERIFXISQEP7F7OF4", "SEP-AAAAAAAAAAAAAAAA", "SEP-BBBBBBBBBBBBBBBB"];
            lines.extend(chains.map(|chain| format!(":KUBE-{chain} - [0:0]")));
        }
        if line.starts_with(SERVICES) {
            let (to, port) = POD;
            for (protocol, name, service, endpoint) in [
                ("udp", "dns", "KUBE-SVC-TCOU7JCQXEZGVUNU", "KUBE-SEP-AAAAAAAAAAAAAAAA"),
                ("tcp", "dns-tcp", "KUBE-SVC-ERIFXISQEP7F7OF4", "KUBE-SEP-BBBBBBBBBBBBBBBB"),
            ] {
                let comment = format!("-m comment --comment \"kube-system/kube-dns:{name}");
                lines.push(format!("-A KUBE-SERVICES -d 10.96.0.10/32 -p {protocol} {comment} cluster IP\" -m {protocol} --dport 53 -j {service}"));
                lines.push(format!("-A {service} {comment} -> {to}:{port}\" -j {endpoint}"));
                lines.push(format!(
                    "-A {endpoint} -p {protocol} {comment}\" -m {protocol} -j DNAT --to-destination {to}:{port}"
                ));
            }
        }
        lines.push(line.to_owned());
    }
    let text = lines.join("\n") + "\n";
    Ok(recording.with("iptables-nft-save.txt", &text))
}

/// The map of the cluster in which these Pods of DNS are Ready.
fn map(pods: &[(&str, u16)]) -> Result<Value> {
    let mut map = cluster(INCIDENT, NODE)?;
    let ports = [("dns", "UDP"), ("dns-tcp", "TCP")];
    let ports =
        ports.map(|(name, protocol)| json!({"name": name, "protocol": protocol, "port": 53, "endpoints": pods}));
    let service = json!({"namespace": "kube-system", "name": "kube-dns", "clusterIps": ["10.96.0.10"], "ports": ports});
    map["services"].as_array_mut().context("Services")?.push(service);
    Ok(map)
}

/// The flags of answers.
type Flags = [u8; 2];
const NO_SUCH_NAME: Flags = [0x85, 0x83];
const SERVFAIL: Flags = [0x81, 0x82];

/// The Pod of DNS answers this over UDP.
fn over_udp(node: &Node, says: Flags) -> Result<JoinSet<()>> {
    node.far(async {
        let (socket, mut serving) = (UdpSocket::bind(POD).await?, JoinSet::new());
        serving.spawn(async move {
            let mut bytes = [0; 512];
            // Who asked may have gone.
            while let Ok((length @ 12.., from)) = socket.recv_from(&mut bytes).await {
                bytes[2..4].copy_from_slice(&says);
                socket.send_to(&bytes[..length], from).await.ok();
            }
        });
        Ok(serving)
    })
}

/// And over TCP.
fn over_tcp(node: &Node, says: Flags) -> Result<JoinSet<()>> {
    node.far(async {
        let (listener, mut serving) = (TcpListener::bind(POD).await?, JoinSet::new());
        serving.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let Ok(length @ 12..) = stream.read_u16().await else { continue };
                let mut bytes = length.to_be_bytes().to_vec();
                bytes.resize(2 + usize::from(length), 0);
                if stream.read_exact(&mut bytes[2..]).await.is_ok() {
                    bytes[4..6].copy_from_slice(&says);
                    stream.write_all(&bytes).await.ok();
                }
            }
        });
        Ok(serving)
    })
}

/// That protocol is not answered any more.
fn gone(node: &Node, mut serving: JoinSet<()>) {
    node.far(async move { serving.shutdown().await });
}

/// Waits until these findings are told, root first, and nothing else is seen; the finding of DNS.
fn told_are(node: &Node, wanted: &[&str]) -> Result<Value> {
    within(SOON, || {
        let mut verdict = over_time::told_are(node, wanted, &[])?;
        let dns = verdict["findings"].as_array_mut().and_then(|all| all.iter_mut().find(|it| it["code"] == CODE));
        Ok(dns.map(Value::take).unwrap_or_default())
    })
    .with_context(|| format!("{wanted:?}"))
}

fn says(finding: &Value, what: &str) -> Result<()> {
    ensure!(finding["detail"].as_str().is_some_and(|detail| detail.contains(what)), "{what:?}: {finding:#}");
    Ok(())
}

/// The worker before the fault, which DNS has answered, and the agent that follows it.
fn followed() -> Result<(Node, Api, [JoinSet<()>; 2])> {
    let mut node = Node::empty(NODE)?;
    node.become_(&recorded("before")?)?;
    std::fs::write(node.path("logs/nodevitals.yaml"), CONFIG)?;
    let serving = [over_udp(&node, NO_SUCH_NAME)?, over_tcp(&node, NO_SUCH_NAME)?];
    let api = node.follow(&map(&[POD])?)?;
    within(SOON, || {
        let state = std::fs::read_to_string(node.path("logs/state/state.json"))?;
        let state: Value = serde_json::from_str(&state)?;
        let ways = &state["past"]["learned"]["dns"];
        ensure!(*ways == json!(["TCP 10.96.0.10", "UDP 10.96.0.10"]), "{ways}");
        Ok(())
    })
    .context("it answers")?;
    told_are(&node, &[])?;
    Ok((node, api, serving))
}

#[test]
fn a_dns_that_is_gone_is_told_with_what_still_answers_and_cleared() -> Result<()> {
    let (node, api, [udp, tcp]) = followed()?;
    gone(&node, tcp);
    let finding = told_are(&node, &[CODE])?;
    says(&finding, "does not answer this node over TCP, though it does over UDP: over TCP it is refused")?;
    ensure!(finding["severity"] == "warning" && finding["subject"] == "10.96.0.10:53", "{finding:#}");
    let tcp = over_tcp(&node, NO_SUCH_NAME)?;
    told_are(&node, &[])?;
    gone(&node, udp);
    gone(&node, tcp);
    let said = "The cluster's DNS, Service kube-system/kube-dns (10.96.0.10:53), does not answer this node over UDP";
    says(&told_are(&node, &[CODE])?, said)?;
    // What the cluster knows itself is no matter of this node's.
    api.set_map(&map(&[])?);
    told_are(&node, &[])?;
    Ok(())
}

#[test]
fn a_dns_that_answers_only_that_it_has_failed_is_told_and_cleared() -> Result<()> {
    let (node, _api, serving) = followed()?;
    for serving in serving {
        gone(&node, serving);
    }
    let failing = [over_udp(&node, SERVFAIL)?, over_tcp(&node, SERVFAIL)?];
    let finding = told_are(&node, &[CODE])?;
    says(&finding, "answers this node over UDP and TCP, but with SERVFAIL")?;
    for serving in failing {
        gone(&node, serving);
    }
    let _serving = [over_udp(&node, NO_SUCH_NAME)?, over_tcp(&node, NO_SUCH_NAME)?];
    told_are(&node, &[])?;
    Ok(())
}

#[test]
fn a_dns_that_rules_do_not_lead_to_is_a_consequence() -> Result<()> {
    const ROOT: &str = "KubeProxyChainsUnhooked";
    let (mut node, _api, _serving) = followed()?;
    node.become_(&recorded("during-b-jumps-gone")?)?;
    let finding = within(SOON, || {
        let verdict = node.verdict()?;
        // That kube-proxy is dead is told, too, when it has not come back.
        let mut findings = verdict["findings"].as_array().into_iter().flatten();
        findings.find(|it| it["code"] == CODE).cloned().with_context(|| verdict["findings"].to_string())
    })?;
    ensure!(finding["causedBy"]["code"] == ROOT, "{finding:#}");
    says(&finding, "does not answer this node over UDP and TCP")?;
    node.become_(&recorded("before")?)?;
    told_are(&node, &[])?;
    Ok(())
}
