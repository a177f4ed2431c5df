//! The rules of both packet filters, what they refer to, and what they remember.

use std::time::Instant;

use jiff::Timestamp;

use super::{Outlet, Rhythm, Wake, rhythm, through, within};
use crate::agent::observe::blocking::Blocking;
use crate::agent::observe::changes::History;
use crate::agent::observe::ipset::IpSetSource;
use crate::agent::observe::ipvs::IpvsSource;
use crate::agent::observe::legacy::{LegacySource, LockUses, Pace};
use crate::agent::observe::net_sysctl::ConntrackSource;
use crate::agent::observe::nftables::NftablesSource;
use crate::agent::observe::xtables_lock::XtablesLockSource;
use crate::agent::observe::{HostRoot, Update};
use crate::facts::Seen;

// Asking for the generation costs microseconds; rules are read only when it has moved.
pub(super) const NFTABLES: Rhythm = rhythm("nftables", 5, 5);
// Every look copies whole tables: its rhythm is that of `legacy::Pace`. Whoever changes tables takes a lock, whose file is watched.
const LEGACY: Rhythm = rhythm("legacy", 30, 30);
// Nothing tells of changes; a dozen headers cost a quarter of a millisecond.
const IP_SETS: Rhythm = rhythm("ipsets", 15, 2);
// Short holds are normal, so being late by ten seconds does not matter.
const XTABLES_LOCK: Rhythm = rhythm("xtables lock", 10, 2);
const CONNTRACK: Rhythm = rhythm("conntrack", 5, 2);

pub(super) async fn nftables(out: Outlet, wake: Wake, mut history: History) {
    let mut source = None;
    loop {
        let began = Instant::now();
        let seen = through(&NFTABLES, &mut source, NftablesSource::open, NftablesSource::look).await;
        if let Ok(ruleset) = &seen {
            history.take(ruleset, Timestamp::now());
        }
        out.tell(&NFTABLES, began, seen.is_ok(), Update::Nftables(seen.into(), history.changes())).await;
        out.rest(&NFTABLES, began, Some(&wake.nftables)).await;
    }
}

pub(super) async fn legacy(out: Outlet, host: HostRoot, blocking: Blocking, uses: LockUses) {
    let mut source = LegacySource::new(host, blocking);
    let (mut pace, mut large) = (Pace::new(Instant::now()), true);
    loop {
        let began = Instant::now();
        pace.used(uses.take());
        let seen: Seen<_> = within(&LEGACY, source.look(large)).await.into();
        pace.looked((began, Instant::now()), large, source.spent(), source.costs());
        out.tell(&LEGACY, began, seen.error().is_none(), Update::Legacy(seen)).await;
        large = loop {
            let (next, large) = pace.next();
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => break large,
                () = uses.told() => pace.used(uses.take()),
            }
        };
    }
}

/// Sets of addresses, and the virtual servers of IPVS.
pub(super) async fn ip_sets(out: Outlet, host: HostRoot, blocking: Blocking) {
    let (mut source, mut ipvs) = (None, None);
    loop {
        let began = Instant::now();
        let seen: Seen<_> = through(&IP_SETS, &mut source, IpSetSource::open, IpSetSource::look).await.into();
        let at = host.clone();
        let look = move |source: &mut IpvsSource| source.look(&at);
        let servers = blocking.lend("virtual servers", IP_SETS.deadline, &mut ipvs, IpvsSource::default, look);
        let servers: Seen<_> = servers.await.into();
        let success = seen.error().is_none() && servers.error().is_none();
        out.tell(&IP_SETS, began, success, Update::IpSets(seen, servers)).await;
        out.rest(&IP_SETS, began, None).await;
    }
}

pub(super) async fn xtables_lock(out: Outlet, host: HostRoot, blocking: Blocking) {
    let mut source = None;
    let new = || XtablesLockSource::new(host.clone());
    loop {
        let began = Instant::now();
        let looked = blocking
            .lend("file locks", XTABLES_LOCK.deadline, &mut source, new, |source| source.look(Timestamp::now()));
        let seen: Seen<_> = looked.await.into();
        out.tell(&XTABLES_LOCK, began, seen.error().is_none(), Update::XtablesLock(seen)).await;
        out.rest(&XTABLES_LOCK, began, None).await;
    }
}

/// Connection tracking: a few files of `/proc`.
pub(super) async fn files(out: Outlet, host: HostRoot) {
    let mut source = ConntrackSource::new(host);
    loop {
        let began = Instant::now();
        let seen: Seen<_> = source.look().into();
        out.tell(&CONNTRACK, began, seen.error().is_none(), Update::Conntrack(seen)).await;
        out.rest(&CONNTRACK, began, None).await;
    }
}
