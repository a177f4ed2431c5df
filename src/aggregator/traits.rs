//! What workers may have in common: where they are, and what runs on them. Each value is kept once for all workers, by
//! number, so that those that share it are counted without comparing texts.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::model::{CALICO_ADDRESSES, MACHINE_TYPE, NodeView, POOL_LABELS, SUBNET_LABELS, ZONE_LABELS};

/// Kinds of what is kept of each worker.
pub(crate) const KINDS: [&str; 10] = [
    "pool",
    "zone",
    "subnet",
    "kubelet",
    "kernel",
    "OS",
    "runtime",
    "machine type",
    "architecture",
    "CNI configuration",
];
/// The last of them is said by agents, and by no Node.
const CNI: usize = KINDS.len() - 1;
/// One of which a worker may have several, as its agent says: the Typhas that calico-node is connected to.
pub(crate) const TYPHA: &str = "Typha";
/// calico-node has no more parts that are served.
const MOST_TYPHAS: usize = 4;
/// Of these, software that an update replaces.
const SOFTWARE: std::ops::Range<usize> = 3..7;
/// Values that are kept. There are some dozens; a label with another value on each worker explains nothing anyway.
const MOST_VALUES: usize = 10_000;
// Each worker has a number of two bytes for each.
const _: () = assert!(MOST_VALUES <= u16::MAX as usize);
/// Longest value that is kept.
const LONGEST: usize = 128;

/// Every value that some worker has or had.
#[derive(Debug, Default)]
pub(crate) struct Values {
    numbers: [HashMap<Arc<str>, u16>; KINDS.len() + 1],
    texts: Vec<(u8, Arc<str>)>,
}

/// The values of one worker, by number; 0 where there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traits([u16; KINDS.len()], [u16; MOST_TYPHAS]);

impl Values {
    fn number(&mut self, kind: usize, text: &str) -> u16 {
        if text.is_empty() || text.len() > LONGEST {
            return 0;
        }
        if let Some(number) = self.numbers[kind].get(text) {
            return *number;
        }
        if self.texts.len() >= MOST_VALUES {
            return 0;
        }
        let text: Arc<str> = text.into();
        self.texts.push((u8::try_from(kind).unwrap_or_default(), Arc::clone(&text)));
        let number = u16::try_from(self.texts.len()).unwrap_or_default();
        self.numbers[kind].insert(text, number);
        number
    }

    /// How many there are; their numbers begin with 1.
    pub(crate) fn len(&self) -> usize {
        self.texts.len()
    }

    /// Kind and text of a number.
    pub(crate) fn get(&self, number: usize) -> Option<(&'static str, &str)> {
        let (kind, text) = self.texts.get(number.checked_sub(1)?)?;
        Some((KINDS.get(usize::from(*kind)).copied().unwrap_or(TYPHA), text))
    }

    /// What a worker has of this kind.
    pub(crate) fn of(&self, traits: &Traits, kind: &str) -> Option<&str> {
        traits.numbers().filter_map(|number| self.get(number)).find(|(other, _)| *other == kind).map(|(_, text)| text)
    }
}

impl Traits {
    /// Reads what a Node says of itself.
    pub(super) fn read(node: &NodeView, values: &mut Values) -> Traits {
        let (labels, info) = (&node.metadata.labels, &node.status.node_info);
        let subnet = labels.first_of(&SUBNET_LABELS).map_or_else(|| network(node), |label| Some(label.to_owned()));
        let said = [
            labels.first_of(&POOL_LABELS),
            labels.first_of(&ZONE_LABELS),
            subnet.as_deref(),
            info.get("kubeletVersion"),
            info.get("kernelVersion"),
            info.get("osImage"),
            info.get("containerRuntimeVersion"),
            labels.get(MACHINE_TYPE),
            info.get("architecture"),
        ];
        let mut numbers = [0; KINDS.len()];
        for (kind, text) in said.into_iter().enumerate() {
            numbers[kind] = values.number(kind, text.unwrap_or_default());
        }
        Traits(numbers, [0; MOST_TYPHAS])
    }

    /// Takes in the hash of its CNI configuration, as its agent says it; whether it is another one than before.
    pub(super) fn cni(&mut self, hash: &str, values: &mut Values) -> bool {
        let before = std::mem::replace(&mut self.0[CNI], values.number(CNI, hash));
        before != 0 && before != self.0[CNI]
    }

    /// Takes in which Typhas serve it, as its agent says; those of before no longer do.
    pub(super) fn served_by(&mut self, typhas: impl Iterator<Item = IpAddr>, values: &mut Values) {
        self.1 = [0; MOST_TYPHAS];
        for (place, typha) in self.1.iter_mut().zip(typhas) {
            *place = values.number(KINDS.len(), &typha.to_string());
        }
    }

    /// What its agent said before goes on.
    pub(super) fn goes_on_from(&mut self, before: &Traits) {
        (self.0[CNI], self.1) = (before.0[CNI], before.1);
    }

    /// The numbers of its values.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = usize> {
        self.0.iter().chain(&self.1).filter(|number| **number > 0).map(|number| usize::from(*number))
    }

    /// Whether its software is known: a kubelet that has just registered may not have said yet.
    pub(super) fn is_known(&self) -> bool {
        self.0[SOFTWARE].iter().all(|number| *number > 0)
    }

    /// Whether the software is the same.
    pub(super) fn same_software(&self, other: &Traits) -> bool {
        self.0[SOFTWARE] == other.0[SOFTWARE]
    }
}

/// The network of the address that Calico announces, which has the length of its subnet behind it.
fn network(node: &NodeView) -> Option<String> {
    let announced = |(key, _): &&(String, String)| key.strip_prefix(CALICO_ADDRESSES) == Some("4Address");
    let (_, value) = node.metadata.annotations.0.iter().find(announced)?;
    let net: IpNet = value.parse().ok()?;
    // A provider that gives every node a /32 says nothing.
    (net.prefix_len() < net.max_prefix_len()).then(|| net.trunc().to_string())
}

#[cfg(test)]
impl Traits {
    /// Values as they come, in the order of [`KINDS`].
    pub(crate) fn of(said: [&str; KINDS.len()], values: &mut Values) -> Traits {
        let mut numbers = [0; KINDS.len()];
        said.iter().enumerate().for_each(|(kind, text)| numbers[kind] = values.number(kind, text));
        Traits(numbers, [0; MOST_TYPHAS])
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(node: serde_json::Value, values: &mut Values) -> Vec<String> {
        let node: NodeView = serde_json::from_value(node).expect("a node");
        let traits = Traits::read(&node, values);
        let named = traits.numbers().filter_map(|number| values.get(number));
        named.map(|(kind, text)| format!("{kind} {text}")).collect()
    }

    #[test]
    fn every_provider_says_it_with_other_labels() {
        let mut values = Values::default();
        for pool in POOL_LABELS {
            assert_eq!(read(json!({"metadata": {"labels": {pool: "p"}}}), &mut values), ["pool p"]);
        }
        let node = json!({
            "metadata": {"labels": {"topology.kubernetes.io/zone": "z", "privateVLAN": "17", "node.kubernetes.io/instance-type": "b2"},
                "annotations": {"projectcalico.org/IPv4Address": "10.9.8.7/24"}},
            "status": {"nodeInfo": {"kubeletVersion": "v1.30.1", "kernelVersion": "5.15", "osImage": "Ubuntu 22.04",
                "containerRuntimeVersion": "containerd://1.7", "architecture": "arm64", "bootID": "x"}},
        });
        let all = [
            "zone z",
            "subnet 17",
            "kubelet v1.30.1",
            "kernel 5.15",
            "OS Ubuntu 22.04",
            "runtime containerd://1.7",
            "machine type b2",
            "architecture arm64",
        ];
        assert_eq!(read(node, &mut values), all);
    }

    #[test]
    fn the_subnet_is_that_of_the_announced_address_unless_each_has_its_own() {
        let mut values = Values::default();
        let mut of = |address| {
            read(json!({"metadata": {"annotations": {"projectcalico.org/IPv4Address": address}}}), &mut values)
        };
        assert_eq!(of("10.9.8.7/24"), ["subnet 10.9.8.0/24"]);
        assert!(of("10.9.8.7/32").is_empty() && of("10.9.8.7").is_empty() && of("?/24").is_empty());
    }

    #[test]
    fn values_are_kept_once_and_not_without_end() {
        let mut values = Values::default();
        assert_eq!(
            (values.number(0, "a"), values.number(1, "a"), values.number(0, "a"), values.number(0, "")),
            (1, 2, 1, 0)
        );
        assert_eq!(values.number(0, &"x".repeat(LONGEST + 1)), 0);
        for number in 0..MOST_VALUES {
            values.number(2, &number.to_string());
        }
        assert_eq!(
            (values.len(), values.number(2, "more"), values.get(0), values.get(usize::MAX)),
            (MOST_VALUES, 0, None, None)
        );
        assert_eq!((values.get(1), values.get(2)), (Some(("pool", "a")), Some(("zone", "a"))));
    }
}
