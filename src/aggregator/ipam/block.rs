//! What is read of an IPAMBlock. There are thousands with some sixty addresses each, all of them are read again and again, and
//! nothing else costs as much while a cluster is quiet: they are read straight into what is kept, without a tree between.

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess};
use serde_json::Value;

use super::leaks;
use crate::aggregator::lenient::{Shape, lenient, object, read_from_an_object};

/// What may be read of a block: the largest that Calico makes has 4096 addresses.
pub(super) const LARGEST: usize = 4096;

/// A block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BlockView {
    pub(super) cidr: IpNet,
    /// Its node.
    pub(super) node: Option<Box<str>>,
    pub(super) used: u32,
    pub(super) free: u32,
    /// Addresses by the node that has them, which need not be the block's; none for those of load balancers and the like.
    pub(super) holders: Vec<(Box<str>, u32)>,
    /// Of each address of a Pod: the place of its node among these, its own in the block, and what is known of the Pod.
    pub(super) pods: Vec<(u16, u16, u64)>,
}

/// An object of the kind: none where it is no block, or is being deleted.
#[derive(Debug)]
pub(super) struct BlockObject(pub(super) Option<BlockView>);

#[derive(Default, Deserialize)]
#[serde(default)]
struct Object {
    #[serde(deserialize_with = "lenient")]
    spec: Spec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(deserialize_with = "lenient")]
    cidr: String,
    #[serde(deserialize_with = "lenient")]
    affinity: String,
    #[serde(deserialize_with = "lenient")]
    deleted: bool,
    #[serde(deserialize_with = "lenient")]
    allocations: Option<Allocations>,
    #[serde(deserialize_with = "lenient")]
    attributes: Attributes,
}

/// By address.
struct Allocations(Vec<Slot>);

enum Slot {
    Free,
    /// With the place of its attributes, if it has any.
    Taken(Option<usize>),
}

/// Whose addresses are, in places that the allocations name.
#[derive(Default)]
struct Attributes(Vec<Owner>);

#[derive(Default, Deserialize)]
#[serde(default)]
struct Attribute {
    #[serde(deserialize_with = "lenient")]
    secondary: Owner,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Owner {
    #[serde(deserialize_with = "lenient")]
    node: String,
    #[serde(deserialize_with = "lenient")]
    namespace: String,
    #[serde(deserialize_with = "lenient")]
    pod: String,
}

read_from_an_object!(Spec, Attribute, Owner);

impl Shape for BlockObject {
    fn of_map<'de, A: MapAccess<'de>>(map: A) -> Result<Option<Self>, A::Error> {
        Ok(object(map)?.map(|object: Object| BlockObject(BlockView::of(&object.spec))))
    }
}

impl Shape for Option<Allocations> {
    fn of_seq<'de, A: SeqAccess<'de>>(mut seq: A) -> Result<Option<Self>, A::Error> {
        let mut all = Vec::new();
        while let Some(at) = seq.next_element::<Value>()? {
            // One too many is enough to see that there are too many.
            if all.len() <= LARGEST {
                all.push(match at {
                    Value::Null => Slot::Free,
                    at => Slot::Taken(at.as_u64().and_then(|at| usize::try_from(at).ok())),
                });
            }
        }
        Ok(Some(Some(Allocations(all))))
    }
}

impl Shape for Attributes {
    fn of_seq<'de, A: SeqAccess<'de>>(mut seq: A) -> Result<Option<Self>, A::Error> {
        let mut all = Vec::new();
        while let Some(AttributeOrNot(attribute)) = seq.next_element()? {
            all.push(attribute.secondary);
        }
        Ok(Some(Attributes(all)))
    }
}

/// One that has the wrong shape keeps its place.
struct AttributeOrNot(Attribute);

impl<'de> Deserialize<'de> for AttributeOrNot {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        lenient(input).map(AttributeOrNot)
    }
}

impl BlockView {
    fn of(spec: &Spec) -> Option<BlockView> {
        let allocations = &spec.allocations.as_ref()?.0;
        if spec.deleted || allocations.len() > LARGEST {
            return None;
        }
        let (mut holders, mut pods): (Vec<(Box<str>, u32)>, _) = (Vec::new(), Vec::new());
        let mut used = 0;
        for (ordinal, slot) in allocations.iter().enumerate() {
            let Slot::Taken(at) = slot else { continue };
            used += 1;
            let Some(owner) = at.and_then(|at| spec.attributes.0.get(at)) else { continue };
            if owner.node.is_empty() {
                continue;
            }
            let known = holders.iter().position(|(known, _)| **known == *owner.node);
            let holder = known.unwrap_or_else(|| {
                holders.push((owner.node.as_str().into(), 0));
                holders.len() - 1
            });
            holders[holder].1 += 1;
            let pod = leaks::pod_of(&owner.namespace, &owner.pod);
            if let (Some(pod), Ok(holder), Ok(ordinal)) = (pod, u16::try_from(holder), u16::try_from(ordinal)) {
                pods.push((holder, ordinal, pod));
            }
        }
        Some(BlockView {
            cidr: spec.cidr.parse().ok()?,
            // Blocks of load balancers are `virtual:`.
            node: spec.affinity.strip_prefix("host:").map(Into::into),
            used,
            free: u32::try_from(allocations.len()).unwrap_or(u32::MAX).saturating_sub(used),
            holders,
            pods,
        })
    }
}

/// Reads one from a `spec`, if it is one.
#[cfg(test)]
pub(super) fn read(spec: &Value) -> Option<BlockView> {
    use crate::aggregator::model::ListPage;
    let page = serde_json::json!({"items": [{"metadata": {"name": "b"}, "spec": spec}]}).to_string();
    let page: ListPage<BlockObject> = serde_json::from_str(&page).expect("a list");
    let [object] = <[BlockObject; 1]>::try_from(page.items).expect("one block");
    object.0
}
