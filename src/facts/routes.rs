//! Routes that are kept, policy rules and IPsec policies: what decides where a packet for a pod goes.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::{BlockSums, Family, RouteKind, Routing};

/// The tables `main` and `local`, and `default`, which is empty (`linux/rtnetlink.h`).
const MAIN: u32 = 254;
const STANDARD: [u32; 3] = [MAIN, 255, 253];

/// Devices of Calico and flannel that carry packets to other nodes (facts.md B.3).
pub(crate) const TUNNELS: [&str; 7] =
    ["tunl0", "vxlan.calico", "vxlan-v6.calico", "wireguard.cali", "wg-v6.cali", "flannel.1", "flannel-v6.1"];

/// A report lists so many of the routes that are kept.
const REPORTED: usize = 64;

/// One route of the table `main`, or of a table that a policy rule names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TableRoute {
    /// `RTA_TABLE`; 254 is `main`.
    pub table: u32,
    /// Destination.
    pub to: IpNet,
    /// `RTA_PRIORITY`; the lowest wins.
    pub metric: u32,
    /// `rtm_protocol`.
    pub protocol: u8,
    /// `rtm_type`.
    pub kind: RouteKind,
    /// `RTA_OIF`, of the first next hop; 0 for none.
    pub link: u32,
    /// `RTA_GATEWAY`, of the first next hop.
    pub gateway: Option<IpAddr>,
    /// Whether there are more next hops.
    pub several: bool,
}

/// Routes, ordered by table, destination and metric.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteList {
    #[serde(serialize_with = "first_ones")]
    list: Arc<Vec<TableRoute>>,
    #[serde(skip)]
    few: Arc<Few>,
    /// How many more there were than are kept.
    pub beyond: u32,
    /// Sums over Calico's blocks among these, by family.
    #[serde(skip)]
    sums: Arc<[BlockSums; 2]>,
}

/// What is looked for at each verdict and is hardly ever many: found once, where a list may have tens of thousands of routes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Few {
    /// Blocks of this node.
    blackholes: Vec<IpNet>,
    /// The positions of routes of the table `main` that neither BIRD nor Felix wrote, without defaults.
    others: Vec<u32>,
}

fn first_ones<S: Serializer>(list: &[TableRoute], to: S) -> Result<S::Ok, S::Error> {
    list[..list.len().min(REPORTED)].serialize(to)
}

/// What a policy rule does with a packet that it selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RuleAction {
    /// `FR_ACT_TO_TBL`: looks it up in [`Rule::table`].
    Lookup,
    /// `FR_ACT_GOTO`: goes on with the rule of this priority.
    Goto(u32),
    /// `FR_ACT_BLACKHOLE`, `FR_ACT_UNREACHABLE`, `FR_ACT_PROHIBIT`.
    Drop,
    /// `FR_ACT_NOP`, and lookups in the table of a VRF.
    Nothing,
}

/// A policy rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Family.
    pub family: Family,
    /// `FRA_PRIORITY`.
    pub priority: u32,
    /// `FRA_TABLE`; 255 local, 254 main, 253 default.
    pub table: u32,
    /// What it does.
    pub action: RuleAction,
    /// `FRA_SRC`.
    pub from: Option<IpNet>,
    /// `FRA_DST`.
    pub to: Option<IpNet>,
    /// `FRA_FWMARK` and `FRA_FWMASK`.
    pub mark: Option<(u32, u32)>,
    /// `FRA_IIFNAME`.
    pub iif: Option<String>,
    /// Whether it selects by something else too: `FRA_OIFNAME`, ports, users, the type of service, ...
    pub narrow: bool,
    /// `FIB_RULE_INVERT`: it selects what does not fit.
    pub invert: bool,
    /// `FRA_SUPPRESS_PREFIXLEN`: routes with this prefix length or a shorter one do not count.
    pub suppress: Option<u8>,
}

/// A policy of IPsec for packets that leave (`XFRM_POLICY_OUT`), which transforms or drops them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IpsecPolicy {
    /// Sources.
    pub from: IpNet,
    /// Destinations.
    pub to: IpNet,
    /// Whether it drops (`XFRM_POLICY_BLOCK`) and does not transform.
    pub block: bool,
}

/// A packet that could be, for [`Routing::decide`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow<'a> {
    pub(crate) from: Option<IpAddr>,
    pub(crate) to: IpAddr,
    pub(crate) iif: Option<&'a str>,
}

/// Writes a route as `ip route` does, without its link.
impl std::fmt::Display for TableRoute {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind {
            RouteKind::Blackhole => out.write_str("blackhole ")?,
            RouteKind::Unreachable => out.write_str("unreachable ")?,
            RouteKind::Prohibit => out.write_str("prohibit ")?,
            _ => {}
        }
        if self.to.prefix_len() == 0 {
            out.write_str("default")?;
        } else {
            write!(out, "{}", self.to)?;
        }
        self.gateway.map_or(Ok(()), |gateway| write!(out, " via {gateway}"))
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}: {}from ", self.priority, if self.invert { "not " } else { "" })?;
        match self.from {
            Some(from) => write!(out, "{from}")?,
            None => out.write_str("all")?,
        }
        self.to.map_or(Ok(()), |to| write!(out, " to {to}"))?;
        self.mark.map_or(Ok(()), |(mark, mask)| write!(out, " fwmark {mark:#x}/{mask:#x}"))?;
        self.iif.as_ref().map_or(Ok(()), |iif| write!(out, " iif {iif}"))?;
        match self.action {
            RuleAction::Lookup => write!(out, " lookup {}", self.table),
            RuleAction::Goto(target) => write!(out, " goto {target}"),
            RuleAction::Drop => out.write_str(" drop"),
            RuleAction::Nothing => out.write_str(" nop"),
        }
    }
}

impl TableRoute {
    /// Whether BIRD (12) or Felix (80) wrote it.
    pub(crate) fn is_calicos(&self) -> bool {
        matches!(self.protocol, 12 | 80)
    }
}

impl RouteList {
    /// Puts them in order.
    pub fn new(mut list: Vec<TableRoute>, beyond: u32) -> Self {
        list.sort_unstable();
        list.shrink_to_fit();
        let mut few = Few::default();
        for (at, route) in (0..).zip(&list).filter(|(_, route)| route.table == MAIN) {
            let length = route.to.prefix_len();
            if route.is_calicos() && route.kind == RouteKind::Blackhole && length < longest(route.to) {
                few.blackholes.push(route.to);
            } else if !route.is_calicos() && length > 0 {
                few.others.push(at);
            }
        }
        RouteList { list: Arc::new(list), few: Arc::new(few), beyond, sums: Arc::default() }
    }

    /// The same, with the sums over Calico's blocks that are not kept.
    pub(crate) fn with_sums(self, sums: [BlockSums; 2]) -> Self {
        RouteList { sums: Arc::new(sums), ..self }
    }

    /// The sums over Calico's blocks that are not kept.
    pub(crate) fn sums(&self) -> &[BlockSums; 2] {
        &self.sums
    }

    /// All that are kept.
    pub(crate) fn all(&self) -> &[TableRoute] {
        &self.list
    }

    /// Those of the table `main`, defaults too.
    pub fn main(&self) -> &[TableRoute] {
        let start = self.list.partition_point(|route| route.table < MAIN);
        let end = self.list.partition_point(|route| route.table <= MAIN);
        &self.list[start..end]
    }

    /// Those of the table `main` that neither BIRD nor Felix wrote, without defaults.
    pub(crate) fn others(&self) -> impl Iterator<Item = &TableRoute> {
        self.few.others.iter().filter_map(|at| self.list.get(usize::try_from(*at).ok()?))
    }

    /// The route to exactly this destination that wins in this table.
    pub fn exact(&self, table: u32, to: IpNet) -> Option<&TableRoute> {
        let at = self.list.partition_point(|route| (route.table, route.to) < (table, to));
        self.list.get(at).filter(|route| (route.table, route.to) == (table, to))
    }

    /// The route that wins for all of this destination in this table, defaults included.
    pub fn best(&self, table: u32, to: IpNet) -> Option<&TableRoute> {
        self.covers(table, to).next()
    }

    /// Every route of this table whose destination holds this one, the longest first.
    pub fn covers(&self, table: u32, to: IpNet) -> impl Iterator<Item = &TableRoute> {
        let throw = |route: &&TableRoute| route.kind != RouteKind::Other(9);
        (0..=to.prefix_len())
            .rev()
            .filter_map(move |length| self.exact(table, IpNet::new(to.network(), length).ok()?.trunc()).filter(throw))
    }

    /// The list itself, by which its users know that it is still the same.
    pub(super) fn shared(&self) -> &Arc<Vec<TableRoute>> {
        &self.list
    }

    /// [`RouteList::best`] of the table `main`.
    pub fn best_in_main(&self, to: IpNet) -> Option<&TableRoute> {
        self.best(MAIN, to)
    }
}

impl Rule {
    /// Whether it can send a packet elsewhere than the tables every kernel has.
    pub(crate) fn is_foreign(&self) -> bool {
        match self.action {
            RuleAction::Lookup => !STANDARD.contains(&self.table),
            RuleAction::Drop => true,
            RuleAction::Goto(_) | RuleAction::Nothing => false,
        }
    }

    /// Whether it selects this packet, which has no mark. One that also looks at ports or users is left out.
    pub(crate) fn selects(&self, flow: Flow<'_>) -> bool {
        let inside = |net: Option<IpNet>, address: Option<IpAddr>| match (net, address) {
            (None, _) => true,
            (Some(net), Some(address)) => net.contains(&address),
            (Some(net), None) => net.prefix_len() == 0,
        };
        let fits = inside(self.from, flow.from)
            && inside(self.to, Some(flow.to))
            && self.mark.is_none_or(|(mark, mask)| mark & mask == 0)
            && self.iif.as_deref().is_none_or(|iif| flow.iif == Some(iif));
        self.family == Family::of(flow.to) && !self.narrow && fits != self.invert
    }
}

impl Routing {
    /// Routes to pods of other nodes: written by BIRD or Felix, or into a tunnel, through another node.
    pub fn remote_routes(&self) -> impl Iterator<Item = &TableRoute> {
        let tunnels: Vec<u32> = self.links.iter().filter(|link| link.is_tunnel()).map(|link| link.index).collect();
        self.routes.main().iter().filter(move |route| {
            route.kind == RouteKind::Unicast
                && route.gateway.is_some()
                && route.to.prefix_len() > 0
                && (route.is_calicos() || tunnels.contains(&route.link))
        })
    }

    /// The blocks of this node: Calico routes what is not a pod of it nowhere.
    pub fn blackholes(&self) -> impl Iterator<Item = IpNet> {
        self.routes.few.blackholes.iter().copied()
    }

    /// The rule that decides about this packet, and the route that it finds; none if a standard table decides.
    pub(crate) fn decide(&self, flow: Flow<'_>) -> Option<(&Rule, Option<&TableRoute>)> {
        let mut from = 0;
        for rule in &self.rules {
            if rule.priority < from || !rule.selects(flow) {
                continue;
            }
            match rule.action {
                RuleAction::Nothing => {}
                RuleAction::Goto(target) => from = target,
                RuleAction::Drop => return Some((rule, None)),
                RuleAction::Lookup => {
                    let found = self.routes.best(rule.table, IpNet::from(flow.to));
                    let found = found.filter(|route| rule.suppress.is_none_or(|length| route.to.prefix_len() > length));
                    if let Some(route) = found {
                        return rule.is_foreign().then_some((rule, Some(route)));
                    }
                }
            }
        }
        None
    }
}

/// The length of a prefix that is one address.
pub(crate) fn longest(net: IpNet) -> u8 {
    net.max_prefix_len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn route(table: u32, to: &str, metric: u32, link: u32) -> TableRoute {
        let kind = RouteKind::Unicast;
        TableRoute { table, to: net(to), metric, protocol: 12, kind, link, gateway: None, several: false }
    }

    #[test]
    fn the_longest_prefix_wins_and_then_the_lowest_metric() {
        let list = RouteList::new(
            vec![
                route(254, "10.1.0.64/26", 1024, 3),
                route(254, "0.0.0.0/0", 0, 1),
                route(254, "10.0.0.0/8", 0, 2),
                route(254, "10.1.0.64/26", 5, 4),
                route(100, "10.1.0.64/26", 0, 9),
                route(254, "2001:db8::/32", 0, 7),
            ],
            0,
        );
        let link = |to: &str| list.best_in_main(net(to)).map(|route| route.link);
        assert_eq!(link("10.1.0.64/26"), Some(4));
        assert_eq!(link("10.1.0.127/32"), Some(4));
        assert_eq!(link("10.1.0.0/24"), Some(2));
        assert_eq!(link("11.0.0.0/24"), Some(1));
        assert_eq!(link("2001:db8:1::/48"), Some(7));
        assert_eq!(link("2001:dba::/48"), None);
        assert_eq!(list.main().len(), 5);
        assert!(serde_json::to_string(&list).is_ok_and(|json| json.contains("10.1.0.64/26")));
    }
}
