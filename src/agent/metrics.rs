//! The agent's metrics, made anew from the last verdict at every scrape, so that a gauge forgets what is gone.
//!
//! Cardinality is bounded: codes, conditions, states and sources by the tables in the code, routes by protocol, chains
//! by table, file systems by the mounts that have a role, BGP sessions by state.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::Watched;
use super::evidence::Kept;
use super::publish::Fates;
use crate::checks;
use crate::events::{Counts, Reporter};
use crate::facts::{Seen, Snapshot, Strain};
use crate::verdict::{Status, Verdict, WorkerState};

/// Label names and values.
pub(crate) type Labels = Vec<(&'static str, String)>;
/// A gauge with labels.
pub(crate) type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;

/// A registry with this product's prefix.
pub(crate) fn registry() -> Registry {
    Registry::with_prefix("nodevitals")
}

/// Registers a gauge with labels and gives it its values.
pub(crate) fn gauges(registry: &mut Registry, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, f64)>) {
    registry.register(name, help, filled(values));
}

fn filled(values: impl IntoIterator<Item = (Labels, f64)>) -> Gauges {
    let family = Gauges::default();
    for (labels, value) in values {
        family.get_or_create(&labels).set(value);
    }
    family
}

/// All metrics.
pub(super) fn collect(
    watched: &Watched,
    told: Option<&(Fates, Option<Arc<Reporter>>)>,
    evidence: Option<&Kept>,
) -> Registry {
    let mut registry = registry();
    watched.read(|judge, verdict| {
        if let Some(verdict) = verdict {
            verdict_metrics(&mut registry, verdict);
        }
        snapshot_metrics(&mut registry, judge.snapshot());
    });
    source_metrics(&mut registry, watched);
    if let Some((fates, reporter)) = told {
        event_metrics(&mut registry, reporter.as_deref().map(Reporter::counts).unwrap_or_default());
        let values = [("written", fates.written()), ("failed", fates.failed()), ("coalesced", fates.coalesced())];
        for (fate, count) in values {
            let help = format!("Patches of the Node object: {fate}");
            registry.register(format!("node_patches_{fate}"), help, ConstCounter::new(count));
        }
    }
    if let Some((written, failed)) = evidence.map(Kept::counts) {
        for (fate, count) in [("written", written), ("failed", failed)] {
            let help = format!("Bundles of evidence on this node: {fate}");
            registry.register(format!("evidence_bundles_{fate}"), help, ConstCounter::new(count));
        }
    }
    gauges(
        &mut registry,
        "build_info",
        "Version of the program",
        [(vec![("version", env!("CARGO_PKG_VERSION").into())], 1.0)],
    );
    registry
}

/// What became of Events.
pub(crate) fn event_metrics(registry: &mut Registry, counts: Counts) {
    let Counts { written, failed, dropped } = counts;
    for (fate, count) in [("written", written), ("failed", failed), ("dropped", dropped)] {
        registry.register(format!("events_{fate}"), format!("Kubernetes Events: {fate}"), ConstCounter::new(count));
    }
}

fn verdict_metrics(registry: &mut Registry, verdict: &Verdict) {
    let mut counts: std::collections::BTreeMap<(&str, &str, &str), f64> = std::collections::BTreeMap::new();
    for check in checks::node::ALL {
        counts.insert((check.code, check.severity.as_str(), check.area.condition()), 0.0);
    }
    for finding in &verdict.findings {
        if let Some(check) = checks::node::ALL.iter().find(|check| check.code == finding.code) {
            *counts.entry((check.code, finding.severity.as_str(), check.area.condition())).or_default() += 1.0;
        }
    }
    let values = counts.into_iter().map(|((code, severity, area), count)| {
        (vec![("code", code.to_owned()), ("severity", severity.to_owned()), ("area", area.to_owned())], count)
    });
    gauges(registry, "finding", "Findings that count, by code; 0 when there is none", values);
    let explained = verdict.findings.iter().filter(|finding| finding.caused_by.is_some()).count();
    let explained = f64::from(u32::try_from(explained).unwrap_or(u32::MAX));
    gauges(registry, "findings_explained", "Findings that count and that another explains", [(vec![], explained)]);
    let pending = verdict.pending.iter().map(|finding| (vec![("code", finding.code.clone())], 1.0));
    gauges(registry, "finding_pending", "Findings that were seen and are held down", pending);
    let unknown = verdict.unknown.iter().map(|(code, _)| (vec![("code", code.clone())], 1.0));
    gauges(registry, "check_unknown", "Checks that could not look", unknown);
    let conditions = verdict.conditions.iter().flat_map(|condition| {
        [Status::True, Status::False, Status::Unknown].map(|status| {
            let labels = vec![("type", condition.kind.to_owned()), ("status", status.as_str().to_owned())];
            (labels, f64::from(u8::from(condition.status == status)))
        })
    });
    gauges(registry, "condition", "Node conditions of this product", conditions);
    let states = WorkerState::ALL
        .map(|state| (vec![("state", state.as_str().into())], f64::from(u8::from(state == verdict.state))));
    gauges(registry, "worker_state", "State of this worker", states);
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
fn snapshot_metrics(registry: &mut Registry, snapshot: &Snapshot) {
    if let Some(routing) = snapshot.routing.get() {
        let routes = routing.by_protocol.iter().map(|(family, protocol, count)| {
            let protocol = crate::facts::protocol_name(*protocol);
            (vec![("family", family.to_string()), ("protocol", protocol)], f64::from(*count))
        });
        gauges(registry, "routes", "Routes by protocol, table local left out", routes);
    }
    let rulesets = [&snapshot.nftables, &snapshot.legacy].into_iter().filter_map(Seen::get);
    let chains = rulesets.flat_map(|ruleset| {
        ruleset.tables.iter().map(move |table| {
            let count =
                table.chains.len() as f64 + f64::from(table.per_object_chains) + f64::from(table.foreign_chains);
            let backend = format!("{:?}", ruleset.backend).to_lowercase();
            (vec![("backend", backend), ("family", table.family.to_string()), ("table", table.name.clone())], count)
        })
    });
    gauges(registry, "chains", "Packet filter chains by table", chains);
    if let Some(bgp) = snapshot.bgp.get() {
        let sessions = crate::facts::BgpState::ALL.map(|state| {
            let count = bgp.peers().filter(|peer| peer.state == state).count();
            (vec![("state", state.as_str().to_owned())], count as f64)
        });
        gauges(registry, "bgp_sessions", "BGP sessions of this node's BIRD, by state", sessions);
    }
    if let Some(conntrack) = snapshot.conntrack.get() {
        gauges(registry, "conntrack_entries", "Connection tracking entries", [(vec![], conntrack.count as f64)]);
        gauges(
            registry,
            "conntrack_entries_limit",
            "Limit of connection tracking entries",
            [(vec![], conntrack.max as f64)],
        );
    }
    if let Some(log) = snapshot.kernel_log.get() {
        let help =
            "Lines of the kernel's log that were overwritten before they were read, rounded down to a power of ten";
        registry.register("kernel_log_lines_lost", help, ConstCounter::new(log.lost));
    }
    socket_metrics(registry, snapshot);
    capacity_metrics(registry, snapshot);
    if let Some(sandboxes) = snapshot.runtime.sandboxes.get() {
        gauges(registry, "sandboxes", "Pod sandboxes that are ready", [(vec![], sandboxes.len() as f64)]);
    }
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
fn capacity_metrics(registry: &mut Registry, snapshot: &Snapshot) {
    if let Some(memory) = snapshot.memory.get() {
        let (kubelet, kernel) = (memory.kubelet_available as f64, memory.available as f64);
        let values = [(vec![("by", "kubelet".into())], kubelet), (vec![("by", "kernel".into())], kernel)];
        gauges(
            registry,
            "memory_available_bytes",
            "Memory that is available, as the kubelet and the kernel count it",
            values,
        );
        let stalled = memory.stall.map(|stall| (vec![], stall.full_avg10 / 100.0));
        gauges(
            registry,
            "memory_stalled_ratio",
            "Share of the last 10 s in which all tasks waited for memory",
            stalled,
        );
    }
    strain_metrics(registry, snapshot);
    let filesystems = snapshot.filesystems.get().map_or(&[][..], Vec::as_slice);
    let spaces =
        || filesystems.iter().filter_map(|it| Some((vec![("mount_point", it.mount_point.clone())], it.space.get()?)));
    let bytes = spaces().map(|(labels, space)| (labels, space.bytes_available as f64));
    gauges(registry, "filesystem_available_bytes", "Bytes that are available", bytes);
    let inodes = spaces().map(|(labels, space)| (labels, space.inodes_available as f64));
    gauges(registry, "filesystem_available_inodes", "Inodes that are available", inodes);
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
fn strain_metrics(registry: &mut Registry, snapshot: &Snapshot) {
    let Strain { io, tasks, files, .. } = &snapshot.strain;
    let stalled = io.get().map(|stall| (vec![], stall.full_avg10 / 100.0));
    gauges(registry, "io_stalled_ratio", "Share of the last 10 s in which all tasks waited for disks", stalled);
    let counts = [
        ("tasks", "Processes and threads", tasks.get().map(|tasks| tasks.count)),
        ("tasks_limit", "Limit of processes and threads", tasks.get().map(|tasks| tasks.limit)),
        ("open_files", "Open files of the node", files.get().map(|files| files.allocated)),
    ];
    for (name, help, count) in counts {
        gauges(registry, name, help, count.map(|count| (vec![], count as f64)));
    }
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
fn socket_metrics(registry: &mut Registry, snapshot: &Snapshot) {
    let Some(sockets) = snapshot.traffic.sockets.get() else { return };
    let busiest = sockets.busiest.first().map_or(0, |busiest| busiest.sockets);
    gauges(registry, "tcp_sockets", "TCP sockets in use and in TIME_WAIT", [(vec![], sockets.in_use as f64)]);
    gauges(registry, "local_ports", "Local ports to connect from", [(vec![], f64::from(sockets.ports))]);
    let help = "Local ports that the busiest destination holds; 0 while there are few connections";
    gauges(registry, "local_ports_busiest", help, [(vec![], f64::from(busiest))]);
    registry.register("tcp_syn_retransmissions", "SYNs sent again", ConstCounter::new(sockets.syn_retransmits));
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
fn source_metrics(registry: &mut Registry, watched: &Watched) {
    let stats = watched.stats().all();
    let label = |source: &str| vec![("source", source.to_owned())];
    let durations = stats.iter().map(|(source, stats)| (label(source), stats.last_duration.as_secs_f64()));
    registry_unit(registry, "source_duration", "How long the last look took", durations);
    let successes = stats
        .iter()
        .filter_map(|(source, stats)| Some((label(source), stats.last_success?.as_millisecond() as f64 / 1000.0)));
    registry_unit(registry, "source_last_success_timestamp", "When the last look succeeded", successes);
    let looks = Family::<Labels, prometheus_client::metrics::counter::Counter>::default();
    let errors = Family::<Labels, prometheus_client::metrics::counter::Counter>::default();
    let wakes = Family::<Labels, prometheus_client::metrics::counter::Counter>::default();
    for (source, stats) in &stats {
        looks.get_or_create(&label(source)).inc_by(stats.looks);
        errors.get_or_create(&label(source)).inc_by(stats.errors);
        wakes.get_or_create(&label(source)).inc_by(stats.wakes);
    }
    registry.register("source_looks", "Looks", looks);
    registry.register("source_errors", "Looks that failed", errors);
    registry.register("source_wakes", "Looks before their time, because an event asked for them", wakes);
}

fn registry_unit(registry: &mut Registry, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, f64)>) {
    registry.register_with_unit(name, help, Unit::Seconds, filled(values));
}
