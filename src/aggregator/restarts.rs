//! When the kubelet and the container runtime of a worker were started, and whether anew (catalogue R116): an update of either starts
//! it anew, also one that was made before this process ran, of which nothing else is left. A restart need not be an update. Pure.

use jiff::Timestamp;

/// What starts so soon after the worker booted or joined, in seconds, starts with it.
const WITH_IT: i64 = 600;

/// When they were, in seconds since the epoch; 0 where nobody knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Restarts {
    kubelet: u32,
    runtime: u32,
    /// What started before that started with the worker; the end of time where it is not known when that began.
    anew: u32,
}

impl Restarts {
    /// Reads `started=KUBELET.RUNTIME`, as an agent says it of a worker that booted and joined then.
    pub(super) fn told(query: &str, booted: Option<Timestamp>, joined: Option<Timestamp>, now: Timestamp) -> Restarts {
        let told = query.split('&').find_map(|part| part.strip_prefix("started=")?.split_once('.'));
        let Some((kubelet, runtime)) = told else { return Restarts::default() };
        let begun = booted.map(|booted| joined.map_or(booted, |joined| joined.max(booted)).as_second());
        let anew = begun.and_then(|begun| u32::try_from(begun + WITH_IT).ok()).unwrap_or(u32::MAX);
        let read =
            |text: &str| text.parse().ok().filter(|second: &u32| i64::from(*second) <= now.as_second()).unwrap_or(0);
        Restarts { kubelet: read(kubelet), runtime: read(runtime), anew }
    }

    /// When the kubelet was started.
    pub(crate) fn kubelet_started(self) -> Option<Timestamp> {
        time(self.kubelet)
    }

    /// When the runtime was started.
    pub(crate) fn runtime_started(self) -> Option<Timestamp> {
        time(self.runtime)
    }

    /// When the kubelet was started anew, if it did not start with the worker.
    pub(crate) fn kubelet(self) -> Option<Timestamp> {
        time(self.kubelet).filter(|_| self.kubelet >= self.anew)
    }

    /// The same of the runtime.
    pub(crate) fn runtime(self) -> Option<Timestamp> {
        time(self.runtime).filter(|_| self.runtime >= self.anew)
    }
}

fn time(second: u32) -> Option<Timestamp> {
    (second > 0).then(|| Timestamp::from_second(second.into()).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregator::testing::at;

    fn told(query: &str, booted: Option<i64>, joined: i64) -> [Option<Timestamp>; 2] {
        let restarts = Restarts::told(query, booted.map(at), Some(at(joined)), at(0));
        [restarts.kubelet(), restarts.runtime()]
    }

    fn says(kubelet: i64, runtime: i64) -> String {
        format!("node=a&started={}.{}&boot=7", at(kubelet).as_second(), at(runtime).as_second())
    }

    #[test]
    fn what_starts_long_after_the_worker_is_started_anew() {
        assert_eq!(told(&says(-60, -90), Some(-7_200), -86_400), [Some(at(-60)), Some(at(-90))]);
        assert_eq!(
            told(&says(-60, -7_100), Some(-7_200), -86_400),
            [Some(at(-60)), None],
            "it started with the worker"
        );
        assert_eq!(told(&says(-6_600, -6_601), Some(-7_200), -86_400), [Some(at(-6_600)), None]);
    }

    #[test]
    fn what_starts_with_a_worker_that_is_new_or_is_not_known_is_not() {
        assert_eq!(told(&says(-60, -90), Some(-7_200), -300), [None, None], "it has just joined");
        assert_eq!(told(&says(-60, -90), None, -86_400), [None, None], "nobody knows when it booted");
        assert_eq!(told(&says(10, -90), Some(-7_200), -86_400), [None, Some(at(-90))], "a clock that is ahead");
        let bad = ["", "started=", "started=5", "started=0.0", "started=x.y", "started=-5.99999999999", "xstarted=5.5"];
        for bad in bad {
            assert_eq!(told(bad, Some(-7_200), -86_400), [None, None], "{bad}");
        }
    }

    #[test]
    fn what_started_with_the_worker_started_all_the_same() {
        let started = |query: &str, booted: Option<i64>| {
            let restarts = Restarts::told(query, booted.map(at), Some(at(-86_400)), at(0));
            [restarts.kubelet_started(), restarts.runtime_started()]
        };
        for booted in [Some(-7_200), None] {
            assert_eq!(started(&says(-60, -7_100), booted), [Some(at(-60)), Some(at(-7_100))]);
        }
        assert_eq!(started(&says(10, -60), None), [None, Some(at(-60))], "a clock that is ahead");
        assert_eq!(started("started=0.5", None), [None, Timestamp::from_second(5).ok()], "the kubelet does not run");
        assert_eq!(started("node=a", None), [None, None]);
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_told_is_no_time_to_come(text in "[0-9.&=started-]{0,40}") {
            for restart in told(&format!("started={text}"), Some(-7_200), -86_400).into_iter().flatten() {
                assert!(restart <= at(0) && restart >= at(-6_600));
            }
        }
    }
}
