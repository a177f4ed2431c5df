//! Calico polices this node's own interface, and drops what the node needs to be part of the cluster.
//!
//! *Looks at* the chains of host endpoints on the uplink: the way of a new connection through the failsafe ports, policies
//! and profiles to the rule that drops the rest. *Traps*: a host endpoint without any policy drops everything but the failsafe
//! ports; the kubelet's port is none of them by default, and an API server's other than 6443 neither; a policy that may accept,
//! whatever its conditions, is believed to; an endpoint on another interface; connections that exist go on (catalogue R107).

use std::net::IpAddr;
use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, first_error, seen};
use crate::facts::{Action, CalicoDataplane, Family, FilterRule, Is, Program, Routing, Ruleset, Seen, Table};

pub(super) const CHECK: Check = Check {
    code: "HostPolicyBlocksControlPlane",
    area: Area::PacketFilter,
    severity: Severity::Critical,
    why: "connections that exist go on, but no new one is let through, so the node falls out of the cluster at the next restart or change",
    next_step: "allow the port in a GlobalNetworkPolicy that selects this host endpoint, or put it back into Calico's failsafe ports (FelixConfiguration failsafeInboundHostPorts, failsafeOutboundHostPorts)",
    // Felix programs chains and failsafe ports in one go.
    raise_after: Duration::from_secs(5),
    clear_after: Duration::from_secs(2),
    run,
};

/// The host endpoint that stands for every interface without one of its own (`interfaceName: "*"`).
const ANY: &str = "any-interface-at-all";
/// Policies can be in groups, and no chain is deeper than that.
const DEEPEST: u32 = 4;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A connection that is opened.
#[derive(Clone, Copy)]
struct Flow {
    /// To this node, or from it.
    inbound: bool,
    protocol: u8,
    port: u16,
    /// Where to, if known.
    to: Option<IpAddr>,
}

fn run(look: &Look<'_>) -> Outcome {
    match look.expected.calico {
        None => return Outcome::NotApplicable("no Calico on this node".into()),
        Some(CalicoDataplane::Ebpf) => {
            return Outcome::NotApplicable("Calico does not police this node's interfaces by rules here".into());
        }
        Some(CalicoDataplane::Iptables | CalicoDataplane::Nftables) => {}
    }
    let native = look.expected.calico == Some(CalicoDataplane::Nftables);
    let rulesets = [&look.now.nftables, &look.now.legacy];
    if let Some(error) = first_error(rulesets.map(Seen::error)) {
        return Outcome::unknown(error);
    }
    let routing = seen!(look.now.routing, Outcome::Healthy);
    let mut findings = Vec::new();
    for ruleset in rulesets.into_iter().filter_map(Seen::get) {
        for family in [Family::V4, Family::V6] {
            judge(look, &HostEndpoint { ruleset, family, native, uplinks: uplinks(routing, family) }, &mut findings);
        }
    }
    findings.dedup_by(|a: &mut Finding, b| a.subject == b.subject);
    Outcome::from_findings(findings)
}

fn judge(look: &Look<'_>, endpoint: &HostEndpoint<'_>, findings: &mut Vec<Finding>) {
    let mut tell = |subject: &str, severity, what: &str, (chain, dropped): (String, u64)| {
        let counted = if dropped > 0 { format!(" (at least {dropped} packets so far)") } else { String::new() };
        let detail = format!("{what} ({}): dropped by Calico's chain {chain}{counted}", endpoint.family);
        findings.push(Finding::new(format!("{subject} {}", endpoint.family), detail).severity(severity));
    };
    let flow = |inbound, protocol, port| Flow { inbound, protocol, port, to: None };
    if let Some((host, port)) = server(look) {
        let to = host.parse::<IpAddr>().ok();
        let own = to.is_some_and(|to| to.is_loopback() || is_own(look, to));
        let other_family = to.is_some_and(|to| to.is_ipv4() != (endpoint.family == Family::V4));
        if let Some(drop) = endpoint.drops(Flow { to, ..flow(false, TCP, port) }).filter(|_| !own && !other_family) {
            let what = format!("This node may not open connections to the API server {host} port {port}");
            tell("API server", Severity::Critical, &what, drop);
        }
        if let Some(drop) = endpoint.drops(flow(true, TCP, port)).filter(|_| own) {
            let what = format!("Other nodes may not open connections to the API server on this node, port {port}");
            tell("API server", Severity::Critical, &what, drop);
        }
    }
    if let Some(drop) = endpoint.drops(flow(true, TCP, 10250)) {
        let what = "The API server may not open connections to the kubelet, port 10250, so logs, exec and metrics fail";
        tell("kubelet", Severity::Warning, what, drop);
    }
    let bird = look.now.processes.get().is_some_and(|processes| processes.of(Program::Bird).is_some());
    if bird
        && let Some(drop) = endpoint.drops(flow(true, TCP, 179))
        && endpoint.drops(flow(false, TCP, 179)).is_some()
    {
        tell("BGP", Severity::Critical, "No BGP session can be opened in either direction, port 179", drop);
    }
    if let Some(drop) = endpoint.drops(flow(false, UDP, 53)) {
        tell("DNS", Severity::Warning, "This node may not ask for names, UDP port 53", drop);
    }
}

/// Host and port of the API server that the kubelet uses.
fn server<'a>(look: &'a Look<'_>) -> Option<(&'a str, u16)> {
    let server = look.now.kubelet.get()?.server.as_deref()?;
    let server = server.strip_prefix("https://")?.split('/').next()?;
    let (host, port) = match server.rsplit_once(':').filter(|(_, port)| !port.contains(']')) {
        Some((host, port)) => (host, port.parse().ok()?),
        None => (server, 443),
    };
    Some((host.trim_matches(['[', ']']), port))
}

fn is_own(look: &Look<'_>, address: IpAddr) -> bool {
    look.now.routing.get().is_some_and(|routing| routing.addresses.iter().any(|it| it.address == address))
}

/// Names of the links that default routes of this family use.
fn uplinks(routing: &Routing, family: Family) -> Vec<String> {
    let routes = routing.defaults.iter().filter(|route| route.family == family);
    routes.flat_map(|route| &route.next_hops).filter_map(|(_, link)| Some(routing.link_name(*link.as_ref()?))).collect()
}

/// Calico's rules for this node's own interfaces, in one backend and family.
struct HostEndpoint<'a> {
    ruleset: &'a Ruleset,
    family: Family,
    /// Whether they are in Calico's own table, where the names of chains begin with the table that iptables would have.
    native: bool,
    uplinks: Vec<String>,
}

/// One of iptables' tables, or its part of Calico's own.
#[derive(Clone, Copy)]
struct Layer<'a> {
    table: &'a Table,
    /// What the names of its chains begin with.
    start: &'static str,
}

impl HostEndpoint<'_> {
    /// The chain that certainly drops a new connection on an uplink, and how many packets that rule has dropped.
    fn drops(&self, flow: Flow) -> Option<(String, u64)> {
        let filter = self.layer("filter", "filter-")?;
        let base = if flow.inbound { "INPUT" } else { "OUTPUT" };
        let start = filter.start;
        if !filter.table.jumps(&format!("{start}{base}"), &format!("{start}cali-{base}")) {
            return None;
        }
        // What policies before connection tracking or address translation accept does not come to the others.
        let early = [self.layer("raw", "raw-"), self.layer("mangle", "mangle-")];
        if early.into_iter().flatten().any(|layer| self.may_accept_early(layer, flow)) {
            return None;
        }
        self.chains(filter, flow).into_iter().find_map(|chain| {
            let dropped = end(filter.table, &chain, flow)?;
            Some((chain, dropped))
        })
    }

    fn layer(&self, name: &str, start: &'static str) -> Option<Layer<'_>> {
        let (name, start) = if self.native { ("calico", start) } else { (name, "") };
        Some(Layer { table: self.ruleset.table(self.family, name)?, start })
    }

    fn may_accept_early(&self, layer: Layer<'_>, flow: Flow) -> bool {
        let failsafe =
            |target: &str| target.strip_prefix(layer.start).is_some_and(|target| target.starts_with("cali-failsafe"));
        self.chains(layer, flow).into_iter().any(|chain| {
            let rules = layer.table.chain(&chain).map(crate::facts::Chain::rules).unwrap_or_default();
            let mut policies = rules.iter().filter_map(FilterRule::target).filter(|target| !failsafe(target));
            policies.any(|target| may_accept(layer.table, target, flow, DEEPEST))
        })
    }

    /// The chains of host endpoints that see what passes the uplinks.
    fn chains(&self, Layer { table, start }: Layer<'_>, flow: Flow) -> Vec<String> {
        let prefix = if flow.inbound { "cali-fh-" } else { "cali-th-" };
        let own = |link: &str| Some(format!("{start}{prefix}{link}")).filter(|name| table.chain(name).is_some());
        self.uplinks.iter().filter_map(|link| own(link).or_else(|| own(ANY))).collect()
    }
}

/// Whether and how a flow matches a rule; marks are not looked at: they say what earlier rules decided.
#[derive(PartialEq, Eq)]
enum Match {
    No,
    Perhaps,
    Yes,
}

fn matches(rule: &FilterRule, flow: Flow) -> Match {
    let is_protocol = |it: &Is<u8>| (it.value == flow.protocol) != it.not;
    let port = rule.ports.is_empty() || rule.ports.iter().any(|(low, high)| (*low..=*high).contains(&flow.port));
    let address = rule.allows(None, flow.to);
    if !rule.may_open() || !rule.protocol.as_ref().is_none_or(is_protocol) || !port || !address {
        return Match::No;
    }
    let narrow = |net: &Is<ipnet::IpNet>| net.not || net.value.prefix_len() > 0;
    let destination = flow.to.is_none() && rule.destination.as_ref().is_some_and(narrow);
    let links = rule.input.is_some() || rule.output.is_some();
    let source = rule.source.as_ref().is_some_and(narrow);
    if rule.other_matches || destination || links || source { Match::Perhaps } else { Match::Yes }
}

/// How many packets the rule has dropped that ends the way of this flow through a host endpoint's chain; none when it may get
/// through.
fn end(table: &Table, chain: &str, flow: Flow) -> Option<u64> {
    let chain = table.chain(chain).filter(|chain| !chain.cut)?;
    for rule in chain.rules.as_deref()? {
        let how = matches(rule, flow);
        match &rule.action {
            _ if how == Match::No => {}
            Action::Drop | Action::Reject if how == Match::Yes => return Some(rule.packets.unwrap_or(0)),
            Action::Jump(target) | Action::Goto(target) if !may_accept(table, target, flow, DEEPEST) => {}
            // Only what was accepted returns, by its mark, and who could accept was asked before.
            Action::Return if rule.mark.is_some() => {}
            Action::Continue | Action::Drop | Action::Reject => {}
            _ => return None,
        }
    }
    None
}

/// Whether any rule of a chain might accept the flow. What is not known might.
fn may_accept(table: &Table, chain: &str, flow: Flow, depth: u32) -> bool {
    let Some(rules) = table.chain(chain).filter(|chain| !chain.cut).and_then(|chain| chain.rules.as_deref()) else {
        return true;
    };
    rules.iter().filter(|rule| matches(rule, flow) != Match::No).any(|rule| match &rule.action {
        Action::Continue => rule.marks,
        Action::Drop | Action::Reject | Action::Return => false,
        Action::Jump(target) | Action::Goto(target) => depth == 0 || may_accept(table, target, flow, depth - 1),
        _ => true,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{Backend, Chain};

    fn rule(action: Action) -> FilterRule {
        FilterRule { action, ..FilterRule::new(0) }
    }

    fn port(protocol: u8, port: u16, action: Action) -> FilterRule {
        FilterRule { protocol: Some(Is::new(protocol, false)), ports: vec![(port, port)], ..rule(action) }
    }

    fn chain(name: &str, rules: Vec<FilterRule>) -> Chain {
        Chain { rules: Some(rules), ..Chain::new(name, None) }
    }

    fn jump(target: &str) -> FilterRule {
        rule(Action::Jump(target.into()))
    }

    /// The chain of a host endpoint as Felix writes it, with these policies.
    fn endpoint(name: &str, failsafe: &str, policies: &[&str]) -> Chain {
        let mut rules = vec![
            FilterRule { states: Some(6), ..rule(Action::Accept) },
            FilterRule { states: Some(1), ..rule(Action::Drop) },
            jump(failsafe),
            FilterRule { marks: true, ..rule(Action::Continue) },
        ];
        for policy in policies {
            rules.push(FilterRule { mark: Some(Is::new((0, 0x20000), false)), ..jump(policy) });
            rules.push(FilterRule { mark: Some(Is::new((0x10000, 0x10000), false)), ..rule(Action::Return) });
        }
        rules.push(FilterRule { packets: Some(1000), ..rule(Action::Drop) });
        chain(name, rules)
    }

    /// A node with BIRD whose host endpoint has these failsafe ports and the policy chains given.
    fn node(inbound: &[u16], outbound: &[(u8, u16)], more: Vec<Chain>) -> Node {
        let policies: Vec<String> = more.iter().map(|chain| chain.name.clone()).collect();
        let of = |prefix: &str| -> Vec<&str> {
            policies.iter().map(String::as_str).filter(|name| name.starts_with(prefix)).collect()
        };
        let accept = |(protocol, number): (u8, u16)| port(protocol, number, Action::Accept);
        let chains = vec![
            endpoint("cali-fh-eth0", "cali-failsafe-in", &of("cali-pi-")),
            endpoint("cali-th-eth0", "cali-failsafe-out", &of("cali-po-")),
            chain("cali-failsafe-in", inbound.iter().map(|port| accept((TCP, *port))).collect()),
            chain("cali-failsafe-out", outbound.iter().copied().map(accept).collect()),
        ];
        Node::worker().calico(Backend::Nftables).edit_chains(Backend::Nftables, "filter", |all| {
            all.extend(chains);
            all.extend(more);
        })
    }

    const IN: [u16; 4] = [22, 179, 6443, 10250];
    const OUT: [(u8, u16); 3] = [(UDP, 53), (TCP, 179), (TCP, 6443)];

    #[test]
    fn a_failsafe_port_that_is_gone_is_told_with_what_was_dropped() {
        let outcome = run(&node(&IN, &OUT[..2], vec![]).look());
        assert_eq!(testing::subjects(&outcome), ["API server IPv4"]);
        let details = testing::details(&outcome);
        let expected = "This node may not open connections to the API server 10.0.0.9 port 6443 (IPv4): dropped by Calico's \
                        chain cali-th-eth0 (at least 1000 packets so far)";
        assert_eq!(details, [expected]);
        assert_eq!(testing::subjects(&run(&node(&IN, &OUT[1..], vec![]).look())), ["DNS IPv4"]);
    }

    #[test]
    fn trap_a_host_endpoint_without_policies_and_the_kubelets_port() {
        let Outcome::Findings(findings) = run(&node(&IN[..3], &OUT, vec![]).look()) else { panic!("a finding") };
        assert_eq!((findings[0].subject.as_str(), findings[0].severity), ("kubelet IPv4", Some(Severity::Warning)));
        let all = run(&node(&[], &[], vec![]).look());
        assert_eq!(testing::subjects(&all), ["API server IPv4", "DNS IPv4", "kubelet IPv4"]);
    }

    #[test]
    fn trap_bgp_needs_one_direction() {
        let bird = |node: Node| {
            node.edit(|now| {
                let Seen::Yes(processes) = &mut now.processes else { panic!("seen") };
                let mut process = processes.found[0].clone();
                process.program = Program::Bird;
                processes.found.push(process);
            })
        };
        let out = [OUT[0], OUT[2]];
        assert_eq!(run(&bird(node(&IN, &out, vec![])).look()), Outcome::Healthy);
        let none = bird(node(&[6443, 10250], &out, vec![]));
        assert_eq!(testing::subjects(&run(&none.look())), ["BGP IPv4"]);
    }

    #[test]
    fn trap_a_policy_that_may_accept_is_believed_to() {
        let accepts = FilterRule { marks: true, other_matches: true, ..port(TCP, 6443, Action::Continue) };
        let policy = |rules: Vec<FilterRule>| vec![chain("cali-po-allow", rules)];
        assert_eq!(run(&node(&IN, &OUT[..2], policy(vec![accepts.clone()])).look()), Outcome::Healthy);
        // For another port, and a policy without rules, which is a comment only.
        let other = FilterRule { ports: vec![(443, 443)], ..accepts };
        let outcome = run(&node(&IN, &OUT[..2], policy(vec![other, rule(Action::Continue)])).look());
        assert_eq!(testing::subjects(&outcome), ["API server IPv4"]);
        // One that has not been read, and groups of policies.
        let unread = vec![Chain::new("cali-po-unread", None)];
        assert_eq!(run(&node(&IN, &OUT[..2], unread).look()), Outcome::Healthy);
        let group = vec![chain("cali-po-group", vec![jump("cali-po-unknown")])];
        assert_eq!(run(&node(&IN, &OUT[..2], group).look()), Outcome::Healthy);
    }

    #[test]
    fn trap_another_interface_and_all_interfaces() {
        let rename = |to: &'static str| {
            node(&[], &[], vec![]).edit_chains(Backend::Nftables, "filter", |chains| {
                for chain in chains.iter_mut() {
                    if let Some(prefix) = chain.name.strip_suffix("eth0") {
                        chain.name = format!("{prefix}{to}");
                    }
                }
            })
        };
        assert_eq!(run(&rename("eth7").look()), Outcome::Healthy);
        assert_eq!(testing::subjects(&run(&rename(ANY).look())).len(), 3);
    }

    #[test]
    fn trap_calicos_chains_that_nothing_jumps_to_drop_nothing() {
        let node = node(&[], &[], vec![]).edit_chains(Backend::Nftables, "filter", |chains| {
            chains.iter_mut().filter(|chain| chain.base.is_some()).for_each(|chain| chain.jumps.clear());
        });
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn trap_the_api_server_on_this_node_and_names() {
        let server = |node: Node, server: &str| {
            node.edit(|now| {
                let Seen::Yes(kubelet) = &mut now.kubelet else { panic!("seen") };
                kubelet.server = Some(server.into());
            })
        };
        let closed = || node(&[179, 10250], &OUT[..2], vec![]);
        let details = testing::details(&run(&server(closed(), "https://10.0.0.5:6443").look()));
        assert!(details[0].starts_with("Other nodes may not"), "{details:?}");
        let details = testing::details(&run(&server(closed(), "https://master.example/").look()));
        assert!(details[0].contains("the API server master.example port 443"), "{details:?}");
        assert_eq!(run(&server(closed(), "https://[2001:db8::1]:6443").look()), Outcome::Healthy);
    }

    #[test]
    fn healthy_clears_not_applicable_and_unknown() {
        assert_eq!(run(&node(&IN, &OUT, vec![]).look()), Outcome::Healthy);
        assert_eq!(run(&Node::worker().calico(Backend::Legacy).look()), Outcome::Healthy);
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
        let denied = Node::worker().calico(Backend::Nftables).edit(|now| now.legacy = testing::denied("ip_tables"));
        assert!(matches!(run(&denied.look()), Outcome::Unknown(_)));
    }
}
