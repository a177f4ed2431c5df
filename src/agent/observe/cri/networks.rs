//! The networks of sandboxes: asked for one by one, and known for as long as the sandbox lives.

use std::net::IpAddr;

use super::connection::Connection;
use super::{CALLS, CriSource, messages};
use crate::facts::Reason;

pub(super) const SANDBOX: &str = "/runtime.v1.RuntimeService/PodSandboxStatus";

#[derive(Debug, Default)]
pub(super) struct Network {
    pub(super) host: Option<bool>,
    pub(super) addresses: Vec<IpAddr>,
    /// How often it was asked for; those asked least are asked first.
    pub(super) asked: u32,
}

impl Network {
    pub(super) fn is_known(&self) -> bool {
        self.host == Some(true) || !self.addresses.is_empty()
    }
}

impl CriSource {
    /// Asks for the networks of the sandboxes that are not known yet, the least asked first.
    pub(super) async fn learn(&mut self, connection: &Connection, items: &[messages::PodSandbox]) {
        let asked = |id: &str| match self.networks.get(id) {
            Some(network) if network.is_known() => None,
            Some(network) => Some(network.asked),
            None => Some(0),
        };
        let mut unknown: Vec<(u32, &str)> =
            items.iter().filter_map(|item| Some((asked(&item.id)?, item.id.as_str()))).collect();
        unknown.sort_unstable();
        for (asked, id) in unknown.into_iter().take(CALLS.saturating_sub(self.meter.count())) {
            self.networks.entry(id.to_owned()).or_default().asked = asked.saturating_add(1);
            let request = messages::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned() };
            match connection.call::<_, messages::PodSandboxStatusResponse>(SANDBOX, request).await {
                Ok(answer) => {
                    let (host, addresses) = answer.status.map(read_network).unwrap_or_default();
                    self.networks.insert(id.to_owned(), Network { host, addresses, asked: asked.saturating_add(1) });
                }
                // A sandbox may end between the list and the question.
                Err(error) if error.reason == Reason::Missing => {}
                Err(error) => {
                    tracing::debug!(%error, sandbox = id, "the network of a sandbox is not told");
                    return;
                }
            }
        }
    }
}

/// Whether the sandbox uses the node's network, and its addresses.
pub(super) fn read_network(status: messages::PodSandboxStatus) -> (Option<bool>, Vec<IpAddr>) {
    let options = status.linux.and_then(|linux| linux.namespaces).and_then(|namespaces| namespaces.options);
    let host = options.map(|options| options.network == messages::NODE);
    let network = status.network.unwrap_or_default();
    let all = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|other| other.ip));
    // CRI-O tells the node's own addresses for a sandbox in the node's network.
    let addresses = if host == Some(true) { Vec::new() } else { all.filter_map(|ip| ip.parse().ok()).collect() };
    (host, addresses)
}
