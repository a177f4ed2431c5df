//! What the ends of ways to a server mean, in words, and which rule of this node's own imitates a firewall.

use std::net::IpAddr;

use super::passage::{self, Packet};
use super::{Look, Outcome, node};
use crate::facts::{Family, FaultKind, Hook, PathEnd, PathFault, PathLeg, PathStep};

/// Where IBM Cloud's workers find their control plane: a proxy on each of them (facts.md K.3).
const IBM_PROXY: ([u8; 4], [u16; 2]) = ([172, 20, 0, 1], [2040, 2041]);

/// What is behind an address of this node's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Local {
    /// IBM Cloud's proxy.
    IbmProxy,
    /// An API server of this node's own: it is an endpoint.
    Server,
    /// Something else that leads to the API servers.
    Proxy,
}

/// The answer where there is no way to look at.
pub(super) fn nowhere() -> Outcome {
    Outcome::NotApplicable("no kubeconfig of a kubelet names a control plane".into())
}

/// What a way of this node ends at, if it does not leave it. `endpoints` are those of the API servers.
pub(super) fn local(leg: &PathLeg, endpoints: &[PathLeg]) -> Option<Local> {
    let ibm = leg.address == Some(IBM_PROXY.0.into()) || (leg.is_local() && IBM_PROXY.1.contains(&leg.port));
    match leg.is_local() || ibm {
        true if ibm => Some(Local::IbmProxy),
        true if endpoints.iter().any(|it| it.to == leg.to) || leg.port == 6443 => Some(Local::Server),
        true => Some(Local::Proxy),
        false => None,
    }
}

/// Why a way does not lead to an API server, as a clause; none when it does.
pub(super) fn why(leg: &PathLeg, local: Option<Local>) -> Option<String> {
    let fault = match &leg.end {
        PathEnd::Fault(fault) => fault,
        PathEnd::Answered(status) if leg.broken() => {
            return Some(format!("it answers {status}: something in between answers, with no API server behind it"));
        }
        PathEnd::Answered(_) | PathEnd::Connected => return None,
    };
    let PathFault { step, kind, detail, .. } = fault;
    let host = leg.to.rsplit_once(':').map_or(leg.to.as_str(), |(host, _)| host);
    Some(match (step, kind) {
        (PathStep::Name, FaultKind::TimedOut) => format!("name resolution: no resolver answers for {host}"),
        (PathStep::Name, _) => format!("name resolution: {host} has no address ({detail})"),
        (PathStep::Route, _) => format!("no route: this node's own routing table has no way to it ({detail})"),
        (_, FaultKind::Denied) => format!("denied by this node: its own packet filter or policy forbids it ({detail})"),
        (PathStep::Connect, FaultKind::Refused) => match local {
            Some(Local::IbmProxy) => "refused: the proxy on this node (ibm-master-proxy-static) does not run".into(),
            Some(Local::Proxy) => "refused: nobody listens there, and it is this node's own proxy to the API servers".into(),
            Some(Local::Server) => "refused: the API server on this node does not run".into(),
            None => "refused: the other end answers that nobody listens, or a firewall rejects in its name".into(),
        },
        (PathStep::Connect, FaultKind::TimedOut) => match local {
            Some(_) => "timed out: nothing on this node answers; what listens there hangs, or a rule here drops it".into(),
            None => "timed out: no answer to TCP, so packets are dropped on the way, as firewalls do, or the other end is off".into(),
        },
        (PathStep::Connect, FaultKind::Unreachable) => format!("unreachable: a router on the way, or the last hop, says so ({detail})"),
        (PathStep::Connect, FaultKind::Reset) => "reset: TCP is broken off at once by the other end or a firewall".into(),
        (PathStep::Connect, _) => format!("failed: no connection ({detail})"),
        (PathStep::Tls, FaultKind::TimedOut) => "timed out: TCP connects, then TLS stalls after the client's first message: large packets are lost (MTU), something in between holds them, or the server hangs".into(),
        (PathStep::Tls, FaultKind::Reset) => match local {
            Some(Local::IbmProxy | Local::Proxy) => "reset: the proxy on this node accepts and closes, so it reaches no API server behind it".into(),
            _ => "reset: TCP connects, then TLS is broken off: a firewall that looks into TLS, or a balancer with no API server behind it".into(),
        },
        (PathStep::Tls, FaultKind::Expired) => format!("certificate: it has expired, or this node's clock is wrong{}", clock(leg)),
        (PathStep::Tls, FaultKind::NotYetValid) => format!("certificate: it is not valid yet, or this node's clock is wrong{}", clock(leg)),
        (PathStep::Tls, FaultKind::ForeignAuthority) => "certificate: it is of another authority than the kubelet trusts, so somebody in between answers, or the cluster's authority was changed".into(),
        (PathStep::Tls, FaultKind::WrongName) => format!("certificate: it is for another name than {host}"),
        (PathStep::Tls, _) => format!("failed: TCP connects, then TLS fails ({detail})"),
        (PathStep::Http, FaultKind::TimedOut) => "timed out: connected, but no answer to a request: the API server hangs or is overloaded".into(),
        (PathStep::Http, FaultKind::Reset) => "reset: connected, but broken off before an answer".into(),
        (PathStep::Http | PathStep::Dns, _) => format!("failed: connected, but {detail}"),
    })
}

/// What the other end's date says of this node's clock.
fn clock(leg: &PathLeg) -> String {
    match leg.clock_ahead {
        Some(0) => ": the clocks agree, so it is the certificate".into(),
        Some(seconds) if leg.spoiled_by_clock() => format!(": this node's is {} the other end's", distance(seconds)),
        Some(seconds) => format!(
            ": it is {} the other end's, which does not explain it, so it is the certificate",
            distance(seconds)
        ),
        None => String::new(),
    }
}

/// `3 min ahead of`, `12 s behind`.
pub(super) fn distance(seconds: i64) -> String {
    let amount = match seconds.unsigned_abs() {
        amount @ ..120 => format!("{amount} s"),
        amount @ ..7200 => format!("{} min", amount / 60),
        amount @ ..172_800 => format!("{} h", amount / 3600),
        amount => format!("{} days", amount / 86_400),
    };
    format!("{amount} {}", if seconds < 0 { "behind" } else { "ahead of" })
}

/// The rule or policy of this node's own that surely keeps it from its control plane there, described; none when there is
/// none, or the rules could not be read.
pub(super) fn own_rule(look: &Look<'_>, leg: &PathLeg) -> Option<String> {
    dropping_rule(look, leg).or_else(|| {
        let subject = format!("API server {}", Family::of(leg.address?));
        let Outcome::Findings(findings) = node::host_policy(look) else { return None };
        findings.iter().any(|it| it.subject == subject).then(|| "Calico's policy for this host".into())
    })
}

/// The same as the end of a sentence; nothing where there is none.
pub(super) fn by_own_rule(look: &Look<'_>, leg: &PathLeg) -> String {
    own_rule(look, leg).map(|rule| format!("; it is this node itself that drops it, by {rule}")).unwrap_or_default()
}

/// The rule of this node's own that surely drops or rejects new connections there, described.
pub(super) fn dropping_rule(look: &Look<'_>, leg: &PathLeg) -> Option<String> {
    let to = leg.address?;
    let family = Family::of(to);
    let out = Packet::of_connection(family, to, leg.port, link(look, leg.source));
    passage::dropping(look, Hook::Output, &out).map(|(rule, _)| rule)
}

/// The link that has this address.
fn link(look: &Look<'_>, source: Option<IpAddr>) -> Option<String> {
    let routing = look.now.routing.get()?;
    let address = routing.addresses.iter().find(|it| Some(it.address) == source)?;
    Some(routing.link_name(address.link))
}

/// The same in a few words, for ways of which there are several.
pub(super) fn short(leg: &PathLeg) -> String {
    let Some(PathFault { step, kind, detail, .. }) = leg.fault() else { return "answers".into() };
    match (step, kind) {
        (PathStep::Name, _) => format!("has no address ({detail})"),
        (PathStep::Route, _) => format!("has no route from here ({detail})"),
        (PathStep::Connect, FaultKind::TimedOut) => "does not answer to TCP".into(),
        (PathStep::Connect, FaultKind::Refused) => "refuses TCP".into(),
        (PathStep::Connect, _) => format!("cannot be connected to ({detail})"),
        (PathStep::Tls, FaultKind::TimedOut) => "connects, and then TLS stalls".into(),
        (PathStep::Tls, _) => format!("connects, and then TLS is broken off ({detail})"),
        (PathStep::Http | PathStep::Dns, _) => "connects, and does not answer".into(),
    }
}
