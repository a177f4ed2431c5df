//! The ways from this node to its control plane, step by step.

use std::net::IpAddr;

use serde::Serialize;

use super::Seen;

/// The path from this node to its control plane: three ways, walked apart (catalogue R046).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlPlanePath {
    /// The URL in the kubelet's kubeconfig.
    pub server: String,
    /// The way to that address.
    pub kubelet: PathLeg,
    /// The ways to the endpoints of the Service `default/kubernetes`; empty while nobody has told them.
    pub endpoints: Vec<PathLeg>,
    /// The way to that Service's own address, which kube-proxy or somebody in its place leads to an endpoint.
    pub service: Option<PathLeg>,
    /// The ways to servers that kubeconfigs of the CNI name and that are none of the others, to the TCP connection.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cni: Vec<PathLeg>,
    /// Where the kubelet's way ends without an answer to TCP: whether the same host answers at a port where nobody listens.
    pub host_answers: Option<bool>,
    /// Other nodes that were asked: some that are ready when the kubelet's way is broken, else those that are not ready and
    /// that fall to this node. Empty while there is no reason to ask.
    pub peers: Vec<PeerAnswer>,
    /// What the kernel says of this node's clock; absent while no answer tells another time, because it is not asked then.
    pub kernel_clock: Seen<KernelClock>,
}

/// What the kernel says of its clock (adjtimex(2)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelClock {
    /// Whether somebody has told it so, and not long ago (`STA_UNSYNC` is not set). A hypervisor that keeps the clock may
    /// never tell it.
    pub synchronised: bool,
    /// The largest error that it reckons with (`maxerror`), in milliseconds. It grows by 1.8 s an hour while nobody corrects
    /// the clock; beyond 16 s the kernel calls it not synchronised (`NTP_PHASE_LIMIT`).
    pub largest_error_millis: u64,
}

/// Another node that was asked over TCP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerAnswer {
    /// Its name.
    pub node: String,
    /// Its address.
    pub address: IpAddr,
    /// Whether the cluster calls it ready.
    pub ready: bool,
    /// Whether anything came back, be it that nobody listens.
    pub answers: bool,
}

/// One way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PathLeg {
    /// Where it leads: host and port.
    pub to: String,
    /// The address that was tried last; none while the name has no address.
    pub address: Option<IpAddr>,
    /// Port.
    pub port: u16,
    /// The address of this node that the kernel chose for it; the same as [`PathLeg::address`] where the other end is on
    /// this node.
    pub source: Option<IpAddr>,
    /// How far it goes.
    pub end: PathEnd,
    /// By how many seconds this node's clock is ahead of the other end's, behind if negative; 0 where the difference is
    /// within what the answer can tell (its `Date` has whole seconds, and travels). None without such an answer.
    pub clock_ahead: Option<i64>,
}

/// How far a way goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PathEnd {
    /// An HTTP status: 401 and 403 are answers too.
    Answered(u16),
    /// The other end did its part of the TLS handshake. It was not asked any further.
    Connected,
    /// It ends before.
    Fault(PathFault),
}

/// Where and how a way ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PathFault {
    /// The step that failed.
    pub step: PathStep,
    /// How.
    pub kind: FaultKind,
    /// In the words of the kernel or the library, for kinds that do not say it all.
    pub detail: String,
    /// By how many seconds of this node's clock a certificate's time is over; negative as long as it has not come. 0 for all
    /// else.
    pub late: i64,
}

/// The steps of a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PathStep {
    /// The name's addresses.
    Name,
    /// The kernel's decision where to send packets.
    Route,
    /// TCP connection.
    Connect,
    /// TLS handshake.
    Tls,
    /// HTTP answer.
    Http,
    /// Answer of DNS.
    Dns,
}

/// How a step fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum FaultKind {
    /// Nothing came back before the deadline.
    TimedOut,
    /// `ECONNREFUSED`.
    Refused,
    /// `EHOSTUNREACH`, `ENETUNREACH`, or a route that says so.
    Unreachable,
    /// `EPERM`, `EACCES`: this node's own kernel forbids it.
    Denied,
    /// Broken off: `ECONNRESET`, or closed in the middle.
    Reset,
    /// The certificate's time is over.
    Expired,
    /// The certificate's time has not come.
    NotYetValid,
    /// The certificate is of another authority.
    ForeignAuthority,
    /// The certificate is for another name.
    WrongName,
    /// Anything else: the detail says what.
    Failed,
}

impl PathFault {
    /// A fault.
    pub fn new(step: PathStep, kind: FaultKind, detail: impl Into<String>) -> Self {
        PathFault { step, kind, detail: detail.into(), late: 0 }
    }

    /// Whether it is about the certificate and not about the way.
    pub fn is_certificate(&self) -> bool {
        use FaultKind::{Expired, ForeignAuthority, NotYetValid, WrongName};
        matches!(self.kind, Expired | NotYetValid | ForeignAuthority | WrongName)
    }
}

impl ControlPlanePath {
    /// The way to this host and port.
    pub fn leg(&self, to: &str) -> Option<&PathLeg> {
        let others = self.service.iter().chain(&self.endpoints).chain(&self.cni);
        std::iter::once(&self.kubelet).chain(others).find(|leg| leg.to == to)
    }
}

impl PathLeg {
    /// Why it does not lead to an API server, if so. 502, 503 and 504 are answers of something in between that has no API
    /// server behind it; every other status proves the path.
    pub fn broken(&self) -> bool {
        match &self.end {
            PathEnd::Answered(status) => (502..=504).contains(status),
            PathEnd::Connected => false,
            PathEnd::Fault(_) => true,
        }
    }

    /// Whether the certificate there would be valid if this node's clock agreed with the other end's.
    pub fn spoiled_by_clock(&self) -> bool {
        // The difference is known to two seconds: `Date` has whole ones.
        let spoils = |late: i64, ahead: i64| {
            late != 0
                && late.signum() == ahead.signum()
                && late.unsigned_abs() <= ahead.unsigned_abs().saturating_add(2)
        };
        self.fault().zip(self.clock_ahead).is_some_and(|(fault, ahead)| spoils(fault.late, ahead))
    }

    /// The fault, if it has one.
    pub fn fault(&self) -> Option<&PathFault> {
        match &self.end {
            PathEnd::Fault(fault) => Some(fault),
            PathEnd::Answered(_) | PathEnd::Connected => None,
        }
    }

    /// Whether the other end is on this node: a proxy, or an API server of its own.
    pub fn is_local(&self) -> bool {
        self.address.is_some_and(|address| address.is_loopback() || Some(address) == self.source)
    }
}
