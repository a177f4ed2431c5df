//! Looking: one task per source, each with its own rhythm, deadline and error, so that a source that hangs costs its own
//! checks and nothing else. What they see flows one way, through a channel, into the snapshot.

mod blocking;
mod chains;
mod changes;
mod cni;
mod control_plane;
mod cri;
mod events;
mod filesystems;
mod health;
mod host_root;
mod identity;
mod ipset;
mod kubelet;
mod legacy;
mod memory;
mod net_sysctl;
mod netlink;
#[cfg(test)]
mod netns;
mod nftables;
mod processes;
mod routing;
mod sources;
mod stats;
mod update;
mod xtables_lock;

pub(crate) use host_root::HostRoot;
pub(crate) use identity::look as identity;
#[cfg(test)]
pub(crate) use legacy::read_rule;
pub(crate) use sources::{Observer, kubelet_server, start};
pub(crate) use stats::Stats;
pub(crate) use update::Update;
