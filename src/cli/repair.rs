//! `nodevitals repair`: the runbook's ladder on one worker, guided.

mod act;
mod evidence;
mod ladder;
mod look;
mod memory;
mod plan;
mod situation;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use super::explain::Book;
use super::terminal::{self, Paint, escaped, note};
use super::{BAD_USAGE, Output};
use crate::aggregator::name;
use crate::api::{Api, Server};
use crate::events::{Object, Occurrence, tell_once};
use crate::verdict::clip;
use evidence::Evidence;
use look::Look;
use plan::{Plan, Verdict};
use situation::Situation;

/// Exit statuses beside 0 and 64.
const FAILED: u8 = 1;
const WAITS: u8 = 2;
const REFUSED: u8 = 3;
/// As a shell says of a program that was ended by SIGINT.
const INTERRUPTED: u8 = 130;
/// More steps than any ladder has.
const MOST_STEPS: usize = 8;
/// Accounts of this product, which have no rights for this and are not to get any.
const OWN_ACCOUNTS: [&str; 2] = [":nodevitals-agent", ":nodevitals-aggregator"];

/// Options of `nodevitals repair`; its texts are those of the command.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The worker, as `kubectl get nodes` names it
    #[arg(value_name = "NODE", value_parser = name)]
    node: String,

    /// Take the steps that Kubernetes can take, one after the other, until the worker is cured
    #[arg(short, long)]
    yes: bool,

    /// Bundle of `nodevitals gather` of this worker, taken since this began
    #[arg(long, value_name = "PATH")]
    evidence: Option<PathBuf>,

    /// The owner of the workload declines evidence: a step may destroy what tells the cause. It is written down
    #[arg(long, conflicts_with = "evidence")]
    no_evidence: bool,

    /// Seconds that a step has to cure the worker before the next one is looked at
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=3600))]
    wait: u32,

    /// How to print it; json and yaml hold everything
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,

    #[command(flatten)]
    server: Server,

    /// Namespace in which NodeVitals runs
    #[arg(long, value_name = "NAMESPACE", default_value = "nodevitals", value_parser = name)]
    namespace: String,
}

/// The answer for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    api_version: &'static str,
    kind: &'static str,
    node: &'a str,
    platform: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<text::Trouble<'a>>,
    /// The live answers.
    now: Vec<text::Answer>,
    #[serde(flatten)]
    plan: &'a Plan,
    /// What was done in this run.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    done: &'a [String],
}

pub(super) async fn run(options: &Options) -> ExitCode {
    let api = match options.server.connect().await {
        Ok(api) => api,
        Err(error) => return super::failed(&error),
    };
    tokio::select! {
        status = walk(&api, options) => ExitCode::from(status),
        _ = tokio::signal::ctrl_c() => {
            if options.yes {
                note(&format!("interrupted; {}", act::left(&api.unary, &options.node).await));
            }
            ExitCode::from(INTERRUPTED)
        }
    }
}

/// Looks, and with `--yes` takes steps and looks again, until there is none to take.
async fn walk(api: &Api, options: &Options) -> u8 {
    let Options { node, namespace, .. } = options;
    if let Some(user) = look::who(&api.unary).await
        && OWN_ACCOUNTS.iter().any(|account| user.ends_with(account))
    {
        note(&format!(
            "{user} is an account of NodeVitals, which repairs nothing: use your own kubeconfig (--kubeconfig)"
        ));
        return BAD_USAGE;
    }
    let evidence = match &options.evidence {
        Some(path) => evidence::read(path),
        None if options.no_evidence => Evidence::Declined,
        None => Evidence::None,
    };
    let book = Book::open();
    let patience = Duration::from_secs(options.wait.into());
    let mut done: Vec<String> = Vec::new();
    let mut begun_for: Option<String> = None;
    for _ in 0..MOST_STEPS {
        let look = match look::at(api, namespace, node, &evidence).await {
            Ok(Some(look)) => look,
            Ok(None) => {
                note(&format!("there is no worker named {node}; `nodevitals report --all` lists them"));
                return BAD_USAGE;
            }
            Err(why) => {
                note(&escaped(&why));
                return FAILED;
            }
        };
        let plan = plan::plan(&look.situation, &book);
        // What turns out to be something else on the way is looked at by a person before it is repaired as well.
        let code = look.situation.root.as_ref().map(|root| &root.code);
        let same = plan.ladder == ladder::END || begun_for.is_none() || begun_for.as_ref() == code;
        let next = plan.next.filter(|_| options.yes && same && plan.verdict == Verdict::Ready);
        let Some(key) = next else {
            if options.yes && plan.verdict == Verdict::Refused {
                tell(api, &look, "RepairRefused", true, &plan.sentence).await;
            }
            return end(options, &look, &plan, &done);
        };
        begun_for = begun_for.or_else(|| code.cloned());
        note(&format!("{node}: {key} ..."));
        match take(api, &look, key, patience).await {
            Some(text) => done.push(text),
            None => return FAILED,
        }
    }
    note("more steps than any ladder has: something undoes them");
    FAILED
}

/// Takes one step, and tells what came of it; none where it failed.
async fn take(api: &Api, look: &Look, key: &str, patience: Duration) -> Option<String> {
    let node = &look.situation.node.name;
    match act::step(&api.unary, look, key, patience).await {
        Ok((outcome, text)) => {
            let text = format!("{key}: {}: {}", outcome.as_str(), escaped(&text));
            note(&format!("{node}: {text}"));
            let (reason, warning) = if key == "uncordon" { ("RepairEnded", false) } else { outcome.event() };
            tell(api, look, reason, warning, &text).await;
            Some(text)
        }
        Err(why) => {
            let text = format!("{key} failed: {}", escaped(&why));
            note(&text);
            tell(api, look, "RepairStepFailed", true, &text).await;
            note(&act::left(&api.unary, node).await);
            None
        }
    }
}

/// Tells it where people look: by an Event on the Node. A repair does not depend on whether it may.
async fn tell(api: &Api, look: &Look, reason: &str, warning: bool, text: &str) {
    let Situation { node, root, now, .. } = &look.situation;
    let mut object = Object::node(&node.name);
    look.node["metadata"]["uid"].as_str().unwrap_or_default().clone_into(&mut object.uid);
    let of = root.as_ref().map(|root| format!(" ({})", root.code)).unwrap_or_default();
    let message = clip(&format!("nodevitals repair{of}: {text}"));
    let what = Occurrence { object, reason: reason.to_owned(), warning, message, since: *now, at: *now };
    if let Err(why) = tell_once(api, "nodevitals-repair", what).await {
        note(&format!("no Event on the Node tells of it: {}", escaped(&why)));
    }
}

/// Prints the plan as it is in the end.
fn end(options: &Options, look: &Look, plan: &Plan, done: &[String]) -> u8 {
    let situation = &look.situation;
    for line in &look.notes {
        note(&escaped(line));
    }
    let document = || Document {
        api_version: crate::aggregator::report::API_VERSION,
        kind: "RepairPlan",
        node: &situation.node.name,
        platform: situation.node.platform.name,
        trouble: text::trouble(situation),
        now: text::answers(situation),
        plan,
        done,
    };
    match options.output.write(document, || text::render(situation, plan, done, Paint::stdout())) {
        Ok(text) => terminal::print(&text),
        Err(error) => {
            note(&format!("cannot write the plan: {error:#}"));
            return FAILED;
        }
    }
    match plan.verdict {
        Verdict::Healthy => 0,
        Verdict::Ready | Verdict::Yours => WAITS,
        Verdict::Refused => REFUSED,
    }
}
