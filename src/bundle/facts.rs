//! The file of the facts: everything that the checks saw.

use serde::Serialize;
use serde_json::Value;

use crate::agent::Report;
use crate::facts::{Identity, Reader, Replay, RouteList, Snapshot, TableRoute};
use crate::verdict::Raised;

/// What is written: the answer of `nodevitals check -o json`, and all routes that were kept, of which that shows the first.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FactsOut<'a> {
    schema: u32,
    version: &'static str,
    report: &'a Report,
    routes: &'a [TableRoute],
}

impl<'a> FactsOut<'a> {
    /// What a report rests on.
    pub(crate) fn of(report: &'a Report) -> Self {
        let routes = report.snapshot.routing.get().map_or(&[][..], |routing| routing.routes.all());
        FactsOut { schema: super::SCHEMA, version: env!("CARGO_PKG_VERSION"), report, routes }
    }
}

/// What is read back.
#[derive(Debug)]
pub(crate) struct Facts {
    /// What was seen.
    pub(crate) snapshot: Snapshot,
    /// What was believed.
    pub(crate) findings: Vec<Raised>,
}

impl Facts {
    /// Where nothing could be looked at.
    pub(crate) fn none(manifest: &super::Manifest) -> Self {
        let (hostname, boot_id) = (manifest.node.clone(), manifest.boot_id.clone());
        let identity = Identity { hostname, boot_id, ..Identity::default() };
        Facts { snapshot: Snapshot::blank(manifest.begun_at, identity), findings: Vec::new() }
    }
}

/// What was believed, by its own reader.
struct Findings(Vec<Raised>);

impl Replay for Findings {
    fn replay(from: &mut Reader<'_>) -> Self {
        let findings = serde_json::from_value(from.value().clone());
        Findings(findings.unwrap_or_else(|error| {
            from.expected(&format!("findings: {error}"));
            Vec::new()
        }))
    }
}

struct Believed(Vec<Raised>);

impl Replay for Believed {
    fn replay(from: &mut Reader<'_>) -> Self {
        let Findings(findings) = from.field("findings");
        Believed(findings)
    }
}

/// The part that `nodevitals check -o json` prints.
struct Printed(Snapshot, Vec<Raised>);

impl Replay for Printed {
    fn replay(from: &mut Reader<'_>) -> Self {
        let Believed(findings) = from.field("verdict");
        Printed(from.field("snapshot"), findings)
    }
}

impl Replay for Facts {
    fn replay(from: &mut Reader<'_>) -> Self {
        let Printed(mut snapshot, findings) = from.field("report");
        let routes: Vec<TableRoute> = from.field("routes");
        if let crate::facts::Seen::Yes(routing) = &mut snapshot.routing {
            routing.routes = RouteList::new(routes, routing.routes.beyond);
        }
        Facts { snapshot, findings }
    }
}

/// The schema of a file of facts.
pub(super) fn schema(value: &Value) -> Option<u64> {
    value.get("schema").and_then(Value::as_u64)
}
