//! Between which numbers each key of the configuration may be.

use serde_json::Value;

/// A key, the least and the most that it may be.
pub(crate) type Range = (&'static str, f64, f64);

/// Longest hold-down that can be set, in seconds: a finding held back for longer is one that nobody wants.
pub(super) const LONGEST_HOLD_DOWN: f64 = 3600.0;
/// Turns of a kubelet are remembered for so many minutes.
pub(crate) const LONGEST_TURNS: f64 = 24.0 * 60.0;
/// Most turns of one kubelet that are remembered.
pub(crate) const MOST_TURNS: f64 = 8.0;
/// Episodes are remembered for so many days.
const LONGEST_RECURRENCE: f64 = 14.0;

/// All keys that are numbers, by their place in the file.
pub(crate) const RANGES: &[Range] = &[
    ("limits.conntrackNearFullPercent", 1.0, 100.0),
    ("limits.conntrackFullPercent", 1.0, 100.0),
    ("limits.imminentPoints", 0.0, 100.0),
    ("limits.imminentMinutes", 0.0, 1440.0),
    ("limits.fullPercent", 0.0, 100.0),
    ("limits.sandboxSettlingSeconds", 0.0, 3600.0),
    ("limits.staticPodSettlingSeconds", 0.0, 3600.0),
    ("limits.ephemeralPortsPercent", 1.0, 100.0),
    ("limits.abandonedContainers", 0.0, 1e9),
    ("limits.abandonedObjects", 0.0, 1e9),
    ("limits.kubeletRestarts", 1.0, 8.0),
    ("limits.kubeletRestartMinutes", 1.0, 60.0),
    ("limits.statusWriteSeconds", 1.0, 30.0),
    ("limits.gatewayRefreshMinutes", 0.0, 1440.0),
    ("limits.recurrenceDays", 1.0, LONGEST_RECURRENCE),
    ("cluster.routineSeconds", 0.0, LONGEST_HOLD_DOWN),
    ("cluster.criticalSeconds", 0.0, 86400.0),
    ("cluster.calicoRestarts", 1.0, 100.0),
    ("cluster.calicoRestartMinutes", 1.0, 1440.0),
    ("cluster.kubeletGraceSeconds", 0.0, LONGEST_HOLD_DOWN),
    ("cluster.agentGraceSeconds", 10.0, LONGEST_HOLD_DOWN),
    ("cluster.readyTurns", 1.0, MOST_TURNS),
    ("cluster.readyTurnMinutes", 1.0, LONGEST_TURNS),
    ("cluster.staleMinutes", 0.0, 1440.0),
    ("cluster.controllersAbsentMinutes", 0.0, 1440.0),
    ("cluster.cleanupMinutes", 1.0, 1440.0),
    ("cluster.migrationMinutes", 1.0, 1440.0),
    ("cluster.masterUpdateMinutes", 1.0, 1440.0),
    ("cluster.transitMinutes", 1.0, 1440.0),
    ("cluster.scrapeSilenceSeconds", 30.0, LONGEST_HOLD_DOWN),
    ("cluster.recurrences", 2.0, 8.0),
    ("cluster.fewWorkers", 1.0, 1000.0),
    ("cluster.fewPercent", 0.0, 100.0),
    ("cluster.mostPercent", 0.0, 100.0),
    ("settlingSeconds", 0.0, LONGEST_HOLD_DOWN),
    ("events.perHour", 0.0, 3600.0),
    ("events.clusterPerSecond", 1.0, 10000.0),
    ("writes.clusterPerSecond", 1.0, 10000.0),
];

/// The number at a place, if there is one.
pub(crate) fn number(tree: &Value, key: &str) -> Option<f64> {
    key.split('.').try_fold(tree, |tree, part| tree.get(part))?.as_f64()
}

/// The first number of a file that is out of its range.
pub(super) fn wrong(file: &Value) -> Option<String> {
    let (key, value, least, most) = RANGES
        .iter()
        .filter_map(|(key, least, most)| Some((key, number(file, key)?, least, most)))
        .find(|(_, value, least, most)| !(**least..=**most).contains(value))?;
    Some(format!("{key} ({value}) must be between {least} and {most}"))
}
