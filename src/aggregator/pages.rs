//! The aggregator's pages: the page for people, the report as JSON, what is live, metrics, and whether it lives and is ready.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::sync::Semaphore;

use super::page;
use super::report::{API_VERSION, ClusterReport, Judged, Overview, Whole};
use super::store::{Patches, Store};
use crate::events::Counts;
use crate::http::{Live, Page, Pages, Shared};
use crate::verdict::{Now, WorkerState};

/// Zones times pools for which workers are counted apart. Everything beyond is counted under `other`, so that a cluster
/// with a pool for each node does not fill the monitoring's store.
const MOST_GROUPS: usize = 200;
/// Finding codes that are counted. There are far fewer; what others write into annotations must not decide.
const MOST_CODES: usize = 300;

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge>;

/// Serves what is in a store.
pub(crate) struct AggregatorPages {
    store: Arc<Store>,
    clock: fn() -> Now,
    /// Places for those who listen.
    listeners: Arc<Semaphore>,
    last: Mutex<Last>,
}

/// The report of all workers as it was made last: making it takes longer the more workers there are, and many may ask.
#[derive(Default)]
struct Last {
    revision: u64,
    /// When it was made.
    made: Option<Duration>,
    report: Whole,
}

/// A report counts as new for so long, if nothing has changed but the time; and if something has. Whoever is told of a change,
/// which takes twice as long as the latter, gets a report with it.
const NEW: (Duration, Duration) = (Duration::from_secs(5), Duration::from_millis(250));

impl AggregatorPages {
    /// Pages over this store. At most `listeners` are told of changes at once, so that those who fetch a page have
    /// connections left.
    pub(crate) fn new(store: Arc<Store>, clock: fn() -> Now, listeners: usize) -> Self {
        AggregatorPages { store, clock, listeners: Arc::new(Semaphore::new(listeners)), last: Mutex::default() }
    }

    /// The report of all workers.
    fn whole(&self) -> Option<Shared> {
        let (now, revision) = ((self.clock)(), *self.store.revisions().borrow());
        let last = &mut *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let new = |at: Duration| {
            let age = now.since_boot.saturating_sub(at);
            age < NEW.1 || (last.revision == revision && age < NEW.0)
        };
        if !last.made.is_some_and(new) {
            let report = self.store.overview(now, |overview| Whole::write(&overview, &last.report))?;
            *last = Last { revision, made: Some(now.since_boot), report };
        }
        let at = last.made?;
        let etag = format!("\"{:x}-{:x}\"", last.revision, at.as_nanos());
        Some(Shared { etag, head: Vec::new(), rest: last.report.body.clone() })
    }
}

impl Pages for AggregatorPages {
    fn get(&self, path: &str, query: &str) -> Page {
        match path {
            MAP => no_map(&self.store, query, (self.clock)()),
            REPORT => report(&self.store, query, (self.clock)()),
            "/metrics" => metrics(&self.store, (self.clock)()),
            "/livez" => Page::text(200, "ok\n"),
            "/readyz" => match self.store.waits_for() {
                None => Page::text(200, "ok\n"),
                Some(why) => Page::text(503, format!("{why}\n")),
            },
            LIVE => Page::text(503, "GET tells of changes, to a few at once: ask again later\n"),
            _ => page::get(path).unwrap_or_else(Page::not_found),
        }
    }

    fn shared(&self, path: &str, query: &str) -> Option<Shared> {
        if path == REPORT && query.is_empty() {
            return self.whole();
        }
        let node = (path == MAP).then(|| node_of(query)).flatten()?;
        let now = (self.clock)();
        self.store.blocks_told(&node, query, now);
        let map = self.store.map(now).ok()?;
        let head = format!("{{\"own\":{},", serde_json::to_string(&node).ok()?).into_bytes();
        Some(Shared { etag: map.etag, head, rest: map.rest })
    }

    fn live(&self, path: &str) -> Option<Live> {
        let place = (path == LIVE).then(|| Arc::clone(&self.listeners).try_acquire_owned().ok()).flatten()?;
        Some(Live::new(self.store.revisions(), place))
    }
}

/// Events, one for each time that the report is another one.
const LIVE: &str = "/api/v1/live";

/// The cluster at a glance.
const REPORT: &str = "/api/v1/report";

/// The map of the cluster, for the agent of one node.
const MAP: &str = "/api/v1/map";

/// Why there is no map.
fn no_map(store: &Store, query: &str, now: Now) -> Page {
    match (node_of(query), store.map(now)) {
        (None, _) => Page::text(400, "give the name of the node that asks: /api/v1/map?node=NAME\n"),
        (Some(_), Err(why)) => Page::text(503, why),
        (Some(_), Ok(_)) => Page::text(503, "ask again\n"),
    }
}

/// The node in a query, if it can be the name of one.
fn node_of(query: &str) -> Option<String> {
    asked_for(query).filter(|node| super::name(node).is_ok())
}

/// The node in a query, whatever it is.
fn asked_for(query: &str) -> Option<String> {
    query.split('&').find_map(|part| part.strip_prefix("node=")).map(unescaped)
}

fn report(store: &Store, query: &str, now: Now) -> Page {
    let wanted = asked_for(query);
    let report = store.report(wanted.as_deref(), now);
    match wanted {
        Some(name) if report.nodes.is_empty() => Page::json(
            404,
            &json!({ "apiVersion": API_VERSION, "kind": "Error", "message": format!("there is no worker named {name:?}") }),
        ),
        _ => Page::json(200, &report),
    }
}

fn unescaped(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail
            .get(..2)
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                rest = &tail[2..];
            }
            (byte, _) => {
                out.push(*byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Metrics of a fresh registry for each scrape, so that what is gone is forgotten.
fn metrics(store: &Store, now: Now) -> Page {
    store.lock().cluster.scraped(now);
    let mut registry = Registry::default();
    let complete = store.overview(now, |overview| {
        workers(&mut registry, &overview);
        findings(&mut registry, &overview.report);
        overview.report.view.complete
    });
    own(&mut registry, store, complete);
    Page::metrics(&registry)
}

fn gauges(registry: &mut Registry, name: &str, help: &str) -> Gauges {
    let family = Gauges::default();
    registry.register(name, help, family.clone());
    family
}

/// A number without labels.
fn number(registry: &mut Registry, name: &str, help: &str, value: usize) {
    let gauge: Gauge = Gauge::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    registry.register(name, help, gauge);
}

fn set(family: &Gauges, labels: &Labels, value: usize) {
    family.get_or_create(labels).set(i64::try_from(value).unwrap_or(i64::MAX));
}

fn workers(registry: &mut Registry, overview: &Overview<'_>) {
    let (report, nodes) = (&overview.report, &overview.workers);
    let by_state = gauges(registry, "nodevitals_workers", "Workers by state");
    for state in WorkerState::ALL {
        set(&by_state, &vec![("state", state.as_str().to_owned())], report.workers.of(state));
    }
    let help = "Workers in their first look, which are Unknown as well";
    number(registry, "nodevitals_workers_settling", help, report.workers.settling);
    let help = "Workers by zone, pool and state; what is beyond 200 pairs of zone and pool is counted as other";
    let by_group = gauges(registry, "nodevitals_workers_by", help);
    let all: BTreeSet<(&str, &str)> = nodes.iter().map(group).collect();
    let kept: BTreeSet<(&str, &str)> = all.into_iter().take(MOST_GROUPS).collect();
    let mut counts: BTreeMap<(&str, &str, WorkerState), usize> = BTreeMap::new();
    for node in nodes.iter().filter(|node| !node.row.deleting) {
        let (zone, pool) = if kept.contains(&group(node)) { group(node) } else { ("other", "other") };
        for state in WorkerState::ALL {
            *counts.entry((zone, pool, state)).or_default() += usize::from(state == node.state);
        }
    }
    for ((zone, pool, state), count) in counts {
        let labels = vec![("zone", zone.to_owned()), ("pool", pool.to_owned()), ("state", state.as_str().to_owned())];
        set(&by_group, &labels, count);
    }
}

fn group<'a>(node: &Judged<'a>) -> (&'a str, &'a str) {
    (node.row.zone.as_deref().unwrap_or_default(), node.row.pool.as_deref().unwrap_or_default())
}

fn findings(registry: &mut Registry, report: &ClusterReport) {
    let family = gauges(
        registry,
        "nodevitals_cluster_finding",
        "Workers that have this finding; 1 of the cluster's own that names none",
    );
    for finding in report.findings.iter().take(MOST_CODES) {
        let labels = vec![("code", finding.code.clone()), ("severity", finding.severity.as_str().to_owned())];
        set(&family, &labels, finding.nodes);
    }
    let help = "Workers out of which the scope of a finding is judged, by finding and scope";
    let scopes = gauges(registry, "nodevitals_cluster_finding_scope", help);
    for finding in report.findings.iter().take(MOST_CODES) {
        let labels = vec![("code", finding.code.clone()), ("scope", finding.scope.as_str().to_owned())];
        set(&scopes, &labels, finding.eligible);
    }
    let help = "1 while nothing is known of this finding about the cluster, as what it is made of cannot be looked at";
    let unknown = gauges(registry, "nodevitals_cluster_finding_unknown", help);
    let help = "1 while this kind cannot be looked at: its watch is lost or denied";
    let blind = gauges(registry, "nodevitals_aggregator_cannot_look", help);
    for cannot in &report.view.cannot_look {
        cannot.codes.iter().for_each(|code| set(&unknown, &vec![("code", code.clone())], 1));
        cannot.what.iter().for_each(|what| set(&blind, &vec![("resource", what.clone())], 1));
    }
    // A first list that is only under way is not lost.
    if !report.view.complete && report.view.since.is_some() {
        set(&blind, &vec![("resource", "nodes".to_owned())], 1);
    }
    for finding in &report.cluster {
        let labels = vec![("code", finding.code.clone()), ("severity", finding.severity.as_str().to_owned())];
        family.get_or_create(&labels).inc_by(i64::try_from(finding.nodes.max(1)).unwrap_or(i64::MAX));
    }
}

fn own(registry: &mut Registry, store: &Store, complete: bool) {
    let inner = store.lock();
    let help = "1 when the workers are seen, completely and currently";
    number(registry, "nodevitals_aggregator_synced", help, usize::from(complete));
    number(registry, "nodevitals_aggregator_leader", "1 on the replica that leads", usize::from(inner.leads));
    let restarts = Family::<Labels, Counter>::default();
    registry.register(
        "nodevitals_aggregator_watch_restarts",
        "Watches taken up again after an error",
        restarts.clone(),
    );
    let agents = inner.cluster.agents_sight.as_ref().map_or(0, |sight| sight.restarts);
    let others = inner.cluster.surroundings.restarts();
    for (resource, count) in [("nodes", inner.cluster.nodes_sight.restarts), ("pods", agents)].into_iter().chain(others)
    {
        restarts.get_or_create(&vec![("resource", resource.to_owned())]).inc_by(count);
    }
    let patches = Family::<Labels, Counter>::default();
    registry.register(
        "nodevitals_aggregator_patches",
        "Workers set to Unknown because their agent is gone",
        patches.clone(),
    );
    let Patches { ok, conflict, failed } = inner.patches;
    for (result, count) in [("ok", ok), ("conflict", conflict), ("failed", failed)] {
        patches.get_or_create(&vec![("result", result.to_owned())]).inc_by(count);
    }
    let events = Family::<Labels, Counter>::default();
    registry.register("nodevitals_aggregator_events", "Kubernetes Events by what became of them", events.clone());
    let Counts { written, failed, dropped } = inner.events;
    for (result, count) in [("ok", written), ("failed", failed), ("dropped", dropped)] {
        events.get_or_create(&vec![("result", result.to_owned())]).inc_by(count);
    }
    let build = gauges(registry, "nodevitals_build_info", "Version of this program; always 1");
    set(&build, &vec![("version", env!("CARGO_PKG_VERSION").to_owned())], 1);
}

#[cfg(test)]
mod openapi_tests;
#[cfg(test)]
mod tests;
