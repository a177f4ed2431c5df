//! A policy rule or an IPsec policy takes packets of pods or to other nodes.
//!
//! *Looks at* the policy rules with the tables that they name, at the kernel's own answer for pods, other nodes and their
//! blocks, and at IPsec policies for packets that leave. Right is that a packet without a mark goes where the table `main`
//! says. *Traps*: the three standard rules; rules for marked packets, for ports or for users; VRF; Calico's and other CNIs'
//! WireGuard tables; kube-router's tables 77 to 79; CNIs that route pods by rules; a table of a VPN that holds a default route
//! only, behind `lookup main suppress_prefixlength 0`; IPsec between node addresses alone (catalogue R084).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::super::routes::{differs, uses_main, written};
use super::super::{Area, Check, Finding, Look, Outcome, Severity, findings_or_unknown, first_error, seen};
use crate::facts::{Flow, PodRoute, RouteAnswer, Routing, Rule, TableRoute};

pub(super) const CHECK: Check = Check {
    code: "PolicyRoutingHijack",
    area: Area::PodRouting,
    severity: Severity::Critical,
    why: "packets to or from pods leave this node by another way and are lost",
    next_step: "find out who added it (`ip rule`, `ip xfrm policy`; a VPN client, a network script) and remove it or except the cluster's prefixes",
    raise_after: Duration::from_millis(500),
    clear_after: Duration::from_secs(2),
    run,
};

/// kube-router's tables (`pkg/controllers/routing`).
const KUBE_ROUTER: std::ops::RangeInclusive<u32> = 77..=79;
/// So many rules, and so many blocks of other nodes, are tried for packets that come from a pod.
const RULES: usize = 32;
const TARGETS: usize = 32;

fn run(look: &Look<'_>) -> Outcome {
    let routing = seen!(look.now.routing, Outcome::NotApplicable("no routes are to be seen here".into()));
    if !uses_main(&look.now.cni) {
        return Outcome::NotApplicable("the CNI here routes pods by rules of its own".into());
    }
    // By what captures: the packets that it takes, the first of each.
    let mut captured: BTreeMap<String, String> = BTreeMap::new();
    let pods: Vec<IpAddr> = routing.pods.values().flatten().map(|pod| pod.address).collect();
    if routing.rules.iter().any(Rule::is_foreign) {
        for answered in routing.pods.values().flatten().chain(&routing.samples) {
            let what =
                if pods.contains(&answered.address) { "the local pod at" } else { "other nodes and their pods:" };
            if let Some(by) = taken(routing, answered) {
                captured.entry(by).or_insert_with(|| format!("packets to {what} {}", answered.address));
            }
        }
        from_pods(routing, &pods, &mut captured);
    }
    let mut findings: Vec<Finding> = captured
        .into_iter()
        .map(|(rule, what)| Finding::new(rule.clone(), format!("The policy rule `{rule}` captures {what}")))
        .collect();
    findings.extend(ipsec(routing, &pods));
    let error = first_error([routing.ipsec.error()]);
    findings_or_unknown(findings, error)
}

/// The rule that takes packets to this address, where the kernel's answer is not what the table `main` says.
fn taken(routing: &Routing, answered: &PodRoute) -> Option<String> {
    let main = routing.routes.best_in_main(answered.address.into());
    let same = match answered.answer.get()? {
        RouteAnswer::Via { link, gateway, .. } => {
            main.is_some_and(|main| main.several || (main.link, main.gateway) == (*link, *gateway))
        }
        RouteAnswer::NoWay(_) => false,
    };
    if same { None } else { decided(routing, Flow { from: None, to: answered.address, iif: None }) }
}

/// Adds the rules that take packets of local pods to other pods: for each rule one pod that it selects is tried.
fn from_pods(routing: &Routing, pods: &[IpAddr], captured: &mut BTreeMap<String, String>) {
    let link = |pod: IpAddr| routing.routes.best_in_main(pod.into()).and_then(|route| routing.link(route.link));
    let sources: Vec<(IpAddr, Option<&str>)> =
        pods.iter().map(|pod| (*pod, link(*pod).map(|link| link.name.as_str()))).collect();
    let mut targets: Vec<IpAddr> = routing.remote_routes().map(|route| route.to.addr()).take(TARGETS).collect();
    targets.extend(pods.iter().take(2));
    for rule in routing.rules.iter().filter(|rule| rule.is_foreign()).take(RULES) {
        for &to in &targets {
            let taken = sources.iter().copied().find(|&(pod, iif)| {
                pod != to && pod.is_ipv4() == to.is_ipv4() && rule.selects(Flow { from: Some(pod), to, iif })
            });
            let Some((pod, iif)) = taken else { continue };
            if let Some(by) = decided(routing, Flow { from: Some(pod), to, iif }) {
                captured.entry(by).or_insert_with(|| format!("packets from the local pod at {pod} to {to}"));
            }
        }
    }
}

/// The rule that sends this packet elsewhere than the table `main` would.
fn decided(routing: &Routing, flow: Flow<'_>) -> Option<String> {
    let (rule, route): (&Rule, Option<&TableRoute>) = routing.decide(flow)?;
    let main = routing.routes.best_in_main(flow.to.into());
    let elsewhere = !KUBE_ROUTER.contains(&rule.table) && differs(routing, route, main);
    elsewhere.then(|| route.map_or_else(|| rule.to_string(), |route| format!("{rule} ({})", written(routing, route))))
}

/// IPsec policies that hold a local pod's address or a block of another node.
fn ipsec(routing: &Routing, pods: &[IpAddr]) -> Vec<Finding> {
    let policies = routing.ipsec.get().map_or(&[][..], Vec::as_slice);
    if policies.is_empty() {
        return Vec::new();
    }
    let blocks = || routing.blackholes().chain(routing.remote_routes().map(|route| route.to));
    let meets = |one: IpNet, other: IpNet| one.contains(&other) || other.contains(&one);
    let to_pods = |net: IpNet| pods.iter().any(|pod| net.contains(pod)) || blocks().any(|block| meets(net, block));
    // Nodes' own addresses are only met by a policy for everything, or for their whole network.
    let from_here = |net: IpNet| to_pods(net) || routing.addresses.iter().any(|own| net.contains(&own.address));
    let caught = policies.iter().filter(|policy| to_pods(policy.to) && from_here(policy.from)).map(|policy| {
        let subject = format!("ipsec {} -> {}", policy.from, policy.to);
        let does = if policy.block { "drops" } else { "captures" };
        let detail = format!("An IPsec policy {does} packets of pods, from {} to {}", policy.from, policy.to);
        Finding::new(subject, detail)
    });
    let mut findings: Vec<Finding> = caught.collect();
    findings.dedup_by(|a, b| a.subject == b.subject);
    findings
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node, table_route};
    use super::*;
    use crate::facts::{Family, IpsecPolicy, RouteKind, RuleAction, Seen};

    fn rule(priority: u32, table: u32) -> Rule {
        Rule {
            family: Family::V4,
            priority,
            table,
            action: RuleAction::Lookup,
            from: None,
            to: None,
            mark: None,
            iif: None,
            narrow: false,
            invert: false,
            suppress: None,
        }
    }

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    /// A node with this rule, whose table 100 sends everything into tun0; the kernel says so for what the rule takes.
    fn with(rule_under_test: Rule) -> Node {
        let tun = |address: &IpAddr| PodRoute {
            address: *address,
            answer: Seen::Yes(RouteAnswer::Via { link: 9, gateway: None, kind: RouteKind::Unicast }),
        };
        Node::calico_worker()
            .routing(move |routing| {
                let address: IpAddr = "10.244.1.0".parse().expect("an address");
                if rule_under_test.to.is_some() {
                    routing.samples = vec![tun(&address)];
                }
                routing.rules = vec![rule(0, 255), rule_under_test, rule(32_766, 254), rule(32_767, 253)];
                routing.rules.sort_by_key(|rule| rule.priority);
            })
            .routes(|list| list.push(TableRoute { table: 100, ..table_route("0.0.0.0/0 - 9 4") }))
    }

    #[test]
    fn rules_that_take_packets_to_and_from_pods() {
        let to = Rule { to: Some(net("10.244.0.0/16")), ..rule(100, 100) };
        let outcome = run(&with(to).look());
        let [subject] = &testing::subjects(&outcome)[..] else { panic!("{outcome:?}") };
        assert_eq!(subject, "100: from all to 10.244.0.0/16 lookup 100 (default dev tun0 proto static)");
        let from = Rule { from: Some(net("10.244.0.0/24")), ..rule(100, 100) };
        let outcome = run(&with(from).look());
        assert!(testing::details(&outcome)[0].contains("packets from the local pod at 10.244.0.7 to 10.244."));
        let by_link = Rule { iif: Some("cali0".into()), ..rule(100, 100) };
        assert_eq!(testing::subjects(&run(&with(by_link).look())).len(), 1);
        let drop = Rule { from: Some(net("10.244.0.0/24")), action: RuleAction::Drop, ..rule(100, 0) };
        assert_eq!(testing::subjects(&run(&with(drop).look())), ["100: from 10.244.0.0/24 drop"]);
    }

    #[test]
    fn trap_rules_that_take_nothing_of_pods() {
        let marked = |invert| Rule { mark: Some((0x10_0000, 0x10_0000)), invert, ..rule(99, 100) };
        let cases = [
            rule(100, 254),
            marked(false),
            Rule { narrow: true, ..rule(100, 100) },
            Rule { action: RuleAction::Nothing, ..rule(1000, 0) },
            Rule { from: Some(net("10.0.0.5/32")), ..rule(100, 100) },
            Rule { from: Some(net("10.244.0.0/24")), ..rule(100, 77) },
            Rule { from: Some(net("10.244.0.0/24")), suppress: Some(0), ..rule(100, 100) },
            Rule { from: Some(net("10.244.0.0/24")), ..rule(100, 101) },
            Rule { from: Some(net("10.244.0.0/24")), ..rule(32_800, 100) },
        ];
        for rule in cases {
            let node = with(rule.clone()).routes(|list| {
                list.push(TableRoute { table: 77, ..table_route("0.0.0.0/0 - 9 4") });
            });
            assert_eq!(run(&node.look()), Outcome::Healthy, "{rule}");
        }
        // Calico's WireGuard: what has not its mark goes into its device.
        let calico = with(marked(true)).routing(|routing| {
            routing.links.iter_mut().find(|link| link.name == "tun0").expect("there").name = "wireguard.cali".into();
        });
        assert_eq!(run(&calico.look()), Outcome::Healthy);
        let cilium = with(Rule { from: Some(net("10.244.0.0/24")), ..rule(100, 100) }).cni_plugin("cilium-cni");
        assert!(matches!(run(&cilium.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn trap_a_vpn_behind_the_specific_routes() {
        let first = Rule { suppress: Some(0), ..rule(32_764, 254) };
        let node = with(Rule { from: Some(net("10.244.0.0/24")), ..rule(32_765, 100) });
        let node = node.routing(|routing| routing.rules.insert(1, first));
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn ipsec_policies() {
        let with = |from: &str, to: &str| {
            let policy = IpsecPolicy { from: net(from), to: net(to), block: false };
            Node::calico_worker().routing(|routing| routing.ipsec = Seen::Yes(vec![policy]))
        };
        assert_eq!(testing::subjects(&run(&with("0.0.0.0/0", "0.0.0.0/0").look())), ["ipsec 0.0.0.0/0 -> 0.0.0.0/0"]);
        assert_eq!(testing::subjects(&run(&with("10.244.0.0/16", "10.244.1.0/26").look())).len(), 1);
        assert_eq!(run(&with("10.0.0.5/32", "10.0.0.6/32").look()), Outcome::Healthy);
        assert_eq!(run(&with("10.244.0.0/16", "172.16.0.0/12").look()), Outcome::Healthy);
    }

    #[test]
    fn healthy_clears_and_unknown() {
        let drop = Rule { from: Some(net("10.244.0.0/24")), action: RuleAction::Drop, ..rule(100, 0) };
        assert_eq!(testing::subjects(&run(&with(drop.clone()).look())).len(), 1);
        let gone = with(drop).routing(|routing| routing.rules.retain(|rule| rule.priority != 100));
        assert_eq!(run(&gone.look()), Outcome::Healthy, "the rule was deleted");
        assert_eq!(run(&Node::calico_worker().look()), Outcome::Healthy);
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
        let blind = Node::worker().routing(|routing| routing.ipsec = testing::denied("IPsec policies"));
        assert!(matches!(run(&blind.look()), Outcome::Unknown(_)));
    }
}
