//! The configuration file: one tree, read once, unknown keys refused.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::SignedDuration;
use serde::Deserialize;

use crate::checks::{Limits, node};
use crate::verdict::Patience;

mod cluster;
pub(crate) mod ranges;

pub use cluster::ClusterLimits;
use ranges::LONGEST_HOLD_DOWN;

/// Longest configuration file, in bytes.
const LONGEST: u64 = 1 << 20;

/// What can be configured. Everything has a default; an empty file is valid.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Thresholds of the checks.
    pub limits: Limits,
    /// Thresholds of what only the aggregator sees, by their keys: those that differ from [`ClusterLimits::default`].
    pub cluster: BTreeMap<String, u32>,
    /// Hold-downs that differ from a check's own, in seconds by finding code. They hold also where the owner of the thing
    /// would repair it by itself.
    pub hold_down_seconds: BTreeMap<String, f64>,
    /// Times until a finding is over that differ from a check's own, in seconds by finding code.
    pub clear_seconds: BTreeMap<String, f64>,
    /// A node that has just booted or joined is left this many seconds to put its network together (catalogue H12).
    pub settling_seconds: f64,
    /// How many Events are written.
    pub events: Events,
    /// How fast the Nodes are written.
    pub writes: Writes,
}

/// How fast all agents together write to the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Writes {
    /// Patches of all agents in a second, when all have something to tell: each waits by chance, the longer the more nodes
    /// there are, and not noticeably where there are few.
    pub cluster_per_second: u32,
}

impl Default for Writes {
    fn default() -> Self {
        Writes { cluster_per_second: 200 }
    }
}

/// How many Kubernetes Events an agent writes about what begins and what is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Events {
    /// Of one agent in an hour, beside ten at once; 0: none at all.
    pub per_hour: u32,
    /// Of all agents in a second, when all have something to tell: each waits by chance, the longer the more nodes there are.
    pub cluster_per_second: u32,
}

impl Default for Events {
    fn default() -> Self {
        Events { per_hour: 60, cluster_per_second: 50 }
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            limits: Limits::default(),
            cluster: BTreeMap::new(),
            hold_down_seconds: BTreeMap::new(),
            clear_seconds: BTreeMap::new(),
            settling_seconds: Patience::default().settling.as_secs_f64(),
            events: Events::default(),
            writes: Writes::default(),
        }
    }
}

impl Config {
    /// Reads a YAML or JSON file; without a path, the defaults.
    ///
    /// # Errors
    /// When the file cannot be read or holds something that is not understood. The error names file, line and key.
    pub fn load(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Config::default()) };
        let about = std::fs::metadata(path).with_context(|| format!("configuration file {}", path.display()))?;
        if !about.is_file() || about.len() > LONGEST {
            bail!("configuration file {}: is not a file of at most {LONGEST} bytes", path.display());
        }
        let text = std::fs::read_to_string(path).with_context(|| format!("configuration file {}", path.display()))?;
        Config::parse(&text).with_context(|| format!("configuration file {}", path.display()))
    }

    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        if text.trim().is_empty() {
            return Ok(Config::default());
        }
        let file: serde_json::Value = crate::yaml::parse(text)?;
        if let Some(wrong) = ranges::wrong(&file) {
            bail!(wrong);
        }
        let config: Config = serde_json::from_value(file)?;
        config.validate()?;
        Ok(config)
    }

    /// How long to wait before something is believed.
    pub fn patience(&self) -> Patience {
        let known = |code: &String| node::ALL.iter().find(|check| check.code == code).map(|check| check.code);
        let times = |seconds: &BTreeMap<String, f64>| {
            seconds.iter().filter_map(|(code, time)| Some((known(code)?, Duration::from_secs_f64(*time)))).collect()
        };
        Patience {
            raise: times(&self.hold_down_seconds),
            clear: times(&self.clear_seconds),
            settling: Duration::from_secs_f64(self.settling_seconds),
            recurs_within: SignedDuration::from_hours(24 * i64::from(self.limits.recurrence_days)),
        }
    }

    /// Thresholds of what only the aggregator sees, with those that it has in common with the agents.
    pub fn cluster(&self) -> ClusterLimits {
        let mut limits = ClusterLimits {
            recurrence_days: self.limits.recurrence_days,
            status_write_seconds: self.limits.status_write_seconds,
            settling_seconds: Duration::from_secs_f64(self.settling_seconds).as_secs().try_into().unwrap_or(u32::MAX),
            ..ClusterLimits::default()
        };
        for (key, value) in &self.cluster {
            if let Some(threshold) = limits.threshold(key) {
                *threshold = *value;
            }
        }
        limits
    }

    fn validate(&self) -> anyhow::Result<()> {
        let (limits, mut cluster) = (&self.limits, self.cluster());
        if let Some(unknown) = self.cluster.keys().find(|key| cluster.threshold(key).is_none()) {
            bail!("cluster: there is no key {unknown}; the README lists them");
        }
        let (near, full) = (limits.conntrack_near_full_percent, limits.conntrack_full_percent);
        for (low, high, lower, higher) in [
            ("limits.conntrackNearFullPercent", "limits.conntrackFullPercent", near.into(), full.into()),
            ("cluster.routineSeconds", "cluster.criticalSeconds", cluster.routine_seconds, cluster.critical_seconds),
            ("cluster.fewPercent", "cluster.mostPercent", cluster.few_percent, cluster.most_percent),
        ] {
            if lower >= higher {
                bail!("{low} ({lower}) must be below {high} ({higher})");
            }
        }
        for (key, times) in [("holdDownSeconds", &self.hold_down_seconds), ("clearSeconds", &self.clear_seconds)] {
            for (code, seconds) in times {
                if !node::ALL.iter().any(|check| check.code == code) {
                    bail!("{key}: there is no finding code {code}; the README lists them");
                }
                if !(0.0..=LONGEST_HOLD_DOWN).contains(seconds) {
                    bail!("{key}: {code} ({seconds}) must be between 0 and {LONGEST_HOLD_DOWN}");
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
impl Config {
    /// Every number that can be set, with what it is by default.
    pub(crate) fn defaults() -> serde_json::Value {
        let mut all = Config::default();
        let keys = ranges::RANGES.iter().filter_map(|(key, ..)| key.strip_prefix("cluster."));
        let mut limits = ClusterLimits::default();
        all.cluster.extend(keys.filter_map(|key| Some((key.to_owned(), *limits.threshold(key)?))));
        serde_json::to_value(all).expect("plain numbers")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_defaults() {
        assert_eq!(Config::parse("").expect("valid"), Config::default());
    }

    #[test]
    fn a_threshold_is_taken_over() {
        let config = Config::parse("limits:\n  conntrackNearFullPercent: 70\n").expect("valid");
        assert_eq!(config.limits.conntrack_near_full_percent, 70);
        assert_eq!(config.limits.conntrack_full_percent, Limits::default().conntrack_full_percent);
    }

    #[test]
    fn a_hold_down_is_taken_over_and_a_code_that_is_none_is_named() {
        let config = Config::parse("holdDownSeconds:\n  PodRouteMissing: 0.5\n").expect("valid");
        assert_eq!(config.patience().raise, BTreeMap::from([("PodRouteMissing", Duration::from_millis(500))]));
        let config = Config::parse("clearSeconds: {DiskFull: 5}\nsettlingSeconds: 60\n").expect("valid");
        assert_eq!(config.patience().clear, BTreeMap::from([("DiskFull", Duration::from_secs(5))]));
        assert_eq!(config.patience().settling, Duration::from_secs(60));
        assert!(Config::parse("clearSeconds: {DiskFul: 5}").is_err() && Config::parse("settlingSeconds: -1").is_err());
        for (text, named) in [("{PodRuteMissing: 1}", "PodRuteMissing"), ("{PodRouteMissing: -1}", "PodRouteMissing")] {
            let error = Config::parse(&format!("holdDownSeconds: {text}")).expect_err("refused").to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = format!("{:#}", Config::parse("limits:\n  conntrakNearFull: 70\n").expect_err("unknown"));
        assert!(error.contains("conntrakNearFull"), "{error}");
        let error = format!("{:#}", Config::parse("limits: [\n").expect_err("no YAML"));
        assert!(error.contains("line"), "{error}");
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        for text in [
            "limits: {conntrackNearFullPercent: 99}",
            "limits: {fullPercent: 200}",
            "limits: {imminentMinutes: -1}",
            "limits: {ephemeralPortsPercent: 0}",
            "events: {clusterPerSecond: 0}",
            "events: {perHour: -1}",
            "events: {perMinute: 1}",
            "cluster: {routineSeconds: 600}",
            "cluster: {recurrenceDays: 3}",
            "cluster: {routineSeconds: 90.5}",
        ] {
            assert!(Config::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_number_out_of_its_range_is_named_with_it() {
        for (key, least, most) in ranges::RANGES {
            let mut at = key.rsplit('.');
            let (name, group) = (at.next().expect("a name"), at.next());
            let file = |value: f64| match group {
                Some(group) => format!("{group}: {{{name}: {value}}}"),
                None => format!("{name}: {value}"),
            };
            for value in [least - 1.0, most + 1.0] {
                let error = Config::parse(&file(value)).expect_err("refused").to_string();
                assert_eq!(error, format!("{key} ({value}) must be between {least} and {most}"));
            }
        }
    }

    #[test]
    fn every_number_has_a_range_that_its_default_is_in() {
        let defaults = Config::defaults();
        for (key, least, most) in ranges::RANGES {
            let value = ranges::number(&defaults, key).unwrap_or_else(|| panic!("{key} is no key"));
            assert!((*least..=*most).contains(&value), "{key}");
        }
        let groups = defaults.as_object().expect("an object");
        let keys: usize =
            groups.values().map(|it| it.as_object().map_or(usize::from(it.is_number()), serde_json::Map::len)).sum();
        assert_eq!(ranges::RANGES.len(), keys);
    }

    #[test]
    fn agents_and_aggregator_have_thresholds_in_common() {
        let config =
            Config::parse("limits: {recurrenceDays: 3, statusWriteSeconds: 4}\nsettlingSeconds: 60\n").expect("valid");
        let cluster = config.cluster();
        assert_eq!((cluster.recurrence_days, cluster.status_write_seconds, cluster.settling_seconds), (3, 4, 60));
        assert_eq!(config.patience().recurs_within, SignedDuration::from_hours(72));
        assert_eq!(Config::default().cluster(), ClusterLimits::default());
        let config = Config::parse("cluster: {fewWorkers: 3, mostPercent: 60}").expect("valid");
        let expected = ClusterLimits { few_workers: 3, most_percent: 60, ..ClusterLimits::default() };
        assert_eq!(config.cluster(), expected);
        let error = Config::parse("cluster: {fewWorker: 3}").expect_err("unknown").to_string();
        assert!(error.contains("there is no key fewWorker"), "{error}");
    }

    #[test]
    fn a_directory_is_not_a_configuration() {
        let error = Config::load(Some(Path::new("/"))).expect_err("a directory").to_string();
        assert!(error.contains("configuration file /"), "{error}");
    }
}
