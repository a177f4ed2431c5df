//! The program on a recorded worker: run once or for long, and what it says.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::super::api::Api;
use super::{API, Node, at_master, text};
use crate::machine::{Checked, program};
use crate::support::host::tail;
use crate::support::wait::within;

impl Node {
    /// Runs the program on it to its end, which comes.
    fn nodevitals(&self, arguments: &[&str]) -> Result<Output> {
        let (program, bounded) = (program(), ["timeout", "--signal=KILL", "300"]);
        let root = ["--host-root", text(self.root.path())?];
        self.host.exec(&[&bounded[..], &[text(&program)?], arguments, &root].concat())
    }

    /// `nodevitals check -o json` on it.
    pub fn check(&self) -> Result<Checked> {
        let output = self.nodevitals(&["check", "-o", "json"])?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(errors.is_empty(), "nodevitals check says: {errors}");
        let json = serde_json::from_slice(&output.stdout).with_context(|| format!("not JSON: {output:?}"))?;
        Ok(Checked { json, status: output.status.code() })
    }

    /// `nodevitals gather` on it, into this directory; what it said.
    pub fn gather(&self, to: &Path) -> Result<String> {
        let output = self.nodevitals(&["gather", "--output", text(to)?])?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// The same as an archive on standard output.
    pub fn gather_archive(&self) -> Result<Vec<u8>> {
        let output = self.nodevitals(&["gather", "--output", "-"])?;
        ensure!(output.status.success(), "{:?}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    }

    /// Starts `nodevitals standalone` on it, and waits for its first verdict.
    pub fn watch(&self) -> Result<()> {
        let program = program();
        let line = ["env", "NO_COLOR=1", text(&program)?, "standalone", "--host-root", text(self.root.path())?];
        self.host
            .spawn("nodevitals", &[&line[..], &["--config", text(&self.path("logs/nodevitals.yaml"))?]].concat())?;
        within(Duration::from_secs(20), || {
            let settling = self.verdict()?["settling"].clone();
            ensure!(settling == false, "settling: {settling}");
            Ok(())
        })
    }

    /// An API server with this Node, for [`Node::run_agent`].
    pub fn api(&self) -> Result<Api> {
        let listener = self.far.run(|| TcpListener::bind(("0.0.0.0", API)))?;
        Api::serve(self.tokio.handle(), listener, &self.name)
    }

    /// Starts `nodevitals agent` on it, and waits for its first verdict.
    pub fn run_agent(&self) -> Result<()> {
        let (program, own, state) = (program(), self.path("logs/agent.kubeconfig"), self.path("logs/state"));
        fs::write(&own, at_master(API))?;
        fs::create_dir_all(&state)?;
        let line = ["env", "NO_COLOR=1", text(&program)?, "agent", "--listen", "127.0.0.1:10580", "--node-name"];
        let options =
            [&self.name, "--map-interval", "1", "--host-root", text(self.root.path())?, "--kubeconfig", text(&own)?];
        let config = self.path("logs/nodevitals.yaml");
        let files = ["--state-dir", text(&state)?, "--config", text(&config)?];
        self.host.spawn("nodevitals", &[&line[..], &options[..], &files[..]].concat())?;
        within(Duration::from_secs(20), || self.verdict().map(drop))
    }

    /// The same where an aggregator tells this map of the cluster; waits until the agent has it, and has looked at
    /// everything.
    pub fn follow(&self, map: &Value) -> Result<Api> {
        let api = self.api()?;
        api.set_map(map);
        self.run_agent()?;
        let nodes = map["nodes"].as_array().map_or(0, Vec::len);
        within(Duration::from_secs(40), || {
            let page = self.page()?;
            ensure!(page["cluster"]["nodes"] == nodes, "the map: {}", page["cluster"]);
            ensure!(page["verdict"]["settling"] == false, "settling: {}", page["verdict"]);
            Ok(())
        })
        .with_context(|| tail(&self.host.log("nodevitals")))?;
        Ok(api)
    }

    fn page(&self) -> Result<Value> {
        let page = self.run(&["curl", "-sf", "-m", "5", "http://127.0.0.1:10580/findings"])?;
        Ok(serde_json::from_str(&page)?)
    }

    /// What the agent believes now.
    pub fn verdict(&self) -> Result<Value> {
        let verdict = self.page()?["verdict"].take();
        ensure!(!verdict.is_null(), "nothing is judged yet");
        Ok(verdict)
    }

    /// The codes of what counts now, worst first.
    pub fn codes(&self) -> Result<Vec<String>> {
        Ok(codes(&self.verdict()?["findings"]))
    }

    /// Every finding that was ever raised since [`Node::watch`]: lines of its log.
    pub fn ever_raised(&self) -> Result<Vec<String>> {
        let log = fs::read_to_string(self.host.log("nodevitals"))?;
        Ok(log.lines().filter(|line| line.contains("finding raised")).map(str::to_owned).collect())
    }

    /// Requires that each of these findings was raised once since [`Node::watch`], in any order, and no other.
    pub fn ever_raised_are(&self, codes: &[&str]) -> Result<()> {
        let lines = self.ever_raised()?;
        // As JSON or as text.
        let code = |line: &String| {
            let (_, after) = line.split_once("code")?;
            after.trim_start_matches(['"', ':', '=']).split('"').next().map(str::to_owned)
        };
        let mut raised: Vec<Option<String>> = lines.iter().map(code).collect();
        let mut wanted: Vec<Option<String>> = codes.iter().map(|code| Some((*code).to_owned())).collect();
        raised.sort();
        wanted.sort();
        ensure!(raised == wanted, "expected {codes:?}, and these were raised: {lines:#?}");
        Ok(())
    }
}

/// The codes of a list of findings.
pub fn codes(findings: &Value) -> Vec<String> {
    findings.as_array().into_iter().flatten().filter_map(|finding| Some(finding["code"].as_str()?.to_owned())).collect()
}

/// Requires that a verdict has this headline, which its area tells too, and that no other condition tells of a problem.
pub fn headline(conditions: &Value, code: &str) -> Result<()> {
    let conditions = conditions.as_array().context("conditions")?;
    let told: Vec<&Value> = conditions.iter().filter(|it| it["status"] != "False").collect();
    let all = told.iter().all(|it| it["status"] == "True" && it["reason"] == code);
    // The Node has their types, the agent's own page their kinds.
    let roll_up = told.iter().any(|it| it["type"] == "WorkerProblem" || it["kind"] == "WorkerProblem");
    ensure!(told.len() == 2 && all && roll_up, "not {code} alone: {told:#?}");
    Ok(())
}
