//! What is wrong with the cluster, as it was judged last. To judge it all workers are looked at, so that it costs more the more
//! there are, and the report, metrics, Events and what is remembered all need it: they share one judgement. Pure.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};

use super::around::{self, Judgement, dated};
use super::build::view;
use super::{CannotLook, ClusterFinding};
use crate::aggregator::cluster::{Cluster, Shown};

/// A judgement is good for so long if nothing has changed but the time, by which alone some of it begins and ends: for who waits
/// for an answer.
const ASKED: SignedDuration = SignedDuration::from_secs(15);
/// The same, for what goes on while nobody looks.
const UNASKED: SignedDuration = SignedDuration::from_secs(60);

/// The last one.
#[derive(Debug, Default)]
pub(in crate::aggregator) struct LastJudgement {
    /// Of what, and when.
    made: Option<(Shown, Timestamp)>,
    /// Before it is known when they were noticed.
    judgement: Judgement,
}

impl LastJudgement {
    /// What is wrong with the cluster, and what of it could not be looked at, for what goes on while nobody looks; none while
    /// the cluster cannot be seen.
    pub(in crate::aggregator) fn of_cluster(
        &mut self,
        cluster: &Cluster,
        now: Timestamp,
    ) -> Option<(Vec<ClusterFinding>, Vec<CannotLook>)> {
        let view = view(cluster, now);
        view.complete.then(|| (self.get(cluster, &cluster.duplicates(), now, UNASKED).0, view.cannot_look))
    }

    /// What is wrong, for who waits for an answer, the worst first.
    pub(super) fn asked(&mut self, cluster: &Cluster, duplicates: &HashMap<&str, &str>, now: Timestamp) -> Judgement {
        self.get(cluster, duplicates, now, ASKED)
    }

    fn get(
        &mut self,
        cluster: &Cluster,
        duplicates: &HashMap<&str, &str>,
        now: Timestamp,
        unchanged: SignedDuration,
    ) -> Judgement {
        let shown = cluster.shown();
        // A clock that was set back must not make it good for longer.
        let good = |(of, at): &(Shown, Timestamp)| *of == shown && now.duration_since(*at).abs() < unchanged;
        if !self.made.as_ref().is_some_and(good) {
            self.judgement = around::judged(cluster, duplicates, None, now);
            self.made = Some((shown, now));
        }
        let (findings, more, without_calico) = self.judgement.clone();
        (dated(findings, cluster), more, without_calico)
    }
}
