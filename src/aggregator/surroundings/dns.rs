//! Services of the cluster's DNS behind which nobody is Ready.

use jiff::Timestamp;

use super::{Kept, Surroundings, What};
use crate::facts::ClusterService;

/// DNS.
const PORT: u16 = 53;

impl Surroundings {
    /// Services of the cluster's DNS that nobody answers for, and since when that has been seen.
    pub(crate) fn silent_dns(&self) -> impl Iterator<Item = (&ClusterService, Timestamp)> {
        self.dns().filter_map(|service| Some((service, *self.dns_silent_since.get(service.name.as_str())?)))
    }

    /// One of them, or where one leads, is another one than before.
    pub(super) fn dns_changed(&mut self, now: Timestamp) {
        // Without permission to see where they lead, it would seem that they lead nowhere.
        let seen = self.is_seen(What::DnsServices) && self.is_seen(What::DnsSlices);
        let silent: Vec<Box<str>> =
            self.dns().filter(|service| seen && self.is_silent(service)).map(|it| it.name.as_str().into()).collect();
        self.dns_silent_since.retain(|name, _| silent.contains(name));
        for name in silent {
            self.dns_silent_since.entry(name).or_insert(now);
        }
    }

    /// What else carries the label, such as a Service for metrics, resolves no names.
    fn dns(&self) -> impl Iterator<Item = &ClusterService> {
        let services = self.all(What::DnsServices);
        let services =
            services.filter_map(|kept| if let Kept::Service(service) = kept { Some(&**service) } else { None });
        services.filter(|service| service.ports.iter().any(|port| port.port == PORT))
    }

    /// Kubernetes makes an empty EndpointSlice for a Service without Pods. One without any is led somewhere by hand, by a
    /// slice that need not carry its label.
    fn is_silent(&self, service: &ClusterService) -> bool {
        let slices =
            self.all(What::DnsSlices).filter_map(|kept| if let Kept::Slice(it) = kept { Some(it) } else { None });
        let mut own = slices.filter(|slice| slice.name == service.name).peekable();
        own.peek().is_some() && own.all(|slice| slice.ports.iter().all(|port| port.endpoints.is_empty()))
    }
}
