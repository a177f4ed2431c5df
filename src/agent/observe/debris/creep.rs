//! Resources that grow for hours while the pods become no more.

use std::collections::VecDeque;
use std::time::Duration;

use crate::facts::{Growing, Memo, Program, Resource};

/// Samples are kept this far apart,
const SPACING: Duration = Duration::from_secs(3600);
/// for so long.
const DAY: usize = 24;
/// What has grown has to have grown for so many samples: use that comes and goes is no leak.
const LASTING: usize = 3;
/// Growth shows after so many samples.
const ENOUGH: usize = 6;

/// What each resource was, hour by hour, for a day.
#[derive(Debug, Default)]
pub(super) struct Creep {
    at: Option<Duration>,
    resources: Vec<Samples>,
}

#[derive(Debug)]
struct Samples {
    resource: Resource,
    /// The process: another one begins anew.
    of: i32,
    /// Pods and value.
    hours: VecDeque<(u64, u64)>,
}

impl Creep {
    /// Takes the resources, each with the process that has it, at `now` with so many pods.
    pub(super) fn push(&mut self, now: Duration, pods: u64, resources: &[(Resource, i32, u64)]) {
        if self.at.is_some_and(|at| now.saturating_sub(at) < SPACING) {
            return;
        }
        self.at = Some(now);
        self.resources.retain(|samples| resources.iter().any(|(resource, of, _)| samples.is_of(*resource, *of)));
        for (resource, of, value) in resources {
            let known = self.resources.iter().position(|samples| samples.is_of(*resource, *of));
            let at = known.unwrap_or_else(|| {
                self.resources.push(Samples { resource: *resource, of: *of, hours: VecDeque::new() });
                self.resources.len() - 1
            });
            let hours = &mut self.resources[at].hours;
            hours.push_back((pods, *value));
            if hours.len() > DAY {
                hours.pop_front();
            }
        }
    }

    /// Goes on from what [`Creep::memo`] answered to an earlier process in this boot.
    pub(super) fn know(&mut self, memo: &Memo) {
        let programs = [Program::Kubelet, Program::Containerd, Program::Crio];
        let of = programs.map(|it| [Resource::Descriptors(it), Resource::Threads(it), Resource::Memory(it)]);
        for resource in [Resource::Cgroups, Resource::Mounts].into_iter().chain(of.into_iter().flatten()) {
            let Some([at, of, hours @ ..]) = memo.0.get(&resource.to_string()).map(Vec::as_slice) else { continue };
            self.at = self.at.max(Some(Duration::from_secs(*at)));
            let hours = hours.chunks_exact(2).take(DAY).map(|pair| (pair[0], pair[1])).collect();
            self.resources.push(Samples { resource, of: i32::try_from(*of).unwrap_or(0), hours });
        }
    }

    /// Everything by the resource's name: when the last sample was taken, the process, then pods and value in turns.
    pub(super) fn memo(&self) -> Memo {
        let at = self.at.map_or(0, |at| at.as_secs());
        let mut memo = Memo::default();
        for Samples { resource, of, hours } in &self.resources {
            let mut numbers = vec![at, u64::from(of.unsigned_abs())];
            numbers.extend(hours.iter().flat_map(|(pods, value)| [*pods, *value]));
            memo.0.insert(resource.to_string(), numbers);
        }
        memo
    }

    /// Those that have grown.
    pub(super) fn growing(&self) -> Vec<Growing> {
        self.resources.iter().filter_map(Samples::growing).collect()
    }
}

impl Samples {
    fn is_of(&self, resource: Resource, of: i32) -> bool {
        self.resource == resource && self.of == of
    }

    /// Whether it is twice of what it was and a good deal more, with no more pods than then. The first sample is left out: a
    /// program that has just been started is small.
    fn growing(&self) -> Option<Growing> {
        if self.hours.len() < ENOUGH {
            return None;
        }
        let (pods_then, was) = *self.hours.get(1)?;
        let last = || self.hours.iter().rev().take(LASTING);
        let now = last().map(|(_, value)| *value).min()?;
        let pods = last().map(|(pods, _)| *pods).max()?;
        let as_many_pods = pods <= pods_then + (pods_then / 4).max(5);
        let much = now >= was.saturating_mul(2) && now - was >= least(self.resource);
        let hours = self.hours.len() as u64 - 2;
        (as_many_pods && much).then_some(Growing { resource: self.resource, was, now, hours })
    }
}

/// Growth that matters at all (own numbers).
fn least(resource: Resource) -> u64 {
    match resource {
        Resource::Cgroups | Resource::Mounts | Resource::Descriptors(_) => 1000,
        Resource::Threads(_) => 500,
        Resource::Memory(_) => 512,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: Resource = Resource::Descriptors(Program::Containerd);

    fn after(hours: &[(u64, i32, u64)]) -> Vec<Growing> {
        let mut creep = Creep::default();
        for (hour, (pods, of, value)) in (0..).zip(hours) {
            creep.push(Duration::from_secs(hour * 3600), *pods, &[(FILES, *of, *value)]);
        }
        creep.growing()
    }

    fn steps(values: &[u64]) -> Vec<(u64, i32, u64)> {
        values.iter().map(|value| (50, 7, *value)).collect()
    }

    #[test]
    fn what_doubles_and_stays_while_pods_do_not_become_more() {
        let leak = after(&steps(&[40, 600, 900, 1200, 1700, 1800, 1900]));
        assert_eq!(leak, [Growing { resource: FILES, was: 600, now: 1700, hours: 5 }]);
        assert_eq!(after(&steps(&[40, 600, 900, 1200, 1700, 1800, 700])), [], "given back");
        assert_eq!(after(&steps(&[40, 600, 600, 600, 600, 5000, 5000])), [], "two hours are no trend");
        assert_eq!(after(&steps(&[4, 10, 20, 40, 80, 160, 320])), [], "not much");
        assert_eq!(after(&steps(&[40, 600, 900, 1900, 1900])), [], "not watched for long enough");
    }

    #[test]
    fn more_pods_use_more_and_another_process_begins_anew() {
        let mut hours = steps(&[40, 600, 900, 1200, 1700, 1800, 1900]);
        hours[6].0 = 100;
        assert_eq!(after(&hours), []);
        let mut hours = steps(&[40, 600, 900, 1200, 1700, 1800, 1900]);
        hours[4].1 = 8;
        assert_eq!(after(&hours), []);
    }

    #[test]
    fn a_process_of_the_agent_goes_on_from_the_one_before() {
        let values = [40, 600, 900, 1200, 1700, 1800, 1900];
        let mut creep = Creep::default();
        for (hour, value) in (0..).zip(values) {
            // Another process of the agent for each sample, and one that is started between two.
            let before = std::mem::take(&mut creep);
            creep.know(&before.memo());
            creep.push(Duration::from_secs(hour * 3600), 50, &[(FILES, 7, value)]);
            let before = std::mem::take(&mut creep);
            creep.know(&before.memo());
            creep.push(Duration::from_secs(hour * 3600 + 60), 50, &[(FILES, 7, 1)]);
            assert_eq!(creep.memo(), before.memo(), "an hour apart, whoever takes them");
        }
        let before = creep.memo();
        let mut creep = Creep::default();
        creep.know(&before);
        assert_eq!(creep.growing(), [Growing { resource: FILES, was: 600, now: 1700, hours: 5 }], "at once");
        creep.push(Duration::from_secs(7 * 3600), 50, &[(FILES, 7, 2000)]);
        assert_eq!(creep.growing(), [Growing { resource: FILES, was: 600, now: 1800, hours: 6 }]);
        let mut other = Creep::default();
        other.know(&before);
        other.push(Duration::from_secs(7 * 3600), 50, &[(FILES, 8, 2000)]);
        assert_eq!(other.resources[0].hours.len(), 1, "another process of containerd");
        for odd in [&[][..], &[1], &[1, 7], &[1, 7, 3], &[u64::MAX; 99]] {
            let mut creep = Creep::default();
            creep.know(&Memo([(FILES.to_string(), odd.to_vec())].into()));
            creep.push(Duration::from_secs(9000), 5, &[(FILES, 7, 2)]);
            assert!(creep.resources.iter().all(|samples| samples.hours.len() <= DAY), "{odd:?}");
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut creep = Creep::default();
        for hour in 0..1000 {
            creep.push(Duration::from_secs(hour * 3600), 1, &[(FILES, i32::try_from(hour / 100).expect("small"), 1)]);
        }
        assert_eq!((creep.resources.len(), creep.resources[0].hours.len()), (1, DAY));
    }
}
