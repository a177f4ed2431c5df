//! When the kubelet and the container runtime of a worker were started anew (catalogue R116): an update of either starts it anew,
//! also one that was made before this process ran, of which nothing else is left. A restart need not be an update. Pure.

use jiff::Timestamp;

/// What starts so soon after the worker booted or joined, in seconds, starts with it.
const WITH_IT: i64 = 600;

/// When they were, in seconds since the epoch; 0 where they started with the worker, or nobody knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Restarts {
    kubelet: u32,
    runtime: u32,
}

impl Restarts {
    /// Reads `started=KUBELET.RUNTIME`, as an agent says it of a worker that booted and joined then.
    pub(super) fn told(query: &str, booted: Option<Timestamp>, joined: Option<Timestamp>, now: Timestamp) -> Restarts {
        let told = query.split('&').find_map(|part| part.strip_prefix("started=")?.split_once('.'));
        let (Some((kubelet, runtime)), Some(booted)) = (told, booted) else { return Restarts::default() };
        let begun = joined.map_or(booted, |joined| joined.max(booted)).as_second();
        let anew = |second: &u32| (begun + WITH_IT..=now.as_second()).contains(&i64::from(*second));
        let read = |text: &str| text.parse().ok().filter(anew).unwrap_or(0);
        Restarts { kubelet: read(kubelet), runtime: read(runtime) }
    }

    /// When the kubelet was.
    pub(crate) fn kubelet(self) -> Option<Timestamp> {
        time(self.kubelet)
    }

    /// When the runtime was.
    pub(crate) fn runtime(self) -> Option<Timestamp> {
        time(self.runtime)
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

    proptest::proptest! {
        #[test]
        fn whatever_is_told_is_no_time_to_come(text in "[0-9.&=started-]{0,40}") {
            for restart in told(&format!("started={text}"), Some(-7_200), -86_400).into_iter().flatten() {
                assert!(restart <= at(0) && restart >= at(-6_600));
            }
        }
    }
}
