//! The way of a packet through the rules of a base chain: who accepts it, who drops it, who may.
//!
//! Shared by the checks of the rules that others have put there. The packets are the first ones of connections from a pod
//! of this node and to it. A rule whose conditions are not all understood may match or not: nothing is concluded from it.

mod packet;
mod words;

use std::net::IpAddr;

use super::Look;
use crate::facts::{
    Action, Backend, Chain, Family, FilterRule, Hook, Policy, RouteAnswer, Routing, Ruleset, Seen, Table, rulesets,
};
pub(super) use words::{counted, describe};

/// How deep chains are followed.
const DEPTH: u32 = 8;

/// Beginnings of the names of chains whose owners enforce policies of pods: what happens in there is what they want
/// (Calico, Cilium, Antrea, Weave, kube-router, the CNI plugins `firewall` and `portmap`, AWS).
const OWNERS: [&str; 10] =
    ["cali-", "CILIUM_", "ANTREA-", "WEAVE-", "KUBE-ROUTER-", "KUBE-NWPLCY-", "KUBE-POD-FW-", "CNI-", "AWS-", "OVN-"];

/// A packet, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packet {
    family: Family,
    from: Option<IpAddr>,
    to: Option<IpAddr>,
    input: Option<String>,
    output: Option<String>,
    /// Protocol, and the port that it goes to where that has ports, if they are known.
    goes_by: Option<(u8, Option<u16>)>,
    /// Whether it belongs to a connection that was opened the other way; else it opens one.
    answer: bool,
}

/// What becomes of a packet in a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// A rule decides: it is accepted or dropped, or left to the owner of the policies of pods.
    Decided,
    /// No rule decides: the policy does.
    Policy,
    /// Some rule may accept it.
    Open,
}

/// A rule that drops or rejects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hit<'a> {
    /// Its chain.
    pub(super) chain: &'a str,
    /// The rule.
    pub(super) rule: &'a FilterRule,
    /// Whether all packets of this kind are its prey, and not only some ports or peers.
    pub(super) all: bool,
    /// Whether what leads to it is understood.
    pub(super) reached: bool,
    /// Whether a rule before it may have accepted them.
    pub(super) spared: bool,
}

/// How well a rule fits a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    Never,
    Maybe,
    Always,
}

/// A walk of one packet through one base chain.
pub(super) struct Walk<'a> {
    table: &'a Table,
    packet: &'a Packet,
    /// Whether Calico's own rule at the end of the chain accepts what its policies let through.
    calico_accepts_later: bool,
    /// Rules that drop it, up to the one that decides.
    pub(super) drops: Vec<Hit<'a>>,
    /// Rules that accept it, up to the one that decides.
    pub(super) accepts: Vec<(&'a str, &'a FilterRule)>,
    may_accept: bool,
}

/// Packets between a pod of this node and the outside, in both directions: one pair for each family in which this node has
/// pods. Empty where it forwards for none.
pub(super) fn packets(look: &Look<'_>) -> Vec<Packet> {
    let routing = look.now.routing.get();
    let mut packets = Vec::new();
    for family in [Family::V4, Family::V6] {
        let pod = pod(look, family);
        if pod.is_none() && !(family == Family::V4 && has_pod_network(look)) {
            continue;
        }
        let (address, link) = pod.map_or((None, None), |(address, link)| (Some(address), link));
        let uplink = routing.and_then(|routing| uplink(routing, family));
        let (from, to) = (address, None);
        packets.push(Packet {
            family,
            from,
            to,
            input: link.clone(),
            output: uplink.clone(),
            goes_by: None,
            answer: false,
        });
        packets.push(Packet { family, from: to, to: from, input: uplink, output: link, goes_by: None, answer: false });
    }
    packets
}

/// Whether pods are to be expected here though there is none.
fn has_pod_network(look: &Look<'_>) -> bool {
    look.expected.calico.is_some() || look.now.cni.config().is_some()
}

/// The address of a pod with a network of its own, and the link that leads to it.
fn pod(look: &Look<'_>, family: Family) -> Option<(IpAddr, Option<String>)> {
    let routing = look.now.routing.get()?;
    let routes = routing.pods.values().flatten().filter(|route| Family::of(route.address) == family);
    let known = routes.map(|route| match &route.answer {
        Seen::Yes(RouteAnswer::Via { link, .. }) => (route.address, Some(routing.link_name(*link))),
        _ => (route.address, None),
    });
    known.max_by_key(|(_, link)| link.is_some())
}

fn uplink(routing: &Routing, family: Family) -> Option<String> {
    let routes = routing.defaults.iter().filter(|route| route.family == family);
    let links: Vec<u32> = routes.flat_map(|route| route.next_hops.iter().filter_map(|hop| hop.1)).collect();
    // With several ways out none of them is the one.
    links
        .split_first()
        .filter(|(first, rest)| rest.iter().all(|it| it == *first))
        .map(|(first, _)| routing.link_name(*first))
}

/// Base chains at this hook that filter, in every backend and table that a packet of this family passes: backend, table, what
/// to call it, chain. kube-proxy's and Calico's own tables are left out.
pub(super) fn base_chains<'a>(
    look: &Look<'a>,
    family: Family,
    hook: Hook,
) -> Vec<(Backend, &'a Table, String, &'a Chain)> {
    let mut all = Vec::new();
    for ruleset in rulesets(look.now) {
        let both = ruleset.inet.iter().map(|table| (format!("inet {}", table.name), table));
        let own = ruleset.tables.iter().filter(|table| table.family == family);
        for (name, table) in own.map(|table| (format!("{family} {}", table.name), table)).chain(both) {
            if matches!(table.name.as_str(), "kube-proxy" | "calico") {
                continue;
            }
            let wanted = |chain: &&Chain| chain.base.is_some_and(|base| base.hook == hook && !base.nat);
            all.extend(table.chains.iter().filter(wanted).map(|chain| (ruleset.backend, table, name.clone(), chain)));
        }
    }
    all
}

/// Whether a rule set is one that a packet of a pod has to pass: it could be read.
pub(super) fn unread<'a>(look: &Look<'a>) -> Option<&'a crate::facts::LookError> {
    let backends: [&Seen<Ruleset>; 2] = [&look.now.nftables, &look.now.legacy];
    backends.into_iter().find_map(Seen::error)
}

impl<'a> Walk<'a> {
    /// Takes a packet through a base chain.
    pub(super) fn through(table: &'a Table, chain: &'a Chain, packet: &'a Packet) -> (Self, Fate) {
        let forward = chain.base.is_some_and(|base| base.hook == Hook::Forward);
        let calico_accepts_later = forward && chain.rules().iter().any(is_calicos_accept);
        let mut walk = Walk {
            table,
            packet,
            calico_accepts_later,
            drops: Vec::new(),
            accepts: Vec::new(),
            may_accept: chain.rules.is_none(),
        };
        let decided = walk.chain(chain, true, DEPTH);
        walk.may_accept |= chain.cut;
        let fate = match decided {
            true => Fate::Decided,
            false if walk.may_accept => Fate::Open,
            false => Fate::Policy,
        };
        (walk, fate)
    }

    /// Whether the packet's way surely ends in this chain.
    fn chain(&mut self, chain: &'a Chain, sure: bool, depth: u32) -> bool {
        self.may_accept |= chain.rules.is_none() || chain.cut || depth == 0;
        if depth == 0 {
            return false;
        }
        for rule in chain.rules() {
            let fit = self.packet.fit(rule);
            if fit == Fit::Never {
                continue;
            }
            let surely = sure && fit == Fit::Always;
            if is_calicos(rule) && matches!(rule.action, Action::Drop | Action::Reject) {
                // With eBPF Calico drops in the base chains what its programs have not marked.
                continue;
            }
            match &rule.action {
                Action::Accept if is_calicos_accept(rule) => return true,
                Action::Accept => {
                    self.accepts.push((&chain.name, rule));
                    if surely {
                        return true;
                    }
                    self.may_accept = true;
                }
                Action::Drop | Action::Reject => {
                    let spared = self.may_accept;
                    self.drops.push(Hit { chain: &chain.name, rule, all: surely, reached: sure, spared });
                    if surely {
                        return true;
                    }
                }
                Action::Queue | Action::Other(_) => self.may_accept = true,
                Action::Return if surely => return false,
                Action::Jump(target) | Action::Goto(target) => {
                    if self.target(target, surely, depth) {
                        return true;
                    }
                    if surely && matches!(rule.action, Action::Goto(_)) {
                        return false;
                    }
                }
                Action::Continue | Action::Return | Action::Dnat(_) => {}
            }
        }
        false
    }

    fn target(&mut self, target: &str, surely: bool, depth: u32) -> bool {
        if OWNERS.iter().any(|owner| target.starts_with(owner)) {
            // Where Calico's acceptance is a rule of its own further on, what stands between is passed too.
            return surely && !(self.calico_accepts_later && target.starts_with("cali-"));
        }
        let table = self.table;
        match table.chain(target) {
            Some(chain) if chain.rules.is_some() => self.chain(chain, surely, depth - 1),
            // kube-proxy's others reject what no Service answers.
            _ if target.starts_with("KUBE-") => false,
            _ => {
                self.may_accept = true;
                false
            }
        }
    }
}

/// The rule with which Calico accepts what its policies let through; it appends it to the base chain.
fn is_calicos_accept(rule: &FilterRule) -> bool {
    rule.action == Action::Accept && is_calicos(rule)
}

/// Whether Calico wrote a rule: it marks its own.
fn is_calicos(rule: &FilterRule) -> bool {
    rule.comment.as_deref().is_some_and(|comment| comment.starts_with("cali:"))
}

/// The rule or policy of this node's own that surely drops or rejects a packet at this hook, described, and what its counter
/// says if it has one.
pub(super) fn dropping(look: &Look<'_>, hook: Hook, packet: &Packet) -> Option<(String, Option<String>)> {
    for (backend, table, name, chain) in base_chains(look, packet.family, hook) {
        let (walk, fate) = Walk::through(table, chain, packet);
        if let Some(hit) = walk.drops.iter().find(|hit| hit.all && hit.reached && !hit.spared) {
            let rule = describe(hit.rule);
            let place = format!("rule `{rule}` in {} of table {name} ({backend})", hit.chain);
            return Some((place, Some(counted(hit.rule))));
        }
        if fate == Fate::Policy && drops_by_policy(chain) {
            return Some((format!("the policy DROP of {} in table {name} ({backend})", chain.name), None));
        }
    }
    None
}

/// Whether a chain drops what no rule decided.
pub(super) fn drops_by_policy(chain: &Chain) -> bool {
    chain.base.is_some_and(|base| base.policy == Policy::Drop)
}
