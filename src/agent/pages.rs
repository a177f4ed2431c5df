//! The agent's pages: /metrics, /findings, /probes, /blocks, /machinez, /livez, /readyz.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use super::Watched;
use super::evidence::{Held, Kept};
use super::metrics;
use super::publish::Fates;
use crate::events::Reporter;
use crate::facts::{Family, Snapshot, part_of};
use crate::http::{Page, Pages};
use crate::verdict::{CURED_BY_A_NEW_MACHINE, Episodes, Status, Verdict};

/// What the agent's pages show.
#[derive(Debug)]
pub(crate) struct AgentPages {
    watched: Arc<Watched>,
    fates: Option<Told>,
    evidence: Option<Arc<Kept>>,
}

/// What became of patches and, where they are wanted, of Events.
type Told = (Fates, Option<Arc<Reporter>>);

/// The page /findings.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FindingsPage<'a> {
    api_version: &'static str,
    node: &'a str,
    verdict: Option<&'a Verdict>,
    /// The journal: when which fault was there, and what cured it; oldest first.
    episodes: &'a Episodes,
    /// How much is known of the cluster; none where nobody can be asked.
    cluster: Option<MapPage>,
    /// The evidence that is kept on the node.
    evidence: Vec<Held>,
}

/// How much the map of the cluster holds.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MapPage {
    nodes: usize,
    blocks: usize,
    pools: usize,
    services: usize,
    full_mesh: Option<bool>,
    unconfirmed_since: Option<Timestamp>,
}

impl AgentPages {
    /// Pages about a node.
    pub(crate) fn new(watched: Arc<Watched>, fates: Option<Told>, evidence: Option<Arc<Kept>>) -> Self {
        AgentPages { watched, fates, evidence }
    }
}

impl Pages for AgentPages {
    fn get(&self, path: &str, query: &str) -> Page {
        match path {
            "/metrics" => {
                Page::metrics(&metrics::collect(&self.watched, self.fates.as_ref(), self.evidence.as_deref()))
            }
            "/findings" => self.watched.read(|judge, verdict| {
                let now = judge.snapshot();
                let cluster = now.cluster.get().map(|map| MapPage {
                    nodes: map.nodes.len(),
                    blocks: map.nodes.iter().map(|node| node.blocks.len()).sum(),
                    pools: map.pools.len(),
                    services: map.services.len(),
                    full_mesh: map.full_mesh,
                    unconfirmed_since: now.cluster_unconfirmed_since,
                });
                let node = &now.identity.hostname;
                Page::json(
                    200,
                    &FindingsPage {
                        api_version: "nodevitals.dev/v1",
                        node,
                        verdict,
                        episodes: judge.episodes(),
                        cluster,
                        evidence: self.evidence.as_ref().map(|kept| kept.bundles()).unwrap_or_default(),
                    },
                )
            }),
            "/probes" => Page::json(200, &self.watched.stats().trail.walks()),
            "/blocks" => self.watched.read(|judge, _| blocks(judge.snapshot(), query)),
            "/machinez" => self.watched.read(|_, verdict| machine(verdict)),
            "/livez" => Page::text(200, "ok\n"),
            "/readyz" if self.watched.read(|_, verdict| verdict.is_some()) => Page::text(200, "ok\n"),
            "/readyz" => Page::text(503, "the first look is not complete yet\n"),
            _ => Page::not_found(),
        }
    }
}

/// For who replaces machines by an HTTP check: only what is known to be broken fails. What is not known is said, and no reason.
fn machine(verdict: Option<&Verdict>) -> Page {
    let Some(verdict) = verdict else { return Page::text(200, "unknown: the first look is not complete yet\n") };
    if let Some(fault) = verdict.fault_of_the_machine() {
        return Page::text(503, format!("{}: {}\n", fault.code, fault.detail));
    }
    let mut fit = CURED_BY_A_NEW_MACHINE.iter().filter_map(|area| verdict.condition(area.condition()));
    match fit.find(|it| it.status == Status::Unknown) {
        Some(it) => Page::text(200, format!("unknown: {} {}: {}\n", it.kind, it.reason, it.message)),
        None => Page::text(200, "ok\n"),
    }
}

/// For the aggregator: which blocks of pod addresses of a family this node routes, of the parts that it asks for; and MTUs.
fn blocks(now: &Snapshot, query: &str) -> Page {
    let value = |key: &str| query.split('&').find_map(|part| part.strip_prefix(key)?.strip_prefix('='));
    let family = match value("family") {
        Some("4") => Some(Family::V4),
        Some("6") => Some(Family::V6),
        _ => None,
    };
    let parts = value("parts").and_then(|parts| u16::from_str_radix(parts, 16).ok());
    let (Some(family), Some(parts)) = (family, parts) else {
        return Page::text(
            400,
            "ask for /blocks?family=4&parts=ffff (4 or 6; a mask of the 16 parts, in hexadecimal)\n",
        );
    };
    match now.routed_blocks(family) {
        Some(mut blocks) => {
            blocks.retain(|block| parts & (1 << part_of(*block)) != 0);
            Page::json(200, &serde_json::json!({ "blocks": blocks, "mtu": now.mtus() }))
        }
        None => Page::text(503, "it is not known which blocks are routed: no map, no Calico, or too many routes\n"),
    }
}
