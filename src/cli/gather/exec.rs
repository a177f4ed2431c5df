//! What a worker itself sees: its own `nodevitals gather` in the pod of its agent, run by kubectl, as an archive on its standard
//! output.
//!
//! The machine that answers may be anything by now. So its answer is bounded in time and length, nothing but regular files with
//! a name inside the bundle is taken of it, never in the place of what the API server said, and all of it is redacted again.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::agent::{self, Gatherer};
use crate::api::Server;
use crate::bundle::{Bundle, FACTS, Item, MANIFEST, Manifest, SCHEMA, SUMMARY, whole_files};

/// A node's own gathering takes so long at most: each of its pieces has a deadline.
const DEADLINE: Duration = Duration::from_secs(150);
/// No longer archive is taken, in bytes.
const LONGEST: u64 = 64 << 20;
/// So many pieces are taken of a node.
const MOST: usize = 500;
/// No longer name or reason is taken, in characters.
const LONGEST_TEXT: usize = 250;

/// The agent's pod on a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Agent {
    namespace: String,
    pod: String,
    container: String,
    port: u64,
    host_root: String,
}

impl Agent {
    /// The one among these pods.
    pub(super) fn among(pods: &Value, namespace: &str) -> Option<Agent> {
        let is_agent = |pod: &&Value| {
            let labels = &pod["metadata"]["labels"];
            pod["metadata"]["namespace"] == namespace
                && labels["app.kubernetes.io/name"] == "nodevitals"
                && labels["app.kubernetes.io/component"] == "agent"
        };
        let pod = pods["items"].as_array()?.iter().find(is_agent)?;
        let container = &pod["spec"]["containers"][0];
        let arguments = container["args"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let arguments: Vec<&str> = arguments.flat_map(|argument| argument.splitn(2, '=')).collect();
        let root =
            arguments.iter().position(|argument| *argument == "--host-root").and_then(|at| arguments.get(at + 1));
        Some(Agent {
            namespace: namespace.to_owned(),
            pod: pod["metadata"]["name"].as_str()?.to_owned(),
            container: container["name"].as_str().unwrap_or("agent").to_owned(),
            port: container["ports"][0]["containerPort"].as_u64().unwrap_or(agent::PORT.into()),
            host_root: (*root.unwrap_or(&"/host")).to_owned(),
        })
    }

    /// Its page of findings, by way of the API server.
    pub(super) fn page(&self) -> String {
        let Agent { namespace, pod, port, .. } = self;
        format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/findings")
    }

    /// Who is asked, for people.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.namespace, self.pod)
    }

    /// Lets the node gather, and takes what it hands out into the bundle. An error says why there are no facts.
    pub(super) async fn gather(
        &self,
        server: &Server,
        gatherer: &mut Gatherer,
        to: &mut Bundle,
        manifest: &mut Manifest,
    ) -> Result<(), String> {
        let mut argv: Vec<OsString> = vec!["kubectl".into()];
        argv.extend(server.for_kubectl());
        let exec = ["exec", "--namespace", &self.namespace, &self.pod, "--container", &self.container, "--"];
        argv.extend(exec.map(OsString::from));
        argv.extend(["nodevitals", "gather", "--host-root", &self.host_root, "--output", "-"].map(OsString::from));
        let answer = agent::run_program(&argv, LONGEST, DEADLINE).await?;
        let damage = take_in(&answer.bytes, gatherer, to, manifest);
        match (manifest.has(FACTS), answer.cut.or(damage)) {
            (true, _) => Ok(()),
            (false, why) => Err(format!("its archive holds no {FACTS}: {}", why.unwrap_or_default())),
        }
    }
}

/// Takes the pieces of an archive into a bundle. Answers with what is wrong with the archive; what is whole before it is taken.
fn take_in(archive: &[u8], gatherer: &mut Gatherer, to: &mut Bundle, manifest: &mut Manifest) -> Option<String> {
    let (files, damage) = whole_files(archive);
    let said = files.iter().find(|(name, _)| name == MANIFEST);
    let said = said.and_then(|(_, json)| serde_json::from_slice::<Manifest>(json).ok());
    let said = said.filter(|said| said.schema <= SCHEMA).map(|said| said.items).unwrap_or_default();
    for (name, content) in files.into_iter().take(MOST) {
        if name == MANIFEST || name == SUMMARY || manifest.has(&name) || !is_inside(&name) {
            continue;
        }
        let told = said.iter().find(|item| item.name == name).cloned();
        let told = told.unwrap_or_else(|| Item { of: "the node".to_owned(), name, ..Item::default() });
        let added = gatherer.add(told.clone(), Instant::now(), Ok(content.to_vec()), to, manifest);
        let (cut, millis) = (told.cut.map(short), told.millis);
        let redacted = added.redacted.saturating_add(told.redacted);
        manifest.put(Item { key: short(told.key), of: short(told.of), cut, millis, redacted, ..added });
    }
    for missing in said.into_iter().filter(|item| item.failed.is_some()).take(MOST) {
        if !manifest.has(&missing.name) && is_inside(&missing.name) {
            let failed = missing.failed.map(short);
            manifest.put(Item { failed, key: short(missing.key), of: short(missing.of), bytes: 0, ..missing });
        }
    }
    damage
}

/// Whether a file of this name can be nowhere but below the bundle's directory.
fn is_inside(name: &str) -> bool {
    name.len() <= LONGEST_TEXT
        && !name.contains(char::is_control)
        && name.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

fn short(text: String) -> String {
    if text.len() <= LONGEST_TEXT { text } else { text.chars().take(LONGEST_TEXT).collect() }
}

#[cfg(test)]
#[path = "exec_tests.rs"]
mod tests;
