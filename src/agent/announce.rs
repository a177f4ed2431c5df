//! Events about what begins and what is over on this node.

use std::sync::Arc;

use super::publish::{Kept, NodeNow};
use crate::api::Api;
use crate::config;
use crate::events::{Budget, Object, Occurrence, Reporter};
use crate::verdict::{Episodes, Raised, Transitions, Verdict, annotation, parse_findings};

/// Events that may go at once: a node on which more begins has one root, and the rest is explained by it.
const BURST: u32 = 10;

/// Turns verdicts into Events.
#[derive(Debug)]
pub(crate) struct Announcer {
    object: Object,
    transitions: Transitions,
    reporter: Arc<Reporter>,
}

impl Announcer {
    /// For this node, after what has been told of it; none where no Events are wanted.
    pub(super) fn new(node: &str, limits: config::Events, told: &[Raised]) -> Option<Self> {
        let budget = Budget { burst: BURST, per_hour: limits.per_hour, all_per_second: limits.cluster_per_second };
        let reporter = || Arc::new(Reporter::new("nodevitals-agent", node.to_owned(), budget));
        (limits.per_hour > 0).then(|| Announcer {
            object: Object::node(node),
            transitions: Transitions::after(told),
            reporter: reporter(),
        })
    }

    /// Starts to deliver them; answers with who does.
    pub(super) fn start(&self, ways: Vec<Api>) -> Arc<Reporter> {
        let reporter = Arc::clone(&self.reporter);
        tokio::spawn(async move { reporter.run(ways).await });
        Arc::clone(&self.reporter)
    }

    /// Tells what has changed, as one of so many nodes.
    pub(super) fn tell(&mut self, verdict: &Verdict, episodes: &Episodes, nodes: usize) {
        let changed = self.transitions.step(verdict, episodes);
        if changed.is_empty() {
            return;
        }
        let occurrence = |it: crate::verdict::Transition| Occurrence {
            object: self.object.clone(),
            reason: it.code,
            warning: it.began,
            message: it.message,
            since: it.since,
            at: it.at,
        };
        self.reporter.tell(changed.into_iter().map(occurrence), nodes);
    }
}

/// What has been told: by the Node, which is told a moment before; where it cannot be read, by the state file.
pub(super) fn told_before(node: Option<&NodeNow>, kept: Option<&Kept>) -> Vec<Raised> {
    match (node, kept) {
        (Some(node), _) => {
            node.annotations.get(annotation::FINDINGS).map(|json| parse_findings(json)).unwrap_or_default()
        }
        (None, Some(kept)) => kept.findings.clone(),
        (None, None) => Vec::new(),
    }
}
