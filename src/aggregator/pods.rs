//! The Pods of Calico and of the tunnel from the control plane, pruned to how they are.

use std::sync::Arc;

use jiff::Timestamp;

use super::model::APP;
use super::object::{ContainerView, ObjectView, Phase};
use super::row::clipped;
use super::small::{Name, Texts, Time};
use crate::config::ClusterLimits;

/// Where Typha listens (facts.md C.11).
const TYPHA_PORT: u16 = 5473;
/// Words of a container that failed: its last line is enough.
const LONGEST_WORDS: usize = 300;

/// Of what it is a Pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum App {
    /// calico-node
    Node,
    /// calico-kube-controllers
    Controllers,
    /// calico-typha
    Typha,
    /// konnectivity-agent, or the client of a VPN
    Tunnel,
}

/// A Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CalicoPod {
    /// Of what.
    pub(crate) app: App,
    /// Its namespace and name.
    pub(crate) name: Name,
    /// Its node; empty while it has none.
    pub(crate) node: Arc<str>,
    /// Its service account.
    pub(crate) account: Arc<str>,
    /// When it was made.
    pub(crate) created: Time,
    /// The tag of its image.
    pub(crate) version: Arc<str>,
    /// Whether it is Ready.
    pub(crate) ready: bool,
    /// Since when it is, or is not.
    pub(crate) since: Time,
    /// How often its containers were started again.
    pub(crate) restarts: u32,
    /// When the restarts that count together began, and how many there had been before.
    rise: (Time, u32),
    /// It is started again and again, says the kubelet.
    pub(crate) looping: bool,
    /// Its memory was at its limit when it ended last.
    pub(crate) out_of_memory: Time,
    /// Where it listens, if it is one of Typha's and that is not the usual port.
    pub(crate) port: Option<u16>,
    /// What keeps it from starting.
    pub(crate) failed: Option<Box<InitFailure>>,
}

/// An init container that failed and has not succeeded since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InitFailure {
    /// Its name.
    pub(crate) container: Box<str>,
    /// What is said of it.
    pub(crate) words: Box<str>,
    /// When it failed last.
    pub(crate) at: Option<Timestamp>,
}

impl CalicoPod {
    /// What is kept of one, which is of `unnamed` where its label `k8s-app` does not say. A Pod of calico-node without a node says nothing about any.
    pub(super) fn read(object: &ObjectView, unnamed: App, texts: &mut Texts) -> Option<CalicoPod> {
        let (meta, spec, status) = (&object.metadata, &object.spec, &object.status);
        // Who asks selects by this label.
        let app = match meta.labels.get(APP) {
            Some("calico-node") => App::Node,
            Some("calico-kube-controllers") => App::Controllers,
            Some("calico-typha") => App::Typha,
            Some("konnectivity-agent") => App::Tunnel,
            Some(_) if unnamed == App::Node => return None,
            _ => unnamed,
        };
        let ended = matches!(status.phase.as_str(), "Succeeded" | "Failed") && app != App::Node;
        if meta.deletion_timestamp.is_some() || ended || (app == App::Node && spec.node_name.is_empty()) {
            return None;
        }
        let account = if spec.service_account_name.is_empty() { "default" } else { &spec.service_account_name };
        let condition = status.conditions.iter().find(|condition| condition.kind == "Ready");
        let containers = &status.container_statuses;
        let waits = |container: &ContainerView| {
            container.state.waiting.as_ref().is_some_and(|it| it.reason == "CrashLoopBackOff")
        };
        let oom = |container: &ContainerView| {
            let ends = [&container.state.terminated, &container.last_state.terminated];
            ends.into_iter().flatten().filter(|end| end.reason == "OOMKilled").filter_map(|end| end.finished_at).max()
        };
        Some(CalicoPod {
            app,
            name: Name::new(&meta.namespace, &meta.name),
            node: texts.get(&spec.node_name),
            account: texts.get(account),
            created: meta.creation_timestamp.into(),
            version: texts.get(tag(containers)),
            ready: condition.is_some_and(|ready| ready.status == "True"),
            since: condition.and_then(|ready| ready.last_transition_time).or(meta.creation_timestamp).into(),
            restarts: containers.iter().map(|container| container.restarts).sum(),
            rise: (Time::default(), 0),
            looping: containers.iter().any(waits),
            out_of_memory: containers.iter().filter_map(oom).max().into(),
            port: spec.typha_port.filter(|port| app == App::Typha && *port != TYPHA_PORT),
            failed: status.init_container_statuses.iter().find_map(failure).map(Box::new),
        })
    }

    /// What is seen only by comparing it with how it was before.
    pub(super) fn goes_on_from(&mut self, before: &CalicoPod, limits: &ClusterLimits, now: Timestamp) {
        let young = |begun: Timestamp| now.as_second() - begun.as_second() <= limits.calico_window();
        let begins = self.restarts > before.restarts && !before.rise.0.get().is_some_and(young);
        self.rise = if begins { (now.into(), before.restarts) } else { before.rise };
    }

    /// Whether it is not Ready and was started again too often within a short time (catalogue H2: this beats time).
    pub(crate) fn keeps_failing(&self, limits: &ClusterLimits, now: Timestamp) -> bool {
        let (begun, before) = self.rise;
        let risen = |begun: Timestamp| {
            self.restarts.saturating_sub(before) >= limits.calico_restarts
                && now.as_second() - begun.as_second() <= limits.calico_window()
        };
        !self.ready && (self.looping && self.restarts >= limits.calico_restarts || begun.get().is_some_and(risen))
    }

    /// Whether it is started again and again, or not Ready for longer than in an update.
    pub(crate) fn is_bad(&self, limits: &ClusterLimits, now: Timestamp) -> bool {
        self.keeps_failing(limits, now) || self.unready_for(limits.routine(), now)
    }

    /// Whether it is one of calico-kube-controllers that was well until now: Ready for longer than one that ends anew is.
    pub(super) fn well_until(&self, limits: &ClusterLimits, now: Timestamp) -> bool {
        let long = |since: Timestamp| now.as_second() - since.as_second() >= limits.routine();
        self.app == App::Controllers && self.ready && self.since.get().is_some_and(long)
    }

    /// Whether it has not been Ready for this many seconds.
    pub(crate) fn unready_for(&self, seconds: i64, now: Timestamp) -> bool {
        !self.ready && self.since.get().is_none_or(|since| now.as_second() - since.as_second() >= seconds)
    }
}

/// The version in the first container's image: `v3.27.0` of `registry:5000/calico/node:v3.27.0@sha256:...`.
fn tag(containers: &[ContainerView]) -> &str {
    let image = containers.first().map_or("", |container| container.image.as_str());
    let name = image.split('@').next().unwrap_or_default();
    name.rsplit('/').next().and_then(|last| last.split_once(':')).map_or("", |(_, tag)| clipped(tag))
}

/// What keeps an init container from having succeeded, if it has failed.
fn failure(container: &ContainerView) -> Option<InitFailure> {
    let failed = |phase: &Option<Phase>| phase.clone().filter(|phase| phase.exit_code != Some(0));
    let state = &container.state;
    let before = failed(&container.last_state.terminated);
    let (words, at) = match (&state.waiting, &state.terminated) {
        // It has done its work.
        (_, Some(ended)) if ended.exit_code == Some(0) => return None,
        (_, Some(ended)) => (ended_words(ended), ended.finished_at),
        (Some(waiting), None) => match (waiting.reason.as_str(), before) {
            // Its turn has not come, or it is being made.
            ("" | "PodInitializing" | "ContainerCreating", None) => return None,
            // The message of the back-off names the Pod; what it did before says more.
            (_, Some(before)) => (ended_words(&before), before.finished_at),
            (reason, None) => (words(reason, &waiting.message), None),
        },
        // It runs again, after it has failed.
        (None, None) => {
            let before = before?;
            (ended_words(&before), before.finished_at)
        }
    };
    Some(InitFailure { container: clipped(&container.name).into(), words: words.into(), at })
}

fn ended_words(phase: &Phase) -> String {
    let status = phase.exit_code.map_or_else(|| "unknown exit status".to_owned(), |code| format!("exit status {code}"));
    let reason = if phase.reason.is_empty() { "Error" } else { &phase.reason };
    words(&format!("{reason}, {status}"), &phase.message)
}

/// The reason, and the last line of the message.
fn words(reason: &str, message: &str) -> String {
    let line = message.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    let mut text = clipped(reason).to_owned();
    if !line.is_empty() {
        text.push_str(": ");
        text.extend(line.chars().take(LONGEST_WORDS));
    }
    text
}
