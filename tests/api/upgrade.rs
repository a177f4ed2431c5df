//! The agent's image is changed: what every version so far kept is read by this one, and what a newer one kept is set aside, said
//! and not lost. A fault is there all the time, and goes in the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::agent::{jump, packet_filter, worker_with_chains};
use crate::bench::{Bench, Running, condition_of, soon};
use crate::support::wait::eventually;

const CODE: &str = "KubeProxyChainsUnhooked";
/// What comes and goes is over the later for it.
const OVER: Duration = Duration::from_secs(120);
/// A version of the agent, as the one that is tested knows nothing of it.
const OTHER: &str = "0.0.9-other";

/// What makes the form of another version of the state file that this one writes.
type Form = fn(&mut Value);

/// All forms of the state file that there were: its schema has always been 1, and what came later was added to it.
const FORMS: [(&str, Form); 4] = [
    ("the first", |kept| {
        forget(kept, "past");
        each_episode(kept, |it| forget(it, "seen"));
    }),
    ("with the boot before, the machine and the cordon", |kept| {
        forget(&mut kept["past"], "learned");
        each_episode(kept, |it| forget(it, "seen"));
    }),
    ("with what takes hours to learn", |kept| each_episode(kept, |it| forget(it, "seen"))),
    ("with when an episode was seen last", |_| ()),
];

fn forget(from: &mut Value, key: &str) {
    if let Some(object) = from.as_object_mut() {
        object.remove(key);
    }
}

fn each_episode(kept: &mut Value, change: impl FnMut(&mut Value)) {
    kept["episodes"].as_array_mut().into_iter().flatten().for_each(change);
}

/// So many days ago, as it is written.
fn days_ago(days: i64) -> String {
    let at = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * days);
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// When the fault began, and when the one before it began and was over.
struct Times {
    since: String,
    before: (String, String),
}

impl Times {
    /// A file that says that the fault has been there since then, for the third time, and what cured it the last time.
    fn lay_into(&self, kept: &mut Value) -> Result<()> {
        let (since, others) = (json!(self.since), json!([self.before.0, self.before.1]));
        kept["version"] = OTHER.into();
        kept["since"] = since.clone();
        let finding = kept["findings"].as_array_mut().context("findings")?.iter_mut().find(|it| it["code"] == CODE);
        let finding = finding.context("the finding")?;
        finding["since"] = since.clone();
        finding["times"] = 3.into();
        finding["lastCure"] = "processRestart".into();
        for condition in kept["conditions"].as_array_mut().context("conditions")? {
            let is_true = condition["status"] == "True";
            condition["lastTransitionTime"] = if is_true { since.clone() } else { others[0].clone() };
        }
        let episodes = kept["episodes"].as_array_mut().context("episodes")?;
        ensure!(episodes.len() == 1 && episodes[0]["cleared"].is_null(), "{episodes:?}");
        episodes[0]["since"] = since;
        episodes[0]["times"] = 3.into();
        let mut over = episodes[0].clone();
        over["since"] = others[0].clone();
        over["cleared"] = others[1].clone();
        over["seen"] = others[1].clone();
        over["times"] = 2.into();
        over["cure"] = "processRestart".into();
        episodes.insert(0, over);
        Ok(())
    }

    /// The Node says so.
    fn are_told(&self, bench: &Bench) -> Result<()> {
        let node = packet_filter(bench, "g1", "True", CODE)?;
        let condition = condition_of(&node, "PacketFilterProblem")?;
        ensure!(condition["lastTransitionTime"] == *self.since, "{condition}");
        ensure!(node["metadata"]["annotations"]["nodevitals.dev/since"] == *self.since, "{}", node["metadata"]);
        let findings = annotation(&node, "findings")?;
        let finding = findings.as_array().into_iter().flatten().find(|it| it["code"] == CODE).context("the finding")?;
        let told = (&finding["since"], &finding["times"], &finding["lastCure"]);
        ensure!(told == (&json!(self.since), &json!(3), &json!("processRestart")), "{finding}");
        let episodes = annotation(&node, "episodes")?;
        ensure!(episodes == json!([self.the_one_before()]), "{episodes}");
        Ok(())
    }

    /// As [`journal`] answers.
    fn journal(&self) -> [Value; 2] {
        let second = |time: &str| time.trim_end_matches('Z').to_owned();
        [json!([second(&self.before.0), 2, false, "processRestart"]), json!([second(&self.since), 3, true, null])]
    }

    fn the_one_before(&self) -> Value {
        json!({"code": CODE, "since": self.before.0, "cleared": self.before.1, "times": 2, "cure": "processRestart"})
    }
}

fn annotation(node: &Value, name: &str) -> Result<Value> {
    let text = node["metadata"]["annotations"][format!("nodevitals.dev/{name}")].as_str();
    Ok(serde_json::from_str(text.with_context(|| format!("no annotation {name}"))?)?)
}

fn read(file: &Path) -> Result<Value> {
    Ok(serde_json::from_str(&fs::read_to_string(file)?)?)
}

/// The journal on the agent's page: since when and how often, and whether it is over and by what.
fn journal(agent: &Running) -> Result<Vec<Value>> {
    let page: Value = serde_json::from_str(&agent.page("/findings")?)?;
    let episodes = page["episodes"].as_array().context("a journal")?.iter().filter(|it| it["code"] == CODE);
    let second = |time: &Value| time.as_str().map(|time| time.split(['.', 'Z']).next().map(str::to_owned));
    Ok(episodes.map(|it| json!([second(&it["since"]), it["times"], it["cleared"].is_null(), it["cure"]])).collect())
}

/// A worker with a fault, its agent's directory, and what an agent of this version keeps of the fault.
fn told_by_this_version(bench: &Bench) -> Result<(PathBuf, Value)> {
    worker_with_chains(bench, "g1")?;
    let state = bench.workspace().directory().join("state-of-g1");
    let agent = start(bench, &state)?;
    soon("the conditions", || packet_filter(bench, "g1", "False", "PacketFilterHealthy"));
    jump(bench, "-D")?;
    soon("it is raised", || packet_filter(bench, "g1", "True", CODE));
    let file = state.join("state.json");
    let kept = soon("it is kept", || {
        let kept = read(&file)?;
        let raised = kept["findings"].as_array().is_some_and(|all| all.iter().any(|it| it["code"] == CODE));
        ensure!(raised && kept["episodes"][0]["code"] == CODE, "{kept}");
        Ok(kept)
    });
    agent.end()?;
    Ok((state, kept))
}

fn start<'a>(bench: &'a Bench, state: &Path) -> Result<Running<'a>> {
    bench.agent("g1", "agent-g1", &["--state-dir", state.to_str().context("a path in UTF-8")?])
}

#[test]
fn what_other_versions_kept_is_read_or_set_aside_and_no_episode_is_lost() -> Result<()> {
    let bench = Bench::take()?;
    let (state, kept) = told_by_this_version(&bench)?;
    let file = state.join("state.json");
    ensure!(kept["schema"] == 1 && kept["past"]["learned"].is_object(), "another form, which belongs to FORMS: {kept}");
    let mut times = None;
    for (days, (form, shorten)) in (2..).zip(FORMS) {
        let expected = Times { since: days_ago(days), before: (days_ago(days + 2), days_ago(days + 1)) };
        let mut old = kept.clone();
        expected.lay_into(&mut old)?;
        shorten(&mut old);
        fs::write(&file, old.to_string())?;
        // A Node of which nobody has told anything: all that is told of before comes from the file.
        bench.admin("DELETE /api/v1/nodes/g1", &Value::Null)?;
        bench.add_node("g1", &json!({}))?;
        let agent = start(&bench, &state)?;
        soon(form, || expected.are_told(&bench));
        ensure!(agent.said("set aside").is_err(), "{form}");
        assert_eq!(journal(&agent)?, expected.journal(), "{form}");
        let now = soon("it is written as this version writes it", || {
            let now = read(&file)?;
            ensure!(now["version"] == env!("CARGO_PKG_VERSION"), "{form}: {now}");
            Ok(now)
        });
        ensure!(now["past"]["learned"].is_object() && now["episodes"][1]["since"] == *expected.since, "{form}: {now}");
        agent.end()?;
        times = Some(expected);
    }
    let expected = times.context("there are forms")?;

    // A newer version was tried, and the image is taken back.
    let mut newer = read(&file)?;
    newer["schema"] = 2.into();
    newer["episodes"] = json!({"of a form": "that nobody knows yet"});
    fs::write(&file, newer.to_string())?;
    let agent = start(&bench, &state)?;
    let line = soon("it says so", || agent.said("the state file is not understood and set aside"));
    ensure!(line["why"].to_string().contains("it has schema 2, and this version writes 1"), "{line}");
    assert_eq!(fs::read_to_string(state.join("state.json.schema-2"))?, newer.to_string(), "nothing of it is lost");
    soon("it is kept anew", || {
        let kept = read(&file)?;
        ensure!(kept["schema"] == 1, "{kept}");
        Ok(())
    });
    // It goes on from what the Node says.
    assert_eq!(journal(&agent)?, expected.journal());
    expected.are_told(&bench)?;
    jump(&bench, "-A")?;
    eventually("it is over", OVER, || packet_filter(&bench, "g1", "False", "PacketFilterHealthy"));
    let node = bench.node("g1")?;
    let episodes = annotation(&node, "episodes")?;
    let ended = &episodes[0];
    ensure!((&ended["since"], &ended["times"]) == (&json!(expected.since), &json!(3)), "{episodes}");
    ensure!(ended["cleared"].is_string() && episodes[1] == expected.the_one_before(), "{episodes}");
    agent.lives()
}
