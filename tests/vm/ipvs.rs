//! The real kube-proxy in IPVS mode: what it writes is known, its first start and its restart raise nothing, and what is taken from it is
//! missed. The kernel of the machine that runs the tests need not have IPVS.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::machine::Machine;
use crate::root::IPTABLES;
use crate::support::parts;
use crate::support::wait::within;

/// The processor is emulated, and kube-proxy starts some forty programs for its first sync; and a table whose reading takes
/// long is read once a minute.
const SLOWLY: Duration = Duration::from_secs(240);

/// The API server that kube-proxy sees: lists are files, and a watch tells of nothing more. A worker with an uplink, whose
/// kubelet's API server does not answer.
const API: &str = r#"
mkdir -p /www/cgi-bin /www/lists
cat > /www/cgi-bin/api <<'END'
#!/bin/sh
list="/www/lists/$(basename "$PATH_INFO")"
case $QUERY_STRING in
*sendInitialEvents=true*) printf 'Status: 400 Bad Request\r\n\r\n'; exit ;;
*watch=true*) printf 'Content-Type: application/json\r\n\r\n'; exec sleep 600 ;;
esac
[ -e "$list" ] || { printf 'Status: 404 Not Found\r\n\r\n'; exit; }
printf 'Content-Type: application/json\r\n\r\n'
cat "$list"
END
chmod 755 /www/cgi-bin/api
httpd -p 127.0.0.1:8001 -h /www
ip link add uplink type dummy
ip address add 192.0.2.5/24 dev uplink
ip link set uplink up
ip route add default via 192.0.2.1
access() { echo '{"apiVersion": "v1", "kind": "Config", "current-context": "x",
  "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}], "clusters": [{"name": "x", "cluster": '"$1"'}],
  "users": [{"name": "x", "user": {"token": "none"}}]}'; }
access '{"server": "https://127.0.0.1:1", "certificate-authority": "/ca.crt"}' > /etc/kubernetes/kubelet.conf
access '{"server": "http://127.0.0.1:8001/cgi-bin/api"}' > /kube-proxy.kubeconfig
"#;
/// The agent, which is told of the API server's Service as a pod is, and which does not wait for rules that last.
const AGENT: &str = r#"
echo '{"settlingSeconds": 0, "holdDownSeconds": {"KubeProxyRulesStale": 0}, "clearSeconds": {"KubeProxyRulesStale": 0}}' > /config
export KUBERNETES_SERVICE_HOST=10.96.0.1 KUBERNETES_SERVICE_PORT=443
NO_COLOR=1 nodevitals standalone --config /config >/dev/null 2>/log &
"#;
/// The limit of connection tracking is left alone; kube-proxy wants the module's settings to be there.
const START: &str = r#"
modprobe nf_conntrack
echo '{"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "ipvs",
  "clusterCIDR": "10.244.0.0/16", "hostnameOverride": "n1", "conntrack": {"maxPerCore": 0},
  "clientConnection": {"kubeconfig": "/kube-proxy.kubeconfig", "contentType": "application/json",
    "acceptContentTypes": "application/json"}}' > /kube-proxy.conf
kube-proxy --config /kube-proxy.conf >>/kube-proxy.log 2>&1 &
echo $! > /kube-proxy.pid
"#;
const KILL: &str = "pid=$(cat /kube-proxy.pid); kill -9 $pid; while [ -e /proc/$pid/stat ]; do usleep 100000; done";
/// What says that Services do not work.
const CODES: [&str; 4] = ["KubeProxyChainsMissing", "KubeProxyChainsUnhooked", "KubeProxyRulesStale", "IpSetMissing"];

/// Services of `default/kubernetes` and of the cluster's DNS, and where they lead.
fn lists() -> [(&'static str, Value); 4] {
    let node = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n1", "uid": "1"},
        "spec": {"podCIDR": "10.244.1.0/24"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.5"}]}});
    let service = |namespace: &str, name: &str, at: &str, port: &Value| {
        json!({"metadata": {"name": name, "namespace": namespace},
            "spec": {"type": "ClusterIP", "clusterIP": at, "clusterIPs": [at], "ipFamilies": ["IPv4"], "ports": [port]}})
    };
    let slice = |namespace: &str, name: &str, at: &str, port: &Value| {
        json!({"metadata": {"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "ports": [port], "endpoints": [{"addresses": [at], "conditions": {"ready": true}}]})
    };
    let list = |kind: &str, version: &str, items: &[Value]| json!({"kind": kind, "apiVersion": version, "metadata": {"resourceVersion": "1"}, "items": items});
    let [https, api] = [443, 6443].map(|port| json!({"name": "https", "protocol": "TCP", "port": port}));
    let dns = json!({"name": "dns", "protocol": "UDP", "port": 53});
    let services =
        [service("default", "kubernetes", "10.96.0.1", &https), service("kube-system", "kube-dns", "10.96.0.10", &dns)];
    let slices =
        [slice("default", "kubernetes", "192.0.2.9", &api), slice("kube-system", "kube-dns", "10.244.1.10", &dns)];
    [
        ("nodes", list("NodeList", "v1", &[node])),
        ("services", list("ServiceList", "v1", &services)),
        ("endpointslices", list("EndpointSliceList", "discovery.k8s.io/v1", &slices)),
        ("servicecidrs", list("ServiceCIDRList", "networking.k8s.io/v1", &[])),
    ]
}

/// Code and detail of what is told of Services, now or at any time before.
fn told(all: &Value) -> Vec<[String; 2]> {
    let text = |it: &Value| ["code", "detail"].map(|key| it[key].as_str().unwrap_or("").to_owned());
    let all = all.as_array().into_iter().flatten().map(text);
    all.filter(|[code, _]| CODES.contains(&code.as_str())).collect()
}

/// Waits until the agent has looked at the virtual servers and tells this of Services.
fn exactly(machine: &mut Machine, details: &[&str]) -> Result<()> {
    machine.eventually_in(SLOWLY, &format!("{details:?}"), |verdict| {
        let told = told(&verdict["findings"]);
        ensure!(!CODES.iter().any(|code| verdict["unknown"].to_string().contains(code)), "{}", verdict["unknown"]);
        ensure!(told.len() == details.len(), "{told:?}");
        ensure!(details.iter().all(|part| told.iter().any(|[_, detail]| detail.contains(part))), "{told:?}");
        Ok(())
    })
}

/// Waits until kube-proxy is there with all it makes: the kernel's virtual servers, the set and the jumps.
fn synced(machine: &mut Machine) -> Result<()> {
    let seen = within(SLOWLY, || {
        let table =
            machine.run("cat /proc/net/ip_vs; wget -qO- http://127.0.0.1:10256/healthz >/dev/null && echo answers")?;
        for part in
            ["TCP  0A600001:01BB rr", "-> C0000209:192B", "UDP  0A60000A:0035 rr", "-> 0AF4010A:0035", "answers"]
        {
            ensure!(table.contains(part), "{part} is not in {table}");
        }
        let set = machine.run("ipset list KUBE-CLUSTER-IP")?;
        ensure!(set.contains("10.96.0.1,tcp:443") && set.contains("10.96.0.10,udp:53"), "{set}");
        // It does so for each family by itself.
        for command in ["iptables", "ip6tables"] {
            let jumps = machine.run(&format!("{command} -S"))?;
            for chain in ["KUBE-PROXY-FIREWALL", "KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER"] {
                ensure!(jumps.contains(&format!("-j {chain}")), "{command}: {jumps}");
            }
        }
        Ok(())
    });
    seen.with_context(|| format!("kube-proxy: {}", machine.run("tail -n 30 /kube-proxy.log").unwrap_or_default()))
}

/// What the journal holds of Services: faults that were told at any time.
fn journal(machine: &mut Machine) -> Result<Vec<String>> {
    Ok(told(&machine.page()?["episodes"]).into_iter().map(|[code, _]| code).collect())
}

#[test]
fn virtual_servers_that_are_taken_from_kube_proxy_are_missed_and_its_restarts_are_not() -> Result<()> {
    let tools = IPTABLES.iter().chain(&["ipset", "ipvsadm"]).map(|name| format!("/usr/sbin/{name}").into());
    let mut machine = Machine::boot_with(&tools.chain([parts::program("kube-proxy")?]).collect::<Vec<_>>())?;
    machine.run(API)?;
    for (name, list) in lists() {
        machine.run(&format!("cat > /www/lists/{name} <<'END'\n{list}\nEND"))?;
    }
    machine.run(AGENT)?;
    exactly(&mut machine, &[]).context("there is no kube-proxy yet")?;
    machine.run(START)?;
    synced(&mut machine)?;
    exactly(&mut machine, &[]).context("it has started for the first time")?;
    let first = journal(&mut machine)?;
    // A virtual server is made before its endpoint, and here stale rules are told without the hold-down that covers it.
    ensure!(first.iter().all(|code| code == "KubeProxyRulesStale"), "{first:?}");
    let seen = |machine: &mut Machine| -> Result<Value> {
        Ok(serde_json::from_str(&machine.run("nodevitals check -o json; true")?)?)
    };
    let check = seen(&mut machine)?;
    ensure!(check["expected"]["kubeProxy"] == "ipvs", "{}", check["expected"]);
    let mut servers = check["snapshot"]["ipvs"]["yes"].as_array().cloned().context("virtual servers")?;
    servers.sort_by_key(|server| server["udp"].as_bool());
    let expected = json!([
        {"at": "10.96.0.1:443", "udp": false, "endpoints": ["192.0.2.9:6443"]},
        {"at": "10.96.0.10:53", "udp": true, "endpoints": ["10.244.1.10:53"]},
    ]);
    ensure!(Value::Array(servers.clone()) == expected, "{servers:?}");
    machine.run(KILL)?;
    machine.run(START)?;
    synced(&mut machine)?;
    exactly(&mut machine, &[]).context("it was started anew")?;
    let before = journal(&mut machine)?;
    ensure!(before == first, "{before:?}");

    // Nobody puts back what is gone.
    machine.run(KILL)?;
    machine.run("ipvsadm -D -t 10.96.0.1:443")?;
    let missing = "default/kubernetes:https (IPVS) are missing: there is no virtual server 10.96.0.1:443";
    exactly(&mut machine, &[missing])?;
    machine.run("ipvsadm -A -t 10.96.0.1:443 -s rr; ipvsadm -a -t 10.96.0.1:443 -r 192.0.2.9:6443 -m")?;
    exactly(&mut machine, &[]).context("it is back")?;
    machine.run("ip address del 10.96.0.1/32 dev kube-ipvs0")?;
    exactly(&mut machine, &["kube-ipvs0, the link of IPVS, lacks addresses of Services: 10.96.0.1"])?;
    machine.run("ip address add 10.96.0.1/32 dev kube-ipvs0; ipvsadm -d -t 10.96.0.1:443 -r 192.0.2.9:6443")?;
    exactly(&mut machine, &["lead nowhere: virtual server 10.96.0.1:443 has no endpoint"])?;
    machine.run("ipvsadm -C")?;
    machine.run(START)?;
    synced(&mut machine)?;
    exactly(&mut machine, &[]).context("kube-proxy has written them again")?;
    let after = journal(&mut machine)?;
    ensure!(after.iter().all(|code| code == "KubeProxyRulesStale"), "{after:?}");
    Ok(())
}
