//! Which blocks of pod addresses a node routes, as a few numbers that others can compare: nodes of one mesh route the same
//! ones, each over its own next hops.

use std::fmt;

use ipnet::IpNet;

use super::{Family, Link, RouteKind, Snapshot};

/// Parts that blocks are spread over. A block that comes or goes moves the sum of one part, so that the others can still be
/// compared while nodes join and leave.
pub(crate) const PARTS: usize = 16;

/// Lengths of Calico's blocks (`IPPool.spec.blockSize`, 20 to 32 and 116 to 128), single addresses left out: those are
/// borrowed ones and ends of tunnels.
const BLOCKS: [(u8, u8); 2] = [(20, 31), (116, 127)];

/// Sums over a set of blocks of one family, one for each part. Whoever has the same set has the same sums.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct BlockSums([u32; PARTS]);

impl BlockSums {
    /// The sums over these blocks, each of which is there once.
    pub(crate) fn of(blocks: impl IntoIterator<Item = IpNet>) -> Self {
        let mut sums = BlockSums::default();
        blocks.into_iter().for_each(|block| sums.add(block));
        sums
    }

    /// One block more.
    pub(crate) fn add(&mut self, block: IpNet) {
        let hash = hash(block);
        let sum = &mut self.0[part(hash)];
        // The low half; the part is chosen by the high one. It is never 0, which would be no block at all.
        *sum = sum.wrapping_add(u32::try_from(hash & 0xffff_ffff).unwrap_or_default() | 1);
    }

    /// The sums over other blocks besides.
    fn with(mut self, others: &BlockSums) -> Self {
        self.0.iter_mut().zip(others.0).for_each(|(sum, other)| *sum = sum.wrapping_add(other));
        self
    }

    /// The sum of one part.
    pub(crate) fn part(&self, part: usize) -> u32 {
        self.0[part]
    }

    /// Takes over the parts that are in this mask from others.
    pub(crate) fn take(&mut self, parts: u16, others: &BlockSums) {
        for part in (0..PARTS).filter(|part| parts & (1 << part) != 0) {
            self.0[part] = others.0[part];
        }
    }

    /// Reads what [`fmt::Display`] writes.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.len() != PARTS * 8 || !text.is_ascii() {
            return None;
        }
        let mut sums = [0; PARTS];
        for (part, sum) in sums.iter_mut().enumerate() {
            let digits = &text[part * 8..part * 8 + 8];
            // `from_str_radix` takes a sign as well.
            let hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            *sum = u32::from_str_radix(digits, 16).ok().filter(|_| hex)?;
        }
        Some(BlockSums(sums))
    }
}

impl fmt::Display for BlockSums {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|sum| write!(out, "{sum:08x}"))
    }
}

/// The part that a block belongs to.
pub(crate) fn part_of(block: IpNet) -> usize {
    part(hash(block))
}

fn part(hash: u64) -> usize {
    usize::try_from(hash >> 60).unwrap_or_default()
}

/// The same in every version of the program and on every node, unlike the hashes of the standard library: nodes of one
/// cluster run different versions during an update.
fn hash(block: IpNet) -> u64 {
    let (address, length) = match block {
        IpNet::V4(net) => (u128::from(u32::from(net.network())), net.prefix_len()),
        IpNet::V6(net) => (u128::from(net.network()), net.prefix_len()),
    };
    let half = |shift: u32| u64::try_from((address >> shift) & u128::from(u64::MAX)).unwrap_or_default();
    mix(mix(half(64) ^ u64::from(length)).wrapping_add(half(0)))
}

/// The finalizer of SplitMix64: every bit of what goes in moves half of the bits that come out.
fn mix(mut word: u64) -> u64 {
    word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Whether it has the length of a block.
pub(crate) fn is_block(net: IpNet) -> bool {
    let (shortest, longest) = BLOCKS[usize::from(matches!(net, IpNet::V6(_)))];
    (shortest..=longest).contains(&net.prefix_len())
}

impl Snapshot {
    /// The sums over the blocks that this node routes, also where there are more than are kept: the rest were summed while
    /// they were read, before it was known whether Calico's pools hold them. None where it routes none.
    pub(crate) fn block_sums(&self, family: Family) -> Option<BlockSums> {
        let rest = &self.routing.get()?.routes.sums()[usize::from(family == Family::V6)];
        Some(BlockSums::of(self.kept_blocks(family)?).with(rest)).filter(|sums| *sums != BlockSums::default())
    }

    /// The MTU of the tunnel that routes to other nodes use, and of the pod's link that was made last, which has what pods
    /// get now: `1450.1450`, 0 where there is none. None where neither is there.
    pub(crate) fn mtus(&self) -> Option<String> {
        let routing = self.routing.get()?;
        let used = |link: &&Link| link.up && routing.remote_routes().any(|route| route.link == link.index);
        let tunnel = routing.links.iter().filter(|link| link.is_tunnel()).filter(used).map(|link| link.mtu).min();
        let pods = routing.links.iter().filter(|link| link.name.starts_with("cali")).max_by_key(|link| link.index);
        let (tunnel, pods) = (tunnel.unwrap_or(0), pods.map_or(0, |link| link.mtu));
        (tunnel + pods > 0).then(|| format!("{tunnel}.{pods}"))
    }

    /// The blocks of Calico's pools that this node routes, its own (a blackhole) and those of other nodes, sorted, each
    /// once. None without Calico, and where routes or pools could not be seen completely.
    pub(crate) fn routed_blocks(&self, family: Family) -> Option<Vec<IpNet>> {
        self.kept_blocks(family).filter(|_| self.routing.get().is_some_and(|routing| routing.routes.beyond == 0))
    }

    fn kept_blocks(&self, family: Family) -> Option<Vec<IpNet>> {
        let (routing, map) = (self.routing.get()?, self.cluster.get().filter(|map| !map.pools.is_empty())?);
        let block = |net: IpNet| {
            Family::of(net.addr()) == family && is_block(net) && map.pools.iter().any(|pool| pool.cidr.contains(&net))
        };
        let remote = routing.remote_routes().filter(|route| route.kind == RouteKind::Unicast).map(|route| route.to);
        let mut blocks: Vec<IpNet> = routing.blackholes().chain(remote).filter(|net| block(*net)).collect();
        blocks.sort_unstable();
        blocks.dedup();
        Some(blocks)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    #[test]
    fn they_are_the_same_in_every_version() {
        let sums = BlockSums::of([net("172.30.1.0/26"), net("172.30.1.64/26"), net("fd00::40/122")]);
        assert_eq!(BlockSums::parse(&sums.to_string()), Some(sums.clone()));
        let written = [part_of(net("172.30.1.0/26")), part_of(net("172.30.1.64/26")), part_of(net("fd00::40/122"))];
        // Nodes of two versions compare them: who changes this makes every update of the agents look like a fault.
        assert_eq!(written, [10, 1, 15]);
        assert_eq!(written.map(|part| sums.part(part)), [0x3974_fdc1, 0xc420_6025, 0x09d6_d32b]);
    }

    #[test]
    fn nothing_else_is_read_as_sums() {
        for bad in ["", "0", &"+".repeat(128), &"é".repeat(64), &"0".repeat(127), &"0".repeat(129)] {
            assert_eq!(BlockSums::parse(bad), None, "{bad}");
        }
        assert_eq!(BlockSums::parse(&"0".repeat(128)), Some(BlockSums::default()));
    }

    proptest! {
        #[test]
        fn a_block_more_or_less_moves_its_part_and_no_other(
            addresses in proptest::collection::btree_set(any::<u32>(), 1..200), order in any::<prop::sample::Index>(),
        ) {
            let nets = addresses.iter().map(|it| IpNet::new(std::net::IpAddr::V4((*it).into()), 26).expect("a length").trunc());
            let mut blocks: Vec<IpNet> = nets.collect::<BTreeSet<_>>().into_iter().collect();
            let sums = BlockSums::of(blocks.clone());
            let at = order.index(blocks.len());
            blocks.rotate_left(at);
            prop_assert_eq!(&BlockSums::of(blocks.clone()), &sums);
            let gone = blocks.swap_remove(at);
            let fewer = BlockSums::of(blocks);
            let moved: Vec<usize> = (0..PARTS).filter(|part| fewer.part(*part) != sums.part(*part)).collect();
            prop_assert_eq!(moved, vec![part_of(gone)]);
            let mut taken = fewer;
            taken.take(1 << part_of(gone), &sums);
            prop_assert_eq!(taken, sums);
        }

        #[test]
        fn no_text_is_too_odd(text in "\\PC{0,140}") {
            if let Some(sums) = BlockSums::parse(&text) {
                prop_assert_eq!(sums.to_string(), text.to_lowercase());
            }
        }
    }
}
