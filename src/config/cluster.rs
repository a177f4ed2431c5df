//! Thresholds of what only the aggregator sees.

use std::time::Duration;

/// From when on something is wrong with the cluster. All can be set in the configuration file under `cluster`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterLimits {
    /// `NetworkUnavailable` may be True, and a Pod of Calico not Ready, for so many seconds in a routine update (catalogue H1).
    pub routine_seconds: u32,
    /// After so many seconds `NetworkUnavailable` is critical (H1).
    pub critical_seconds: u32,
    /// A Pod of Calico that is not Ready and was started again so often fails, however short it has been so (H2) ...
    pub calico_restarts: u32,
    /// ... within so many minutes.
    pub calico_restart_minutes: u32,
    /// A kubelet that the control plane calls silent, which it does after 40 to 50 s of its own (H3), is gone after so many
    /// seconds more.
    pub kubelet_grace_seconds: u32,
    /// An agent without a Ready Pod for so many seconds is gone.
    pub agent_grace_seconds: u32,
    /// A kubelet that turned Ready, or not, so often comes and goes (H4) ...
    pub ready_turns: u32,
    /// ... within so many minutes.
    pub ready_turn_minutes: u32,
    /// What is stale in Calico for so many minutes, such as an address of a node that is gone, is left over (H8).
    pub stale_minutes: u32,
    /// calico-kube-controllers may be absent for so many minutes (H10).
    pub controllers_absent_minutes: u32,
    /// What calico-kube-controllers cleans up is gone after so many minutes: its grace of 15, and the round that follows.
    pub cleanup_minutes: u32,
    /// A move of Calico to calico-system that has not gone on for so many minutes does not go on.
    pub migration_minutes: u32,
    /// The control plane may be put together anew for so many minutes after its version changed (H6).
    pub master_update_minutes: u32,
    /// A worker that is rebooted, reloaded or new may be not Ready for so many minutes (H5).
    pub transit_minutes: u32,
    /// Metrics that were collected regularly for twice as long, and are not for so many seconds, are not collected any more (R179).
    pub scrape_silence_seconds: u32,
    /// What fails so often comes back (H13) ...
    pub recurrences: u32,
    /// So many workers are few, however small the cluster is (H15).
    pub few_workers: u32,
    /// So many percent are few (H15).
    pub few_percent: u32,
    /// So many percent are most (H15).
    pub most_percent: u32,
    /// ... within so many days: `limits.recurrenceDays` (H13).
    pub recurrence_days: u32,
    /// Clients of Node status give up after so many seconds: `limits.statusWriteSeconds` (H11).
    pub status_write_seconds: u32,
    /// A new node is left so many seconds: `settlingSeconds` (H12).
    pub settling_seconds: u32,
}

impl Default for ClusterLimits {
    fn default() -> Self {
        ClusterLimits {
            routine_seconds: 120,
            critical_seconds: 600,
            calico_restarts: 2,
            calico_restart_minutes: 10,
            kubelet_grace_seconds: 20,
            agent_grace_seconds: 40,
            ready_turns: 3,
            ready_turn_minutes: 60,
            stale_minutes: 10,
            controllers_absent_minutes: 15,
            cleanup_minutes: 30,
            migration_minutes: 60,
            master_update_minutes: 45,
            transit_minutes: 20,
            scrape_silence_seconds: 300,
            recurrences: 2,
            few_workers: 2,
            few_percent: 10,
            most_percent: 80,
            recurrence_days: 7,
            status_write_seconds: 2,
            settling_seconds: 600,
        }
    }
}

impl ClusterLimits {
    /// The threshold of a key of `cluster`: a table of names is a fraction of the code of a derived reader.
    pub(crate) fn threshold(&mut self, key: &str) -> Option<&mut u32> {
        Some(match key {
            "routineSeconds" => &mut self.routine_seconds,
            "criticalSeconds" => &mut self.critical_seconds,
            "calicoRestarts" => &mut self.calico_restarts,
            "calicoRestartMinutes" => &mut self.calico_restart_minutes,
            "kubeletGraceSeconds" => &mut self.kubelet_grace_seconds,
            "agentGraceSeconds" => &mut self.agent_grace_seconds,
            "readyTurns" => &mut self.ready_turns,
            "readyTurnMinutes" => &mut self.ready_turn_minutes,
            "staleMinutes" => &mut self.stale_minutes,
            "controllersAbsentMinutes" => &mut self.controllers_absent_minutes,
            "cleanupMinutes" => &mut self.cleanup_minutes,
            "migrationMinutes" => &mut self.migration_minutes,
            "masterUpdateMinutes" => &mut self.master_update_minutes,
            "transitMinutes" => &mut self.transit_minutes,
            "scrapeSilenceSeconds" => &mut self.scrape_silence_seconds,
            "recurrences" => &mut self.recurrences,
            "fewWorkers" => &mut self.few_workers,
            "fewPercent" => &mut self.few_percent,
            "mostPercent" => &mut self.most_percent,
            _ => return None,
        })
    }

    /// A routine update, in seconds.
    pub(crate) fn routine(&self) -> i64 {
        self.routine_seconds.into()
    }

    /// Within this time, in seconds, restarts of a Pod of Calico count together.
    pub(crate) fn calico_window(&self) -> i64 {
        i64::from(self.calico_restart_minutes) * 60
    }

    /// Within this time, in seconds, turns of a kubelet count together.
    pub(crate) fn turns_window(&self) -> i64 {
        i64::from(self.ready_turn_minutes) * 60
    }

    /// Who collected metrics and has not come for so long is missed.
    pub(crate) fn scrape_silence(&self) -> Duration {
        Duration::from_secs(self.scrape_silence_seconds.into())
    }

    /// Whoever cleans up has done so after this time, in seconds.
    pub(crate) fn cleanup(&self) -> i64 {
        i64::from(self.cleanup_minutes) * 60
    }

    /// An update of the control plane, in seconds.
    pub(crate) fn master_update(&self) -> i64 {
        i64::from(self.master_update_minutes) * 60
    }

    /// What is left over for so long, in seconds, is not about to go.
    pub(crate) fn stale(&self) -> i64 {
        i64::from(self.stale_minutes) * 60
    }
}
