//! Routes, gateways, forwarding and the control plane.

use anyhow::Result;

use crate::machine::Machine;

#[test]
fn the_default_route_goes_and_comes_back() -> Result<()> {
    let machine = Machine::worker()?;
    assert!(machine.check()?.finding("DefaultRouteMissing").is_err());
    machine.run(&["ip", "route", "del", "default"])?;
    let checked = machine.check()?;
    assert!(checked.finding("DefaultRouteMissing")?["next"].to_string().contains("ip route add default"));
    machine.run(&["ip", "route", "add", "default", "via", "192.0.2.1"])?;
    assert!(machine.check()?.finding("DefaultRouteMissing").is_err());
    Ok(())
}

#[test]
fn an_ipv6_default_route_is_a_default_route() -> Result<()> {
    let machine = Machine::worker()?;
    machine.run(&["ip", "route", "del", "default"])?;
    machine.run(&["ip", "address", "add", "2001:db8::5/64", "dev", "uplink", "nodad"])?;
    machine.run(&["ip", "-6", "route", "add", "default", "via", "2001:db8::1"])?;
    assert!(machine.check()?.finding("DefaultRouteMissing").is_err());
    Ok(())
}

#[test]
fn a_gateway_that_does_not_answer() -> Result<()> {
    let machine = Machine::worker()?;
    assert!(machine.check()?.finding("GatewayUnreachable").is_err(), "no entry is a quiet node");
    machine.run(&["ip", "neighbour", "add", "192.0.2.1", "dev", "uplink", "nud", "failed"])?;
    // The kernel drops a failed entry that nobody uses: ask for it.
    machine.run(&["sh", "-c", "ping -c 1 -W 4 192.0.2.1 >/dev/null 2>&1 || true"])?;
    let checked = machine.check()?;
    assert_eq!(checked.finding("GatewayUnreachable")?["subject"], "192.0.2.1");
    machine.run(&[
        "ip",
        "neighbour",
        "replace",
        "192.0.2.1",
        "lladdr",
        "02:00:00:00:00:01",
        "dev",
        "uplink",
        "nud",
        "reachable",
    ])?;
    assert!(machine.check()?.finding("GatewayUnreachable").is_err());
    Ok(())
}

#[test]
fn forwarding_is_switched_off_and_on() -> Result<()> {
    let machine = Machine::worker()?;
    machine.write("etc/cni/net.d/10-net.conf", r#"{"cniVersion": "1.0.0", "name": "net", "type": "bridge"}"#)?;
    machine.run(&["sysctl", "-qw", "net.ipv4.ip_forward=0"])?;
    assert_eq!(machine.check()?.finding("IpForwardDisabled")?["subject"], "net.ipv4.ip_forward");
    machine.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
    assert!(machine.check()?.finding("IpForwardDisabled").is_err());
    Ok(())
}

fn kubeconfig(server: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Config, current-context: c, clusters: [{{name: c, cluster: {{server: '{server}', insecure-skip-tls-verify: true}}}}], contexts: [{{name: c, context: {{cluster: c, user: u}}}}], users: [{{name: u, user: {{}}}}]}}"
    )
}

#[test]
fn a_rule_of_this_node_that_drops_its_control_plane_is_named() -> Result<()> {
    let machine = Machine::worker()?;
    machine.write("etc/kubernetes/kubelet.conf", kubeconfig("https://198.51.100.9:6443"))?;
    machine.run(&["iptables-nft", "-A", "OUTPUT", "-d", "198.51.100.9/32", "-p", "tcp", "-j", "DROP"])?;
    let detail = machine.check()?.finding("MasterUnreachable")?["detail"].to_string();
    let named = "it is this node itself that drops it, by rule `-d 198.51.100.9/32 -p tcp -j DROP` in OUTPUT";
    assert!(detail.contains(named), "{detail}");
    machine.run(&["ip", "route", "add", "blackhole", "198.51.100.9/32"])?;
    let detail = machine.check()?.finding("MasterUnreachable")?["detail"].to_string();
    assert!(detail.contains("no route: this node's own routing table has no way to it"), "{detail}");
    Ok(())
}

#[test]
fn the_control_plane_refuses_and_a_kubeconfig_is_damaged() -> Result<()> {
    let machine = Machine::worker()?;
    machine.write("etc/kubernetes/kubelet.conf", kubeconfig("https://127.0.0.1:6443"))?;
    let checked = machine.check()?;
    let finding = checked.finding("MasterUnreachable")?;
    assert_eq!(finding["subject"], "https://127.0.0.1:6443");
    assert!(finding["detail"].to_string().contains("refused"), "{finding}");
    machine.write("etc/kubernetes/kubelet.conf", "clusters: [")?;
    let checked = machine.check()?;
    assert!(checked.finding("MasterUnreachable").is_err(), "{:?}", checked.codes());
    Ok(())
}

#[test]
fn a_plain_machine_is_normal() -> Result<()> {
    let checked = Machine::plain()?.check()?;
    assert_eq!((checked.codes(), checked.unknown()), (vec![], vec![]));
    assert_eq!(checked.status, Some(0));
    for kind in ["RuntimeProblem", "CNIProblem"] {
        assert_eq!(checked.condition(kind), ("False", "NotApplicable"));
    }
    // Its links are looked at all the same.
    assert_eq!(checked.condition("PodRoutingProblem"), ("False", "PodRoutingHealthy"));
    Ok(())
}
