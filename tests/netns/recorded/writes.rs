//! The recorded webhook on `nodes/status` that never answers: what a worker that has just joined behind it says, while its
//! Node shows nothing, and that all is delivered when the webhook is gone.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::api::Policy;
use super::{Node, Recording, codes, headline};
use crate::support::wait::within;

/// Longer than the hold-down, and than the longest pause between two tries here, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

fn conditions(node: &Value) -> Vec<(&str, &str, &str)> {
    let all = node["status"]["conditions"].as_array().into_iter().flatten();
    all.filter_map(|it| Some((it["type"].as_str()?, it["status"].as_str()?, it["reason"].as_str()?))).collect()
}

fn is_told_here_and_delivered_later(policy: Policy, phase: &str) -> Result<()> {
    let mut node = Node::recorded("14-slow-webhook", "before", "n1")?;
    let api = node.api()?;
    api.set_webhook(Some(policy));
    node.become_(&Recording::read("14-slow-webhook", phase, "n1")?)?;
    node.run_agent()?;
    within(SOON, || {
        let verdict = node.verdict()?;
        ensure!(codes(&verdict["findings"]) == ["ApiWriteBlocked"], "{verdict}");
        headline(&verdict["conditions"], "ApiWriteBlocked")
    })
    .context("it is told here")?;
    if policy == Policy::Fail {
        ensure!(conditions(&api.node()).is_empty(), "nothing gets there: {}", api.node());
    } else {
        within(SOON, || {
            let now = api.node();
            ensure!(conditions(&now).len() == 8, "{now}");
            headline(&now["status"]["conditions"], "ApiWriteBlocked")
        })
        .context("it is told there, late")?;
    }
    api.set_webhook(None);
    within(SOON, || {
        let now = api.node();
        let conditions = conditions(&now);
        ensure!(conditions.len() == 8 && conditions.iter().all(|it| it.1 == "False"), "{conditions:?}");
        let episodes = now["metadata"]["annotations"]["nodevitals.dev/episodes"].as_str().context("episodes")?;
        let episodes: Value = serde_json::from_str(episodes)?;
        ensure!(codes(&episodes) == ["ApiWriteBlocked"], "{episodes}");
        Ok(())
    })
    .context("all is delivered")?;
    node.ever_raised_are(&["ApiWriteBlocked"])
}

#[test]
fn incident_14_a_webhook_that_fails_writes() -> Result<()> {
    is_told_here_and_delivered_later(Policy::Fail, "during-b-fail")
}

#[test]
fn incident_14_a_webhook_that_delays_writes() -> Result<()> {
    is_told_here_and_delivered_later(Policy::Ignore, "during-a-ignore")
}
