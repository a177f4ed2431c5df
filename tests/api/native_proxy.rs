//! The real kube-proxy in its native nftables mode: what it writes is known, what is taken from it is missed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::bench::{Bench, Running, condition_of, soon};
use crate::support::parts;
use crate::support::shell;
use crate::support::wait::eventually;

/// Longer than any of the hold-downs, and than the looks that follow.
const HELD: Duration = Duration::from_secs(60);

/// A Service with two endpoints that are ready, and their slice. Nothing answers there.
fn add_service(bench: &Bench, namespace: &str, name: &str, address: &str, ports: &[(&str, &str, u32)]) -> Result<()> {
    let list = |target: &str| {
        let port = |(name, protocol, port): &(&str, &str, u32)| {
            let mut port = json!({"name": name, "protocol": protocol, "port": port});
            if !target.is_empty() {
                port[target] = port["port"].clone();
            }
            port
        };
        ports.iter().map(port).collect::<Vec<Value>>()
    };
    let metadata = json!({"name": name, "namespace": namespace});
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata,
        "spec": {"clusterIP": address, "selector": {"app": name}, "ports": list("targetPort")},
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "ports": list(""),
        "metadata": {"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": name}},
        "endpoints": [
            {"addresses": ["10.244.1.10"], "conditions": {"ready": true}},
            {"addresses": ["10.244.2.10"], "conditions": {"ready": true}},
        ],
    });
    bench.apply(&service.to_string())?;
    bench.apply(&slice.to_string()).map(drop)
}

fn start(bench: &Bench) -> Result<()> {
    let kubeconfig = bench.kubeconfig("system:kube-proxy", &[])?;
    let mut argv = vec![parts::program("kube-proxy")?.into_os_string()];
    argv.push(format!("--kubeconfig={}", kubeconfig.display()).into());
    let rest = ["--proxy-mode=nftables", "--cluster-cidr=10.244.0.0/16", "--hostname-override=n1"];
    // The limit belongs to the machine's own network namespace.
    argv.extend(rest.iter().chain(&["--conntrack-max-per-core=0"]).map(Into::into));
    bench.host().spawn("kube-proxy", &argv)
}

fn nft(bench: &Bench, script: &str) -> Result<()> {
    shell::read_with_input(bench.command_in("nft").args(["-f", "-"]), script).map(drop).context(script.to_owned())
}

/// The condition, and what the agent has found: pairs of code and detail.
fn told(bench: &Bench, agent: &Running<'_>) -> Result<(String, Vec<(String, String)>)> {
    let condition = condition_of(&bench.node("n1")?, "PacketFilterProblem")?["status"].clone();
    let page: Value = serde_json::from_str(&agent.page("/findings")?)?;
    let findings = page["verdict"]["findings"].as_array().context("findings")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = findings.iter().map(|it| (text(&it["code"]), text(&it["detail"]))).collect();
    Ok((text(&condition), all))
}

fn healthy(bench: &Bench, agent: &Running<'_>) -> Result<()> {
    let (status, findings) = told(bench, agent)?;
    ensure!(status == "False", "PacketFilterProblem is {status}: {findings:?}");
    Ok(())
}

/// What is done to kube-proxy's tables, the code that tells it, and words of its detail.
fn faults(api: &str, resolver: &str) -> Vec<(String, &'static str, &'static str)> {
    vec![
        ("delete table ip kube-proxy".to_owned(), "KubeProxyChainsMissing", "kube-proxy services"),
        ("delete chain ip kube-proxy nat-prerouting".into(), "KubeProxyChainsUnhooked", "nat-prerouting -> services"),
        ("flush chain ip kube-proxy nat-output".into(), "KubeProxyChainsUnhooked", "nat-output -> services"),
        (
            "flush chain ip kube-proxy filter-forward".into(),
            "KubeProxyChainsUnhooked",
            "filter-forward -> service-endpoints-check",
        ),
        (
            "delete chain ip6 kube-proxy filter-prerouting-pre-dnat".into(),
            "KubeProxyChainsUnhooked",
            "(IPv6, nf_tables): kube-proxy filter-prerouting-pre-dnat -> firewall-check",
        ),
        (
            "delete chain ip kube-proxy nat-output\nadd chain ip kube-proxy nat-output { type nat hook output priority 50; }\n\
             add rule ip kube-proxy nat-output jump services"
                .into(),
            "KubeProxyChainsUnhooked",
            "nat-output is not at hook Output, priority -100",
        ),
        ("flush map ip kube-proxy service-ips".into(), "KubeProxyRulesStale", "nothing leads to its chain"),
        (
            "delete element ip kube-proxy service-ips { 10.96.0.1 . tcp . 443 }".into(),
            "KubeProxyRulesStale",
            "default/kubernetes:https (IPv4, nf_tables) are out of use",
        ),
        (format!("flush chain ip kube-proxy {api}"), "KubeProxyRulesStale", "lead nowhere"),
        (
            "delete element ip kube-proxy service-ips { 10.96.0.10 . udp . 53 }".into(),
            "KubeProxyRulesStale",
            "kube-system/kube-dns:dns (IPv4, nf_tables) are out of use",
        ),
        (format!("flush chain ip kube-proxy {resolver}"), "KubeProxyRulesStale", "kube-dns:dns"),
        ("flush chain ip kube-proxy services".into(), "KubeProxyChainsUnhooked", "services -> service-ips"),
    ]
}

#[test]
fn what_is_taken_from_the_native_mode_is_missed() -> Result<()> {
    let bench = Bench::take()?;
    bench.add_node("n1", &json!({}))?;
    bench.add_agent_pod("n1")?;
    let dns = [("dns", "UDP", 53), ("dns-tcp", "TCP", 53)];
    add_service(&bench, "kube-system", "kube-dns", "10.96.0.10", &dns)?;
    add_service(&bench, "default", "web", "10.96.0.80", &[("http", "TCP", 80)])?;
    start(&bench)?;
    let list = |family| bench.exec_in_ns(&["nft", "list", "table", family, "kube-proxy"]);
    let whole = soon("kube-proxy has written its table", || {
        let table = list("ip")?;
        for part in ["default/kubernetes/tcp/https__", "kube-dns/udp/dns__10.244.2.10", "default/web/tcp/http__"] {
            ensure!(table.contains(part), "{part} is not in {table}");
        }
        Ok(table)
    });
    let second = soon("kube-proxy has written its table of IPv6", || list("ip6"));
    let chain = |start: &str| {
        let name = whole.lines().filter_map(|line| line.trim().strip_prefix("chain ")?.strip_suffix(" {"));
        name.into_iter().find(|name| name.contains(start)).map(str::to_owned).context(start.to_owned())
    };
    let agent = bench.agent("n1", "agent-n1", &[])?;
    soon("the native mode is healthy", || healthy(&bench, &agent));

    let api = chain("-default/kubernetes/tcp/https")?;
    let resolver = chain("-kube-system/kube-dns/udp/dns")?;
    for (fault, code, words) in faults(&api, &resolver) {
        nft(&bench, &fault)?;
        eventually(&format!("{code} after {fault}"), HELD, || {
            let (status, findings) = told(&bench, &agent)?;
            let found = findings.iter().any(|(it, detail)| it == code && detail.contains(words));
            ensure!(found && status == "True", "{status} {findings:?}");
            Ok(())
        });
        let empty = ["ip", "ip6"].map(|it| format!("add table {it} kube-proxy\ndelete table {it} kube-proxy\n"));
        nft(&bench, &format!("{}{whole}{second}", empty.concat()))?;
        eventually(&format!("clear after {fault}"), HELD, || healthy(&bench, &agent));
    }
    agent.end()?;
    bench.host().kill("kube-proxy")
}
