//! Packets, as far as they are known, and how well a rule fits one.

use std::net::IpAddr;

use super::{Fit, Packet};
use crate::facts::{Family, FilterRule, Is};

/// Links that no pod is behind, unless a route to one says so: those of Docker, libvirt, LXC and Podman.
const NO_PODS: [&str; 6] = ["docker", "br-", "virbr", "lxc", "lxd", "podman"];

/// `IPPROTO_TCP`.
const TCP: u8 = 6;

/// Ports that connections are opened from where nothing else is set (`net.ipv4.ip_local_port_range`).
const EPHEMERAL: (u16, u16) = (32_768, 60_999);

/// Marks of kube-proxy: packets that it translates, of which a connection between pods is none (`masqueradeBit`).
const MASQUERADE: u32 = 0x4000;

impl Packet {
    /// A packet between this node itself and anybody.
    pub(in crate::checks) fn of_host(family: Family) -> Self {
        Packet { family, from: None, to: None, input: None, output: None, goes_by: None, answer: false }
    }

    /// The first packet of a TCP connection that this node opens, by `output` if that is known.
    pub(in crate::checks) fn of_connection(family: Family, to: IpAddr, port: u16, output: Option<String>) -> Self {
        Packet { to: Some(to), output, goes_by: Some((TCP, Some(port))), ..Packet::of_host(family) }
    }

    /// The first packet of a TCP connection that another host opens.
    pub(in crate::checks) fn of_peer(from: IpAddr, port: u16) -> Self {
        Packet { from: Some(from), goes_by: Some((TCP, Some(port))), ..Packet::of_host(Family::of(from)) }
    }

    /// What another host answers to a TCP connection that this node opens.
    pub(in crate::checks) fn of_answer(from: IpAddr) -> Self {
        Packet { answer: true, ..Packet::of_peer(from, EPHEMERAL.0) }
    }

    /// One that this node sends by a protocol, to a port where that has ports; it may belong to a connection that stands.
    pub(in crate::checks) fn sent(
        to: IpAddr,
        goes_by: (u8, Option<u16>),
        output: Option<String>,
        answer: bool,
    ) -> Self {
        Packet { to: Some(to), output, goes_by: Some(goes_by), answer, ..Packet::of_host(Family::of(to)) }
    }

    /// One that another host sends, likewise.
    pub(in crate::checks) fn received(
        from: IpAddr,
        goes_by: (u8, Option<u16>),
        input: Option<String>,
        answer: bool,
    ) -> Self {
        Packet { from: Some(from), input, goes_by: Some(goes_by), answer, ..Packet::of_host(Family::of(from)) }
    }

    /// Its family.
    pub(in crate::checks) fn family(&self) -> Family {
        self.family
    }

    fn has_state_of(&self, rule: &FilterRule) -> bool {
        let state = if self.answer { FilterRule::ESTABLISHED } else { FilterRule::NEW };
        rule.states.is_none_or(|states| states & state != 0)
    }

    pub(super) fn fit(&self, rule: &FilterRule) -> Fit {
        let kube_mark = rule.mark.as_ref().is_some_and(|mark| !mark.not && mark.value == (MASQUERADE, MASQUERADE));
        // A connection is none of ICMP.
        let icmp = rule.protocol.as_ref().is_some_and(|it| !it.not && matches!(it.value, 1 | 58));
        let fits = [
            if kube_mark || icmp || !self.has_state_of(rule) || rule.family.is_some_and(|family| family != self.family)
            {
                Fit::Never
            } else {
                Fit::Always
            },
            prefix_fit(rule.source.as_ref(), self.from),
            prefix_fit(rule.destination.as_ref(), self.to),
            link_fit(rule.input.as_ref(), self.input.as_deref()),
            link_fit(rule.output.as_ref(), self.output.as_deref()),
            self.port_fit(rule),
            if rule.other_matches || rule.mark.is_some() { Fit::Maybe } else { Fit::Always },
        ];
        fits.into_iter().min().unwrap_or(Fit::Never)
    }

    fn port_fit(&self, rule: &FilterRule) -> Fit {
        let Some((protocol, port)) = self.goes_by else {
            return if rule.protocol.is_some() || !rule.ports.is_empty() { Fit::Maybe } else { Fit::Always };
        };
        let same = rule.protocol.as_ref().is_none_or(|it| (it.value == protocol) != it.not);
        if self.answer && protocol == TCP && same && !rule.ports.is_empty() {
            // From which of them this node asked is not known.
            let (first, last) = EPHEMERAL;
            return if rule.ports.iter().any(|(low, high)| *low <= first && last <= *high) {
                Fit::Always
            } else if rule.ports.iter().any(|(low, high)| *low <= last && first <= *high) {
                Fit::Maybe
            } else {
                Fit::Never
            };
        }
        let within = |port: u16| rule.ports.iter().any(|(low, high)| (*low..=*high).contains(&port));
        let port = rule.ports.is_empty() || port.is_some_and(within);
        if same && port { Fit::Always } else { Fit::Never }
    }
}

fn prefix_fit(condition: Option<&Is<ipnet::IpNet>>, address: Option<IpAddr>) -> Fit {
    match (condition, address) {
        (None, _) => Fit::Always,
        (Some(net), Some(address)) if net.value.contains(&address) != net.not => Fit::Always,
        (Some(_), Some(_)) => Fit::Never,
        (Some(net), None) if net.value.prefix_len() == 0 && !net.not => Fit::Always,
        (Some(_), None) => Fit::Maybe,
    }
}

fn link_fit(condition: Option<&Is<String>>, link: Option<&str>) -> Fit {
    let Some(condition) = condition else { return Fit::Always };
    let name = condition.value.as_str();
    let yes = |is: bool| if is == condition.not { Fit::Never } else { Fit::Always };
    match link {
        Some(link) => yes(name.strip_suffix('+').map_or(name == link, |start| link.starts_with(start))),
        None if name == "lo" || NO_PODS.iter().any(|start| name.starts_with(start)) => yes(false),
        None => Fit::Maybe,
    }
}
