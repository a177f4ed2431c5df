//! The containers of static pods: asked for sandbox by sandbox, once a minute, since a worker has few of them.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::{CALLS, CONTAINERS, CriSource, messages};
use crate::facts::{StaticContainer, StaticContainers, StaticPod};

/// A sandbox is asked again after this time.
const AGAIN: Duration = Duration::from_secs(60);
/// So many are asked in one look, which has other things to ask.
const AT_ONCE: usize = 4;
/// So many containers of a pod are told: more than any has, and the ended one of each.
const MOST: usize = 64;

/// The static pods that there should be, and what the runtime has of them.
#[derive(Debug, Default)]
pub(super) struct Watched {
    pods: Vec<StaticPod>,
    node: Option<String>,
    /// When each sandbox was asked, and its answer, if it was one.
    asked: Vec<(Instant, String, Option<Vec<StaticContainer>>)>,
}

impl Watched {
    /// What the runtime told last.
    pub(super) fn told(&self) -> Vec<StaticContainers> {
        let told = self.asked.iter().filter_map(|(_, sandbox, containers)| {
            Some(StaticContainers { sandbox: sandbox.clone(), containers: containers.clone()? })
        });
        told.collect()
    }

    /// The sandboxes of static pods.
    fn sandboxes<'a>(&self, items: &'a [messages::PodSandbox]) -> Vec<&'a str> {
        let node = self.node.as_deref();
        let is_one = |item: &&messages::PodSandbox| {
            let told = item.metadata.as_ref();
            told.is_some_and(|told| self.pods.iter().any(|pod| pod.is(&told.namespace, &told.name, node)))
        };
        items.iter().filter(is_one).map(|item| item.id.as_str()).collect()
    }
}

impl CriSource {
    /// Has the containers of these static pods asked for, on the node of this name.
    pub(crate) fn watch_static_pods<'a>(&mut self, pods: impl Iterator<Item = &'a StaticPod>, node: Option<&str>) {
        self.watched.pods = pods.cloned().collect();
        self.watched.node = node.map(str::to_owned);
    }

    /// Asks for the containers of static pods, if it is time to. May be cancelled: who was being asked then is asked later.
    pub(super) async fn look_at_static_pods(&mut self, connection: &Connection, items: &[messages::PodSandbox]) {
        let sandboxes = self.watched.sandboxes(items);
        self.watched.asked.retain(|(at, sandbox, _)| at.elapsed() < AGAIN && sandboxes.contains(&sandbox.as_str()));
        let known = |id: &&str| self.watched.asked.iter().any(|(_, sandbox, _)| sandbox == id);
        let due: Vec<&str> = sandboxes.into_iter().filter(|id| !known(id)).take(AT_ONCE).collect();
        for id in due {
            if self.meter.count() >= CALLS {
                return;
            }
            let filter = messages::ContainerFilter { state: None, pod_sandbox_id: id.to_owned() };
            let request = messages::ListContainersRequest { filter: Some(filter) };
            self.watched.asked.push((Instant::now(), id.to_owned(), None));
            match connection.call::<_, messages::ListAllContainersResponse>(CONTAINERS, request).await {
                Ok(answer) => {
                    if let Some((_, _, told)) = self.watched.asked.last_mut() {
                        *told = Some(read(id, answer.containers));
                    }
                }
                Err(error) => tracing::debug!(%error, sandbox = id, "the containers of a static pod are not told"),
            }
        }
    }
}

/// The containers of a sandbox in an answer, by name, the last one of each first.
fn read(sandbox: &str, containers: Vec<messages::NamedContainer>) -> Vec<StaticContainer> {
    let containers = containers.into_iter().filter(|container| container.pod_sandbox_id == sandbox);
    let containers = containers.filter_map(|container| {
        let messages::ContainerMetadata { name, attempt } = container.metadata?;
        let running = container.state == messages::RUNNING;
        Some(StaticContainer { name, attempt, running, created_at: container.created_at })
    });
    let mut containers: Vec<StaticContainer> = containers.collect();
    containers.sort_by(|a, b| (&a.name, Reverse(a.attempt)).cmp(&(&b.name, Reverse(b.attempt))));
    containers.truncate(MOST);
    containers
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(answer: messages::ListAllContainersResponse) {
    let sandbox = answer.containers.first().map(|one| one.pod_sandbox_id.clone()).unwrap_or_default();
    assert!(read(&sandbox, answer.containers).len() <= MOST);
}
